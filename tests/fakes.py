"""Small stand-ins that several test files share: a split in memory, tokenizers and networks of a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class MemorySplit:
    """The part of `Split` that plans and tasks read, held in lists."""

    def __init__(
        self, rows: list[list[int]], *, masks: list[list[int]] | None = None, sources: list[int] | None = None
    ):
        self._streams = {"input_ids": [np.array(row, dtype=np.uint16) for row in rows]}
        if masks is not None:
            self._streams["loss_mask"] = [np.array(mask, dtype=np.uint8) for mask in masks]
        self.streams = tuple(self._streams)
        self.num_rows = len(rows)
        self._sources = sources or [0] * len(rows)

    def lengths(self, stream: str = "input_ids") -> np.ndarray:
        return np.array([len(row) for row in self._streams[stream]], dtype=np.int32)

    def row(self, i: int, stream: str = "input_ids", start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._streams[stream][i][start:stop]

    def source_of(self) -> np.ndarray:
        return np.array(self._sources, dtype=np.int16)

    def bytes_of(self) -> np.ndarray:
        return np.array([3 * len(row) for row in self._streams["input_ids"]], dtype=np.int64)

    def origin(self, i: int) -> dict[str, Any]:
        return {"source": self._sources[i], "file": "x.jsonl", "line": i + 1, "offset": 0, "hash": "00"}

    def origins(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return [self.origin(int(i)) for i in rows]

    def vocab_counts(self) -> np.ndarray:
        return np.bincount(np.concatenate(self._streams["input_ids"]), minlength=64)


def byte_tokenizer(directory: Path, *, special: tuple[str, ...] = ("<|endoftext|>",), **names: str | None) -> Path:
    """A byte-level tokenizer without merges, saved as transformers does; `names` are bos_token, eos_token, ..."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = names or {"eos_token": special[0]}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(str(directory))
    return directory


TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "use_sliding_window": False,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "dropout": 0.0,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "rnn_lm": {"hidden_size": 32, "num_layers": 2, "dropout": 0.0},
}
"""Configs of two layers and width 32, without dropout."""


def tiny_model(kind: str, *, seed: int = 0, attention: str | None = None, vocab_size: int = 64, **keys: Any) -> Any:
    """A network of TINY with seeded weights of a size that makes every mistake show."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    import llmkit  # noqa: F401 - registers its own architectures

    config = CONFIG_MAPPING[kind](
        **{**TINY[kind], **keys}, vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model
