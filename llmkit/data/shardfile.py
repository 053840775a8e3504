"""Token shards on disk: Megatron's indexed format (.bin/.idx), an Arrow sidecar, and the memory-mapped reader.

A record is one document. `.bin` holds little-endian token ids, `.idx` lengths and byte pointers, as written by
Megatron-LM's `megatron/core/datasets/indexed_dataset.py` (version 1). `.arrow` holds what is not a token stream, a row
an example. A shard has its name when it is whole, and counts when the store has flushed it and its progress names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmkit.files import environment_errors

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
BLOCK_BYTES = 256 * 1024
"""Each block of this many bytes has a CRC-32 of its own in the manifest. A row's first reader proves the blocks it lies
in, so they are small: rows are read in random order."""

DTYPE_CODES: dict[int, str] = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
CODE_OF = {name: code for code, name in DTYPE_CODES.items()}
MAIN_STREAM = "input_ids"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Megatron's rule: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < 65_500 else "<i4")


class HashingFile:
    """A new file whose sha256 and block checksums are taken from the bytes as they are written."""

    def __init__(self, path: Path):
        self.path = path
        self.bytes = 0
        self._sha = hashlib.sha256()
        self._blocks: list[int] = []
        self._crc = 0
        self._file: FileIO = path.with_name(f".{path.name}.tmp").open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])
        self._sha.update(view)
        done = 0
        while done < len(view):
            room = BLOCK_BYTES - self.bytes % BLOCK_BYTES
            piece = view[done : done + room]
            self._crc = zlib.crc32(piece, self._crc)
            self.bytes += len(piece)
            done += len(piece)
            if self.bytes % BLOCK_BYTES == 0:
                self._blocks.append(self._crc)
                self._crc = 0
        return len(view)

    def close(self) -> dict[str, Any]:
        """Gives the file its name and returns its manifest entry. Flushing it to the disk is the caller's."""
        self._file.close()
        os.replace(self._file.name, self.path)
        if self.bytes % BLOCK_BYTES:
            self._blocks.append(self._crc)
        return {"sha256": self._sha.hexdigest(), "bytes": self.bytes, "blocks": self._blocks}

    def abandon(self) -> None:
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


def count_ids(values: np.ndarray, size: int) -> np.ndarray:
    """(size,) int64 how often each token id occurs."""
    counts: np.ndarray = np.bincount(values, minlength=size)[:size]
    return counts


def index_bytes(lengths: np.ndarray, dtype: np.dtype[Any]) -> bytes:
    """The .idx of one shard: lengths (N,) in tokens; every sequence is a document of its own."""
    count = len(lengths)
    pointers = np.zeros(count, "<i8")
    np.cumsum(lengths[:-1].astype(np.int64) * dtype.itemsize, out=pointers[1:])
    header = HEADER.pack(MAGIC, VERSION, CODE_OF[dtype.name], count, count + 1)
    return b"".join(
        (header, lengths.astype("<i4").tobytes(), pointers.tobytes(), np.arange(count + 1, dtype="<i8").tobytes())
    )


@dataclass(frozen=True)
class Index:
    """A parsed .idx: lengths (N,) int32 tokens, pointers (N,) int64 bytes into the .bin."""

    dtype: np.dtype[Any]
    lengths: np.ndarray
    pointers: np.ndarray


def read_index(path: Path) -> Index:
    """Parses a .idx. Raises ValueError (what is wrong) for a file that is not one, or is cut short."""
    data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    if len(data) < HEADER.size:
        raise ValueError("it is shorter than the header of an index")
    magic, version, code, count, documents = HEADER.unpack(data[: HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION or code not in DTYPE_CODES:
        raise ValueError("it is not a version 1 index of Megatron's format")
    if len(data) != HEADER.size + count * 12 + documents * 8:
        raise ValueError(f"it has {len(data):,} bytes, which does not fit {count:,} sequences")
    buffer = memoryview(np.asarray(data).data)
    lengths = np.frombuffer(buffer, "<i4", count, HEADER.size)
    pointers = np.frombuffer(buffer, "<i8", count, HEADER.size + 4 * count)
    return Index(np.dtype(DTYPE_CODES[code]).newbyteorder("<"), lengths, pointers)


def _field_array(values: list[Any]) -> pa.Array:
    """Arrow's own type where all values share one, else JSON text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([json.dumps(value, ensure_ascii=False) for value in values], pa.string())


@dataclass
class Rows:
    """Sidecar columns of the rows of one batch; all (E,) but `fields`, whose lists have E entries."""

    source: int
    file: str
    lines: list[int | None]
    offsets: list[int | None]
    sizes: np.ndarray
    words: np.ndarray
    hashes: list[bytes]
    fields: dict[str, list[Any]] = field(default_factory=dict)


class ShardWriter:
    """Writes one shard: a .bin and .idx a stream, and the sidecar. `close` makes it whole; otherwise nothing is
    there."""

    def __init__(self, directory: Path, number: int, dtypes: dict[str, np.dtype[Any]], vocab_size: int):
        self.directory = directory
        self.name = f"shard-{number:05d}"
        self.dtypes = dtypes
        self.rows = 0
        self.bytes = 0
        self.counts = np.zeros(vocab_size, np.int64)
        directory.mkdir(parents=True, exist_ok=True)
        self._bins = {stream: HashingFile(self._path(stream, ".bin")) for stream in dtypes}
        self._lengths: dict[str, list[np.ndarray]] = {stream: [] for stream in dtypes}
        self._sidecar: list[Rows] = []

    def _path(self, stream: str, suffix: str) -> Path:
        return self.directory / f"{self.name}{'' if stream == MAIN_STREAM else '-' + stream}{suffix}"

    def append(self, streams: dict[str, tuple[np.ndarray, np.ndarray]], rows: Rows, counts: np.ndarray) -> None:
        """Adds E rows: streams[name] = (values, lengths (E,)), flat; `counts` (vocab,) of their token ids."""
        for name, (values, lengths) in streams.items():
            data = np.ascontiguousarray(values, dtype=self.dtypes[name])
            self.bytes += self._bins[name].write(data.data)
            self._lengths[name].append(np.asarray(lengths, np.int32))
        self.counts += counts
        self.rows += len(rows.lines)
        self._sidecar.append(rows)

    def close(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Finishes the shard but for flushing it to the disk, which is the caller's.

        Returns its entry for the manifest and those of its files. Raises EnvironmentFailure.
        """
        files: dict[str, dict[str, Any]] = {}
        tokens: dict[str, int] = {}
        with environment_errors(self.directory):
            for stream, file in self._bins.items():
                lengths = np.concatenate(self._lengths[stream]) if self._lengths[stream] else np.empty(0, np.int32)
                tokens[stream] = int(lengths.sum(dtype=np.int64))
                entry = {"tokens": tokens[stream], "documents": len(lengths), "dtype": self.dtypes[stream].name}
                files[file.path.name] = {**file.close(), **entry}
                index = HashingFile(self._path(stream, ".idx"))
                index.write(index_bytes(lengths, self.dtypes[stream]))
                files[index.path.name] = index.close()
            sidecar = HashingFile(self.directory / f"{self.name}.arrow")
            table = self._table()
            buffer = pa.BufferOutputStream()
            with pa.ipc.new_file(buffer, table.schema) as writer:
                writer.write_table(table)
            sidecar.write(memoryview(buffer.getvalue()))
            files[sidecar.path.name] = sidecar.close()
        entry = {"name": self.name, "rows": self.rows, "tokens": tokens[MAIN_STREAM]}
        totals = {
            "bytes": sum(int(part.sizes.sum()) for part in self._sidecar),
            "words": sum(int(part.words.sum()) for part in self._sidecar),
        }
        return {**entry, **totals}, files

    def _table(self) -> pa.Table:
        parts = self._sidecar
        counts = [len(p.lines) for p in parts]
        files = list(dict.fromkeys(p.file for p in parts))
        numbers = {name: number for number, name in enumerate(files)}
        columns: dict[str, pa.Array] = {
            "source": _numbers(np.repeat(np.array([p.source for p in parts], np.int16), counts)),
            "file": _dictionary(np.repeat(np.array([numbers[p.file] for p in parts], np.int32), counts), files),
            "line": _places([p.lines for p in parts]),
            "offset": _places([p.offsets for p in parts]),
            "bytes": _numbers(_joined([p.sizes for p in parts])),
            "words": _numbers(_joined([p.words for p in parts])),
            "hash": _hashes([digest for p in parts for digest in p.hashes]),
        }
        for name in parts[0].fields if parts else ():
            columns[f"field:{name}"] = _field_array([value for p in parts for value in p.fields[name]])
        return pa.Table.from_arrays(list(columns.values()), names=list(columns))

    def abandon(self) -> None:
        for file in self._bins.values():
            file.abandon()


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays).astype(np.int64, copy=False) if arrays else np.empty(0, np.int64)


# Arrow arrays from their buffers: pa.array() would import pandas, half a second, to ask whether it was given its types


def _numbers(values: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """`valid` (N,) bool: where there is a number at all."""
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    data = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [bits, data])


def _places(parts: list[list[int | None]]) -> pa.Array:
    values = [value for part in parts for value in part]
    if None not in values:
        return _numbers(np.array(values, np.int64))
    valid = np.array([value is not None for value in values], bool)
    return _numbers(np.array([value or 0 for value in values], np.int64), valid)


def _hashes(values: list[bytes]) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), len(values), [None, pa.py_buffer(b"".join(values))])


def _dictionary(indices: np.ndarray, names: list[str]) -> pa.Array:
    texts = [name.encode("utf-8", "backslashreplace") for name in names]
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(texts))]
    dictionary = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    return pa.DictionaryArray.from_arrays(_numbers(indices), dictionary)
