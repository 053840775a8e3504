"""A class, several classes or a number for a text or a pair of texts (fine-tuning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from llmkit.data.augment import Augmenter, augmenter
from llmkit.data.examples import Encoder, Plan, Sample
from llmkit.data.labels import names_of
from llmkit.data.prepared import open_prepared
from llmkit.data.records import RecordBatch
from llmkit.data.rows import RowPlan
from llmkit.data.shards import Split
from llmkit.data.tokenizer import read_special_ids
from llmkit.errors import RecipeError
from llmkit.models.heads import labelled_head
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import SequenceClassification
from llmkit.tasks import classified
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.batching import pad
from llmkit.tasks.class_weights import weights_of
from llmkit.tasks.head_labels import settle_names
from llmkit.tasks.label_encoder import TEXT, TYPES, LabelEncoder, ProblemType
from llmkit.tasks.labels import IN_TRANSFORMERS, Labels, decide, spelled
from llmkit.tasks.network import NetworkSpec, build_network, export_network

if TYPE_CHECKING:
    from torch import nn


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe."""
    assert isinstance(recipe.task, SequenceClassification)
    overflow = recipe.data.overflow or "truncate"
    assert overflow != "split", "the recipe's checks refuse it"
    return SequenceClassificationTask(
        network,
        tuple(source.weight for source in recipe.data.train),
        overflow,
        recipe.task.problem_type,
        recipe.task.class_weights,
        tuple(names_of(source) for source in recipe.data.train),
        classified.wanted_metrics(recipe.evaluation),
        augmenter(recipe.data.augment),
    )


def named_tokens(recipe: Recipe) -> dict[str, str]:
    """Padding of its own: a classifier on a decoder reads the last token that is none."""
    return {"pad_token": "<pad>"}


@dataclass(frozen=True)
class SequenceClassificationTask:
    """`problem_type` null is decided by the labels of the training rows, which `prepare` reads.

    label_names: those of the sources of data.train. wanted: (key, metric) pairs that the recipe reads.
    """

    network: NetworkSpec
    weights: tuple[float, ...]
    overflow: Literal["truncate", "drop", "error"]
    problem_type: ProblemType | None
    class_weights: Literal["balanced"] | dict[str, float] | None
    label_names: tuple[tuple[str, ...] | None, ...]
    wanted: tuple[tuple[str, str], ...] = ()
    augment: Augmenter | None = None
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `prepare` leaves: the labels and their weights."""

    def encoder(self) -> Encoder:
        return LabelEncoder(self.network.tokenizer_dir, self.network.max_length, self.overflow, self.problem_type)

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Settles labels and weights. Raises DataError where a split has labels that training does not know."""
        given = None if train is None else decide(spelled(train), self.problem_type, self.label_names)
        labels = settle_names(given, self.network, self.label_names)
        classified.check_wanted(labels.problem_type, self.wanted)
        if self.network.label_smoothing and labels.problem_type != "single_label":
            message = f"the problem is {labels.problem_type}, which has no single label to smooth"
            raise RecipeError(message, key="training.label_smoothing_factor")
        self.scratch["labels"] = labels
        if train is None or self.network.trained:
            return
        self.scratch["weights"] = weights_of(self.class_weights, labels, labels.ids(train, "train"))
        # a label of data.test that training does not know is told now, not after hours
        splits = open_prepared(train.directory.parent).splits if isinstance(train, Split) else {}
        for name, split in {"validation": validation, "test": splits.get("test")}.items():
            if split is not None:
                labels.ids(split, name)

    def build_model(self) -> nn.Module:
        import torch

        from llmkit.models.classifier import ClassifierModule

        labels = self.labels
        head = labelled_head("sequence", list(labels.names), IN_TRANSFORMERS[labels.problem_type])
        model: Any = build_network(self.network, head)
        model.config.pad_token_id = self.pad_id
        weights = self.scratch.get("weights")
        return ClassifierModule(
            model,
            labels.problem_type,
            class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float64),
            label_smoothing=self.network.label_smoothing,
        )

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        """The labels follow from the training data, which a resumed run shares: there is nothing to choose again."""
        labels = self.labels
        names = [] if labels.problem_type == "regression" else list(labels.names)
        return self, {"problem_type": labels.problem_type, "labels": names}

    def train_plan(self, split: Split, seed: int) -> Plan:
        return self._plan(split, seed)

    def eval_plan(self, split: Split) -> Plan:
        return self._plan(split, None)

    def _plan(self, split: Split, seed: int | None) -> Plan:
        gold = self.labels.ids(split, "test" if seed is None else "train")

        def read(row: int, draw: np.random.Generator | None) -> dict[str, np.ndarray]:
            ids, types = split.row(row), split.row(row, TYPES)
            if draw is not None and self.augment is not None:
                ids, types = self._augmented(self.augment, split, row, draw) or (ids, types)
            return {"input_ids": ids, "attention_mask": np.ones(len(ids)), TYPES: types, "labels": np.array(gold[row])}

        return RowPlan(split, split.lengths(), read, seed, self.weights if seed is not None else ())

    def _augmented(
        self, augment: Augmenter, split: Split, row: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Tokens and types of the row's text (and pair), changed and encoded again; None where nothing is left."""
        if "encoder" not in self.scratch:
            self.scratch["encoder"] = LabelEncoder(
                self.network.tokenizer_dir, self.network.max_length, "truncate", None
            )
        text, pair = [*(augment.text(text, draw) for text in split.field(TEXT)[row].as_py()), None][:2]
        columns: dict[str, list[Any]] = {"text": [text], "text_pair": [pair], "label": ["not read"]}
        made = self.scratch["encoder"].encode(RecordBatch(0, "", columns, [None], [None]))
        return (made.streams["input_ids"].values, made.streams[TYPES].values) if len(made.rows) else None

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        batch = pad(samples, {"input_ids": self.pad_id, "attention_mask": 0, TYPES: 0}, width)
        return {**batch, **pad(samples, {"labels": 0})}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Rows (of several labels: labels of all rows; with class weights: their sum)."""
        weights, labels = self.scratch.get("weights"), batch["labels"]
        if weights is not None and self.labels.problem_type == "single_label":
            return {"loss": float(weights[labels.numpy()].sum())}
        return {"loss": labels.numel()}

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        return classified.predict(module, batch, samples)

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        return classified.finalize(self.labels, predictions, split, bootstrap=bootstrap)

    def export(self, module: nn.Module, directory: Path) -> None:
        from llmkit.models.classifier import ClassifierModule
        from llmkit.models.wrapping import unwrap

        export_network(unwrap(module, ClassifierModule).model, directory, self.network)

    @property
    def pad_id(self) -> int:
        if "pad" not in self.scratch:
            self.scratch["pad"] = read_special_ids(self.network.tokenizer_dir).pad
        found = self.scratch["pad"]
        assert found is not None, "the tokenizer was completed with one"
        return int(found)

    @property
    def labels(self) -> Labels:
        assert "labels" in self.scratch, "prepare() comes first"
        return cast("Labels", self.scratch["labels"])
