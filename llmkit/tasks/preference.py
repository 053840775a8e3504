"""Preference tuning (DPO, IPO, ORPO, SimPO, KTO): the formulas are in `models.preference`.

The model that training starts from is the reference of DPO, IPO and KTO. It scores every answer once, before training,
and the scores are kept beside the prepared data; no second network lies in memory while training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import IGNORE, Encoder, Plan, Sample
from llmkit.data.rolespecs import PREFERENCE, RATED, RoleSpec
from llmkit.data.rows import RowPlan
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import NEEDS_REFERENCE, Preference, TaskSection
from llmkit.tasks import language_model
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.batching import pad
from llmkit.tasks.chat import ChatFormat
from llmkit.tasks.encoders import LOSS_MASK
from llmkit.tasks.network import NetworkSpec
from llmkit.tasks.preference_rows import REJECTED, REJECTED_MASK, AnswerEncoder
from llmkit.tasks.reference import cache_path, cached, network_identity, score_rows
from llmkit.tasks.templates import Template, resolve_template

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split
    from llmkit.models.preference import PreferenceModule


def roles(section: TaskSection) -> RoleSpec:
    """The columns: two answers a row, or for kto one and whether it is good."""
    assert isinstance(section, Preference)
    return RATED if section.loss == "kto" else PREFERENCE


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe."""
    section = recipe.task
    assert isinstance(section, Preference)
    overflow = recipe.data.overflow or "truncate"
    assert overflow != "split" and section.beta is not None, "the recipe is checked and resolved"
    return PreferenceTask(
        network=network,
        weights=tuple(source.weight for source in recipe.data.train),
        loss=section.loss,
        beta=section.beta,
        encoder_=AnswerEncoder(
            network.tokenizer_dir,
            resolve_template(recipe.tokenizer.chat_template, network.tokenizer_dir),
            section.loss == "kto",
            network.max_length,
            overflow,
        ),
    )


@dataclass(frozen=True)
class PreferenceTask:
    """A sample is a row: both its answers, or (kto) its answer and one to another row's prompt."""

    network: NetworkSpec
    weights: tuple[float, ...]
    loss: str
    beta: float
    encoder_: AnswerEncoder
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[Path, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """The reference's scores by split directory."""

    def encoder(self) -> Encoder:
        return self.encoder_

    def build_model(self) -> nn.Module:
        return self._module(self.network)

    def _module(self, network: NetworkSpec) -> PreferenceModule:
        from llmkit.models.lm import CausalLMModule
        from llmkit.models.preference import PreferenceModule

        module = language_model.build_module(network)
        assert isinstance(module, CausalLMModule)
        return PreferenceModule(module, self.loss, self.beta)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        if not self.network.trained:
            for split in (train, validation):
                if split is not None:
                    self._reference(split)

    def train_plan(self, split: Split, seed: int) -> Plan:
        return self._plan(split, seed, self.weights)

    def eval_plan(self, split: Split) -> Plan:
        return self._plan(split, None, ())

    def _plan(self, split: Split, seed: int | None, weights: tuple[float, ...]) -> Plan:
        rows = _Rows(split, self._reference(split), self.loss == "kto", self.network.max_length)
        return RowPlan(split, rows.sizes(), lambda row, _: rows.read(row), seed, weights)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        import torch

        sides = [
            Sample({"input_ids": sample.arrays[f"{side}_ids"], "labels": sample.arrays[f"{side}_labels"]}, sample.rows)
            for side in ("first", "second")
            for sample in samples
        ]
        batch = pad(sides, {"input_ids": self.encoder_.chat.eos_id, "labels": IGNORE}, width)
        for name in ("reference", "good"):
            batch[name] = torch.from_numpy(np.stack([sample.arrays[name] for sample in samples]))
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"loss": len(batch["reference"])}

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        from llmkit.models.preference import PreferenceModule
        from llmkit.models.wrapping import unwrap

        losses, rewards = unwrap(module, PreferenceModule).losses(batch)
        pairs, good = rewards.tolist(), batch["good"].tolist()
        return [
            Prediction(int(sample.rows[0]), {"loss": loss, "rewards": pairs[i], "good": bool(good[i])})
            for i, (sample, loss) in enumerate(zip(samples, losses.tolist(), strict=True))
        ]

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        found = sorted(predictions, key=lambda prediction: prediction.row)
        losses = np.array([prediction.values["loss"] for prediction in found])
        rewards = np.array([prediction.values["rewards"] for prediction in found]).reshape(len(found), 2)
        good = np.array([prediction.values["good"] for prediction in found], dtype=bool)
        if self.loss == "kto":
            margins = np.where(good, rewards[:, 0], -rewards[:, 0])
            note = "reward_accuracy: good answers with a reward above 0 and bad ones below; ties count half"
        else:
            margins = rewards[:, 0] - rewards[:, 1]
            note = "reward_accuracy: pairs whose chosen answer has the higher reward; ties count half"
        hits = (margins > 0) + 0.5 * (margins == 0)
        ones = np.ones(len(found))
        wanted = {"loss": losses, "reward_accuracy": hits, "reward_margin": margins}
        metrics = {name: language_model.ratio(values, ones, bootstrap=bootstrap) for name, values in wanted.items()}
        items = []
        if bootstrap:
            places = split.origins(np.array([prediction.row for prediction in found], dtype=np.int64))
            for i, (prediction, place) in enumerate(zip(found, places, strict=True)):
                item = {"row": prediction.row, **{key: place[key] for key in ("source", "file", "line", "hash")}}
                answer = (
                    {"label": bool(good[i]), "reward": rewards[i, 0]}
                    if self.loss == "kto"
                    else {"chosen_reward": rewards[i, 0], "rejected_reward": rewards[i, 1]}
                )
                items.append({**item, **answer, "loss": losses[i], "reward_accuracy": float(hits[i])})
        return Evaluated({name: metric for name, metric in metrics.items() if metric is not None}, items, [note])

    def export(self, module: nn.Module, directory: Path) -> None:
        from llmkit.models.preference import PreferenceModule
        from llmkit.models.wrapping import unwrap

        chat: ChatFormat = self.encoder_.chat
        template: Template = self.encoder_.template
        lm = unwrap(module, PreferenceModule).lm
        language_model.export(lm, directory, self.network, stop_ids=chat.stop_ids, template=template.text)

    def _reference(self, split: Split) -> np.ndarray:
        """(num_rows, 2) log-probabilities of a row's answers under the starting weights; zeros where none is needed."""
        whole = getattr(split, "whole", split)
        rows = getattr(split, "rows", None)
        if self.loss not in NEEDS_REFERENCE or self.network.trial:
            return np.zeros((split.num_rows, 2))
        if whole.directory not in self.scratch:
            network = replace(self.network, model=self.network.start or self.network.model, peft=None)
            identity = {
                "model": network_identity(network.model, network.seed),
                "kind": "kto" if self.loss == "kto" else "pairs",
                "max_length": network.max_length,
            }
            path = cache_path(whole.directory, identity)
            self.scratch[whole.directory] = cached(path, whole.num_rows, lambda: self._score(whole, network))
        scores = self.scratch[whole.directory]
        return scores if rows is None else scores[rows]

    def _score(self, split: Split, network: NetworkSpec) -> np.ndarray:
        import torch
        from accelerate import PartialState

        device = PartialState().device
        module = self._module(network).to(device).eval()
        rows = _Rows(split, np.zeros((split.num_rows, 2)), self.loss == "kto", network.max_length)

        @torch.inference_mode()
        def score(batch: list[int]) -> np.ndarray:
            samples = [Sample(rows.read(row), np.array([row])) for row in batch]
            made = self.collate(samples, seed=0, step=0)
            sums, _ = module.answers({name: tensor.to(device) for name, tensor in made.items()})
            found: np.ndarray = sums.double().cpu().numpy().reshape(2, len(batch)).T
            return found

        return score_rows(score, rows.sizes(), device.type)


@dataclass
class _Rows:
    """The arrays of a row: two sequences, `first_ids` and `second_ids`, with labels shifted and IGNORE but for the
    answer's tokens; `reference` (2,) and `good` ()."""

    split: Split
    reference: np.ndarray
    rated: bool
    max_length: int

    def sizes(self) -> np.ndarray:
        """(num_rows,) tokens of both sequences; for kto, whose second is made on reading, twice the first."""
        first = np.asarray(self.split.lengths()).astype(np.int64)
        return 2 * first if self.rated else first + np.asarray(self.split.lengths(REJECTED)).astype(np.int64)

    def read(self, row: int) -> dict[str, np.ndarray]:
        first = _shifted(*self._row(row))
        second = _shifted(*(self._mismatched(row) if self.rated else self._row(row, REJECTED, REJECTED_MASK)))
        good = bool(self.split.field("good")[row].as_py()) if self.rated else True
        return {
            "first_ids": first[0],
            "first_labels": first[1],
            "second_ids": second[0],
            "second_labels": second[1],
            "reference": self.reference[row],
            "good": np.array(good, dtype=np.int64),
        }

    def _row(self, row: int, ids: str = "input_ids", mask: str = LOSS_MASK) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.split.row(row, ids)).astype(np.int64), np.asarray(self.split.row(row, mask))

    def _mismatched(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """This row's prompt with the next row's answer, cut to max_length; at least one token of it stays."""
        ids, mask = self._row(row)
        others, other_mask = self._row((row + 1) % self.split.num_rows)
        prompt = ids[: int(np.argmax(mask))][: self.max_length - 1]
        answer = others[int(np.argmax(other_mask)) :][: self.max_length - len(prompt)]
        whole = np.concatenate([prompt, answer])
        return whole, np.concatenate([np.zeros(len(prompt), np.uint8), np.ones(len(answer), np.uint8)])


def _shifted(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ids[:-1], np.where(mask[1:] != 0, ids[1:], IGNORE)
