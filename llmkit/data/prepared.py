"""A published prepared dataset: opening it, proving it, and the lock that lets one process at a time make it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmkit.data.shardfile import read_index
from llmkit.data.shards import Checksums, Split
from llmkit.errors import DataError
from llmkit.files import environment_errors, read_json, sha256_json
from llmkit.manifest import read_manifest

POLL_SECONDS = 0.5
HINT = "delete the directory and run preprocess again"
PROVED_BYTES = 4_000_000_000
"""Up to this a prepared dataset is read and proven whole before each use: some seconds."""
BIN = ".bin"
OLD_BLOCK_BYTES = 4 << 20
"""Of manifests that do not say how large their blocks are."""


@dataclass
class Prepared:
    """One prepared dataset. sources: content hash by `train: id`, for a run to notice that data has changed."""

    directory: Path
    fingerprint: str
    splits: dict[str, Split]
    manifest: dict[str, Any]
    report: dict[str, Any]
    tokenizer_dir: Path

    @property
    def sources(self) -> dict[str, str]:
        return {name: entry["content"] for name, entry in self.manifest["sources"].items()}


def open_prepared(directory: Path) -> Prepared:
    """Opens what is published in `directory` after the quick proof (manifest, sizes). Raises DataError."""
    manifest = _check_manifest(directory)
    for name, entry in manifest["files"].items():
        _check_size(directory, name, entry)
    splits = {
        name: Split(directory / name, entry, _checksums(manifest, name)) for name, entry in manifest["splits"].items()
    }
    return Prepared(
        directory=directory,
        fingerprint=manifest["fingerprint"],
        splits=splits,
        manifest=manifest,
        report=read_json(directory / "report.json"),
        tokenizer_dir=directory / "tokenizer",
    )


def _checksums(manifest: dict[str, Any], split: str) -> Checksums:
    files = ((Path(name), entry) for name, entry in manifest["files"].items())
    blocks = {path.name: entry["blocks"] for path, entry in files if path.parent == Path(split) and path.suffix == BIN}
    return Checksums(manifest["block_bytes"], blocks)


def _check_manifest(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory, DataError)
    if manifest.get("format") != "llmkit-prepared" or sha256_json(manifest["identity"]) != manifest["fingerprint"]:
        raise DataError(f"{directory / 'manifest.json'} is not the manifest of a prepared dataset; {HINT}")
    return {"block_bytes": OLD_BLOCK_BYTES, **manifest}


def _check_size(directory: Path, name: str, entry: dict[str, Any]) -> None:
    path = directory / name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} is missing or cannot be read: {error.strerror}; {HINT}") from None
    if size != entry["bytes"]:
        raise DataError(f"{path} is damaged: it has {size:,} bytes, its manifest names {entry['bytes']:,}; {HINT}")


def verify_prepared(directory: Path, tokens: bool = True) -> None:
    """Proves every file of a prepared dataset against its manifest. Raises DataError naming the bad file.

    tokens: the .bin files are read too; otherwise only their sizes are proven.
    """
    manifest = _check_manifest(directory)
    for name, entry in sorted(manifest["files"].items()):
        _check_size(directory, name, entry)
        if tokens or not name.endswith(BIN):
            _check_bytes(directory / name, entry, manifest["block_bytes"])
    for split, part in manifest["splits"].items():
        for shard in part["shards"]:
            for stream in part["streams"]:
                suffix = "" if stream == "input_ids" else f"-{stream}"
                path = directory / split / f"{shard['name']}{suffix}.idx"
                try:
                    index = read_index(path)
                except (OSError, ValueError) as error:
                    raise DataError(f"{path} is damaged: {error}; {HINT}") from None
                if len(index.lengths) != shard["rows"]:
                    raise DataError(f"{path} is damaged: {len(index.lengths):,} rows, not {shard['rows']:,}; {HINT}")


def prove_before_use(directory: Path, note: Callable[[str], None]) -> None:
    """`verify_prepared`; of datasets so large that reading them would be a wait, tokens are proven as they are read."""
    size = sum(entry["bytes"] for entry in _check_manifest(directory)["files"].values())
    verify_prepared(directory, tokens=size <= PROVED_BYTES)
    if size > PROVED_BYTES:
        note(f"{size:,} bytes of prepared data are proven as they are read; `llmkit verify {directory}` proves all")


def _check_bytes(path: Path, entry: dict[str, Any], block_bytes: int) -> None:
    digest, bad, number = sha256(), None, 0
    expected = entry.get("blocks")
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(block_bytes):
                while len(block) < block_bytes and (more := file.read(block_bytes - len(block))):
                    block += more
                digest.update(block)
                if bad is None and expected is not None and zlib.crc32(block) != expected[number]:
                    bad = number
                number += 1
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {HINT}") from None
    if digest.hexdigest() != entry["sha256"] or bad is not None:
        where = f" in bytes {bad * block_bytes:,} to {(bad + 1) * block_bytes - 1:,}" if bad is not None else ""
        raise DataError(f"{path} is damaged{where}: its bytes are not those that its manifest names; {HINT}")


@contextmanager
def preparation_lock(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds `path` as an advisory lock with our pid and host in it; waits while a living process holds it.

    A dead holder's lock is free at once: the kernel lets go of it. The file is removed at the end, so whoever gets a
    lock
    on a removed file tries again.
    """
    told = False
    while True:
        with environment_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                break
        except BlockingIOError:
            if not told:
                waiting(_holder(path))
                told = True
            time.sleep(POLL_SECONDS)
        except FileNotFoundError:
            pass
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"
