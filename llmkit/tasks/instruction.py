"""Answers in conversations (instruction tuning): only what the assistant says is supervised, unless `train_on: all`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmkit.data.examples import Encoder, Plan, Sample
from llmkit.data.packing import BinPlan, PaddedPlan
from llmkit.models.source import is_encoder_decoder
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import Instruction
from llmkit.tasks import answer_pairs, language_model
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.chat import ChatFormat
from llmkit.tasks.encoders import LOSS_MASK, InstructionEncoder
from llmkit.tasks.network import NetworkSpec
from llmkit.tasks.templates import Template, control_tokens, resolve_template

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe, for the architecture of its model."""
    assert isinstance(recipe.task, Instruction)
    if is_encoder_decoder(recipe.model):
        return answer_pairs.build(recipe, network)
    overflow = recipe.data.overflow or "truncate"
    assert overflow != "split", "the recipe's checks refuse it"
    weights = tuple(source.weight for source in recipe.data.train)
    template = resolve_template(recipe.tokenizer.chat_template, network.tokenizer_dir)
    return InstructionTask(network, weights, recipe.data.packing, recipe.task.train_on, overflow, template)


def added_tokens(recipe: Recipe, has: Callable[[str], bool], tokenizer_dir: Path | None) -> list[str]:
    """The control tokens of the chat template that the vocabulary lacks."""
    template = resolve_template(recipe.tokenizer.chat_template, tokenizer_dir)
    return [token for token in control_tokens(template.text) if not has(token)]


def template_text(recipe: Recipe, directory: Path) -> str:
    """The chat template that goes with the model."""
    return resolve_template(recipe.tokenizer.chat_template, directory).text


@dataclass(frozen=True)
class InstructionTask:
    """`packing` None is settled by a probe of the network; examples are never split."""

    network: NetworkSpec
    weights: tuple[float, ...]
    packing: bool | None
    train_on: Literal["completion", "all"]
    overflow: Literal["truncate", "drop", "error"]
    template: Template
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `prepare` leaves for `finalize`, and the chat format, made once."""

    def encoder(self) -> Encoder:
        network = self.network
        return InstructionEncoder(
            network.tokenizer_dir, self.template, self.train_on, network.max_length, self.overflow
        )

    def build_model(self) -> nn.Module:
        return language_model.build_module(self.network)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        packing = language_model.settle_packing(self.packing, module, saved)
        return replace(self, packing=packing), {"packing": packing}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        if train is not None:
            self.scratch["train_counts"] = np.asarray(train.vocab_counts())

    def train_plan(self, split: Split, seed: int) -> Plan:
        assert self.packing is not None, "settle() decides on packing before the first plan"
        plan = BinPlan if self.packing else PaddedPlan
        return plan(split, self.network.max_length, seed, self.weights, mask_stream=LOSS_MASK)

    def eval_plan(self, split: Split) -> Plan:
        return PaddedPlan(split, self.network.max_length, mask_stream=LOSS_MASK)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return language_model.collate(samples, self.chat().eos_id, width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return language_model.counts(batch)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        return language_model.predict(module, batch, samples)

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        tokens = "the assistant's tokens and its ends of turn" if self.train_on == "completion" else "all tokens"
        return language_model.finalize(
            predictions,
            split,
            bootstrap=bootstrap,
            bits_per_byte=False,
            train_counts=self.scratch.get("train_counts"),
            convention=f"window: each conversation on its own, at most {self.network.max_length} tokens; {tokens} are "
            "predicted, perplexity a token",
        )

    def export(self, module: nn.Module, directory: Path) -> None:
        language_model.export(
            module, directory, self.network, stop_ids=self.chat().stop_ids, template=self.template.text
        )

    def chat(self) -> ChatFormat:
        if "chat" not in self.scratch:
            self.scratch["chat"] = ChatFormat(self.network.tokenizer_dir, self.template)
        found: ChatFormat = self.scratch["chat"]
        return found
