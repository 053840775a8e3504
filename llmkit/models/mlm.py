"""An encoder that restores masked tokens, and may tell whether two texts belong together, as a TaskModule.

The head is computed at the masked positions only, where a probe at start shows that this gives the model's own logits.
"""

from __future__ import annotations

import inspect
from functools import reduce
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE
from llmkit.errors import ModelError

HEADS = (
    ("cls.predictions",),
    ("cls",),
    ("lm_head",),
    ("head", "decoder"),
    ("generator_predictions", "generator_lm_head"),
)
"""Where architectures keep their masked-LM head: modules applied one after the other."""


class MaskedLMModule(nn.Module):
    """`forward(batch) -> {"mlm": sum of -log p(label) over labels that are not IGNORE}`, in float32 at least; with
    pairs, `"nsp"`, the sum of -log p(next_sentence_label). label_smoothing: in training, on the tokens alone."""

    def __init__(self, model: nn.Module, *, pairs: bool = False, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.pairs = pairs
        self.label_smoothing = label_smoothing
        inner = self.inner()
        if "attention_mask" not in inspect.signature(inner.forward).parameters:
            raise ModelError(f"{inner.config.model_type} cannot leave padding out of its attention", key="model")
        self.head_path = probe_head(self)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: input_ids, attention_mask, labels (B, T); of pairs token_type_ids (B, T), next_sentence_label (B,)."""
        logits, labels, relation = self.restore(batch)
        smoothing = self.label_smoothing if self.training else 0.0
        losses = {
            "mlm": F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
        }
        if relation is not None:
            losses["nsp"] = F.cross_entropy(relation, batch["next_sentence_label"], reduction="sum")
        return losses

    def inner(self) -> Any:
        """The transformers model itself, adapters inside it included."""
        get_base_model = getattr(self.model, "get_base_model", None)
        return get_base_model() if get_base_model is not None else self.model

    def restore(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(logits (N, V), labels (N,), logits of the pair (B, 2) or None); N are the masked positions, in order, where
        the head can be computed there alone, else all of them."""
        labels = batch["labels"].flatten()
        if self.head_path is None:
            logits, relation = self.logits(batch)
            return upcast(logits.flatten(0, 1)), labels, relation
        hidden, relation = self._body(batch)
        hidden = hidden.flatten(0, 1)
        if not torch.compiler.is_compiling():
            keep = labels != IGNORE
            hidden, labels = hidden[keep], labels[keep]
        return upcast(apply_path(self.inner(), self.head_path, hidden)), labels, relation

    def _body(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, H) what the head reads, and the logits of the pair."""
        inner = self.inner()
        outputs = inner.base_model(**model_inputs(batch))
        relation = upcast(inner.cls.seq_relationship(outputs[1])) if self.pairs else None
        return outputs[0], relation

    def logits(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """((B, T, V), (B, 2) or None) by the model's own forward."""
        outputs = self.inner()(**model_inputs(batch))
        if not self.pairs:
            return outputs.logits, None
        return outputs.prediction_logits, upcast(outputs.seq_relationship_logits)

    @torch.no_grad()
    def score(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(B, T) -log p of each label in float64 (0 where there is none), (B, T) whether it is the most likely token,
        and the logits of the pair (B, 2)."""
        logits, labels, relation = self.restore(batch)
        whole = batch["labels"]
        keep = labels != IGNORE
        losses = torch.zeros(whole.shape, dtype=torch.float64, device=whole.device)
        hits = torch.zeros(whole.shape, dtype=torch.bool, device=whole.device)
        places = whole != IGNORE
        losses[places] = F.cross_entropy(logits[keep], labels[keep], reduction="none").double()
        hits[places] = logits[keep].argmax(-1) == labels[keep]
        return losses, hits, relation


def model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a transformers encoder takes of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


def upcast(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def apply_path(inner: nn.Module, path: tuple[str, ...], hidden: torch.Tensor) -> torch.Tensor:
    """The modules of `path` one after the other."""
    result: torch.Tensor = reduce(lambda states, name: inner.get_submodule(name)(states), path, hidden)
    return result


@torch.no_grad()
def probe_head(module: MaskedLMModule) -> tuple[str, ...] | None:
    """The modules that make the model's own logits of what its body gives (to rounding); None where none do."""
    inner = module.inner()
    table = inner.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, table.shape[0], (2, 6), generator=draw).to(table.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    training = module.training
    module.eval()
    try:
        whole, relation = module.logits(batch)
        modules = dict(inner.named_modules())
        for path in HEADS:
            if any(name not in modules for name in path) or inner.base_model is inner:
                continue
            if module.pairs and (path != HEADS[0] or "cls.seq_relationship" not in modules):
                continue
            hidden, own = module._body(batch)
            try:
                apart = apply_path(inner, path, hidden)
            except (RuntimeError, TypeError):
                continue  # a module of that name that is something else
            if _same(whole, apart) and (relation is None or (own is not None and _same(relation, own))):
                return path
        return None
    finally:
        module.train(training)


def _same(a: torch.Tensor, b: Any) -> bool:
    if not isinstance(b, torch.Tensor) or a.shape != b.shape:
        return False
    return float((a.float() - b.float()).abs().max()) <= 1e-5 * (float(a.float().abs().max()) + 1e-30)
