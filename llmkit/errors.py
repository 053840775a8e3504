"""Every way a command can end, as an exception with its exit status (CONTRACT section 1).

A user's mistake raises one of these with one complete message; the command line prints it without a traceback and
exits with `status`. Anything else that escapes is a bug of llmkit (status 1).
"""

from __future__ import annotations

from llmkit.secrets import redact


class LlmkitError(Exception):
    """Base: one message that says what is wrong, where, and what to do instead."""

    status = 1
    code = "internal"

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None, key: str | None = None):
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.key = None if key is None else redact(key)

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        parts = [part for part in (where, self.key) if part]
        return ": ".join([*parts, self.message])

    def as_json(self) -> dict[str, object]:
        """The object printed under `error` by `--json`."""
        return {"code": self.code, "message": self.message, "file": self.file, "line": self.line, "key": self.key}


class RecipeError(LlmkitError):
    """Usage or recipe: unknown key, wrong type, keys that contradict each other, another run's directory."""

    status, code = 2, "recipe"


class DataError(LlmkitError):
    """Input data that cannot be used: missing, unreadable, without the columns, too many bad records, changed."""

    status, code = 3, "data"


class ModelError(LlmkitError):
    """A model or tokenizer that cannot be loaded, or does not fit the task."""

    status, code = 4, "model"


class CheckpointError(ModelError):
    """A checkpoint whose bytes are not those its manifest names."""

    code = "checkpoint"


class ConditionFailed(LlmkitError):
    """A `fail_if` condition held."""

    status, code = 5, "fail_if"


class EnvironmentFailure(LlmkitError):
    """The machine: lock held by another, disk, permission, memory, a lost process."""

    status, code = 6, "environment"


class Diverged(LlmkitError):
    """Training met `max_nonfinite_steps` losses or gradients in a row that are not finite."""

    status, code = 7, "diverged"


class Stopped(BaseException):
    """A signal ended the command. `saved` tells 75 (run again to go on) from 128 + signal (nothing needed saving).

    It is no `Exception`: it may be raised anywhere, and a library must not take it for a failure of its own.
    """

    def __init__(self, signum: int, *, saved: bool, message: str):
        super().__init__(message)
        self.message = message
        self.signum = signum
        self.status = 75 if saved else 128 + signum
