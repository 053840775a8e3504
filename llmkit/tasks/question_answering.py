"""Extractive question answering: the answer is a stretch of the context, or (SQuAD 2) there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.rows import RowPlan
from llmkit.data.tokenizer import load_tokenizer, read_special_ids
from llmkit.models.heads import QUESTION_ANSWERING
from llmkit.models.source import locate, read_config
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import QuestionAnswering
from llmkit.tasks.answer_scores import Answered, evaluated
from llmkit.tasks.base import Batch, Encoder, Evaluated, Plan, Prediction, Sample, Task
from llmkit.tasks.batching import pad
from llmkit.tasks.masked_text import TOKENS
from llmkit.tasks.network import NetworkSpec, build_network, export_network
from llmkit.tasks.question_encoder import OFFSETS, QuestionEncoder
from llmkit.tasks.windows import whole_records

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split
    from llmkit.data.view import Rows

NO_ANSWER = "has_no_answer"
"""Key of the model's config: it learnt that a question may have no answer."""
PLACES = ("start", "end", "head", "question_tokens")


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    assert isinstance(recipe.task, QuestionAnswering)
    weights = tuple(source.weight for source in recipe.data.train)
    return QuestionAnsweringTask(network, weights, recipe.task)


def named_tokens(recipe: Recipe) -> dict[str, str]:
    """What stands around question and context, for a network that starts anew; weights have their own way."""
    names = ("pad_token", "cls_token", "sep_token")
    return {name: TOKENS[name] for name in names} if recipe.model.config is not None else {}


@dataclass(frozen=True)
class QuestionAnsweringTask:
    """`weights`: those of `data.train`, in order."""

    network: NetworkSpec
    weights: tuple[float, ...]
    section: QuestionAnswering
    loss_weights: dict[str, float] = field(default_factory=lambda: {"start": 0.5, "end": 0.5})
    """The mean of the two, as in transformers."""
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `prepare` leaves, and what is read once."""

    def encoder(self) -> Encoder:
        return self._encoder()

    def _encoder(self) -> QuestionEncoder:
        fresh = self.network.model.config is not None
        return QuestionEncoder(self.network.tokenizer_dir, self.network.max_length, self.section.doc_stride, fresh)

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Whether no answer is an answer: as the trained model learnt it, else where a training question has none."""
        name = self.network.model.name_or_path
        found = None
        if self.network.trained and name is not None:
            found = read_config(locate(name, revision=self.network.model.revision)).get(NO_ANSWER)
        self.scratch[NO_ANSWER] = found if found is not None else train is not None and _some_have_no_answer(train)

    def build_model(self) -> nn.Module:
        from llmkit.models.span_finder import SpanFinder

        head = replace(QUESTION_ANSWERING, config={"num_labels": 2, NO_ANSWER: self.scratch[NO_ANSWER]})
        names = load_tokenizer(self.network.tokenizer_dir).model_input_names
        return SpanFinder(
            build_network(self.network, head),
            token_types="token_type_ids" in names,
            label_smoothing=self.network.label_smoothing,
        )

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {NO_ANSWER: self.scratch[NO_ANSWER]}

    def train_plan(self, split: Split, seed: int) -> Plan:
        return RowPlan(split, split.lengths(), self._reader(split), seed, self.weights)

    def eval_plan(self, split: Split) -> Plan:
        return RowPlan(split, split.lengths(), self._reader(split))

    def _reader(self, rows: Rows) -> Any:
        columns = {name: np.asarray(rows.field(name).to_numpy()).astype(np.int64) for name in PLACES}
        frame = self._encoder().frame()

        def read(row: int, draw: np.random.Generator | None) -> dict[str, np.ndarray]:
            tokens, offsets = rows.row(row).astype(np.int64), rows.row(row, OFFSETS).astype(np.int64)
            place = {name: column[row] for name, column in columns.items()}
            question, context = int(place["question_tokens"]), len(offsets) // 2
            sizes = (len(frame.before), question, len(frame.between), context, len(frame.after))
            return {
                "input_ids": tokens,
                "attention_mask": np.ones_like(tokens),
                "token_type_ids": np.repeat(frame.types, sizes),
                "start": place["start"],
                "end": place["end"],
                "head": place["head"],
                OFFSETS: offsets.reshape(-1, 2),
            }

        return read

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        if "pad" not in self.scratch:
            self.scratch["pad"] = read_special_ids(self.network.tokenizer_dir).pad or 0
        fill = {"input_ids": self.scratch["pad"], "attention_mask": 0, "token_type_ids": 0, "start": 0, "end": 0}
        return pad(samples, fill, width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return dict.fromkeys(self.loss_weights, len(batch["start"]))

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        """A window's best answers as characters of the context, and the score of its first token: no answer."""
        from llmkit.models.span_finder import SpanFinder, best_spans
        from llmkit.models.wrapping import unwrap

        start, end, losses = unwrap(module, SpanFinder).score(batch)
        found = []
        for sample, first, last, loss in zip(samples, start.cpu(), end.cpu(), losses.tolist(), strict=True):
            offsets, head = sample.arrays[OFFSETS], int(sample.arrays["head"])
            context = slice(head, head + len(offsets))
            best = best_spans(
                first[context],
                last[context],
                longest=self.section.max_answer_length,
                count=self.section.n_best_size,
            )
            answers = [[int(offsets[i, 0]), int(offsets[j, 1]), score] for i, j, score in best]
            values = {"loss": loss, "answers": answers, "null": float(first[0] + last[0])}
            found.append(Prediction(int(sample.rows[0]), values))
        return found

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        by_row = {prediction.row: prediction.values for prediction in predictions}
        groups = whole_records(split, sorted(by_row))
        firsts = [members[0] for members in groups]
        names = ("id", "question", "context", "answers")
        texts = {name: split.field(name).take(firsts).to_pylist() for name in names}
        answered = [
            Answered(
                row=members[0],
                **{name: texts[name][number] for name in ("id", "question", "context")},
                references=texts["answers"][number],
                windows=[by_row[row] for row in members],
            )
            for number, members in enumerate(groups)
        ]
        threshold = self.section.null_score_diff_threshold if self.scratch[NO_ANSWER] else None
        return evaluated(answered, split, threshold=threshold, count=self.section.n_best_size, bootstrap=bootstrap)

    def export(self, module: nn.Module, directory: Path) -> None:
        from llmkit.models.span_finder import SpanFinder
        from llmkit.models.wrapping import unwrap

        export_network(unwrap(module, SpanFinder).model, directory, self.network)


def _some_have_no_answer(rows: Rows) -> bool:
    import pyarrow.compute as pc

    none = pc.list_value_length(rows.field("answers")).to_numpy() == 0
    return bool((none & (rows.field("window").to_numpy() == 0)).any())
