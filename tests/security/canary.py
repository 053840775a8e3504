"""A canary: an audit hook that hears whatever a payload would have to do, and a file that a payload would make."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
SECRET_FILES = ("/etc/passwd", "/etc/shadow", "/dev/zero", "/dev/random")
TOKEN = "canary-4f1c9d7e2b"
"""In the environment as CANARY_TOKEN, and in files that nobody is to read."""

_heard: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is None:
        return
    if event in FORBIDDEN or (event == "open" and str(arguments[0]) in SECRET_FILES):
        _heard.append(f"{event} {arguments!r}"[:200])
    elif event == "import" and "evil" in str(arguments[0]):
        _heard.append(f"import {arguments[0]}")


sys.addaudithook(_hook)


@contextmanager
def canary(place: Path) -> Iterator[Path]:
    """Hears what is done in the block, and gives the path that a payload would create. Fails if anything fired."""
    global _heard
    file = place / "fired"
    before = dict(os.environ)
    _heard = []
    try:
        yield file
    finally:
        heard, _heard = _heard, None
    assert not heard, heard
    assert not file.exists(), "the payload ran"
    assert dict(os.environ) == before


class Boom:
    """Unpickled, it makes the file."""

    def __init__(self, file: Path):
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (open, (self.file, "w"))
