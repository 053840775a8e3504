"""The loop of our own against transformers' `generate`, in float64: the same tokens from any architecture it takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LogitsProcessorList,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3MoeConfig,
)
from transformers.models.gpt2 import modeling_gpt2

from llmkit.models.configs import RnnLmConfig
from llmkit.writing import decoding
from llmkit.writing.decoding import can_decode, decode
from tests.generate.conftest import engine_of, make_model, prompts_of

VOCABULARY = 97
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BODY: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
GROUPED: dict[str, Any] = {**BODY, "num_key_value_heads": 2}
MIXTURE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "llama": LlamaConfig(**GROUPED),
    "llama_eager": LlamaConfig(**GROUPED, attn_implementation="eager"),
    "qwen2": Qwen2Config(**GROUPED),
    "mixture": Qwen3MoeConfig(**GROUPED, **MIXTURE),
    "gpt_neox": GPTNeoXConfig(**BODY),
    "phi": PhiConfig(**BODY),
    "opt": OPTConfig(**{**BODY, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21], [30], [40, 41, 42, 43, 44, 45, 46], [50, 51, 52]]


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # wide scores: choices that rounding cannot turn
        parameter.data.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return (model if type(config) is Qwen3MoeConfig else model.double()).eval()  # its kernel takes no float64


def ended(ids: Sequence[int]) -> bool:
    return (5 * len(ids) + ids[-1]) % 17 == 2  # texts end at many different steps


def decoded(model: PreTrainedModel, prompts: list[list[int]], allowance: int, batch_size: int) -> list[list[int]]:
    keys: dict[str, Any] = {"pad_id": 0, "warpers": LogitsProcessorList(), "uniforms": None, "ended": ended}
    with torch.inference_mode():
        return decode(model, prompts, allowance, batch_size=batch_size, **keys)


def expected(model: PreTrainedModel, prompt: list[int], allowance: int) -> list[int]:
    made: Any = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]), max_new_tokens=allowance, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    new: list[int] = made[0, len(prompt) :].tolist()
    return next((new[:end] for end in range(1, len(new)) if ended(new[:end])), new)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("at_once", [1, 16, 2048])
def test_it_writes_what_generate_writes(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoding.PROMPT_TOKENS, "cpu", at_once)
    model = build(CONFIGS[name])
    assert can_decode(model)
    found = decoded(model, PROMPTS, 40, len(PROMPTS))
    assert found == [expected(model, prompt, 40) for prompt in PROMPTS]
    assert len({tuple(new) for new in found}) > 1


@pytest.mark.parametrize("change_at", [1, 8, 10**9])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 40])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom"])
def test_lines_of_ended_texts_are_given_to_waiting_prompts(
    name: str, batch_size: int, change_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted and unsorted; up to the last position that the model has; whenever lines change hands."""
    monkeypatch.setattr(decoding, "CHANGE_AT", change_at)
    model, dice = build(CONFIGS[name]), random.Random(batch_size)
    prompts = [dice.choices(range(3, VOCABULARY), k=dice.randint(1, 90)) for _ in range(26)]
    wanted = [expected(model, prompt, 38) for prompt in prompts]
    assert len({len(new) for new in wanted}) > 3
    for order in (range(26), sorted(range(26), key=lambda i: -len(prompts[i]))):
        found = decoded(model, [prompts[i] for i in order], 38, batch_size)
        assert found == [wanted[i] for i in order]


def test_models_that_keep_more_are_left_to_generate() -> None:
    small = {**GROUPED, "sliding_window": 8}
    assert not can_decode(build(MistralConfig(**small)))
    assert not can_decode(build(Gemma2Config(**small, head_dim=8)))
    assert not can_decode(build(RnnLmConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1)))


def test_models_that_cannot_score_one_place_of_each_text_are_left_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers did before 5.21."""
    model = build(CONFIGS["gpt2"])
    monkeypatch.setattr(modeling_gpt2, "slice_logits_to_keep", lambda hidden, places: hidden[:, places, :])
    assert not can_decode(model)


SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.9},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "stop strings": {"stop_strings": ["e", "好"], "max_new_tokens": 20},
    "sampled stop strings": {"do_sample": True, "stop_strings": ["e", "a"], "max_new_tokens": 30},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_engine_completes_as_with_generate(name: str, kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model(kind, len(tokenizer))
    prompts = prompts_of(tokenizer, "the", "def add(a, b):\n    return", "今天天气", "fox jumps over", "a", "lazy dog")
    ours, theirs = (engine_of(model, tokenizer, **SETTINGS[name]) for _ in range(2))
    assert ours.decodes
    theirs.decodes = False
    assert ours.generate(prompts) == theirs.generate(prompts)


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 2}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3}],
    ids=str,
)
def test_other_settings_are_left_to_generate(settings: dict[str, object], tokenizer: PreTrainedTokenizerBase) -> None:
    assert not engine_of(make_model("gpt2", len(tokenizer)), tokenizer, **settings).decodes


def test_prompts_are_read_a_few_at_a_time() -> None:
    assert list(decoding._parts([3000], 2048)) == [slice(0, 1)]
    assert list(decoding._parts([1500, 600, 500, 10, 10], 2048)) == [slice(0, 1), slice(1, 4), slice(4, 5)]
    parts = list(decoding._parts([100] * 50, 2048))
    assert [part.stop - part.start for part in parts] == [20, 20, 10]
