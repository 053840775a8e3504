"""`Split`: the memory-mapped reader of one split's shards. Opening costs the index, rows cost a slice."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmkit.data.shardfile import MAIN_STREAM, read_index
from llmkit.errors import DataError


@dataclass(frozen=True)
class Checksums:
    """CRC-32 of each block of `size` bytes of a split's .bin files, as the manifest has them."""

    size: int
    of: dict[str, list[int]]


class Split:
    """Rows of `<prepared>/<fingerprint>/<name>/`, addressed by number over all shards. Picklable; maps open on use.

    Tokens are proven where they are first read: a block whose bytes are not those that were written is never given out.
    """

    def __init__(self, directory: Path, entry: dict[str, Any], checksums: Checksums | None = None):
        """`entry` is the split's part of manifest.json: rows, tokens, streams {name: dtype}, shards [{name, rows}].

        checksums: None while the split is being made, before there is a manifest.
        """
        self.directory = directory
        self.entry = entry
        self.checksums = checksums
        self.num_rows: int = entry["rows"]
        self.num_tokens: int = entry["tokens"]
        self.streams: tuple[str, ...] = tuple(entry["streams"])
        self._names = [shard["name"] for shard in entry["shards"]]
        self._starts = [0]
        for shard in entry["shards"]:
            self._starts.append(self._starts[-1] + shard["rows"])
        self._values: dict[tuple[int, str], np.ndarray] = {}
        self._offsets: dict[tuple[int, str], np.ndarray] = {}
        self._unproven: dict[tuple[int, str], bytearray] = {}
        self._lengths: dict[str, np.ndarray] = {}
        self._tables: pa.Table | None = None

    def __len__(self) -> int:
        return self.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "entry": self.entry, "checksums": self.checksums}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _path(self, shard: int, stream: str, suffix: str) -> Path:
        return self.directory / f"{self._names[shard]}{'' if stream == MAIN_STREAM else '-' + stream}{suffix}"

    def _open(self, shard: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
        """(values, offsets (N + 1,) in tokens) of one shard's stream."""
        key = (shard, stream)
        if key not in self._values:
            path = self._path(shard, stream, ".idx")
            try:
                index = read_index(path)
                rows = self._starts[shard + 1] - self._starts[shard]
                if len(index.lengths) != rows:
                    raise ValueError(f"it has {len(index.lengths):,} rows where the manifest names {rows:,}")
                path = self._path(shard, stream, ".bin")
                size = path.stat().st_size
                offsets = np.zeros(rows + 1, np.int64)
                np.cumsum(index.lengths, out=offsets[1:])
                if size != offsets[-1] * index.dtype.itemsize:
                    raise ValueError(f"it has {size:,} bytes where its index names {offsets[-1]:,} tokens")
                # a plain ndarray over the map: slicing np.memmap costs several times as much
                values = np.asarray(np.memmap(path, index.dtype, "r")) if size else np.empty(0, index.dtype)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise DataError(f"prepared data is damaged: {path}: {reason}; delete it and run preprocess") from error
            if self.checksums is not None:
                self._unproven[key] = bytearray(b"\1" * len(self.checksums.of[path.name]))
            self._values[key], self._offsets[key] = values.view(np.ndarray), offsets
        return self._values[key], self._offsets[key]

    def _prove(self, key: tuple[int, str], values: np.ndarray, first: int, last: int) -> None:
        """Tokens [first, last) of a shard's stream are what was written. Raises DataError."""
        if self.checksums is None or last <= first:
            return
        size, unproven = self.checksums.size, self._unproven[key]
        begin, end = first * values.itemsize // size, (last * values.itemsize - 1) // size + 1
        while (block := unproven.find(1, begin, end)) >= 0:
            path = self._path(*key, ".bin")
            data = values.view(np.uint8)[block * size : (block + 1) * size]
            if zlib.crc32(data.data) != self.checksums.of[path.name][block]:
                where = f"in bytes {block * size:,} to {(block + 1) * size - 1:,}"
                raise DataError(f"prepared data is damaged: {path} {where}; delete the directory and run preprocess")
            unproven[block] = 0

    def lengths(self, stream: str = MAIN_STREAM) -> np.ndarray:
        """(num_rows,) int32 tokens of each row."""
        if stream not in self._lengths:
            parts = [np.diff(self._open(shard, stream)[1]) for shard in range(len(self._names))]
            joined = np.concatenate(parts) if parts else np.empty(0)
            self._lengths[stream] = joined.astype(np.int32)
        return self._lengths[stream]

    def row(self, i: int, stream: str = MAIN_STREAM, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens [start, stop) of row i: a read-only view into the map, dtype as stored."""
        shard = bisect_right(self._starts, i) - 1
        if not 0 <= i < self.num_rows:
            raise IndexError(f"row {i} of {self.num_rows}")
        values, offsets = self._open(shard, stream)
        local = i - self._starts[shard]
        first, last = int(offsets[local]), int(offsets[local + 1])
        end = last if stop is None else min(first + stop, last)
        begin = min(first + start, end)
        self._prove((shard, stream), values, begin, end)
        return values[begin:end]

    def gather(self, rows: np.ndarray, starts: np.ndarray, stops: np.ndarray, stream: str = MAIN_STREAM) -> np.ndarray:
        """Pieces [starts[k], stops[k]) of rows[k], one after another, as int64. Stops lie within the rows."""
        sizes = np.asarray(stops) - np.asarray(starts)
        out = np.empty(int(sizes.sum()), np.int64)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        at = 0
        for k, shard in enumerate(shards.tolist()):
            values, offsets = self._open(shard, stream)
            first = int(offsets[int(rows[k]) - self._starts[shard]]) + int(starts[k])
            self._prove((shard, stream), values, first, first + int(sizes[k]))
            out[at : at + int(sizes[k])] = values[first : first + int(sizes[k])]
            at += int(sizes[k])
        return out

    def table(self) -> pa.Table:
        """The sidecar of all shards (memory-mapped): source, file, line, offset, bytes, words, hash, field:<name>."""
        if self._tables is None:
            tables = []
            for name in self._names:
                path = self.directory / f"{name}.arrow"
                try:
                    tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
                except (OSError, pa.ArrowInvalid) as error:
                    raise DataError(f"prepared data is damaged: {path}: {error}") from error
            self._tables = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
        return self._tables

    def _column(self, name: str, dtype: str) -> np.ndarray:
        if not self._names:
            return np.empty(0, dtype)
        return np.asarray(self.table()[name].to_numpy()).astype(dtype, copy=False)

    def source_of(self) -> np.ndarray:
        """(num_rows,) int16 index of each row's source in its list of the recipe."""
        return self._column("source", "int16")

    def bytes_of(self) -> np.ndarray:
        """(num_rows,) int64 UTF-8 bytes of each row's text (0 on further rows of the same record)."""
        return self._column("bytes", "int64")

    def words_of(self) -> np.ndarray:
        """(num_rows,) int64 words: whitespace-separated, each CJK character counted as one."""
        return self._column("words", "int64")

    def field(self, name: str) -> pa.ChunkedArray:
        """A task's own column. Raises KeyError where the encoder gave none of that name."""
        return self.table()[f"field:{name}"]

    def origin(self, i: int) -> dict[str, Any]:
        """Where row i came from: source index, file, line, offset, content hash (hex)."""
        return self.origins(np.array([i]))[0]

    def origins(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """`origin` of many rows, read at once."""
        table = self.table().select(["source", "file", "line", "offset", "hash"]).take(pa.array(rows))
        return [{**place, "hash": place["hash"].hex()} for place in table.to_pylist()]

    def vocab_counts(self) -> np.ndarray:
        """(vocab,) int64 how often each token id occurs in the split: the unigram model."""
        return np.asarray(np.load(self.directory / "vocab_counts.npy"))
