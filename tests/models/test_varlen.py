"""Variable-length attention, against transformers' mask: on any machine with the kernel's formula, on a GPU with it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig

from llmkit.models import varlen
from llmkit.models.bounds import document_bounds, with_bounds
from llmkit.models.lm import CausalLMModule

LLAMA: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**GPT2, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "llama": LlamaConfig(**LLAMA),
    "mistral": MistralConfig(**LLAMA, sliding_window=4),
}
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]])


def module_of(config: PreTrainedConfig, device: str = "cpu") -> CausalLMModule:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return CausalLMModule(model.to(device))


def batch_on(device: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 97, POSITIONS.shape, generator=draw)
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "position_ids": POSITIONS}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def by_formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, *_: Any, scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """What torch's varlen_attn documents, a document at a time."""
    parts = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        behind = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        seen = (behind >= 0) & ((behind <= window_size[0]) if window_size[0] >= 0 else True)
        piece = [x[start:stop].transpose(0, 1) for x in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(*piece, attn_mask=seen, scale=scale).transpose(0, 1))
    return torch.cat(parts)


def test_bounds_are_where_documents_begin() -> None:
    assert document_bounds(POSITIONS).tolist() == [0, 7, 10, 11, 20]
    assert document_bounds(POSITIONS[:, :7]).tolist() == [0, 7, 8, 14, 14]  # rounded up by an empty document
    assert document_bounds(POSITIONS[:1, 7:]).tolist() == [0, 3]
    assert document_bounds(POSITIONS).dtype == torch.int32


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_formula)
    module, batch = module_of(CONFIGS[name]), batch_on("cpu")
    expected = module(batch)["loss"]
    expected.backward()
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    varlen.register()
    module.inner().set_attn_implementation(varlen.NAME)
    module.varlen = True
    loss = module(with_bounds(batch))["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for one, other in zip([p.grad for p in module.parameters() if p.grad is not None], gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # padded batches, as validation reads them, come without positions
    plain = {key: batch[key] for key in ("input_ids", "labels")}
    found = module(plain)["loss"]
    module.inner().set_attn_implementation("sdpa")
    torch.testing.assert_close(found, module(plain)["loss"])


def test_without_a_gpu_the_model_stays_as_it_is() -> None:
    module = module_of(CONFIGS["llama"])
    assert not varlen.install_varlen(module, nullcontext)
    assert module.inner().config._attn_implementation == "sdpa" and not module.varlen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_kernel_of_a_gpu_computes_what_the_mask_does(name: str) -> None:
    module, batch = module_of(CONFIGS[name], "cuda"), batch_on("cuda")
    autocast = partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    with autocast():
        expected = module(batch)["loss"]
    assert varlen.install_varlen(module, autocast)
    assert module.inner().config._attn_implementation == varlen.NAME
    with autocast():
        found = module(with_bounds(batch))["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_in_attention_keeps_the_mask() -> None:
    module = module_of(GPT2Config(**GPT2, attn_pdrop=0.1), "cuda")
    assert not varlen.install_varlen(module, partial(torch.autocast, "cuda", dtype=torch.bfloat16))
    assert module.inner().config._attn_implementation == "sdpa" and not module.varlen
