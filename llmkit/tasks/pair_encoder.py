"""Source and target texts to token streams, for encoder-decoders and for decoder-only models. Torch-free, picklable.

An encoder-decoder has two streams: `input_ids` (the source as the model's own tokenizer frames it, and an end of
sequence at its end in any case) and `labels`. A decoder-only model has one sequence, of which the target is supervised:

    [beginning] prefix and source [separator] target [end of sequence]

where the separator is the tokenizer's `sep`, else its end of sequence: a token that every vocabulary has and no text
holds. `encode_prompt` makes the same beginning for generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer import BatchEncoder, read_special_ids
from llmkit.data.tokenizer_core import read_core
from llmkit.data.view import MAX_ENDS, LabelAudit, Rows, Span, audit, spans
from llmkit.errors import DataError, ModelError
from llmkit.tasks.encoders import LOSS_MASK

LABELS = "labels"
SOURCE_SHARE = 0.75
"""Of a decoder-only model's `max_length`: the most that a source may take, so that a target always has room."""

Overflow = Literal["truncate", "drop", "error"]


@dataclass(frozen=True)
class Frame:
    """What stands around a text: `prefix` and `suffix` of the model's own tokenizer. `end` closes every target."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    end: int

    def marked(self, source: int, target: int) -> Frame:
        """The same with the mark of another language."""
        before, after = (tuple(target if i == source else i for i in part) for part in (self.prefix, self.suffix))
        return Frame(before, after, self.end)

    def wrap(self, tokens: np.ndarray, max_length: int) -> tuple[np.ndarray, bool]:
        """A source within `max_length`, cut at its end but never its frame, and whether it was cut."""
        room = max(max_length - len(self.prefix) - len(self.suffix), 1)
        return np.concatenate([self.prefix, tokens[:room], self.suffix]).astype(np.int64), len(tokens) > room

    def close(self, tokens: np.ndarray, max_length: int) -> tuple[np.ndarray, bool]:
        """A target within `max_length`; one that is cut has no end of sequence, which is not taught there."""
        whole = np.concatenate([self.prefix, tokens, self.suffix]).astype(np.int64)
        return whole[:max_length], len(whole) > max_length


def read_frame(directory: Path) -> Frame:
    """The frame of an encoder-decoder's texts, by the post-processor of its tokenizer. A leading end of sequence is
    left out: a decoder that predicts it would stop there. Raises ModelError where nothing can end a target."""
    end = read_special_ids(directory).suffix
    if end is None:
        raise ModelError(
            f"the tokenizer in {directory} has no end-of-sequence token; targets need one", key="tokenizer"
        )
    core = read_core(directory)
    plain, whole = (core.encode("a", add_special_tokens=special).ids for special in (False, True))
    places = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain] if plain else []
    before, after = (whole[: places[0]], whole[places[0] + len(plain) :]) if places else ([], [])
    suffix = after if end in after else [*after, end]
    return Frame(tuple(i for i in before if i != end), tuple(suffix), end)


def references_of(target: Any) -> list[str]:
    """The reference texts of a row; the first is trained on. Raises ValueError with the reason of a reject."""
    texts = target if isinstance(target, list) else [target]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("target is not text")
    found = [text for text in texts if text.strip()]
    if not found:
        raise ValueError("target is empty")
    return found


@dataclass
class PairEncoder:
    """`overflow` beyond `max_length` tokens: "truncate" cuts the source at its end, and the target; "drop" rejects the
    row; "error" raises DataError. `fields` keep the texts: `source` (without the prefix) and `references`."""

    tokenizer_dir: Path
    source_prefix: str
    max_length: int
    overflow: Overflow
    is_encoder_decoder: bool
    languages: tuple[str, str] | None = None
    """Of source and target, for tokenizers that mark them (`tasks.languages`)."""
    _engine: BatchEncoder = field(init=False, repr=False)
    _frame: Frame = field(init=False, repr=False)
    _target_frame: Frame = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._engine = BatchEncoder(self.tokenizer_dir)
        self._frame = (read_frame if self.is_encoder_decoder else _decoder_frame)(self.tokenizer_dir)
        self._target_frame = self._frame
        if self.languages is not None:
            source, target = (read_core(self.tokenizer_dir).token_to_id(code) for code in self.languages)
            self._target_frame = self._frame.marked(source, target)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "pair",
            "version": 1,
            "source_prefix": self.source_prefix,
            "max_length": self.max_length,
            "overflow": self.overflow,
            "encoder_decoder": self.is_encoder_decoder,
            **({} if self.languages is None else {"languages": list(self.languages)}),
        }

    @property
    def stop_ids(self) -> list[int]:
        return [self._frame.end]

    def audit(self, rows: Rows) -> LabelAudit:
        return (audit_pairs if self.is_encoder_decoder else audit)(rows, self.stop_ids)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        return pair_spans(rows, i, decode) if self.is_encoder_decoder else spans(rows, i, decode)

    def encode_prompt(self, text: str) -> list[int]:
        """What the model reads before it writes the target of the source `text`; never cut."""
        tokens = self._engine.encode([self.source_prefix + text]).values
        return [*self._frame.prefix, *tokens.tolist(), *self._frame.suffix]

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["source"]: N texts; columns["target"]: N texts or lists of them."""
        references: dict[int, list[str]] = {}
        rejected: list[tuple[int, str]] = []
        for row, target in enumerate(batch.columns["target"]):
            try:
                references[row] = references_of(target)
            except ValueError as problem:
                rejected.append((row, str(problem)))
        texts = [batch.columns["source"][row] for row in references]
        sources = split_rows(self._engine.encode([self.source_prefix + text for text in texts]))
        targets = split_rows(self._engine.encode([found[0] for found in references.values()]))
        made, kept, truncated = [], [], 0
        for row, source, target in zip(references, sources, targets, strict=True):
            example, what = self._pair(source, target) if self.is_encoder_decoder else self._sequence(source, target)
            if what is not None and (reason := overflow_reason(self.overflow, what, batch, row)) is not None:
                rejected.append((row, reason))
                continue
            truncated += what is not None
            made.append(example)
            kept.append(row)
        return Encoded(
            np.array(kept, dtype=np.int64),
            {
                name: ragged([example[name] for example in made], dtype)
                for name, dtype in streams_of(self.is_encoder_decoder).items()
            },
            {
                "source": [batch.columns["source"][row] for row in kept],
                "references": [references[row] for row in kept],
            },
            rejected=sorted(rejected),
            truncated=truncated,
        )

    def _pair(self, source: np.ndarray, target: np.ndarray) -> tuple[dict[str, np.ndarray], str | None]:
        """The streams of a row, and what was too long."""
        return pair(self._frame, source, target, self.max_length, self._target_frame)

    def _sequence(self, source: np.ndarray, target: np.ndarray) -> tuple[dict[str, np.ndarray], str | None]:
        prompt, long_source = self._frame.wrap(source, int(SOURCE_SHARE * self.max_length))
        answer = np.append(target, self._frame.end)
        room = max(self.max_length - len(prompt), 1)
        what = _too_long(long_source, len(answer) > room, len(source), len(target), self.max_length)
        answer = answer[:room]
        mask = np.repeat([0, 1], [len(prompt), len(answer)])
        return {"input_ids": np.concatenate([prompt, answer]), LOSS_MASK: mask}, what


def _decoder_frame(directory: Path) -> Frame:
    """The frame of the source in a decoder-only model's sequence: a document's beginning, and the separator."""
    ids = read_special_ids(directory)
    if ids.prefix is None or ids.suffix is None:
        raise ModelError(
            f"the tokenizer in {directory} has no end-of-sequence token; targets need one", key="tokenizer"
        )
    return Frame((ids.prefix,), (ids.sep if ids.sep is not None else ids.suffix,), ids.suffix)


def pair(
    frame: Frame, source: np.ndarray, target: np.ndarray, max_length: int, target_frame: Frame | None = None
) -> tuple[dict[str, np.ndarray], str | None]:
    """The streams of an encoder-decoder's row from bare tokens, and what was too long, if anything."""
    inputs, long_source = frame.wrap(source, max_length)
    labels, long_target = (target_frame or frame).close(target, max_length)
    what = _too_long(long_source, long_target, len(source), len(target), max_length)
    return {"input_ids": inputs, LABELS: labels}, what


def _too_long(source: bool, target: bool, source_tokens: int, target_tokens: int, max_length: int) -> str | None:
    sides = [f"{n} source tokens" for n in [source_tokens] if source] + [
        f"{n} target tokens" for n in [target_tokens] if target
    ]
    return f"{' and '.join(sides)} are more than max_length {max_length} has room for" if sides else None


def overflow_reason(overflow: Overflow, what: str, batch: RecordBatch, row: int) -> str | None:
    """Why a row that is too long is not used; None where it is truncated. Raises DataError for "error"."""
    if overflow == "error":
        raise DataError(
            f"{what}; set data.overflow to truncate or drop, or raise data.max_length",
            file=batch.file,
            line=batch.lines[row],
        )
    return what if overflow == "drop" else None


def streams_of(is_encoder_decoder: bool) -> dict[str, type[np.generic]]:
    """The streams of a layout and the dtype that they are encoded in."""
    return (
        {"input_ids": np.uint32, LABELS: np.int32}
        if is_encoder_decoder
        else {"input_ids": np.uint32, LOSS_MASK: np.uint8}
    )


def split_rows(rows: Ragged) -> list[np.ndarray]:
    """A view a row."""
    return np.split(rows.values, np.cumsum(rows.lengths)[:-1]) if len(rows.lengths) else []


def ragged(rows: Sequence[np.ndarray], dtype: type[np.generic]) -> Ragged:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return Ragged(np.concatenate(rows).astype(dtype, copy=False) if len(rows) else np.empty(0, dtype), lengths)


def audit_pairs(rows: Rows, stop_ids: Sequence[int]) -> LabelAudit:
    """Counts sources and targets; every token of a target is supervised."""
    sources, targets = (int(rows.lengths(name).astype(np.int64).sum()) for name in ("input_ids", LABELS))
    looked = range(min(rows.num_rows, MAX_ENDS))
    stops = sum(bool(set(rows.row(i, LABELS)[-2:].tolist()) & set(stop_ids)) for i in looked)
    return LabelAudit(
        rows=rows.num_rows,
        tokens=sources + targets,
        supervised_tokens=targets,
        supervised_share=targets / (sources + targets) if rows.num_rows else None,
        zero_label_rows=int((rows.lengths(LABELS) == 0).sum()),
        ends_supervised_share=stops / len(looked) if looked else None,
    )


def pair_spans(rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
    """Source and target of row i."""
    return [Span(decode(rows.row(i).tolist()), False), Span(decode(rows.row(i, LABELS).tolist()), True)]
