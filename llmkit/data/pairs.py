"""Pairs of stretches of text for next-sentence prediction (arXiv:1810.04805): half go on where the first one stops, half
come from another document.

A document is divided into chunks of whole sentences that fill a window. A chunk is cut at one of its sentence ends,
drawn anew each epoch; what stands before is the first stretch. The second is the rest of the chunk, or, as likely, what
follows a cut of a chunk of another document, up to the sentence end that comes nearest to the rest's length: so neither
length nor the place of the cut gives the answer away. A pair that is too long loses the beginning of its first and the
end of its second stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from llmkit.data.examples import Sample
from llmkit.data.framing import SENTENCE_END, Frame, read_part
from llmkit.data.packing import TokenRows, epoch_rows, generator
from llmkit.errors import DataError

IS_NEXT, IS_RANDOM = 0, 1
"""The label, as transformers' `next_sentence_label` has it."""

_ORDER, _PAIRS = 48, 49
"""What a stream of random numbers is for; part of its key, other than those of packing, rows and windows."""


@dataclass(frozen=True)
class _Chunks:
    """C chunks in the order of their rows. rows, starts (first token), first, count (C,): sentences [first, first +
    count) of all, of which `ends` (S,) holds the token after each and `of_row` (S,) its row. begin (num_rows + 1,): the
    chunks of row r are [begin[r], begin[r + 1])."""

    rows: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    count: np.ndarray
    ends: np.ndarray
    of_row: np.ndarray
    begin: np.ndarray


def _divide(ends: np.ndarray, room: int) -> list[int]:
    """Numbers of sentences of each chunk of a document whose sentences end at `ends`: two at least, then as many as
    `room` tokens hold."""
    counts, start, done = [], 0, 0
    while done < len(ends):
        count = max(2, int(np.searchsorted(ends, start + room, side="right")) - done)
        if len(ends) - done - count == 1:  # no chunk may be left with a single sentence
            count += 1 if count == 2 else -1
        counts.append(min(count, len(ends) - done))
        done += counts[-1]
        start = int(ends[done - 1])
    return counts


def find_chunks(split: TokenRows, room: int) -> _Chunks:
    """The chunks of a split; documents of one sentence have none. Raises DataError unless two documents have some."""
    rows, starts, counts, ends, of_row, begin = [], [], [], [], [], [0]
    for row in range(split.num_rows):
        own = np.flatnonzero(split.row(row, SENTENCE_END)) + 1
        if len(own) > 1:
            found = _divide(own, room)
            starts += [0, *own[np.cumsum(found)[:-1] - 1].tolist()]
            rows += [row] * len(found)
            counts += found
            ends.append(own)
            of_row.append(np.full(len(own), row))
        begin.append(len(rows))
    if len(ends) < 2:
        raise DataError(
            f"next-sentence prediction needs at least two documents of two sentences each, and {split.num_rows:,} rows "
            f"have {len(ends)}; make rows whole documents (sample_by: document, document_start), or set "
            "task.next_sentence_prediction: false"
        )
    count = np.array(counts)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    sentences = np.concatenate(ends), np.concatenate(of_row)
    return _Chunks(np.array(rows), np.array(starts), first, count, *sentences, np.array(begin))


@dataclass
class PairPlan:
    """A sample a chunk and epoch: {input_ids, words, token_type_ids} (T,), label and key; `rows` are those of both
    stretches. `seed` None: every row once, in order, whatever its weight, always the same pairs."""

    split: TokenRows
    max_length: int
    frame: Frame
    whole_words: bool = False
    seed: int | None = None
    weights: Sequence[float] = ()
    _current: tuple[int, np.ndarray, np.ndarray] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def chunks(self) -> _Chunks:
        return find_chunks(self.split, self.room)

    @property
    def room(self) -> int:
        return self.max_length - 3

    def num_samples(self, epoch: int) -> int:
        return len(self._epoch(epoch)[0])

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        _, first, second = self._pairs(epoch, indices)
        found: np.ndarray = first[2] - first[1] + second[2] - second[1] + 3
        return found

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        labels, first, second = self._pairs(epoch, indices)
        made = []
        for label, one, two in zip(labels.tolist(), first.T.tolist(), second.T.tolist(), strict=True):
            parts = [read_part(self.split, *where, self.whole_words) for where in (one, two)]
            arrays = {**self.frame.wrap(parts), "next_sentence_label": np.array(label)}
            arrays["key"] = np.array([*one[:2], *two[:2]])
            made.append(Sample(arrays, np.array([one[0], two[0]])))
        return made

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) the chunks that an epoch shows, and (n, 4) numbers in [0, 1) that their pairs are drawn with."""
        if self._current is None or self._current[0] != epoch:
            begin = self.chunks.begin
            if self.seed is None:
                chunks = np.arange(len(self.chunks.rows))
            else:
                rows = epoch_rows(self.split, self.weights, self.seed, epoch)
                counts = begin[rows + 1] - begin[rows]
                within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                chunks = generator(self.seed, _ORDER, epoch).permutation(np.repeat(begin[rows], counts) + within)
            self._current = (epoch, chunks, generator(self.seed or 0, _PAIRS, epoch).random((len(chunks), 4)))
        return self._current[1:]

    def _pairs(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(labels (n,), first stretches (3, n), second ones), a stretch being (row, start, stop)."""
        chunks, draws = self._epoch(epoch)
        c, mine, draw = self.chunks, chunks[indices], draws[indices].T
        rows, start = c.rows[mine], c.starts[mine]
        cut = c.ends[c.first[mine] + (draw[0] * (c.count[mine] - 1)).astype(np.int64)]
        rest = c.ends[c.first[mine] + c.count[mine] - 1]
        labels = np.where(draw[1] < 0.5, IS_NEXT, IS_RANDOM)
        other = self._other(rows, draw[2])
        sentence = c.first[other] + (draw[3] * (c.count[other] - 1)).astype(np.int64)
        end = c.ends[self._nearest(sentence, rest - cut)]
        random = labels == IS_RANDOM
        from_row, from_start, from_stop = (
            np.where(random, strange, own)
            for strange, own in ((c.rows[other], rows), (c.ends[sentence], cut), (end, rest))
        )
        ours, theirs = cut - start, from_stop - from_start
        ours = np.minimum(ours, np.maximum(self.room - theirs, self.room // 2))
        theirs = np.minimum(theirs, self.room - ours)
        return labels, np.stack([rows, cut - ours, cut]), np.stack([from_row, from_start, from_start + theirs])

    def _other(self, rows: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """(n,) a chunk of another row for each of `rows`, all such chunks being as likely."""
        low, high = self.chunks.begin[rows], self.chunks.begin[rows + 1]
        place = (draw * (len(self.chunks.rows) - (high - low))).astype(np.int64)
        return place + np.where(place >= low, high - low, 0)

    def _nearest(self, sentence: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(n,) the later sentence of the same row whose end lies nearest to `wanted` tokens after that of `sentence`,
        which is not its row's last."""
        c = self.chunks
        span = int(c.ends.max()) + 1
        keys = c.of_row * span + c.ends
        target = c.of_row[sentence] * span + np.minimum(c.ends[sentence] + wanted, span - 1)
        after = np.minimum(np.searchsorted(keys, target), len(keys) - 1)
        after = np.where(c.of_row[after] == c.of_row[sentence], after, after - 1)
        before = np.maximum(after - 1, sentence + 1)
        after = np.maximum(after, sentence + 1)
        return np.where(np.abs(keys[before] - target) < np.abs(keys[after] - target), before, after)
