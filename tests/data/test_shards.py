"""The .bin/.idx format byte for byte, and the reader over several shards."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from llmkit.data.shardfile import (
    BLOCK_BYTES,
    HashingFile,
    Rows,
    ShardWriter,
    count_ids,
    index_bytes,
    read_index,
    token_dtype,
)
from llmkit.data.shards import Split
from llmkit.errors import DataError
from llmkit.files import sha256_file


def make_split(directory: Path, shards: list[list[list[int]]]) -> Split:
    """Shards of rows of token ids; the loss mask is 1 on even tokens."""
    entries = []
    for number, rows in enumerate(shards):
        writer = ShardWriter(directory, number, {"input_ids": np.dtype("<u2"), "loss_mask": np.dtype("u1")}, 100)
        values = np.array([token for row in rows for token in row])
        lengths = np.array([len(row) for row in rows])
        count = len(rows)
        side = Rows(
            number, f"f{number}", list(range(1, count + 1)), [None] * count, lengths * 3, lengths, [b"h" * 16] * count
        )
        side.fields["id"] = [f"{number}-{i}" for i in range(count)]
        streams_of = {"input_ids": (values, lengths), "loss_mask": (values % 2 == 0, lengths)}
        writer.append(streams_of, side, count_ids(values, 100))
        entries.append(writer.close()[0])
    counts = np.bincount([t for rows in shards for row in rows for t in row], minlength=100)
    np.save(directory / "vocab_counts.npy", counts)
    streams = {"input_ids": "uint16", "loss_mask": "uint8"}
    rows_total = sum(entry["rows"] for entry in entries)
    tokens = sum(entry["tokens"] for entry in entries)
    return Split(directory, {"rows": rows_total, "tokens": tokens, "streams": streams, "shards": entries})


ROWS = [[[1, 2, 3], [4], [5, 6]], [[7, 8, 9, 10]], [[11], [12, 13]]]


def test_index_is_megatrons_byte_for_byte() -> None:
    data = index_bytes(np.array([3, 1, 2]), np.dtype("<u2"))
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
    expected += struct.pack("<3i", 3, 1, 2) + struct.pack("<3q", 0, 6, 8) + struct.pack("<4q", 0, 1, 2, 3)
    assert data == expected


def test_dtype_follows_megatrons_rule() -> None:
    assert [token_dtype(size).name for size in (100, 65_499, 65_500)] == ["uint16", "uint16", "int32"]


def test_rows_streams_and_pieces_over_shards(tmp_path: Path) -> None:
    split = make_split(tmp_path, ROWS)
    flat = [row for shard in ROWS for row in shard]
    assert split.num_rows == len(split) == 6
    assert [split.row(i).tolist() for i in range(6)] == flat
    assert split.row(3, start=1, stop=3).tolist() == [8, 9]
    assert split.row(3, start=2, stop=99).tolist() == [9, 10]
    assert split.row(3, "loss_mask").tolist() == [0, 1, 0, 1]
    assert split.lengths().tolist() == [3, 1, 2, 4, 1, 2]
    assert split.lengths().dtype == np.int32
    assert split.gather(np.array([3, 0, 5]), np.array([1, 0, 1]), np.array([4, 2, 2])).tolist() == [8, 9, 10, 1, 2, 13]
    assert split.vocab_counts().sum() == split.num_tokens == 13
    with pytest.raises(IndexError):
        split.row(6)


def test_sidecar_columns(tmp_path: Path) -> None:
    split = make_split(tmp_path, ROWS)
    assert split.source_of().tolist() == [0, 0, 0, 1, 2, 2]
    assert split.source_of().dtype == np.int16
    assert split.bytes_of().tolist() == [9, 3, 6, 12, 3, 6]
    assert split.words_of().tolist() == [3, 1, 2, 4, 1, 2]
    assert split.field("id").to_pylist()[3] == "1-0"
    assert split.origin(5) == {"source": 2, "file": "f2", "line": 2, "offset": None, "hash": (b"h" * 16).hex()}


def test_split_survives_pickling(tmp_path: Path) -> None:
    split = make_split(tmp_path, ROWS)
    split.row(0)
    assert pickle.loads(pickle.dumps(split)).row(4).tolist() == [11]


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00001.idx"])
def test_a_cut_file_is_named(tmp_path: Path, name: str) -> None:
    split = make_split(tmp_path, ROWS)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=name):
        split.row(3)
    assert split.row(0).tolist() == [1, 2, 3]


def test_hashes_are_of_the_bytes_written(tmp_path: Path) -> None:
    import zlib

    file = HashingFile(tmp_path / "x.bin")
    data = np.random.default_rng(0).bytes(BLOCK_BYTES + 1000)
    for start in range(0, len(data), 999_983):
        file.write(data[start : start + 999_983])
    assert not (tmp_path / "x.bin").exists()
    entry = file.close()
    assert entry["sha256"] == sha256_file(tmp_path / "x.bin")
    assert entry["blocks"] == [zlib.crc32(data[:BLOCK_BYTES]), zlib.crc32(data[BLOCK_BYTES:])]
    assert entry["bytes"] == len(data)


def test_not_an_index(tmp_path: Path) -> None:
    (tmp_path / "x.idx").write_bytes(b"MMIDIDX\x00\x00" + bytes(40))
    with pytest.raises(ValueError, match="version 1"):
        read_index(tmp_path / "x.idx")
