"""Masked language modelling, with next-sentence prediction where asked (pretraining; arXiv:1810.04805)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import IGNORE, Encoder, Plan, Sample
from llmkit.errors import ModelError
from llmkit.models.heads import MASKED_LM, PRETRAINING
from llmkit.models.source import model_type
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import MaskedLM
from llmkit.tasks.base import Batch, Evaluated, Metric, Prediction, Task
from llmkit.tasks.masked_text import MaskedText
from llmkit.tasks.network import NetworkSpec, build_network, export_network
from llmkit.tasks.sums import RowSums, divide, join_rows

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split

PAIR_MODELS = ("bert", "ernie", "megatron-bert", "mobilebert")
"""Architectures of transformers that have a next-sentence head beside the masked-LM head, and an attention mask."""


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe. Raises ModelError where the architecture cannot tell pairs."""
    section = recipe.task
    assert isinstance(section, MaskedLM)
    kind = model_type(recipe.model)
    if section.next_sentence_prediction and kind is not None and kind not in PAIR_MODELS:
        raise ModelError(
            f"{kind} has no next-sentence head; use one of {', '.join(PAIR_MODELS)}, or set "
            "task.next_sentence_prediction: false",
            key="model",
        )
    refuse_packing(recipe)
    weights = tuple(source.weight for source in recipe.data.train)
    text = MaskedText(
        network.tokenizer_dir,
        network.max_length,
        weights,
        section.mlm_probability,
        whole_words=section.whole_word_mask,
        pairs=section.next_sentence_prediction,
    )
    names = ("mlm", "nsp") if text.pairs else ("mlm",)
    return MaskedLMTask(network, text, dict.fromkeys(names, 1.0))


def refuse_packing(recipe: Recipe) -> None:
    """Raises ModelError where the recipe wants documents packed: an encoder sees all that its window holds."""
    if recipe.data.packing:
        message = "an encoder attends to everything in its window, so its windows hold one document each; leave it out"
        raise ModelError(message, key="data.packing")


@dataclass(frozen=True)
class MaskedLMTask:
    network: NetworkSpec
    text: MaskedText
    loss_weights: dict[str, float] = field(default_factory=lambda: {"mlm": 1.0})

    def encoder(self) -> Encoder:
        return self.text.encoder()

    def build_model(self) -> nn.Module:
        from llmkit.models.mlm import MaskedLMModule

        model = build_network(self.network, PRETRAINING if self.text.pairs else MASKED_LM)
        return MaskedLMModule(model, pairs=self.text.pairs, label_smoothing=self.network.label_smoothing)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {"packing": False}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Raises DataError where a split has no pairs to draw."""
        for split in (train, validation):
            if split is not None and self.text.pairs:
                self.text.plan(split, None).num_samples(0)

    def train_plan(self, split: Split, seed: int) -> Plan:
        return self.text.plan(split, seed)

    def eval_plan(self, split: Split) -> Plan:
        return self.text.plan(split, None)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        import torch

        arrays = self.text.collate(samples, seed=seed, step=step, width=width)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def counts(self, batch: Batch) -> dict[str, int]:
        found = {"mlm": int((batch["labels"] != IGNORE).sum())}
        return {**found, "nsp": len(batch["labels"])} if self.text.pairs else found

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        from torch.nn import functional as F

        from llmkit.models.mlm import MaskedLMModule
        from llmkit.models.wrapping import unwrap

        losses, hits, relation = unwrap(module, MaskedLMModule).score(batch)
        columns = {
            "mlm": losses.sum(1).tolist(),
            "tokens": (batch["labels"] != IGNORE).sum(1).tolist(),
            "correct": hits.sum(1).tolist(),
        }
        if relation is not None:
            labels = batch["next_sentence_label"]
            columns["nsp"] = F.cross_entropy(relation, labels, reduction="none").tolist()
            columns["label"], columns["predicted"] = labels.tolist(), relation.argmax(-1).tolist()
            columns["nsp_correct"] = (relation.argmax(-1) == labels).long().tolist()
            columns["pairs"] = [1] * len(samples)
        return [
            Prediction(int(sample.rows[0]), {name: values[i] for name, values in columns.items()})
            for i, sample in enumerate(samples)
        ]

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        names = ["mlm", "tokens", "correct"] + (["nsp", "pairs", "nsp_correct"] if self.text.pairs else [])
        sums = join_rows(predictions, names)
        metrics = _metrics(sums, pairs=self.text.pairs, bootstrap=bootstrap)
        share = f"{100 * self.text.probability:g}% of the tokens{', whole words' if self.text.whole_words else ''}"
        notes = [f"masks: {share}, the same at every evaluation; perplexity a masked token"]
        if self.text.pairs:
            notes.append("loss: mlm_loss + nsp_loss; pairs: half from another document, the same at every evaluation")
        items = _items(sums, predictions, split, self.text.pairs) if bootstrap else []
        return Evaluated(metrics, items, notes)

    def export(self, module: nn.Module, directory: Path) -> None:
        from llmkit.models.mlm import MaskedLMModule
        from llmkit.models.wrapping import unwrap

        export_network(unwrap(module, MaskedLMModule).model, directory, self.network)


def _metrics(sums: RowSums, *, pairs: bool, bootstrap: bool) -> dict[str, Metric]:
    mlm, nsp = ("mlm", "tokens"), ("nsp", "pairs")
    found = {
        "loss": sums.metric(mlm, lambda c: divide(c[0], c[1]), bootstrap=bootstrap),
        "mlm_loss": sums.metric(mlm, lambda c: divide(c[0], c[1]), bootstrap=bootstrap),
        "perplexity": sums.metric(mlm, lambda c: np.exp(divide(c[0], c[1])), bootstrap=bootstrap),
        "mlm_accuracy": sums.metric(("correct", "tokens"), lambda c: divide(c[0], c[1]), bootstrap=bootstrap),
    }
    if pairs:
        found["loss"] = sums.metric(
            (*mlm, *nsp), lambda c: divide(c[0], c[1]) + divide(c[2], c[3]), bootstrap=bootstrap
        )
        found["nsp_loss"] = sums.metric(nsp, lambda c: divide(c[0], c[1]), bootstrap=bootstrap)
        found["nsp_accuracy"] = sums.metric(("nsp_correct", "pairs"), lambda c: divide(c[0], c[1]), bootstrap=bootstrap)
    return found


def _items(sums: RowSums, predictions: list[Prediction], split: Split, pairs: bool) -> list[dict[str, Any]]:
    """An item a row; `loss` only where it is that of the tokens alone."""
    told: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        told.setdefault(prediction.row, []).append(prediction)
    items = []
    for place, row, number in zip(split.origins(sums.rows), sums.rows.tolist(), range(len(sums.rows)), strict=True):
        own = {name: column[number].item() for name, column in sums.columns.items()}
        mean = own["mlm"] / own["tokens"]
        item = {
            "row": row,
            **{key: place[key] for key in ("source", "file", "line", "hash")},
            **({} if pairs else {"loss": mean}),
            "mlm_loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "tokens": int(own["tokens"]),
            "mlm_accuracy": own["correct"] / own["tokens"],
            "sums": {
                "mlm_loss": (own["mlm"], own["tokens"]),
                "perplexity": (own["mlm"], own["tokens"]),
                "mlm_accuracy": (own["correct"], own["tokens"]),
            },
        }
        if pairs:
            item["sums"]["nsp_loss"] = (own["nsp"], own["pairs"])
            item["sums"]["nsp_accuracy"] = (own["nsp_correct"], own["pairs"])
            item["nsp_accuracy"] = own["nsp_correct"] / own["pairs"]
            item["nsp_labels"] = [one.values["label"] for one in told[row]]
            item["nsp_predictions"] = [one.values["predicted"] for one in told[row]]
        items.append(item)
    return items
