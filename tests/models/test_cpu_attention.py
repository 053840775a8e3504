"""Attention in bf16 on a CPU, against torch's in float64 and against its own bf16 kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)

from llmkit.models import cpu_attention
from llmkit.models.cpu_attention import NAME, install_cpu_attention

MASKS: dict[str, Callable[[int, int], torch.Tensor | None]] = {
    "none": lambda length, keys: None,
    "padding": lambda length, keys: torch.arange(keys) < torch.tensor([keys, keys // 2, 3])[:, None, None, None],
    "documents": lambda length, keys: _packed(length),
    "window": lambda length, keys: _packed(length) & torch.ones(length, length, dtype=torch.bool).triu(-20),
    "same for all": lambda length, keys: torch.ones(1, 1, length, keys, dtype=torch.bool).tril(),
}


def _packed(length: int) -> torch.Tensor:
    """(3, 1, T, T): causal, within documents that end at different places."""
    number = torch.stack([(torch.arange(length) + shift) // (7 + 40 * shift) for shift in range(3)])
    same = number[:, :, None] == number[:, None, :]
    return (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("length", [16, 100, 256, 257, 600])
@pytest.mark.parametrize("name", [*MASKS, "causal", "cross"])
def test_outputs_and_gradients(name: str, length: int) -> None:
    """At most twice as far from float64 as torch's kernel: scores and probabilities are rounded once more."""
    draw = torch.Generator().manual_seed(length)
    keys = length + 37 if name == "cross" else length
    mask = MASKS["padding" if name == "cross" else name](length, keys) if name != "causal" else None
    sizes = ((3, 2, length, 16), (3, 2, keys, 16), (3, 2, keys, 16))
    exact = [torch.randn(size, generator=draw).bfloat16().double().requires_grad_() for size in sizes]
    upstream = torch.randn(sizes[0], generator=draw).bfloat16()
    results = {}
    for kind in ("exact", "torch", "ours"):
        inputs = [x.detach().to(torch.float64 if kind == "exact" else torch.bfloat16).requires_grad_() for x in exact]
        if kind == "ours":
            out = cpu_attention._attend(*inputs, mask, 0.25, name == "causal")[0].transpose(1, 2)
        else:
            out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.25, is_causal=name == "causal")
        out.backward(upstream.to(out.dtype))
        results[kind] = [out.detach(), *(x.grad for x in inputs)]
    for found, theirs, expected in zip(results["ours"], results["torch"], results["exact"], strict=True):
        assert found is not None and theirs is not None and expected is not None
        assert error(found, expected) < 2 * error(theirs, expected) + 1e-3


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("length", "masked"), [(40, False), (40, True), (300, False), (300, True)])
def test_the_compiler_is_told_what_comes_back(rows: int, heads: int, length: int, masked: bool) -> None:
    """Shapes and strides, of inputs as models lay them: a single row or head has strides that say nothing."""
    q, k, v = (torch.randn(rows, length, heads, 16).bfloat16().transpose(1, 2) for _ in range(3))
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool).tril() if masked else None
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(cpu_attention._attend, (q, k, v, mask, 0.25, not masked), test_utils=checks)
    out, kept = cpu_attention._attend(q, k, v, mask, 0.25, not masked)
    given = (torch.randn_like(out), q, k, v, mask, kept, 0.25, not masked)
    torch.library.opcheck(cpu_attention._attend_backward, given, test_utils=checks)


def test_keys_that_no_query_sees_are_left_out() -> None:
    assert [columns for _, columns in cpu_attention._blocks(600, 600, None, True)] == [
        slice(0, 256),
        slice(0, 512),
        slice(0, 600),
    ]
    window = torch.ones(600, 600, dtype=torch.bool).tril().triu(-20)[None, None]
    assert [columns for _, columns in cpu_attention._blocks(600, 600, window, False)] == [
        slice(0, 256),
        slice(236, 512),
        slice(492, 600),
    ]


BODY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
GROUPED: dict[str, Any] = {**BODY, "num_key_value_heads": 2}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BART: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
CONFIGS: dict[str, tuple[type, PreTrainedConfig]] = {
    "gpt2": (AutoModelForCausalLM, GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "llama": (AutoModelForCausalLM, LlamaConfig(**GROUPED)),
    "qwen3": (AutoModelForCausalLM, Qwen3Config(**GROUPED, head_dim=16)),
    "mistral": (AutoModelForCausalLM, MistralConfig(**GROUPED, sliding_window=8)),
    "gemma2": (AutoModelForCausalLM, Gemma2Config(**GROUPED, head_dim=8, sliding_window=8)),
    "gpt_neox": (AutoModelForCausalLM, GPTNeoXConfig(**BODY)),
    "opt": (AutoModelForCausalLM, OPTConfig(**{**BODY, "ffn_dim": 48, "word_embed_proj_dim": 32})),
    "bloom": (AutoModelForCausalLM, BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)),
    "bert": (AutoModel, BertConfig(**BODY, **NO_DROPOUT)),
    "modernbert": (AutoModel, ModernBertConfig(**BODY, local_attention=8, pad_token_id=0)),
    "bart": (AutoModelForSeq2SeqLM, BartConfig(vocab_size=97, d_model=32, encoder_attention_heads=4,
                                               decoder_attention_heads=4, **BART)),
    "t5": (AutoModelForSeq2SeqLM, T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)),
}  # fmt: skip


def outcome(model: PreTrainedModel, inputs: dict[str, torch.Tensor], autocast: bool = True) -> list[torch.Tensor]:
    """The scores (states of a bare encoder) at real tokens, and all gradients of their weighted sum."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out: Any = model(**inputs)
    states = (out.logits if "logits" in out else out.last_hidden_state).float()
    real = states[inputs.get("decoder_input_ids", inputs["attention_mask"]) > 0]
    (real * torch.linspace(-1, 1, real.numel()).view_as(real)).sum().backward()
    return [real.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]


@pytest.mark.parametrize("name", CONFIGS)
def test_models_compute_what_they_did(name: str) -> None:
    kind, config = CONFIGS[name]
    torch.manual_seed(0)
    model = kind.from_config(config).eval()  # type: ignore[attr-defined]
    ids = torch.randint(3, 97, (3, 40))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(40) < torch.tensor([40, 33, 17])[:, None]).long()}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 97, (3, 24))
    exact, before = outcome(model, inputs, autocast=False), outcome(model, inputs)
    used = model.config._attn_implementation == "sdpa"
    install_cpu_attention(model)
    assert (model.config._attn_implementation == NAME) == used
    for found, theirs, expected in zip(outcome(model, inputs), before, exact, strict=True):
        assert error(found, expected.double()) < 1.5 * error(theirs, expected.double()) + 1e-3
    torch.testing.assert_close(outcome(model, inputs, autocast=False), exact)  # float32 is torch's own


def test_it_is_used_and_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED)).train()
    install_cpu_attention(model)
    monkeypatch.setattr(cpu_attention, "sdpa_attention_forward", lambda *_, **__: pytest.fail("not needed"))
    compiled = torch.compile(model, dynamic=True)
    for length in (24, 40):
        ids = torch.randint(3, 97, (2, length))
        positions = torch.cat([torch.arange(10), torch.arange(length - 10)]).expand(2, -1)
        inputs = {"input_ids": ids, "labels": ids, "position_ids": positions, "use_cache": False}
        results = []
        for one in (model, compiled):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = one(**inputs).loss
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=2e-3)


def test_dropout_and_short_texts_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_attend", lambda *_: pytest.fail("does not apply"))
    model = AutoModel.from_config(BertConfig(**BODY)).train()  # type: ignore[no-untyped-call]
    install_cpu_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.randint(3, 97, (2, 30)))
        model.eval()(input_ids=torch.randint(3, 97, (2, 10)))
