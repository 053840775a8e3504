"""One flipped bit in prepared data, wherever it is and however large the data: found and named before it is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmkit.data import prepared, shardfile
from llmkit.data.packing import PackedPlan
from llmkit.data.prepare import prepare
from llmkit.data.prepared import Prepared, open_prepared, prove_before_use
from llmkit.errors import DataError
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.report.console import Console
from tests.faults.tiny import write_recipe

FLIPS = 40
SMALL_BLOCK = 512


@pytest.fixture
def whole(ram: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Prepared data of many blocks."""
    monkeypatch.setattr(shardfile, "BLOCK_BYTES", SMALL_BLOCK)
    monkeypatch.setattr("llmkit.data.prepare.BLOCK_BYTES", SMALL_BLOCK)
    recipe = resolve(load_recipe(write_recipe(ram)))
    made = prepare(recipe, Console(quiet=True), shard_bytes=4000)
    blocks = [block for entry in made.manifest["files"].values() for block in entry.get("blocks", [])]
    assert len(blocks) > 40
    return made


def train(directory: Path) -> None:
    """What a run does with its data: the proof before it, then every sample of an epoch, as it is trained on."""
    prove_before_use(directory, lambda note: None)
    data = open_prepared(directory)
    plan = PackedPlan(data.splits["train"], max_length=16, seed=1, weights=(1.0,))
    for start in range(0, plan.num_samples(0), 16):
        indices = np.arange(start, min(start + 16, plan.num_samples(0)))
        for sample in plan.samples(0, indices):
            assert len(sample.arrays["input_ids"])


@pytest.mark.parametrize("size", ["proven whole", "proven as it is read"])
def test_a_flipped_bit_is_found_before_it_is_trained_on(
    whole: Prepared, ram: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(whole, ram, FLIPS, size, monkeypatch)


@pytest.mark.faults
@pytest.mark.parametrize("size", ["proven whole", "proven as it is read"])
def test_five_hundred_flips(whole: Prepared, ram: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(whole, ram, 500, size, monkeypatch)


def flip(whole: Prepared, ram: Path, count: int, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "proven as it is read":
        monkeypatch.setattr(prepared, "PROVED_BYTES", 0)
    dice = random.Random(size)
    train(whole.directory)
    files = sorted(path for path in whole.directory.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    lazy = 0
    for number in range(count):
        # every other one anywhere in the tokens that are trained on, the rest in any file by its size
        tokens = [path for path in files if path.suffix == ".bin" and path.parent.name == "train"]
        path = dice.choice(tokens) if number % 2 else dice.choices(files, sizes)[0]
        if path.parent.name == "validation" and path.suffix == ".bin" and size != "proven whole":
            path = tokens[0]  # nobody reads it here
        data = bytearray(path.read_bytes())
        bit = dice.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            train(whole.directory)
        assert str(path) in str(caught.value)
        lazy += "in bytes" in str(caught.value)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
    assert lazy >= count // 2
    train(whole.directory)


def test_a_rank_that_did_not_prove_finds_it_too(whole: Prepared, flip_bit: Callable[[Path], None]) -> None:
    """Only rank 0 proves all before the start; the tokens are proven by whoever reads them."""
    path = next(iter(sorted((whole.directory / "train").glob("*.bin"))))
    flip_bit(path)
    split = open_prepared(whole.directory).splits["train"]
    with pytest.raises(DataError, match=rf"{path} in bytes"):
        [split.row(i) for i in range(len(split))]
    with pytest.raises(DataError, match=rf"{path} in bytes"):
        split.gather(np.arange(len(split)), np.zeros(len(split), int), split.lengths())


@pytest.fixture
def flip_bit() -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)

    return change
