"""Encoded examples and the samples made of them: the values that pass between data, tasks and training. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmkit.data.records import RecordBatch

if TYPE_CHECKING:
    from llmkit.data.view import LabelAudit, Rows, Span

IGNORE = -100
"""A label that is not supervised, as in transformers."""


@dataclass(slots=True)
class Ragged:
    """N rows of different lengths, flat: `values` (sum of lengths,), `lengths` (N,)."""

    values: np.ndarray
    lengths: np.ndarray


@dataclass(slots=True)
class Encoded:
    """Encoded examples of one batch of records, in columns. E examples from N records; E may be more or less than N.

    rows: (E,) the record each example came from. streams: token-like arrays, one Ragged of E rows each.
    fields: further values of E rows, stored as Arrow columns (JSON-like Python values).
    rejected: (record, reason) for records that gave no example.
    """

    rows: np.ndarray
    streams: dict[str, Ragged]
    fields: dict[str, list[Any]] = field(default_factory=dict)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0


class Encoder(Protocol):
    """The torch-free, picklable half of a task: runs in `preprocess`, in worker processes too.

    Pure: same batch, same result.
    """

    def identity(self) -> dict[str, Any]:
        """Everything the result depends on beside the records and the tokenizer; part of the data fingerprint."""

    def audit(self, rows: Rows) -> LabelAudit:
        """What is supervised in encoded rows, counted."""

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        """Row i for people: its text in stretches that are, and are not, supervised."""

    def encode(self, batch: RecordBatch) -> Encoded: ...


@dataclass(slots=True)
class Sample:
    """One sequence of a batch: arrays (T,) by name, and the rows of the split that it shows."""

    arrays: dict[str, np.ndarray]
    rows: np.ndarray


class Plan(Protocol):
    """Samples of a split as a function of (seed, epoch, index) alone: no state, no position to restore."""

    def num_samples(self, epoch: int) -> int: ...

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(n,) tokens of each sample, without reading them; used to group a step's samples into micro-batches."""

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]: ...
