"""What the objectives that hide tokens share: how documents are stored, which windows show them, which tokens are hidden.

Nothing random is stored. Which tokens are hidden is drawn when a batch is made, from (seed, step, what the sample
shows), so neither the layout of batches nor the place in the run matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.boundaries import sentence_ends, word_starts
from llmkit.data.examples import IGNORE, Encoded, Plan, Ragged, Sample
from llmkit.data.framing import SENTENCE_END, WORD_START, Frame, WindowPlan, read_part
from llmkit.data.masking import Masker
from llmkit.data.packing import TokenRows, generator
from llmkit.data.pairs import PairPlan
from llmkit.data.process import select
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer import BatchEncoder, read_special_ids
from llmkit.data.tokenizer_core import read_core
from llmkit.data.view import LabelAudit, Rows, Span
from llmkit.errors import ModelError

TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
"""Special tokens by name that these objectives need, and what they are called where the tokenizer has none."""

_MASK = 64
"""What a stream of random numbers is for; part of its key, other than those of the plans."""
SHOWN_TOKENS = 200


@dataclass
class MaskedTextEncoder:
    """A document is a row of its tokens alone; `words` and `sentences` add where they begin and end as streams."""

    tokenizer_dir: Path
    words: bool
    sentences: bool
    probability: float
    """For the audit and for showing examples; the rows do not depend on it."""
    _engine: BatchEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._engine = BatchEncoder(self.tokenizer_dir)

    def identity(self) -> dict[str, Any]:
        return {"encoder": "masked_text", "version": 1, "words": self.words, "sentences": self.sentences}

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["text"]: N strings."""
        texts = batch.columns["text"]
        if not self.words and not self.sentences:
            streams = {"input_ids": self._engine.encode(texts)}
        else:
            tokens, places = self._engine.encode_with_places(texts)
            streams = {"input_ids": tokens}
            pairs = list(zip(texts, places, strict=True))
            if self.words:
                starts = [word_starts(text, place[:, 0], place[:, 1]) for text, place in pairs]
                streams[WORD_START] = Ragged(np.concatenate(starts), tokens.lengths)
            if self.sentences:
                ends = [sentence_ends(text, place[:, 0]) for text, place in pairs]
                streams[SENTENCE_END] = Ragged(np.concatenate(ends), tokens.lengths)
        kept = streams["input_ids"].lengths > 0
        encoded = select(Encoded(np.arange(len(batch)), streams), kept)
        encoded.rejected = [(row, "no token is left of the text") for row in np.flatnonzero(~kept).tolist()]
        return encoded

    def audit(self, rows: Rows) -> LabelAudit:
        """Tokens are supervised by turns: the share is that of one showing."""
        tokens = int(np.asarray(rows.lengths()).astype(np.int64).sum())
        lost = 0
        if self.sentences:
            lost = sum(int(rows.row(i, SENTENCE_END).sum()) < 2 for i in range(rows.num_rows))
        return LabelAudit(rows.num_rows, tokens, round(self.probability * tokens), self.probability, lost, None)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        """The beginning of row i, one draw of what is hidden of it supervised."""
        tokens, words = read_part(rows, i, 0, SHOWN_TOKENS, self.words)
        chosen = Masker(self.probability, 0, np.zeros(1)).choose(words, generator(0, _MASK, i))
        cuts = [0, *(np.flatnonzero(np.diff(chosen)) + 1).tolist(), len(tokens)]
        return [
            Span(decode(tokens[a:b].tolist()), bool(chosen[a])) for a, b in zip(cuts, cuts[1:], strict=False) if b > a
        ]


@dataclass(frozen=True)
class MaskedText:
    """One task's way of showing text: see the recipe's keys. `always_mask`: no token is left or replaced (ELECTRA)."""

    tokenizer_dir: Path
    max_length: int
    weights: tuple[float, ...]
    probability: float
    whole_words: bool = False
    pairs: bool = False
    always_mask: bool = False
    scratch: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Special ids, read once."""

    def encoder(self) -> MaskedTextEncoder:
        return MaskedTextEncoder(self.tokenizer_dir, self.whole_words, self.pairs, self.probability)

    def plan(self, split: TokenRows, seed: int | None) -> Plan:
        """The samples of a split; without a seed every row once, in order, always the same pairs."""
        kind = PairPlan if self.pairs else WindowPlan
        weights = self.weights if seed is not None else ()
        return kind(split, self.max_length, self._ids()[0], self.whole_words, seed, weights)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None) -> dict[str, np.ndarray]:
        """(B, T) int64 input_ids with tokens hidden, labels, attention_mask, for pairs token_type_ids and (B,)
        next_sentence_label."""
        _, masker, pad = self._ids()
        longest = max(len(sample.arrays["input_ids"]) for sample in samples)
        width = longest if width is None else width
        assert longest <= width, "a sample is longer than the batch"
        fill = {"input_ids": pad, "labels": IGNORE, "attention_mask": 0}
        if self.pairs:
            fill["token_type_ids"] = 0
        batch = {name: np.full((len(samples), width), value, dtype=np.int64) for name, value in fill.items()}
        for line, sample in enumerate(samples):
            tokens, words = sample.arrays["input_ids"], sample.arrays["words"]
            draw = generator(seed, _MASK, step, *sample.arrays["key"].tolist())
            chosen = masker.choose(words, draw)
            size = len(tokens)
            batch["input_ids"][line, :size] = masker.hide(tokens, chosen, draw)
            batch["labels"][line, :size] = np.where(chosen, tokens, IGNORE)
            batch["attention_mask"][line, :size] = 1
            if self.pairs:
                batch["token_type_ids"][line, :size] = sample.arrays["token_type_ids"]
        if self.pairs:
            batch["next_sentence_label"] = np.array([int(sample.arrays["next_sentence_label"]) for sample in samples])
        return batch

    def _ids(self) -> tuple[Frame, Masker, int]:
        """(the special tokens around a text, who hides tokens, the padding)."""
        if "ids" not in self.scratch:
            ids = read_special_ids(self.tokenizer_dir)
            if ids.cls is None or ids.sep is None or ids.mask is None or ids.pad is None:
                raise ModelError(
                    f"the tokenizer in {self.tokenizer_dir} lacks one of {', '.join(TOKENS)}", key="tokenizer"
                )
            added = read_core(self.tokenizer_dir).get_added_tokens_decoder()
            special = [number for number, token in added.items() if token.special]
            ordinary = np.setdiff1d(np.arange(ids.size), special)
            masker = Masker(self.probability, ids.mask, ordinary, self.always_mask)
            self.scratch["ids"] = (Frame(ids.cls, ids.sep), masker, ids.pad)
        found: tuple[Frame, Masker, int] = self.scratch["ids"]
        return found
