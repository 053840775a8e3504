"""Next-token prediction on documents (pretraining)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import Encoder, Plan, Sample
from llmkit.data.fim import SENTINELS, FillInMiddle, find_sentinels
from llmkit.data.packing import PackedPlan, PaddedPlan
from llmkit.data.tokenizer import read_special_ids
from llmkit.errors import ModelError
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import CausalLM
from llmkit.tasks import language_model
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.encoders import CausalLMEncoder
from llmkit.tasks.network import NetworkSpec

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe."""
    assert isinstance(recipe.task, CausalLM)
    weights = tuple(source.weight for source in recipe.data.train)
    return CausalLMTask(network, weights, recipe.data.packing, recipe.task.fim_rate)


def added_tokens(recipe: Recipe, has: Callable[[str], bool], tokenizer_dir: Path | None) -> list[str]:
    """The sentinels of fill-in-the-middle, where it is used and the vocabulary has none."""
    assert isinstance(recipe.task, CausalLM)
    wanted = SENTINELS[0] if recipe.task.fim_rate > 0 and find_sentinels(has) is None else ()
    return [token for token in wanted if not has(token)]


@dataclass(frozen=True)
class CausalLMTask:
    """`packing` None is settled by a probe of the network; `weights` are those of `data.train`, in order."""

    network: NetworkSpec
    weights: tuple[float, ...]
    packing: bool | None
    fim_rate: float
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `prepare` leaves for `finalize`."""

    def encoder(self) -> Encoder:
        return self._encoder()

    def _encoder(self) -> CausalLMEncoder:
        return CausalLMEncoder(self.network.tokenizer_dir, uses_fim=self.fim_rate > 0)

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
        plan = PackedPlan if self.packing else PaddedPlan
        return plan(split, self.network.max_length, seed, self.weights, fim=self._fim())

    def eval_plan(self, split: Split) -> Plan:
        return PaddedPlan(split, self.network.max_length)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return language_model.collate(samples, self._encoder_ids()[0], width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return language_model.counts(batch)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        return language_model.predict(module, batch, samples)

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        length = self.network.max_length
        return language_model.finalize(
            predictions,
            split,
            bootstrap=bootstrap,
            bits_per_byte=True,
            train_counts=self.scratch.get("train_counts"),
            convention=f"window: disjoint windows of {length} tokens a document, context 1 token, the end of the "
            "document predicted, perplexity a token",
        )

    def export(self, module: nn.Module, directory: Path) -> None:
        ids = [self._encoder_ids()[0]]
        language_model.export(module, directory, self.network, stop_ids=ids, template=None)
        language_model.export_arpa(module, directory)

    def _encoder_ids(self) -> tuple[int, int]:
        """(end of sequence, size), read once."""
        if "ids" not in self.scratch:
            ids = read_special_ids(self.network.tokenizer_dir)
            assert ids.suffix is not None, "the encoder refuses a tokenizer without one"
            self.scratch["ids"] = (ids.suffix, ids.size)
        found: tuple[int, int] = self.scratch["ids"]
        return found

    def _fim(self) -> FillInMiddle | None:
        if self.fim_rate == 0:
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.network.tokenizer_dir / "tokenizer.json"))
        names = find_sentinels(lambda name: tokenizer.token_to_id(name) is not None)
        if names is None:
            message = (
                f"the tokenizer in {self.network.tokenizer_dir} has no fill-in-the-middle tokens; preprocess again"
            )
            raise ModelError(message, key="task.fim_rate")
        ids = tokenizer.get_vocab(True)
        prefix, suffix, middle = (ids[name] for name in names)
        return FillInMiddle(self.fim_rate, prefix, suffix, middle, self._encoder_ids()[0])
