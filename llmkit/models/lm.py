"""A decoder-only language model as a TaskModule: batches of shifted labels in, the sum of the losses out.

The head is computed at supervised positions only, where that is known to give the model's own logits (a probe at start:
soft-capping, scaling or a second head fall back to the model's whole forward).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE
from llmkit.models.bounds import BOUNDS, document_bounds
from llmkit.models.linear_cross_entropy import linear_cross_entropy, pays
from llmkit.models.wrapping import base_of, prompt_length

SPARSE_BELOW = 0.9
"""Share of supervised positions under which gathering them costs less than computing the head everywhere."""

CPU_SCORE_CHUNK, SCORE_CHUNK = 2**23, 2**25
"""Logits held at once while scoring; more are no faster."""


class CausalLMModule(nn.Module):
    """`forward(batch) -> {"loss": sum of -log p(label) over labels that are not IGNORE}`, in float32 at least.

    label_smoothing: in training alone (arXiv:1512.00567, as torch's cross_entropy and transformers' LabelSmoother).
    """

    def __init__(self, model: nn.Module, *, split_head: bool | None = None, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.prompt_length = prompt_length(model)
        self.varlen = False
        """Set by `models.varlen`: packed documents are told apart by their bounds, without a mask."""
        self.split_head = probe_split_head(self) if split_head is None else split_head

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: input_ids (B, T), labels (B, T) shifted, position_ids (B, T) where documents are packed."""
        labels = batch["labels"]
        smoothing = self.label_smoothing if self.training else 0.0
        if not self.split_head:
            return {"loss": _loss_sum(self.logits(batch).flatten(0, 1), labels.flatten(), smoothing)}
        hidden, labels = self.hidden(batch).flatten(0, 1), labels.flatten()
        if not torch.compiler.is_compiling():
            keep = labels != IGNORE
            if int(keep.sum()) < SPARSE_BELOW * labels.numel():
                hidden, labels = hidden[keep], labels[keep]
        head = self.inner().get_output_embeddings()
        if pays(head, hidden):
            return {"loss": linear_cross_entropy(hidden, head.weight, labels, smoothing)}
        return {"loss": _loss_sum(self.head(hidden), labels, smoothing)}

    def inner(self) -> Any:
        """The transformers model itself, adapters inside it included."""
        return base_of(self.model)

    def hidden(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, T, H) what the head reads."""
        hidden: torch.Tensor = self.inner().base_model(**self._inputs(batch))[0]
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner().get_output_embeddings()(hidden)
        return logits

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, T, V) by the model's own forward; positions of a tuned prompt, before the text, are cut off."""
        model = self.model if self.prompt_length else self.inner()
        logits: torch.Tensor = model(**self._inputs(batch)).logits
        return logits[:, self.prompt_length :]

    def _inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """No attention mask: padding stands on the right, where nothing supervised sees it, and transformers isolates
        packed documents by their positions only without a mask and with `use_cache=False`."""
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
        if "position_ids" in batch:
            inputs["position_ids"] = batch["position_ids"]
        if self.varlen and "position_ids" in batch:
            length = batch["input_ids"].shape[1]
            bounds = batch[BOUNDS] if BOUNDS in batch else document_bounds(batch["position_ids"])
            # of four dimensions, so that transformers hands it on as it is instead of making one; nothing reads it
            inputs["attention_mask"] = bounds.new_ones((1, 1, 1, 1), dtype=torch.bool)
            inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": length, "max_length_k": length}
        return inputs

    @torch.no_grad()
    def score(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) -log p of each label in float32 at least (0 where not supervised), and whether it is the argmax."""
        labels = batch["labels"]
        own = getattr(self.inner(), "score_labels", None)
        if own is not None:  # an n-gram model looks its labels up, without the whole distribution
            scored: tuple[torch.Tensor, torch.Tensor] = own(batch["input_ids"], labels)
            return scored
        flat = labels.flatten()
        keep = torch.nonzero(flat != IGNORE).squeeze(1)
        states = (self.hidden(batch) if self.split_head else self.logits(batch)).flatten(0, 1)
        vocabulary = self.inner().get_output_embeddings().weight.shape[0] if self.split_head else states.shape[-1]
        chunk_logits = CPU_SCORE_CHUNK if flat.device.type == "cpu" else SCORE_CHUNK
        rows = max(chunk_logits // vocabulary, 1)
        nll, correct = [], []
        for chunk in keep.split(rows):
            logits = _upcast(self.head(states[chunk]) if self.split_head else states[chunk])
            nll.append(F.cross_entropy(logits, flat[chunk], reduction="none"))
            correct.append(logits.argmax(-1) == flat[chunk])
        losses = torch.zeros(flat.shape, dtype=torch.float64, device=flat.device)
        hits = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
        if len(keep):
            losses[keep], hits[keep] = torch.cat(nll).double(), torch.cat(correct)
        return losses.view_as(labels), hits.view_as(labels)


def _upcast(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _loss_sum(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    return F.cross_entropy(_upcast(logits), labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)


def probe_batch(module: CausalLMModule, rows: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens (rows, length) on the module's device, drawn without touching the global generator."""
    table = module.inner().get_input_embeddings().weight
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, table.shape[0], (rows, length), generator=draw)
    return {"input_ids": ids.to(table.device)}


@torch.no_grad()
def probe_split_head(module: CausalLMModule) -> bool:
    """Whether body and head apart give the model's own logits (to rounding)."""
    inner = module.inner()
    if module.prompt_length:  # peft puts the prompt before the embeddings in its own forward alone
        return False
    if inner.get_output_embeddings() is None or inner.base_model is inner:
        return False
    training = module.training
    module.eval()
    try:
        batch = probe_batch(module, 2, 6)
        whole = module.logits(batch).float()
        states = module.hidden(batch)
        if states.shape[-1] != inner.get_output_embeddings().weight.shape[-1]:
            return False
        apart = module.head(states).float()
        scale = float(whole.abs().max()) + 1e-30
        return apart.shape == whole.shape and float((whole - apart).abs().max()) <= 1e-5 * scale
    finally:
        module.train(training)
