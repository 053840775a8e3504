"""Directories that can be proven from disk: `manifest.json` names every file with its sha256 and its bytes.

The hashes are taken from the bytes in memory as they are written, never by reading the file back, so that what the disk
garbled is found. The manifest carries a checksum of itself and has one way to be written: any flipped bit in it shows.
Writing goes through `os.open` and `os.write`, so that the machine's errno (disk full, quota, input/output) survives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llmkit.errors import CheckpointError, LlmkitError
from llmkit.files import dump_json, fsync_directory, parse_json, sha256_json, write_atomic

MANIFEST = "manifest.json"
VERSION = 1
CHUNK = 16 << 20
"""Bytes a read or write: large enough to be free, small enough to stay out of the way of memory."""

MakeError = Callable[[str], LlmkitError]


def broken(message: str) -> LlmkitError:
    """The default kind of error for a directory that is not what its manifest says."""
    return CheckpointError(message)


def write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes a new file and forces it to the disk. Returns `{"sha256", "bytes"}` of what was given. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            digest.update(view)
            size += len(view)
            while len(view):
                view = view[os.write(handle, view[:CHUNK]) :]
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):  # so that reading it back asks the disk, not the cache
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return {"sha256": digest.hexdigest(), "bytes": size}


def read_proven(path: Path, entry: dict[str, Any] | None, make_error: MakeError = broken) -> bytes:
    """The bytes of a small file, proven against its manifest entry. Raises `make_error` naming the file."""
    if entry is None:
        raise make_error(f"{path} is not listed in its {MANIFEST}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise make_error(f"{path} is missing or cannot be read: {error.strerror or error}") from None
    if {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} != entry:
        raise make_error(f"{path} is damaged: its bytes are not those that its {MANIFEST} names")
    return data


def hash_file(path: Path) -> dict[str, Any]:
    """`{"sha256", "bytes"}` of a file as the disk has it. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}


def seal(body: dict[str, Any]) -> bytes:
    """The bytes of a JSON object that proves itself: `checksum` is the sha256 of the rest."""
    rest = {key: value for key, value in body.items() if key != "checksum"}
    return dump_json({**rest, "checksum": sha256_json(rest)})


def unseal(data: bytes) -> dict[str, Any]:
    """The object that `seal` wrote. Raises ValueError where a single byte differs."""
    value = parse_json(data)
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("it has no checksum")
    if seal(value) != data:
        raise ValueError("its checksum does not match its content")
    return value


def write_manifest(directory: Path, **extra: Any) -> dict[str, Any]:
    """Publishes the manifest of a finished directory: hashes its files (hidden ones left out), forces all to the disk.

    `extra` joins the manifest's own keys (`format`, `version`, `files`). Raises EnvironmentFailure, OSError.
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST and not any(part.startswith(".") for part in name.split("/")):
            files[name] = hash_file(path)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    manifest = {"format": "llmkit-model", "version": VERSION, **extra, "files": files}
    write_atomic(directory / MANIFEST, seal(manifest))
    fsync_directory(directory)
    return manifest


def read_manifest(directory: Path, make_error: MakeError = broken) -> dict[str, Any]:
    """The manifest of `directory`, its own bytes proven. Raises `make_error` naming the file."""
    path = directory / MANIFEST
    try:
        manifest = unseal(path.read_bytes())
    except FileNotFoundError:
        raise make_error(f"{path} is missing: the directory was never finished, or is not llmkit's") from None
    except OSError as error:
        raise make_error(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise make_error(f"{path} is damaged: {error}") from None
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise make_error(f"{path} has format version {found!r}; this llmkit reads version {VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(safe_name(name) and _is_entry(entry) for name, entry in files.items()):
        raise make_error(f"{path} does not list plain file names with their sha256 and bytes under `files`")
    return manifest


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int


def safe_name(name: str) -> bool:
    """Whether a name from a manifest stays inside its directory."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/") and "\x00" not in name


def check_sizes(directory: Path, manifest: dict[str, Any], make_error: MakeError = broken) -> None:
    """Every listed file is there and has the bytes it should: quick, before any hashing."""
    for name, entry in manifest["files"].items():
        path = directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise make_error(f"{path} is missing or cannot be read: {error.strerror or error}") from None
        if size != entry["bytes"]:
            raise make_error(f"{path} has {size:,} bytes, its manifest says {entry['bytes']:,}")


def verify_files(
    directory: Path, manifest: dict[str, Any], make_error: MakeError = broken
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Proves file after file, yielding each that holds. Raises `make_error` naming the first that does not."""
    check_sizes(directory, manifest, make_error)
    for name, entry in manifest["files"].items():
        path = directory / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise make_error(f"{path} cannot be read: {error.strerror or error}") from None
        if found != entry:
            raise make_error(f"{path} is damaged: its sha256 is {found['sha256']}, its manifest says {entry['sha256']}")
        yield name, entry


def verify_directory(directory: Path, make_error: MakeError = broken) -> dict[str, Any]:
    """Proves a whole directory by its manifest and returns the manifest. Raises `make_error` naming the bad file."""
    manifest = read_manifest(directory, make_error)
    for _ in verify_files(directory, manifest, make_error):
        pass
    return manifest
