"""Around a command: quiet libraries before it, and after it one message and one exit status, whatever happened."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from llmkit import handover
from llmkit.errors import EnvironmentFailure, LlmkitError, RecipeError, Stopped
from llmkit.options import Options
from llmkit.report.console import Console
from llmkit.secrets import redact

if TYPE_CHECKING:
    from llmkit.recipe.sections import Recipe

MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE)
BROKEN_PIPE = 128 + signal.SIGPIPE
TRACEBACK = "LLMKIT_TRACEBACK"


class Interrupted(BaseException):
    """A signal before a command has taken signals over: nothing needed saving."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def quiet_libraries(recipe: Recipe, options: Options) -> None:
    """Environment of the libraries, before any of them is imported: no network, no telemetry, no noise.

    The Hub is reachable only where the recipe, or --model, names one of its ids. What the user has set stays.
    """
    settings = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DATASETS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # kernels that oneDNN and its binding keep: 1,024 by default, some megabytes each where lengths differ
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
        "LRU_CACHE_CAPACITY": "16",
    }
    if not names_hub(recipe, options):
        settings |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not os.environ.get(TRACEBACK):
        import logging
        import warnings

        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)


def names_hub(recipe: Recipe, options: Options) -> bool:
    """Whether anything in the recipe, or --model, is an id of the Hub."""
    from llmkit.recipe.paths import is_hub_id

    models = (recipe.model.name_or_path, recipe.tokenizer.name_or_path, options.model)
    if any(name is not None and is_hub_id(name) for name in models):
        return True
    for source in (*recipe.data.train, *recipe.data.validation, *recipe.data.test):
        paths = source.path if isinstance(source.path, list) else [source.path]
        if any(isinstance(path, str) and is_hub_id(path, data=True) for path in paths):
            return True
    return False


def failure(error: BaseException, console: Console) -> int:
    """Says what ended the command, and gives its exit status."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return BROKEN_PIPE  # typer makes exit status 1 of it
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if os.environ.get(TRACEBACK):
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    told = as_told(error)
    if told.message and not handover.leave(told):
        rank = int(os.environ.get("RANK", "0") or 0)
        if rank and told.code == "stopped":
            return told.status  # a signal goes to all, and rank 0 says what it did
        if rank:
            handover.hold_back()
        try:
            console.fail(f"rank {rank}: {told}" if rank else told)
        except BrokenPipeError:
            return told.status
        if console.json and not rank:
            _print_error(told, console)
    return told.status


def _print_error(error: LlmkitError, console: Console) -> None:
    try:
        console.result({"error": error.as_json()})
    except BrokenPipeError:
        return
    except OSError as broken:
        console.fail(f"cannot write the error to stdout: {broken.strerror}")


def as_told(error: BaseException) -> LlmkitError:
    """Any exception as one of ours, with its message and status."""
    if isinstance(error, LlmkitError):
        return error
    if isinstance(error, Stopped):
        return _with_status(error.status, error.message, "stopped")
    if isinstance(error, BrokenPipeError):
        return _with_status(BROKEN_PIPE, "the reader of the output has gone", "stopped")
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        counted = signum if signum == signal.SIGINT else signal.SIGTERM
        return _with_status(128 + counted, f"interrupted by {signal.Signals(signum).name}", "stopped")
    if _is_usage(error):
        return _usage(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        detail = f": {str(error).splitlines()[0]}" if str(error) else ""
        return EnvironmentFailure(
            f"out of memory{detail}; a smaller training.per_device_train_batch_size or data.max_length needs less"
        )
    if isinstance(error, OSError) and error.errno in MACHINE:
        place = f" {error.filename}" if error.filename else ""
        return EnvironmentFailure(f"cannot use{place or ' a file'}: {error.strerror or error}")
    lines = str(error).strip().splitlines()
    first = f": {lines[0]}" if lines else ""
    return LlmkitError(
        f"internal error: {type(error).__name__}{first} (this is a bug of llmkit; {TRACEBACK}=1 shows where)"
    )


def _with_status(status: int, message: str, code: str) -> LlmkitError:
    told = LlmkitError(message)
    told.status, told.code = status, code
    return told


def _click_exception() -> type[Exception]:
    """click's base of usage errors, from click or from the copy inside typer, whichever this typer uses."""
    import typer

    return next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _is_usage(error: BaseException) -> bool:
    import typer

    return isinstance(error, (_click_exception(), typer.Abort))


def _usage(error: BaseException) -> LlmkitError:
    import typer

    if isinstance(error, typer.Abort):
        return _with_status(128 + signal.SIGINT, "interrupted", "stopped")
    message = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    hint = f" (try: {context.command_path} --help)" if context is not None else ""
    return _with_status(RecipeError.status, message + hint, "usage")
