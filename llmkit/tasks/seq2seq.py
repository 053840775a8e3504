"""Encoder-decoders on pairs of source and target rows: what every task of theirs shares, and the task that is no more
than that. Torch is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import IGNORE, Encoder, Plan, Sample
from llmkit.data.rows import RowPlan
from llmkit.data.tokenizer import load_tokenizer, read_special_ids
from llmkit.errors import RecipeError
from llmkit.models.heads import SEQ2SEQ_LM
from llmkit.models.load import quiet
from llmkit.tasks import language_model
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.batching import pad
from llmkit.tasks.network import NetworkSpec, build_network, export_network
from llmkit.tasks.pair_encoder import LABELS

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split


def build_module(spec: NetworkSpec) -> nn.Module:
    """A Seq2SeqModule in float32 on the CPU. Raises ModelError, RecipeError."""
    from llmkit.models.seq2seq import Seq2SeqModule

    model: Any = build_network(spec, SEQ2SEQ_LM)
    module = Seq2SeqModule(model, label_smoothing=spec.label_smoothing)
    config = module.inner().config
    if config.eos_token_id is None:  # a tokenizer whose texts end with [SEP]
        config.eos_token_id = read_special_ids(spec.tokenizer_dir).suffix
    return module


def refuse_packing(packing: bool | None) -> None:
    if packing:
        raise RecipeError("an encoder-decoder's rows are not packed: leave it out", key="data.packing")


def collate(samples: Sequence[Sample], pad_id: int, width: int | None = None) -> Batch:
    """input_ids, attention_mask (B, S) and labels (B, T), each padded on the right to its own longest."""
    import torch

    batch = pad(samples, {"input_ids": pad_id, "labels": IGNORE}, width)
    lengths = torch.tensor([len(sample.arrays["input_ids"]) for sample in samples])
    batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    return batch


def predict(module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
    """One prediction a sample: sums over its labels."""
    from llmkit.models.seq2seq import Seq2SeqModule
    from llmkit.models.wrapping import unwrap

    losses, hits = unwrap(module, Seq2SeqModule).score(batch)
    tokens = (batch["labels"] != IGNORE).sum(1).tolist()
    sums, correct = losses.sum(1).tolist(), hits.sum(1).tolist()
    return [
        Prediction(int(sample.rows[0]), {"loss": sums[i], "tokens": tokens[i], "correct": correct[i]})
        for i, sample in enumerate(samples)
    ]


def export(module: nn.Module, directory: Path, spec: NetworkSpec, *, template: str | None = None) -> None:
    """The model, how its decoder begins and ends, and its tokenizer."""
    from transformers import GenerationConfig

    from llmkit.models.seq2seq import Seq2SeqModule, decoder_start
    from llmkit.models.wrapping import unwrap

    inner = unwrap(module, Seq2SeqModule)
    model = inner.inner()
    forced = getattr(model.generation_config, "forced_bos_token_id", None)
    export_network(inner.model, directory, spec, template=template)
    tokenizer, end = load_tokenizer(directory), read_special_ids(spec.tokenizer_dir).suffix
    assert end is not None, "the encoder refuses a tokenizer without one"
    with quiet():
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=decoder_start(model, end),
            forced_bos_token_id=forced,
        ).save_pretrained(str(directory))


def row_plan(split: Split, seed: int | None = None, weights: Sequence[float] = ()) -> RowPlan:
    """A pair a sample, its length that of both sides."""

    def read(row: int, draw: np.random.Generator | None) -> dict[str, np.ndarray]:
        return {"input_ids": split.row(row), "labels": split.row(row, LABELS)}

    return RowPlan(split, split.lengths() + split.lengths(LABELS), read, seed, weights)


@dataclass(frozen=True)
class Seq2SeqTask:
    """Rows of source and target, a sample each. `template`: the chat template to store; `convention`: a note on what
    is scored."""

    network: NetworkSpec
    weights: tuple[float, ...]
    pairs: Encoder
    convention: str
    template: str | None = None
    forced_bos_id: int | None = None
    """What every target begins with: the mark of its language."""
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def encoder(self) -> Encoder:
        return self.pairs

    def build_model(self) -> nn.Module:
        module: Any = build_module(self.network)
        if self.forced_bos_id is not None:
            module.inner().generation_config.forced_bos_token_id = self.forced_bos_id
        return module  # type: ignore[no-any-return]

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {"packing": False}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Nothing is needed."""

    def train_plan(self, split: Split, seed: int) -> Plan:
        return row_plan(split, seed, self.weights)

    def eval_plan(self, split: Split) -> Plan:
        return row_plan(split)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return collate(samples, pad_id(self.network, self.scratch), width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return language_model.counts(batch)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        return predict(module, batch, samples)

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        return language_model.finalize(
            predictions, split, bootstrap=bootstrap, bits_per_byte=False, train_counts=None, convention=self.convention
        )

    def export(self, module: nn.Module, directory: Path) -> None:
        export(module, directory, self.network, template=self.template)

    def prompt(self, sample: Sample) -> list[int]:
        """What the model reads before it writes."""
        ids: list[int] = sample.arrays["input_ids"].tolist()
        return ids


def pad_id(network: NetworkSpec, scratch: dict[str, Any]) -> int:
    """The padding's id, read once."""
    if "pad" not in scratch:
        found = read_special_ids(network.tokenizer_dir).pad
        assert found is not None, "TaskKind.named gives the tokenizer one"
        scratch["pad"] = found
    return int(scratch["pad"])
