"""What the tests of the masked objectives share: documents with sentences in memory, special tokens, tiny encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.framing import SENTENCE_END, WORD_START
from llmkit.recipe.sections import Recipe
from tests.fakes import MemorySplit, byte_tokenizer

NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
PAD, CLS, SEP, MASK = 256, 257, 258, 259

ENCODERS: dict[str, dict[str, Any]] = {
    kind: {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    for kind in ("bert", "roberta", "deberta", "deberta-v2", "electra", "ernie", "megatron-bert")
}
ENCODERS["electra"]["embedding_size"] = 24
ENCODERS["electra"]["summary_last_dropout"] = 0.0
ENCODERS["modernbert"] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ENCODERS["distilbert"] = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "dropout": 0.0}


def tokenizer(directory: Path) -> Path:
    return byte_tokenizer(directory, special=tuple(NAMES.values()), **NAMES)


def recipe(kind: str, task: dict[str, Any], *, max_length: int = 32, **sections: Any) -> Recipe:
    value = {
        "output_dir": "x",
        "task": task,
        "model": {"config": {"model_type": kind, **ENCODERS.get(kind, {})}},
        "data": {"train": [{"path": "a"}], "max_length": max_length},
        **sections,
    }
    return Recipe.model_validate(value)


class Documents(MemorySplit):
    """Rows of tokens below 256 with words of one to three tokens and sentences of three to nine."""

    def __init__(self, lengths: list[int], seed: int = 0):
        draw = np.random.default_rng(seed)
        super().__init__([draw.integers(0, 256, size=length).tolist() for length in lengths])
        words, sentences = [], []
        for length in lengths:
            start, end = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
            start[:1] = 1
            start[[place for place in np.cumsum(draw.integers(1, 4, size=length)) if place < length]] = 1
            end[[place for place in np.cumsum(draw.integers(3, 10, size=length)) if place < length]] = 1
            end[-1:] = 1
            words.append(start)
            sentences.append(end)
        self._streams |= {WORD_START: words, SENTENCE_END: sentences}
        self.streams = tuple(self._streams)


def documents(count: int = 10, seed: int = 0) -> Documents:
    return Documents(np.random.default_rng(seed).integers(1, 140, size=count).tolist(), seed)
