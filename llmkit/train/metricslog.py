"""`metrics.jsonl`: a line an event, written through at once, cut back to the checkpoint when a run goes on."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from llmkit.files import environment_errors, parse_json, write_atomic

Event = dict[str, Any]


class MetricsLog:
    """Appends events; a reader of the file sees each line once it is logged. A crash tears the last one at most."""

    def __init__(self, path: Path):
        self.path = path
        self._handle: int | None = None
        self._open()

    def _open(self) -> None:
        with environment_errors(self.path, "open"):
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def cut_back(self, step: int) -> None:
        """Drops every event after `step`: the run has gone back there."""
        self.close()
        cut_back(self.path, step)
        self._open()

    def write(self, event: Event) -> None:
        """One event as one line; NaN and infinities become null. Raises EnvironmentFailure."""
        assert self._handle is not None, "the log is closed"
        line = memoryview((json.dumps(finite(event), ensure_ascii=False, allow_nan=False) + "\n").encode())
        with environment_errors(self.path):
            while line:
                line = line[os.write(self._handle, line) :]

    def sync(self) -> None:
        """Forces the lines so far to the disk: before a checkpoint says that they happened."""
        assert self._handle is not None, "the log is closed"
        with environment_errors(self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        """Forces the file to the disk and closes it; a second call does nothing."""
        if self._handle is not None:
            with environment_errors(self.path):
                os.fsync(self._handle)
                os.close(self._handle)
            self._handle = None


def finite(value: Any) -> Any:
    """The value with everything that JSON has no number for replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read(path: Path) -> list[Event]:
    """All whole events of the file, in order; nothing where it is absent. A torn last line is left out."""
    return [event for _, event in _read(path)]


def _read(path: Path) -> list[tuple[bytes, Event]]:
    """(line, event) of every line that is one."""
    if not path.exists():
        return []
    with environment_errors(path, "read"):
        lines = path.read_bytes().split(b"\n")
    events = []
    for line in lines[:-1]:  # what follows the last newline was never finished
        try:
            event = parse_json(line)
        except ValueError:  # torn by a crash, then appended to
            continue
        if isinstance(event, dict) and isinstance(event.get("step", 0), int):
            events.append((line, event))
    return events


def cut_back(path: Path, step: int) -> None:
    """Drops every event after `step`, and any torn line: the run goes on from the checkpoint of `step`. Atomic.

    A run that begins anew, without any checkpoint, gives -1: events of step 0 go too.
    """
    if not path.exists():
        return
    kept = [line for line, event in _read(path) if "step" not in event or event["step"] <= step]
    write_atomic(path, b"".join(line + b"\n" for line in kept))
