"""Tokenizers that come out of a preparation frame texts as the samples of training do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmkit.data.framing import Frame
from llmkit.data.tokenizer import BatchEncoder, import_tokenizer, load_tokenizer, read_special_ids
from llmkit.data.tokenizer_files import TokenizerSource
from llmkit.data.tokenizer_train import train_tokenizer
from llmkit.recipe.sections import TokenizerSection, TokenizerTrain
from llmkit.tasks import complete_tokenizer
from tests.tasks.masking_data import recipe

DIRECTORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
TEXTS = ["the cat sat.", "你好，世界", "two  blanks"]
MLM = {"type": "masked_lm"}


def check(directory: Path, kind: str) -> None:
    """Twice completed is completed; tokenizer(text) and tokenizer(a, b) are what training shows."""
    chosen = recipe(kind, MLM)
    complete_tokenizer(chosen, directory)
    before = (directory / "tokenizer.json").read_bytes(), (directory / "tokenizer_config.json").read_bytes()
    assert complete_tokenizer(chosen, directory) == []
    assert before == ((directory / "tokenizer.json").read_bytes(), (directory / "tokenizer_config.json").read_bytes())
    tokenizer, ids = load_tokenizer(directory), read_special_ids(directory)
    assert None not in (ids.cls, ids.sep, ids.mask, ids.pad)
    assert ids.pad not in (ids.eos, ids.bos)
    frame = Frame(ids.cls, ids.sep)
    plain = BatchEncoder(directory).encode(TEXTS)
    ends = np.cumsum(plain.lengths)
    parts = [plain.values[end - length : end].astype(np.int64) for end, length in zip(ends, plain.lengths, strict=True)]
    for text, part in zip(TEXTS, parts, strict=True):
        assert tokenizer(text)["input_ids"] == frame.wrap([(part, part)])["input_ids"].tolist()
    if kind == "bert":
        expected = frame.wrap([(parts[0], parts[0]), (parts[1], parts[1])])
        pair = tokenizer(TEXTS[0], TEXTS[1])
        assert pair["input_ids"] == expected["input_ids"].tolist()
        assert pair["token_type_ids"] == expected["token_type_ids"].tolist()
    if kind == "modernbert":
        assert "token_type_ids" not in tokenizer(TEXTS[0], TEXTS[1])


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_trained_tokenizers(algorithm: str, kind: str, tmp_path: Path) -> None:
    spec = TokenizerTrain(algorithm=algorithm, vocab_size=320)  # type: ignore[arg-type]
    train_tokenizer(lambda: TEXTS * 3, spec, tmp_path)
    check(tmp_path, kind)


@pytest.mark.skipif(not DIRECTORIES.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "t5", "llama-like"])
def test_imported_tokenizers(name: str, tmp_path: Path) -> None:
    import_tokenizer(TokenizerSource(str(DIRECTORIES / name), False), TokenizerSection(), tmp_path / "tokenizer")
    check(tmp_path / "tokenizer", "bert")
