"""Tagging: a label a word (named entities, parts of speech), scored by entities that agree in type and both ends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmkit.data.augment import Augmenter, augmenter
from llmkit.data.examples import IGNORE
from llmkit.data.labels import names_of
from llmkit.data.records import RecordBatch
from llmkit.data.rows import RowPlan
from llmkit.data.tokenizer import read_special_ids
from llmkit.errors import DataError, ModelError
from llmkit.metrics.entities import Scheme, contradiction, detect_scheme
from llmkit.models.heads import labelled_head
from llmkit.models.source import locate, read_config
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import TokenClassification
from llmkit.tasks.base import Batch, Encoder, Evaluated, Plan, Prediction, Sample, Task
from llmkit.tasks.batching import pad
from llmkit.tasks.network import NetworkSpec, build_network, export_network
from llmkit.tasks.tag_scores import Sentence, evaluated
from llmkit.tasks.token_encoder import FIRST, TokenEncoder
from llmkit.tasks.windows import whole_records

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split
    from llmkit.data.view import Rows

SCHEME = "tagging_scheme"
"""Key of the model's config."""

Overflow = Literal["split", "truncate", "drop", "error"]


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    assert isinstance(recipe.task, TokenClassification)
    return TokenClassificationTask(
        network,
        tuple(source.weight for source in recipe.data.train),
        named_labels(recipe),
        recipe.task.tagging_scheme,
        recipe.data.overflow or "split",
        augmenter(recipe.data.augment),
    )


def named_labels(recipe: Recipe) -> tuple[str, ...]:
    """The `label_names` of the training sources, in order, each once."""
    names = [name for source in recipe.data.train for name in names_of(source) or ()]
    return tuple(dict.fromkeys(names))


def check(recipe: Recipe, splits: Mapping[str, Split]) -> None:
    """What would fail later: a scheme that the train labels contradict, a label of another split that train never
    shows. Raises DataError."""
    assert isinstance(recipe.task, TokenClassification)
    if "train" not in splits:
        return
    named = named_labels(recipe)
    known = labels_of(splits["train"], named)
    choose_scheme(recipe.task.tagging_scheme, known)
    for name in ("validation", "test"):
        if name not in splits:
            continue
        strange = sorted(set(labels_of(splits[name])) - set(known))
        if strange:
            row = next(i for i, tags in enumerate(splits[name].field("labels").to_pylist()) if strange[0] in tags)
            place = splits[name].origin(row)
            raise DataError(
                f"data.{name} has the label {strange[0]}, which data.train never shows"
                f"{f', nor {len(strange) - 1} others' if len(strange) > 1 else ''}: a model cannot learn it. Add rows "
                "with it to data.train, name all labels in label_names of the training data, or leave such rows out",
                file=place["file"],
                line=place["line"],
            )


def labels_of(rows: Rows, named: Sequence[str] = ()) -> list[str]:
    """The labels that rows show, sorted, after those that are `named`."""
    import pyarrow.compute as pc

    seen = pc.unique(pc.list_flatten(rows.field("labels"))).to_pylist()
    return list(dict.fromkeys([*named, *sorted(seen)]))


def choose_scheme(wanted: Scheme | Literal["auto"], labels: Sequence[str]) -> Scheme:
    """The scheme of the train labels. Raises DataError where the recipe's is another, or they are of none."""
    found, strange = detect_scheme(labels)
    if wanted == "auto":
        if strange is not None:
            raise DataError(
                f"the train labels look like {found}, but {strange} is not of it; correct the labels, or set "
                "task.tagging_scheme: none to learn them as plain tags",
                key="task.tagging_scheme",
            )
        return found
    against = contradiction(wanted, labels)
    if against is not None:
        raise DataError(
            f"the train labels contradict {wanted}: they have {against} and look like {found}"
            f"{' (plain tags)' if found == 'none' else ''}; set task.tagging_scheme: {found} or auto",
            key="task.tagging_scheme",
        )
    return wanted


@dataclass(frozen=True)
class TokenClassificationTask:
    """`weights`: those of `data.train`, in order. `named`: labels that are known before the data is seen."""

    network: NetworkSpec
    weights: tuple[float, ...]
    named: tuple[str, ...]
    scheme: Scheme | Literal["auto"]
    overflow: Overflow
    augment: Augmenter | None = None
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `prepare` leaves: labels, scheme, pad."""

    def encoder(self) -> Encoder:
        return TokenEncoder(self.network.tokenizer_dir, self.network.max_length, self.overflow)

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Labels and scheme: of a finished run's model, else of the train split. Raises ModelError."""
        config = _config_of(self.network)
        old = _labels_in(config)
        if self.network.trained and old:
            self.scratch.update(labels=old, scheme=config.get(SCHEME) or detect_scheme(old)[0])
            return
        if train is None:
            raise DataError("no training rows to take the labels from", key="data.train")
        labels = labels_of(train, self.named)
        self.scratch["scheme"] = choose_scheme(self.scheme, labels)
        if old and not set(labels) <= set(old):
            more = [label for label in labels if label not in old]
            raise ModelError(
                f"{self.network.model.name_or_path} tags {len(old)} labels ({', '.join(old[:10])}), and the data has "
                f"others ({', '.join(more[:10])}); give the encoder it was made from, or map the data to its labels",
                key="model.name_or_path",
            )
        self.scratch["labels"] = old or labels

    def build_model(self) -> nn.Module:
        from llmkit.models.token_classifier import TokenClassifier

        head = labelled_head("token", self.scratch["labels"])
        head = replace(head, config={**head.config, SCHEME: self.scratch["scheme"]})
        return TokenClassifier(build_network(self.network, head), label_smoothing=self.network.label_smoothing)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {SCHEME: self.scratch["scheme"], "labels": self.scratch["labels"]}

    def train_plan(self, split: Split, seed: int) -> Plan:
        return RowPlan(split, split.lengths(), self._reader(split), seed, self.weights)

    def eval_plan(self, split: Split) -> Plan:
        return RowPlan(split, split.lengths(), self._reader(split))

    def _reader(self, rows: Rows) -> Any:
        ids, ends = label_ids(rows, self.scratch["labels"])

        def read(row: int, draw: np.random.Generator | None) -> dict[str, np.ndarray]:
            tokens, first = rows.row(row).astype(np.int64), rows.row(row, FIRST).astype(np.int64)
            own = ids[ends[row] : ends[row + 1]]
            if draw is not None and self.augment is not None:
                tokens, first, own = self._augmented(self.augment, rows, row, draw)
            labels = np.full(len(tokens), IGNORE, np.int64)
            labels[first[first >= 0]] = own[first >= 0]
            return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "labels": labels, "first": first}

        return read

    def _augmented(
        self, augment: Augmenter, rows: Rows, row: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, words' places and words' labels of the row's words, changed and encoded again."""
        if "again" not in self.scratch:
            self.scratch["again"] = TokenEncoder(self.network.tokenizer_dir, self.network.max_length, "truncate")
        words, tags = (rows.field(name)[row].as_py() for name in ("tokens", "labels"))
        words, tags = augment.words(words, tags, draw)
        made = self.scratch["again"].encode(RecordBatch(0, "", {"tokens": [words], "labels": [tags]}, [None], [None]))
        known = {label: number for number, label in enumerate(self.scratch["labels"])}
        tokens, first = (made.streams[name].values.astype(np.int64) for name in ("input_ids", FIRST))
        return tokens, first, np.array([known.get(tag, IGNORE) for tag in tags])

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        if "pad" not in self.scratch:
            self.scratch["pad"] = read_special_ids(self.network.tokenizer_dir).pad or 0
        return pad(samples, {"input_ids": self.scratch["pad"], "attention_mask": 0, "labels": IGNORE}, width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"loss": int((batch["labels"] != IGNORE).sum())}

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        """A label's number a word; -1 for a word without a place in the window."""
        from llmkit.models.token_classifier import TokenClassifier
        from llmkit.models.wrapping import unwrap

        losses, best = unwrap(module, TokenClassifier).score(batch)
        sums, chosen = losses.sum(1).tolist(), best.cpu().numpy()
        tokens = (batch["labels"] != IGNORE).sum(1).tolist()
        found = []
        for i, sample in enumerate(samples):
            first = sample.arrays["first"]
            labels = np.where(first >= 0, chosen[i][first], -1).tolist()
            found.append(Prediction(int(sample.rows[0]), {"loss": sums[i], "tokens": tokens[i], "labels": labels}))
        return found

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        labels: list[str] = self.scratch["labels"]
        by_row = {prediction.row: prediction.values for prediction in predictions}
        rows = sorted(by_row)
        texts = {name: split.field(name).take(rows).to_pylist() for name in ("tokens", "labels")}
        words, gold = (dict(zip(rows, texts[name], strict=True)) for name in ("tokens", "labels"))
        sentences = []
        for members in whole_records(split, rows):
            numbers = [number for row in members for number in by_row[row]["labels"]]
            sentences.append(
                Sentence(
                    row=members[0],
                    words=[word for row in members for word in words[row]],
                    gold=[tag for row in members for tag in gold[row]],
                    predicted=[labels[number] if number >= 0 else None for number in numbers],
                    loss=math.fsum(by_row[row]["loss"] for row in members),
                    tokens=sum(by_row[row]["tokens"] for row in members),
                )
            )
        found = evaluated(sentences, self.scratch["scheme"], split, bootstrap=bootstrap)
        strange = Counter(tag for sentence in sentences for tag in sentence.gold if tag not in labels)
        if strange:
            what = ", ".join(f"{tag} ({count})" for tag, count in sorted(strange.items()))
            found.notes.append(f"labels that the model does not have, counted as missed: {what}")
        return found

    def export(self, module: nn.Module, directory: Path) -> None:
        from llmkit.models.token_classifier import TokenClassifier
        from llmkit.models.wrapping import unwrap

        export_network(unwrap(module, TokenClassifier).model, directory, self.network)


def label_ids(rows: Rows, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(sum of words,) the number of each word's label, IGNORE for one that is unknown, and (num_rows + 1,) the ends."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.field("labels")
    found = pc.fill_null(pc.index_in(pc.list_flatten(column), value_set=pa.array(labels, pa.string())), IGNORE)
    sizes = pc.list_value_length(column).to_numpy()
    return np.asarray(found.to_numpy()).astype(np.int64), np.concatenate(([0], np.cumsum(sizes)))


def _config_of(network: NetworkSpec) -> dict[str, Any]:
    """The config of given weights; an adapter's is its base's."""
    name = network.model.name_or_path
    return {} if name is None else read_config(locate(name, revision=network.model.revision))


def _labels_in(config: dict[str, Any]) -> list[str]:
    """The labels of a token classifier, in the order of their numbers; none of another model."""
    if not any(str(name).endswith("ForTokenClassification") for name in config.get("architectures") or ()):
        return []
    names = {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    return [names[number] for number in sorted(names)]
