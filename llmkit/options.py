"""What was said on the command line beside the recipe: one frozen value that every command function takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """`command` is the subcommand's name. Fields that a command has no option for keep their defaults.

    num_processes: processes on this machine, None: one. model: a directory or Hub id instead of the run's own model
    (evaluate, generate). prompts, input, output, interactive: generate only; input "-" is stdin.
    """

    command: str
    recipe_path: Path
    overrides: tuple[str, ...] = ()
    dry_run: bool = False
    overwrite: bool = False
    num_processes: int | None = None
    json: bool = False
    trust_remote_code: bool = False
    model: str | None = None
    prompts: tuple[str, ...] = ()
    input: str | None = None
    output: Path | None = None
    interactive: bool = False
