"""The counts of a preparation, as plain JSON so that a resumed run goes on counting: per source, step and split."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from llmkit.data.clean.steps import Cleaner
from llmkit.data.examples import Encoded
from llmkit.data.process import INVALID, KEPT, Processed
from llmkit.data.shardfile import MAIN_STREAM, count_ids

Counts = dict[str, Any]
NUMBER = re.compile(r"\d[\d,.]*")
MAX_REASONS = 100
FIRST_BAD = 5


def new_tally() -> Counts:
    return {"sources": {}, "steps": {}, "splits": {}, "rejected": {}, "first_bad": [], "scripts": {}}


def add(counts: Counts, key: str, amount: int) -> None:
    counts[key] = counts.get(key, 0) + int(amount)


def count_reason(tally: Counts, reason: str) -> None:
    """Reasons are counted with their numbers left out: `12 words, fewer than 20` is one kind."""
    kind = NUMBER.sub("N", reason)[:120]
    rejected = tally["rejected"]
    add(rejected, kind if kind in rejected or len(rejected) < MAX_REASONS else "other reasons", 1)


def count_steps(tally: Counts, group: str, cleaners: list[Cleaner], done: Processed) -> None:
    """Documents and bytes in and out of each step, as if each saw only what the ones before it left."""
    for step, cleaner in enumerate(cleaners):
        entry = tally["steps"].setdefault(f"{group}/{step}", {"step": cleaner.name, "split": group})
        valid = done.dropped != INVALID
        reached = valid & ((done.dropped == KEPT) | (done.dropped >= step))
        dropped = done.dropped == step
        kept = reached & ~dropped
        add(entry, "documents_in", reached.sum())
        add(entry, "documents_kept", kept.sum())
        add(entry, "documents_dropped", dropped.sum())
        add(entry, "documents_changed", (done.changed[step] & kept).sum())
        add(entry, "bytes_in", done.sizes[step][reached].sum())
        add(entry, "bytes_dropped", done.sizes[step][dropped].sum())
        later = done.sizes[step + 1]
        # a record that a later dedup dropped has its size there; one that failed has it measured up to its end
        add(entry, "bytes_kept", later[kept].sum())


def count_examples(tally: Counts, split: str, encoded: Encoded) -> None:
    """Rows, tokens and the longest row of a split."""
    entry = tally["splits"].setdefault(split, {})
    ids = encoded.streams[MAIN_STREAM]
    add(entry, "rows", len(ids.lengths))
    add(entry, "tokens", ids.lengths.sum())
    if len(ids.lengths):
        entry["longest"] = max(entry.get("longest", 0), int(ids.lengths.max()))


def count_scripts(
    tally: Counts, done: Processed, counts: np.ndarray, single_bytes: np.ndarray, unk: int | None
) -> None:
    """Tokens a character by script: a record is `cjk` where more than a fifth of its characters are.

    counts: (vocab,) of the batch's token ids. single_bytes: (vocab,) whether an id is a part of a character.
    """
    ids, rows = done.encoded.streams[MAIN_STREAM], done.encoded.rows
    cjk = done.cjk[rows] * 5 > done.characters[rows]
    if cjk.all() or not cjk.any():
        own = counts * cjk[0]
    else:
        own = count_ids(ids.values[np.repeat(cjk, ids.lengths)], len(counts))
    for name, members, found in (("cjk", cjk, own), ("other", ~cjk, counts - own)):
        if members.any():
            entry = tally["scripts"].setdefault(name, {})
            add(entry, "characters", done.characters[rows][members].sum())
            add(entry, "tokens", ids.lengths[members].sum())
            add(entry, "byte_tokens", found[single_bytes].sum())
            add(entry, "unknown_tokens", found[unk] if unk is not None else 0)
