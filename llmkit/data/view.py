"""Looking at encoded rows before they are trained on: what is supervised, audited over all rows and shown on some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

MASK = "loss_mask"
MAX_ENDS = 10_000
"""Rows looked at for their ends where every row ends alike (no mask): enough to see a mistake."""


class Rows(Protocol):
    """What is looked at: a `Split`, or a sample in memory."""

    @property
    def num_rows(self) -> int: ...

    @property
    def streams(self) -> tuple[str, ...]: ...

    def lengths(self, stream: str = "input_ids") -> np.ndarray: ...

    def row(self, i: int, stream: str = "input_ids", start: int = 0, stop: int | None = None) -> np.ndarray: ...

    def field(self, name: str) -> pa.ChunkedArray: ...


@dataclass(frozen=True)
class LabelAudit:
    """Shares are None where there is nothing to divide by.

    zero_label_rows: rows without a supervised token, which teach nothing. ends_supervised_share: share of the rows
    whose last supervised token ends the answer or document; truncated rows have none, and a model that never sees one
    never learns to stop. Where rows have labels instead of supervised tokens, only rows and tokens are counted. counts:
    what else a task found in its rows, by what it is.
    """

    rows: int
    tokens: int
    supervised_tokens: int
    supervised_share: float | None
    zero_label_rows: int
    ends_supervised_share: float | None
    counts: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def counting(self, counts: dict[str, int]) -> LabelAudit:
        """With these things counted beside, those that did not occur left out."""
        return replace(self, counts={what: number for what, number in counts.items() if number})


def audit(rows: Rows, stop_ids: Sequence[int]) -> LabelAudit:
    """Counts what is supervised. `stop_ids`: the tokens that end an answer or document."""
    lengths = np.asarray(rows.lengths()).astype(np.int64)
    tokens, ends = int(lengths.sum()), np.array(sorted(stop_ids))
    if MASK not in rows.streams:
        supervised = int((lengths - 1).clip(min=0).sum())
        empty = int((lengths < 2).sum())
        looked = [i for i in range(min(rows.num_rows, MAX_ENDS)) if lengths[i] > 1]
        stops = sum(int(rows.row(i, start=int(lengths[i]) - 1)[0]) in ends for i in looked)
    else:
        supervised = empty = stops = 0
        looked = list(range(rows.num_rows))
        for i in looked:
            places = np.flatnonzero(rows.row(i, MASK)[1:]) + 1
            supervised += len(places)
            empty += len(places) == 0
            stops += len(places) > 0 and int(rows.row(i)[places[-1]]) in ends
    return LabelAudit(
        rows=rows.num_rows,
        tokens=tokens,
        supervised_tokens=supervised,
        supervised_share=supervised / tokens if tokens else None,
        zero_label_rows=empty,
        ends_supervised_share=stops / len(looked) if looked else None,
    )


def audit_labels(rows: Rows, *, unlabelled: int = 0) -> LabelAudit:
    """The audit of rows that are taught by labels; `unlabelled` of them teach nothing."""
    tokens = int(np.asarray(rows.lengths()).astype(np.int64).sum())
    return LabelAudit(rows.num_rows, tokens, 0, None, unlabelled, None)


@dataclass(frozen=True)
class Span:
    """A stretch of a decoded row."""

    text: str
    is_supervised: bool


def spans(rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
    """Row i decoded in stretches that are, and are not, supervised."""
    tokens = rows.row(i).tolist()
    if MASK in rows.streams:
        mask = (rows.row(i, MASK) != 0).astype(np.int8)
    else:
        mask = np.ones(len(tokens), dtype=np.int8)
    mask[:1] = 0
    cuts = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(tokens)]
    return [Span(decode(tokens[a:b]), bool(mask[a])) for a, b in pairwise(cuts) if b > a]


def label_spans(rows: Rows, i: int, decode: Callable[[list[int]], str], label: str) -> list[Span]:
    """Row i decoded, none of it supervised, and the label that is."""
    return [Span(decode(rows.row(i).tolist()), False), Span(label, True)]
