"""Files that are either whole or absent: write, fsync, rename, fsync the directory. Used by everything that writes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.errors import EnvironmentFailure, LlmkitError

MAX_SYNCS = 16


@contextmanager
def environment_errors(path: Path | str, what: str = "write") -> Iterator[None]:
    """Turns an `OSError` of the machine (disk full, quota, permission, input/output) into an exit-6 message."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = f" ({free_bytes(path):,} bytes free)"
        raise EnvironmentFailure(f"cannot {what} {path}: {reason}{free}") from error


def free_bytes(path: Path | str) -> int:
    """Bytes free for us on the file system that holds `path` or its nearest existing parent."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def fsync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(paths: Iterable[Path]) -> None:
    """Forces files and directories that are written to the disk, all at once: a file system commits them together.

    One after another each would wait for a commit of its own. Raises OSError.
    """
    with ThreadPoolExecutor(MAX_SYNCS) as pool:
        list(pool.map(fsync_directory, paths))


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`; a crash leaves the old bytes or the new ones. Raises EnvironmentFailure."""
    with environment_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            if os.path.exists(name):
                os.unlink(name)
            raise
        fsync_directory(path.parent)


def dump_json(value: Any) -> bytes:
    """Readable JSON with real Chinese characters; NaN is an error, never written."""
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, dump_json(value))


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError whatever is wrong with it, nesting beyond Python's stack too."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value in a file. Raises ValueError, OSError."""
    return parse_json(path.read_text(encoding="utf-8"))


def read_object(path: Path, make_error: Callable[[str], LlmkitError]) -> dict[str, Any]:
    """The JSON object in a file of somebody else's. Raises `make_error` where there is none."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")  # a pipe or a device has no end
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise make_error(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise make_error(f"{path} holds no JSON object")
    return value


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()).hexdigest()
