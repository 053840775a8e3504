"""ROUGE of each row by rouge_score, with words it would drop: every Chinese character is a word of its own.

Lin 2004. English is cut exactly as rouge_score cuts it (lower case, letters a to z and digits, no stemming), so the
values are the same there. ROUGE-Lsum takes a line as a sentence. Of several references the best counts, as there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from llmkit.data.text import CJK_RANGES
from llmkit.metrics.bootstrap import Floats

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_WORD = re.compile("[a-z0-9]+|[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in CJK_RANGES) + "]")


class Words:
    """rouge_score's tokenizer interface."""

    def tokenize(self, text: str) -> list[str]:
        found: list[str] = _WORD.findall(text.lower())
        return found


def rouge_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """(4, N) F-measures of each row, in the order of ROUGE, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    rows = []
    for text, own in zip(hypotheses, references, strict=True):
        found = scorer.score_multi(list(own), text)
        rows.append([found[name].fmeasure for name in ROUGE])
    return np.array(rows, dtype=np.float64).T
