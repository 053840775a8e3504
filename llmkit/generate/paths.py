"""Checks of --input and --output before anything heavy is imported. Torch-free."""

from __future__ import annotations

import difflib
from pathlib import Path

from llmkit.errors import DataError, RecipeError


def check_paths(source: str, output: Path | None) -> None:
    """Raises before any work: DataError for the input, RecipeError for the output."""
    if source != "-" and not Path(source).is_file():
        raise DataError(_missing(Path(source)), file=source)
    if output is None:
        return
    if not output.absolute().parent.is_dir():
        raise RecipeError(f"--output {output}: the directory {output.absolute().parent} does not exist")
    if output.is_dir():
        raise RecipeError(f"--output {output}: is a directory; expected a file")
    if source != "-" and output.exists() and output.samefile(source):
        raise RecipeError(f"--output {output}: is the input file itself")


def _missing(path: Path) -> str:
    if path.is_dir():
        return "is a directory; expected a file with a JSON object a line"
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return "no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
