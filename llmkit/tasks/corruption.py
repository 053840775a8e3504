"""Text corrupted for an encoder-decoder to restore (pretraining): T5's span corruption, BART's denoising.

Nothing random is stored: what is hidden is drawn when a batch is made, from (seed, step, what the sample shows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.corruption import Denoising, Noise, SpanCorruption
from llmkit.data.examples import Encoded, Encoder, Plan, Sample
from llmkit.data.framing import SENTENCE_END, Frame, WindowPlan
from llmkit.data.packing import generator
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer import BatchEncoder, read_special_ids
from llmkit.data.tokenizer_core import read_core
from llmkit.data.view import LabelAudit, Rows, Span
from llmkit.errors import ModelError, RecipeError
from llmkit.recipe import tasks as sections
from llmkit.recipe.sections import Recipe
from llmkit.tasks import language_model, seq2seq
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.masked_text import MaskedTextEncoder
from llmkit.tasks.network import NetworkSpec
from llmkit.tasks.pair_encoder import read_frame

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split

SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))
PADDING = {"pad_token": "<pad>"}
MASK = {"mask_token": "<mask>"}
_NOISE = 80
"""What a stream of random numbers is for; part of its key, other than those of the plans."""


def sentinel_tokens(recipe: Recipe, has: Callable[[str], bool], tokenizer_dir: Path | None) -> list[str]:
    """The sentinels that the vocabulary lacks."""
    return [token for token in SENTINELS if not has(token)]


def build_span_corruption(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe. Raises RecipeError where a window would need more sentinels than there are."""
    section = recipe.task
    assert isinstance(section, sections.SpanCorruption)
    core = read_core(network.tokenizer_dir)
    ids = tuple(core.token_to_id(token) for token in SENTINELS)
    end = read_special_ids(network.tokenizer_dir).suffix
    if end is None or None in ids:
        message = f"the tokenizer in {network.tokenizer_dir} has no end-of-sequence token or no sentinels"
        raise ModelError(f"{message}; preprocess again", key="tokenizer")
    noise = SpanCorruption(network.max_length, section.noise_density, section.mean_span_length, ids, end)
    return _build(recipe, network, noise, sentences=False)


def build_denoising(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe."""
    section = recipe.task
    assert isinstance(section, sections.Denoising)
    frame, mask = read_frame(network.tokenizer_dir), read_special_ids(network.tokenizer_dir).mask
    # the stand-in that only an identity is asked of has no named tokens
    mask = mask if mask is not None else frame.end
    noise = Denoising(
        network.max_length,
        section.mask_ratio,
        section.mean_span_length,
        section.permute_sentences,
        mask,
        frame.prefix,
        frame.suffix,
    )
    if noise.window < 1:
        raise RecipeError("leaves no room for a token between the special ones", key="data.max_length")
    return _build(recipe, network, noise, sentences=section.permute_sentences)


def _build(recipe: Recipe, network: NetworkSpec, noise: Noise, *, sentences: bool) -> Task:
    seq2seq.refuse_packing(recipe.data.packing)
    weights = tuple(source.weight for source in recipe.data.train)
    return CorruptionTask(network, weights, noise, NoisyTextEncoder(network.tokenizer_dir, noise, sentences))


@dataclass
class NoisyTextEncoder:
    """A document is a row of its tokens alone; `sentences` adds where they end."""

    tokenizer_dir: Path
    noise: Noise
    sentences: bool
    _rows: MaskedTextEncoder = field(init=False, repr=False)
    _prompts: BatchEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rows = MaskedTextEncoder(self.tokenizer_dir, words=False, sentences=self.sentences, probability=0.0)
        self._prompts = BatchEncoder(self.tokenizer_dir, "tokenizers", parse_special=True)

    def identity(self) -> dict[str, Any]:
        return self._rows.identity()

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["text"]: N strings."""
        return self._rows.encode(batch)

    def encode_prompt(self, text: str) -> list[int]:
        """What the encoder reads of a text in which sentinels or masks are spelt."""
        frame = read_frame(self.tokenizer_dir)
        return [*frame.prefix, *self._prompts.encode([text]).values.tolist(), *frame.suffix]

    def audit(self, rows: Rows) -> LabelAudit:
        """Targets of one showing, the special tokens among them."""
        lengths = np.asarray(rows.lengths()).astype(np.int64)
        targets = 0
        for length, count in zip(*(found.tolist() for found in np.unique(lengths, return_counts=True)), strict=True):
            windows = -(-length // self.noise.window)
            targets += count * windows * self.noise.num_targets(length // windows)
        tokens = int(lengths.sum())
        return LabelAudit(rows.num_rows, tokens, targets, targets / tokens if tokens else None, 0, None)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        """The first window of row i under one draw: what is read, and what is to be written."""
        read, target = self._first(rows, i)
        return [Span(decode(read.tolist()), False), Span(decode(target.tolist()), True)]

    def _first(self, rows: Rows, i: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.asarray(rows.row(i, stop=self.noise.window)).astype(np.int64)
        ends = rows.row(i, SENTENCE_END, stop=self.noise.window) if self.sentences else None
        return self.noise.apply(tokens, ends, generator(0, _NOISE, i))


@dataclass
class NoisyPlan:
    """Windows of one document each, of nearly one size, as arrays `tokens`, `sentence_end` where stored, and `key`."""

    split: Split
    windows: WindowPlan
    sentences: bool

    def num_samples(self, epoch: int) -> int:
        return self.windows.num_samples(epoch)

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return self.windows.lengths(epoch, indices)

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        made = []
        for sample in self.windows.samples(epoch, indices):
            row, start = sample.arrays["key"].tolist()
            arrays = {"tokens": sample.arrays["input_ids"][1:-1], "key": sample.arrays["key"]}
            if self.sentences:
                stop = start + len(arrays["tokens"])
                arrays[SENTENCE_END] = np.asarray(self.split.row(row, SENTENCE_END, start, stop))
            made.append(Sample(arrays, sample.rows))
        return made


@dataclass(frozen=True)
class CorruptionTask:
    """An encoder-decoder that restores windows of text corrupted by `noise`."""

    network: NetworkSpec
    weights: tuple[float, ...]
    noise: Noise
    text: NoisyTextEncoder
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss": 1.0})
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def encoder(self) -> Encoder:
        return self.text

    def build_model(self) -> nn.Module:
        return seq2seq.build_module(self.network)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {"packing": False}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Nothing is needed."""

    def train_plan(self, split: Split, seed: int) -> Plan:
        return self._plan(split, seed, self.weights)

    def eval_plan(self, split: Split) -> Plan:
        return self._plan(split, None, ())

    def _plan(self, split: Split, seed: int | None, weights: tuple[float, ...]) -> Plan:
        bare = Frame(0, 0)  # taken off again
        windows = WindowPlan(split, self.noise.window + 2, bare, seed=seed, weights=weights)
        return NoisyPlan(split, windows, self.text.sentences)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        """Noise is drawn by (seed, step, row and place of the window)."""
        made = []
        for sample in samples:
            draw = generator(seed, _NOISE, step, *sample.arrays["key"].tolist())
            read, target = self.noise.apply(sample.arrays["tokens"], sample.arrays.get(SENTENCE_END), draw)
            made.append(Sample({"input_ids": read, "labels": target}, sample.rows))
        return seq2seq.collate(made, seq2seq.pad_id(self.network, self.scratch), width)

    def counts(self, batch: Batch) -> dict[str, int]:
        return language_model.counts(batch)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        return seq2seq.predict(module, batch, samples)

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        return language_model.finalize(
            predictions,
            split,
            bootstrap=bootstrap,
            bits_per_byte=False,
            train_counts=None,
            convention=f"loss: of the decoder's tokens, special ones among them, in windows of at most "
            f"{self.noise.window} tokens of one document; the noise is the same at each evaluation",
        )

    def export(self, module: nn.Module, directory: Path) -> None:
        seq2seq.export(module, directory, self.network)
