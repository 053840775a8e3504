"""The `llmkit` program: thin commands. All that is heavy is imported inside them: help and mistakes are instant."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkit import __version__
from llmkit.options import Options
from llmkit.outcome import Interrupted, failure, quiet_libraries
from llmkit.report.console import Console
from llmkit.signals import STOPPING

app = typer.Typer(
    name="llmkit",
    help="Pretrain and fine-tune language models from one strict YAML recipe.",
    epilog="Exit status: 0 done, 1 internal error, 2 usage or recipe, 3 data, 4 model or checkpoint, 5 fail_if, "
    "6 environment, 7 diverged, 75 stopped after saving (run it again), 130 or 143 interrupted.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one recipe key by dotted path; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, report, and write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start afresh: delete what llmkit made in output_dir.")]
NumProcesses = Annotated[
    int | None, typer.Option("--num-processes", min=1, metavar="N", help="Processes on this machine. Default: one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON object on stdout.")]
RemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Let a model of the Hub run its own code; the recipe must say so too."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="DIR_OR_ID", help="Another model than the run's own.")
]


def _run(command: Callable[[Any, Options, Console], dict[str, Any]], options: Options) -> None:
    """Loads the recipe, runs the command, prints its result."""
    from llmkit.errors import LlmkitError
    from llmkit.recipe.load import load_recipe, locate
    from llmkit.recipe.resolve import resolve

    recipe = resolve(
        load_recipe(
            options.recipe_path,
            options.overrides,
            command=options.command,
            num_processes=options.num_processes,
            trust_remote_code=options.trust_remote_code,
        )
    )
    quiet_libraries(recipe, options)
    try:
        _finish(command(recipe, options, _console(options.json)), options.json)
    except LlmkitError as error:
        if error.key is not None and error.file is None and not error.key.startswith("--"):
            error.file, error.line = locate(options.recipe_path, options.overrides, error.key)
        raise


def _console(json: bool) -> Console:
    return Console(json=json, quiet=_rank() > 0)


def _rank() -> int:
    """This process's rank in whatever launch it is part of. Only rank 0 speaks."""
    return int(os.environ.get("RANK", "0") or 0)


def _finish(result: dict[str, Any], json: bool) -> None:
    if json and _rank() == 0:
        Console(json=True).result(result)


@app.command()
def preprocess(
    recipe: RecipePath,
    set_: Overrides = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = None,
    json: Json = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Clean, tokenise and pack the data into a prepared dataset."""

    def command(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        from llmkit.data.command import preprocess as run

        return run(loaded, options, console)

    _run(
        command,
        Options("preprocess", recipe, tuple(set_ or ()), dry_run, overwrite, num_processes, json, trust_remote_code),
    )


@app.command()
def pretrain(
    recipe: RecipePath,
    set_: Overrides = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = None,
    json: Json = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train on unlabelled text, from scratch or from given weights. Run again, it goes on where it was."""
    _run(
        _train,
        Options("pretrain", recipe, tuple(set_ or ()), dry_run, overwrite, num_processes, json, trust_remote_code),
    )


@app.command()
def finetune(
    recipe: RecipePath,
    set_: Overrides = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = None,
    json: Json = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train on supervised, instruction or preference data. Run again, it goes on where it was."""
    _run(
        _train,
        Options("finetune", recipe, tuple(set_ or ()), dry_run, overwrite, num_processes, json, trust_remote_code),
    )


def _train(recipe: Any, options: Options, console: Console) -> dict[str, Any]:
    from llmkit.train.command import train

    return train(recipe, options, console)


@app.command()
def evaluate(
    recipe: RecipePath,
    set_: Overrides = None,
    model: ModelOption = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = None,
    json: Json = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Measure the run's model: metrics with their intervals, and the conditions of fail_if."""

    def command(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        from llmkit.evaluate.command import evaluate as run

        return run(loaded, options, console)

    _run(
        command,
        Options(
            "evaluate",
            recipe,
            tuple(set_ or ()),
            dry_run,
            overwrite,
            num_processes,
            json,
            trust_remote_code,
            model=model,
        ),
    )


@app.command()
def generate(
    recipe: RecipePath,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; repeatable.")] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE.jsonl|-", help="JSON lines with prompt or messages; - is stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where the lines of --input go. Default: stdout.")
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Chat, or complete what is typed.")] = False,
    set_: Overrides = None,
    model: ModelOption = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = None,
    json: Json = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Text from the run's model: for prompts, for a file of them, or in a conversation."""
    if sum((bool(prompt), input_ is not None, interactive)) != 1:
        raise typer.BadParameter("exactly one of --prompt, --input and --interactive is needed")
    if output is not None and input_ is None:
        raise typer.BadParameter("--output goes with --input")

    def command(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        from llmkit.generate.command import generate as run

        return run(loaded, options, console)

    _run(
        command,
        Options(
            "generate",
            recipe,
            tuple(set_ or ()),
            dry_run,
            overwrite,
            num_processes,
            json,
            trust_remote_code,
            model=model,
            prompts=tuple(prompt or ()),
            input=input_,
            output=output,
            interactive=interactive,
        ),
    )


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run, checkpoint, model or prepared dataset.")],
    json: Json = False,
) -> None:
    """Prove from disk that every byte is what the manifests say. Names a bad file; exits 3 (data) or 4 (model)."""
    from llmkit.verify import verify as run

    _finish(run(directory, _console(json)), json)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run that has been evaluated.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, on the same data.")],
    json: Json = False,
) -> None:
    """Two evaluated runs, item by item, with paired statistics."""
    from llmkit.evaluate.compare import compare as run

    _finish(run(a, b, _console(json)), json)


@app.command()
def schema() -> None:
    """The JSON Schema of the recipe, for editors."""
    import json

    from llmkit.recipe.schema import schema as make

    Console().result(json.dumps(make(), ensure_ascii=False, indent=2))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"llmkit {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pretrain and fine-tune language models from one strict YAML recipe."""


def run(arguments: list[str]) -> int:
    """The exit status of one command line. Never raises."""
    json = "--json" in arguments[: arguments.index("--")] if "--" in arguments else "--json" in arguments
    console = Console(json=json)
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == 128 + signal.SIGINT:  # what typer makes of a KeyboardInterrupt
            return failure(KeyboardInterrupt(), console)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BaseException as error:  # noqa: BLE001 - the one place that turns whatever happened into a message and a status
        return failure(error, console)


def _interrupt(signum: int, frame: object) -> None:
    """Until a command takes signals over: end here, by an exception that runs every cleanup and that no second signal
    cuts short; but a second interrupt ends at once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
    raise Interrupted(signum)


def main() -> None:
    """Entry point of `llmkit` and `python -m llmkit`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in STOPPING:
        signal.signal(number, _interrupt)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        os._exit(code)  # a rank's teardown can wait for gloo's threads for ever (see train.build.wrap)
    sys.exit(code)
