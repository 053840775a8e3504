"""The unpublished directory of a preparation: shards, rejects, seen hashes, and the progress file that ties them.

A checkpoint is taken where shards end: all open shards are closed and flushed to the disk, together with the new
progress.json, whose rename then makes them count. What a killed run left beyond it is deleted and done again, so the
result does not depend on kills.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmkit.data.clean.dedup import Seen
from llmkit.data.examples import Encoded
from llmkit.data.records import Reject
from llmkit.data.shardfile import Rows, ShardWriter
from llmkit.data.tally import new_tally
from llmkit.files import dump_json, environment_errors, fsync_directory, read_json, sync

PROGRESS = "progress.json"
REJECTED = "rejected.jsonl"
SHARD_BYTES = 64 * 2**20
"""A checkpoint is due when the open shards hold this much."""


class Store:
    """Everything that one preparation has written so far. Use as a context manager."""

    def __init__(self, directory: Path, vocab_size: int, dedup_steps: int, shard_bytes: int = SHARD_BYTES):
        self.directory = directory
        self.vocab_size = vocab_size
        self.shard_bytes = shard_bytes
        self.dedup_steps = dedup_steps
        self.progress: dict[str, Any] = {
            "batch": 0,
            "group": 0,
            "source": 0,
            "resume": None,
            "rejected_bytes": 0,
            "shards": {},
            "streams": {},
            "files": {},
            "tally": new_tally(),
        }
        self._writers: dict[str, ShardWriter] = {}
        self._rejected: BinaryIO | None = None
        self._seen: dict[str, Seen] = {}

    @property
    def tally(self) -> dict[str, Any]:
        tally: dict[str, Any] = self.progress["tally"]
        return tally

    def __enter__(self) -> Store:
        with environment_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if (self.directory / PROGRESS).exists():
                self.progress = read_json(self.directory / PROGRESS)
            self._remove_unfinished()
            self._rejected = (self.directory / REJECTED).open("ab")
            self._rejected.truncate(self.progress["rejected_bytes"])
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.abandon()
        if self._rejected is not None:
            with suppress(OSError):  # what a full disk kept back is written again by the next run
                self._rejected.close()
        for seen in self._seen.values():
            seen.close()

    def _remove_unfinished(self) -> None:
        known = {self.directory / name for name in self.progress["files"]}
        for split in ("train", "validation", "test"):
            for path in (self.directory / split).glob("*") if (self.directory / split).is_dir() else ():
                counted = path.name.endswith(".counts.npy") and (path.with_name(path.name[:11] + ".bin") in known)
                if path not in known and not counted:
                    path.unlink()

    def seen(self, group: str) -> Seen:
        """What exact_dedup knows in this group of sources."""
        if group not in self._seen:
            self._seen[group] = Seen(self.directory / f"seen-{group}.sqlite", self.dedup_steps)
            self._seen[group].rewind(self.progress["batch"])
        return self._seen[group]

    def reject(self, reject: Reject) -> None:
        assert self._rejected is not None
        with environment_errors(self.directory / REJECTED):
            self._rejected.write(
                json.dumps(reject.as_json(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            )

    def append(self, split: str, encoded: Encoded, rows: Rows, counts: np.ndarray) -> None:
        """Adds examples to the split's open shard; `counts` (vocab,) of their token ids."""
        if not len(encoded.rows):
            return
        with environment_errors(self.directory):
            writer = self._writers.get(split)
            if writer is None:
                dtypes = {name: stream.values.dtype for name, stream in encoded.streams.items()}
                self.progress["streams"][split] = {name: dtype.name for name, dtype in dtypes.items()}
                number = len(self.progress["shards"].setdefault(split, []))
                writer = ShardWriter(self.directory / split, number, dtypes, self.vocab_size)
                self._writers[split] = writer
            streams = {name: (stream.values, stream.lengths) for name, stream in encoded.streams.items()}
            writer.append(streams, rows, counts)

    def full(self) -> bool:
        return sum(writer.bytes for writer in self._writers.values()) >= self.shard_bytes

    def checkpoint(self) -> None:
        """Closes the open shards and makes everything up to here count. Raises EnvironmentFailure."""
        progress = self.progress
        temporary = self.directory / f".{PROGRESS}.tmp"
        written = [temporary, self.directory / REJECTED]
        for split, writer in sorted(self._writers.items()):
            entry, files = writer.close()
            counts = self.directory / split / f"{writer.name}.counts.npy"
            with environment_errors(self.directory):
                counts.write_bytes(npy_bytes(writer.counts))
            written += [counts, counts.parent, *(counts.with_name(name) for name in files)]
            progress["shards"][split].append(entry)
            progress["files"].update({f"{split}/{name}": value for name, value in files.items()})
        self._writers.clear()
        assert self._rejected is not None
        with environment_errors(self.directory / REJECTED):
            self._rejected.flush()
            progress["rejected_bytes"] = self._rejected.tell()
        for seen in self._seen.values():
            seen.commit()
        with environment_errors(self.directory):
            temporary.write_bytes(dump_json(progress))
            sync(written)
            os.replace(temporary, self.directory / PROGRESS)
            fsync_directory(self.directory)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Writes the vocabulary counts of each split and drops what only a resume needs. The splits' manifest
        entries."""
        splits: dict[str, dict[str, Any]] = {}
        for split, shards in self.progress["shards"].items():
            directory = self.directory / split
            counts = np.zeros(self.vocab_size, np.int64)
            for shard in shards:
                counts += np.load(directory / f"{shard['name']}.counts.npy")
            with environment_errors(directory):
                (directory / "vocab_counts.npy").write_bytes(npy_bytes(counts))
            splits[split] = {
                **{key: sum(shard[key] for shard in shards) for key in ("rows", "tokens", "bytes", "words")},
                "streams": self.progress["streams"][split],
                "shards": shards,
            }
        return splits

    def sweep(self) -> None:
        """After everything else is in place: leaves only what is published."""
        for seen in self._seen.values():
            seen.close()
        self._seen.clear()
        with environment_errors(self.directory):
            for pattern in ("seen-*.sqlite*", "*/*.counts.npy", ".*.tmp", PROGRESS):
                for path in self.directory.glob(pattern):
                    path.unlink()
            shutil.rmtree(self.directory / "sample", ignore_errors=True)


def npy_bytes(array: np.ndarray) -> bytes:
    """The file that np.save would write; np.save itself forgets the disk's errno."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
