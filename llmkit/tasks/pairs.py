"""Translation and summarisation: source to target text, by an encoder-decoder or by a decoder-only model.

Scored by what the model writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmkit.data.examples import IGNORE, Encoder, Plan, Sample
from llmkit.data.packing import BinPlan, PaddedPlan
from llmkit.data.tokenizer import load_tokenizer
from llmkit.errors import RecipeError
from llmkit.models.heads import CAUSAL_LM, SEQ2SEQ_LM
from llmkit.models.source import is_encoder_decoder
from llmkit.recipe.sections import GenerationSection, Recipe
from llmkit.recipe.tasks import Summarization, Translation
from llmkit.tasks import language_model, languages
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.encoders import LOSS_MASK
from llmkit.tasks.network import NetworkSpec
from llmkit.tasks.pair_encoder import PairEncoder
from llmkit.tasks.pair_scores import Score, summarization_scores, translation_scores
from llmkit.tasks.seq2seq import Seq2SeqTask, refuse_packing

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split

WRITES = replace(CAUSAL_LM, wanted=f"{SEQ2SEQ_LM.wanted} or {CAUSAL_LM.wanted}")
GENERATED_AT_ONCE = 64
"""Sequences of a `generate` call while scoring, where the recipe names no batch size."""


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe, for the architecture of its model."""
    section = recipe.task
    assert isinstance(section, Translation | Summarization)
    overflow = recipe.data.overflow or "truncate"
    assert overflow != "split", "the recipe's checks refuse it"
    seq2seq = is_encoder_decoder(recipe.model)
    length = network.max_length
    spoken = languages.of(section)
    if spoken is not None and not seq2seq:
        raise RecipeError("a decoder-only model marks no languages: leave it out", key="task.src_lang")
    encoder = PairEncoder(network.tokenizer_dir, section.source_prefix or "", length, overflow, seq2seq, spoken)
    weights = tuple(source.weight for source in recipe.data.train)
    base: PromptedTask
    if seq2seq:
        refuse_packing(recipe.data.packing)
        convention = f"loss: of the target, source and target each at most {length} tokens"
        forced = None if spoken is None else languages.mark(network.tokenizer_dir, spoken[1])
        base = Seq2SeqTask(network, weights, encoder, convention, forced_bos_id=forced)
    else:
        base = PairLMTask(network, weights, encoder, recipe.data.packing)
    evaluation = recipe.evaluation
    asked = {*(evaluation.metrics or ()), *evaluation.fail_if, evaluation.metric_for_best_model}
    score: Score = summarization_scores
    if section.type == "translation":
        score = translation_scores(with_ter="ter" in asked)
    generation = None if evaluation.predict_with_generate is False else recipe.generation
    return ScoredTask(base, network, generation, recipe.seed, score)


def named_tokens(recipe: Recipe) -> dict[str, str]:
    """A padding of its own for encoder-decoders: their labels begin or end with every other special token."""
    return {"pad_token": "<pad>"} if is_encoder_decoder(recipe.model) else {}


class PromptedTask(Task, Protocol):
    """A task whose samples have a prompt that a target follows."""

    def prompt(self, sample: Sample) -> list[int]: ...


@dataclass(frozen=True)
class ScoredTask:
    """`base`, and what the model writes for each prompt, scored. `generation` None: only what `base` computes."""

    base: PromptedTask
    network: NetworkSpec
    generation: GenerationSection | None
    seed: int
    score: Score
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def loss_weights(self) -> dict[str, float]:
        return self.base.loss_weights

    def encoder(self) -> Encoder:
        return self.base.encoder()

    def build_model(self) -> nn.Module:
        return self.base.build_model()

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        base, choices = self.base.settle(module, saved)
        return replace(self, base=base), choices  # type: ignore[arg-type]

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        self.base.prepare(train, validation)

    def train_plan(self, split: Split, seed: int) -> Plan:
        return self.base.train_plan(split, seed)

    def eval_plan(self, split: Split) -> Plan:
        return self.base.eval_plan(split)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return self.base.collate(samples, seed=seed, step=step, width=width)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return self.base.counts(batch)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        predictions = self.base.predict(module, batch, samples)
        if self.generation is not None:
            for prediction, text in zip(predictions, self._write(self.generation, module, samples), strict=True):
                prediction.values["text"] = text
        return predictions

    def _write(self, section: GenerationSection, module: nn.Module, samples: Sequence[Sample]) -> list[str]:
        """What the model writes for each sample, by the recipe's settings; of several texts the first."""
        from llmkit.writing.engine import Prompt, TransformersEngine

        if "tokenizer" not in self.scratch:
            self.scratch["tokenizer"] = load_tokenizer(self.network.tokenizer_dir)
        size = section.batch_size or GENERATED_AT_ONCE
        section = section.model_copy(update={"num_return_sequences": 1, "batch_size": size})
        model = _transformers_model(module)
        engine = TransformersEngine(model, self.scratch["tokenizer"], section, seed=self.seed)
        prompts = [Prompt(tuple(self.base.prompt(s)), int(s.rows[0]), f"row {s.rows[0]}") for s in samples]
        return [completion.text.strip() for completion in engine.generate(prompts)]

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        """Predictions have loss sums, `text`, or both: a baseline has texts alone."""
        values = predictions[0].values if predictions else {}
        evaluated = Evaluated({}, [])
        if "loss" in values or not predictions:
            evaluated = self.base.finalize(predictions, split, bootstrap=bootstrap)
        if "text" not in values:
            return evaluated
        texts = {prediction.row: prediction.values["text"] for prediction in predictions}
        rows = sorted(texts)
        references = split.field("references").take(rows).to_pylist()
        scored = self.score([texts[row] for row in rows], references, bootstrap=bootstrap)
        evaluated.metrics.update(scored.metrics)
        evaluated.notes.extend(scored.notes)
        if self.generation is not None:
            evaluated.notes.append(_generation_note(self.generation))
        for item, own in zip(evaluated.items, scored.items, strict=bool(evaluated.items)):
            item.update(own)
        return evaluated

    def export(self, module: nn.Module, directory: Path) -> None:
        self.base.export(module, directory)

    def prompt(self, sample: Sample) -> list[int]:
        return self.base.prompt(sample)


def _transformers_model(module: nn.Module) -> Any:
    from llmkit.models.wrapping import prompt_length

    inner: Any = module
    while not hasattr(inner, "inner"):  # the wrapper of the compiler
        inner = getattr(inner, "module", None) or inner._orig_mod
    return inner.model if prompt_length(inner.model) else inner.inner()


def _generation_note(section: GenerationSection) -> str:
    way = f"{section.num_beams} beams" if section.num_beams > 1 else "greedy"
    way = "sampled" + (f", {section.num_beams} beams" if section.num_beams > 1 else "") if section.do_sample else way
    return f"generated: {way}, at most {section.max_new_tokens} tokens"


@dataclass(frozen=True)
class PairLMTask:
    """Source and target in one sequence of a decoder-only model, the target supervised; never split."""

    network: NetworkSpec
    weights: tuple[float, ...]
    pairs: PairEncoder
    packing: bool | None
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})

    def encoder(self) -> Encoder:
        return self.pairs

    def build_model(self) -> nn.Module:
        return language_model.build_module(self.network, WRITES)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        packing = language_model.settle_packing(self.packing, module, saved)
        return replace(self, packing=packing), {"packing": packing}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Nothing is needed."""

    def train_plan(self, split: Split, seed: int) -> Plan:
        assert self.packing is not None, "settle() decides on packing before the first plan"
        plan = BinPlan if self.packing else PaddedPlan
        return plan(split, self.network.max_length, seed, self.weights, mask_stream=LOSS_MASK)

    def eval_plan(self, split: Split) -> Plan:
        return PaddedPlan(split, self.network.max_length, mask_stream=LOSS_MASK)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return language_model.collate(samples, self.pairs.stop_ids[0], width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return language_model.counts(batch)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        return language_model.predict(module, batch, samples)

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        return language_model.finalize(
            predictions,
            split,
            bootstrap=bootstrap,
            bits_per_byte=False,
            train_counts=None,
            convention=f"loss: of the target, after the source in one sequence of at most {self.network.max_length} "
            "tokens",
        )

    def export(self, module: nn.Module, directory: Path) -> None:
        language_model.export(module, directory, self.network, stop_ids=self.pairs.stop_ids, template=None)

    def prompt(self, sample: Sample) -> list[int]:
        """Up to and with the token that predicts the first of the target."""
        supervised = np.flatnonzero(sample.arrays["labels"] != IGNORE)
        ids: list[int] = sample.arrays["input_ids"][: int(supervised[0]) + 1].tolist()
        return ids
