"""The special tokens that a tokenizer puts around one text or two, as its own post-processor does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmkit.data.tokenizer_core import read_core
from llmkit.errors import ModelError

PROBES = ("a", "的", "1", ".", "the", "我")
"""Texts of which every vocabulary knows one."""


@dataclass(frozen=True)
class Frame:
    """Ids before, between and after (no `between` around one text); `types` are the token types of these and of the
    two texts, in the order in which they stand."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def read_frame(directory: Path, *, pair: bool = False) -> Frame:
    """The frame of a prepared tokenizer's texts (of two where `pair`). Raises ModelError."""
    core = read_core(directory)
    for probe in PROBES:
        found = core.encode(probe, probe) if pair else core.encode(probe)
        places = found.sequence_ids
        if 0 in places and (not pair or 1 in places):
            break
    else:
        raise ModelError(f"the tokenizer in {directory} gives no token for any of {', '.join(PROBES)}", key="tokenizer")
    first = [i for i, place in enumerate(places) if place == 0]
    last = [i for i, place in enumerate(places) if place == 1] if pair else first
    parts = [(0, first[0]), (first[0], first[-1] + 1), (first[-1] + 1, last[0]), (last[0], last[-1] + 1)]
    parts.append((last[-1] + 1, len(places)))
    ids = [tuple(found.ids[start:stop]) for start, stop in parts]
    kinds = [found.type_ids[start] if stop > start else 0 for start, stop in parts]
    return Frame(ids[0], ids[2] if pair else (), ids[4], (kinds[0], kinds[1], kinds[2], kinds[3], kinds[4]))
