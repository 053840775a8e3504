"""What a tokenizer puts around texts, against what transformers' own call gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.data.specials import read_frame
from llmkit.data.tokenizer import load_tokenizer
from tests.fakes import byte_tokenizer, wordpiece_tokenizer


def test_bert(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(wordpiece_tokenizer(tmp_path))
    one, two = read_frame(tmp_path), read_frame(tmp_path, pair=True)
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "a dog sat"))
    single, pair = tokenizer("the cat"), tokenizer("the cat", "a dog sat")
    assert [*one.before, *a, *one.after] == single["input_ids"]
    assert [*two.before, *a, *two.between, *b, *two.after] == pair["input_ids"]
    sizes = (len(two.before), len(a), len(two.between), len(b), len(two.after))
    types = [kind for kind, size in zip(two.types, sizes, strict=True) for _ in range(size)]
    assert types == pair["token_type_ids"]
    assert (one.size, two.size) == (2, 3)


@pytest.mark.parametrize("pair", [False, True])
def test_nothing_around(tmp_path: Path, pair: bool) -> None:
    frame = read_frame(byte_tokenizer(tmp_path), pair=pair)
    assert (frame.before, frame.between, frame.after) == ((), (), ())
