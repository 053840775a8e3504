"""Proofs at start, by experiment on the model at hand: that packed documents do not see each other, and that no token
sees a later one. transformers promises neither; some architectures ignore `position_ids`, some attend both ways."""

from __future__ import annotations

import torch

from llmkit.models.lm import CausalLMModule, probe_batch

LENGTHS = (5, 7)
"""Of the two documents; different, so that a boundary at the wrong place shows."""


@torch.no_grad()
def probe_isolation(module: CausalLMModule) -> bool:
    """Whether two documents packed in one row, told apart by restarting positions, get what each gets alone.

    Two rows with their boundary at different places, so that both paths of a batch are tried. A document's logits must
    not move at all when the other document changes, must be those of the document alone to rounding, and must move when
    its own first token does (else the probe could not see a leak).
    """
    training = module.training
    module.eval()
    try:
        return _isolates(module)
    finally:
        module.train(training)


def _isolates(module: CausalLMModule) -> bool:
    first, second = LENGTHS
    total = first + second
    ids = probe_batch(module, 2, total)["input_ids"]
    other = probe_batch(module, 2, total, seed=1)["input_ids"]
    positions = torch.stack(
        [
            torch.cat([torch.arange(first), torch.arange(second)]),
            torch.cat([torch.arange(second), torch.arange(first)]),
        ]
    ).to(ids.device)
    packed = module.logits({"input_ids": ids, "position_ids": positions})
    changed = ids.clone()
    changed[0, :first], changed[1, :second] = other[0, :first], other[1, :second]
    moved = module.logits({"input_ids": changed, "position_ids": positions})
    own = ids.clone()
    own[0, first], own[1, second] = (ids[0, first] + 1) % ids.max(), (ids[1, second] + 1) % ids.max()
    answer = module.logits({"input_ids": own, "position_ids": positions})
    for row, cut in ((0, first), (1, second)):
        scale = float(packed[row].float().abs().max())
        alone = module.logits({"input_ids": ids[row : row + 1, cut:]})[0]
        tolerance = 1e-4 if packed.dtype in (torch.float32, torch.float64) else 3e-2
        if _distance(packed[row, cut:], moved[row, cut:]) > 1e-6 * scale:
            return False
        if _distance(packed[row, cut:], alone) > tolerance * scale:
            return False
        if _distance(packed[row, cut + 1 :], answer[row, cut + 1 :]) <= 1e-6 * scale:
            return False
    return True


@torch.no_grad()
def probe_causal(module: CausalLMModule) -> bool:
    """Whether a token's logits ignore the tokens after it, as next-token prediction needs."""
    training = module.training
    module.eval()
    try:
        batch = probe_batch(module, 1, sum(LENGTHS))
        before = module.logits(batch)
        ids = batch["input_ids"].clone()
        ids[0, -1] = (ids[0, -1] + 1) % module.inner().get_input_embeddings().weight.shape[0]
        after = module.logits({"input_ids": ids})
        scale = float(before.float().abs().max())
        return _distance(before[0, :-1], after[0, :-1]) <= 1e-6 * scale
    finally:
        module.train(training)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())
