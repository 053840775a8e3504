"""The cache that grows in place, against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llmkit.models.configs import RnnLmConfig
from llmkit.writing.cache import RoomyLayer, roomy_cache

SMALL: dict[str, Any] = {"vocab_size": 97, "eos_token_id": None, "bos_token_id": None}
LLAMA: dict[str, Any] = {
    **SMALL,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = GPT2Config(**SMALL, n_layer=2, n_head=2, n_embd=16, n_positions=64)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def written(model: PreTrainedModel, cache: DynamicCache | None, **more: Any) -> list[list[int]]:
    ids = torch.arange(1, 19).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    made: Any = model.generate(  # type: ignore[operator]
        ids, attention_mask=mask, max_new_tokens=12, pad_token_id=0, past_key_values=cache, **more
    )
    rows: list[list[int]] = made.tolist()
    return rows


@pytest.mark.parametrize("config", [GPT2, LlamaConfig(**LLAMA)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("room", [21, 40, 4])
def test_it_writes_what_transformers_cache_writes(config: PreTrainedConfig, room: int) -> None:
    model = build(config)
    cache = roomy_cache(model, room)
    assert cache is not None
    assert written(model, cache) == written(model, None)
    assert cache.get_seq_length() == 20  # the last token is not read


def test_a_step_copies_nothing() -> None:
    layer = RoomyLayer(8)
    layer.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    assert layer.keys is not None
    place = layer.keys.data_ptr()
    keys, values = layer.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    assert keys.data_ptr() == place and keys.shape == values.shape == (1, 2, 4, 4)
    assert keys[0, 0, :, 0].tolist() == [0, 0, 0, 1]


def test_what_was_put_in_its_place_is_kept() -> None:
    roomy, plain = RoomyLayer(8), DynamicLayer()
    for layer in (roomy, plain):
        torch.manual_seed(0)
        layer.update(torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4))
        layer.reorder_cache(torch.tensor([1, 0]))
        layer.update(torch.randn(2, 2, 1, 4), torch.randn(2, 2, 1, 4))
        layer.crop(-2)
        layer.update(torch.randn(2, 2, 2, 4), torch.randn(2, 2, 2, 4))
        layer.batch_select_indices(torch.tensor([1]))
        layer.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    assert roomy.keys is not None and plain.keys is not None
    assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)  # type: ignore[arg-type]


def test_layers_with_a_window_stay_transformers_own() -> None:
    model = build(MistralConfig(**LLAMA, sliding_window=6, max_position_embeddings=64))
    cache = roomy_cache(model, 40)
    assert cache is not None and all(type(layer) is DynamicSlidingWindowLayer for layer in cache.layers)
    assert written(model, cache) == written(model, None)


def test_a_model_that_keeps_something_else_gets_none() -> None:
    t5 = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    assert roomy_cache(AutoModelForSeq2SeqLM.from_config(t5), 40) is None
    assert roomy_cache(build(RnnLmConfig(vocab_size=97, hidden_size=8, num_hidden_layers=1)), 40) is None
