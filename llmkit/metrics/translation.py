"""BLEU, chrF and TER of a corpus, with what the bootstrap needs: numbers a row that add up.

The tokenisation follows the script of the references. sacreBLEU counts and scores, but for chrF, whose counts a row it
does not give out.

Papineni et al. 2002 and Post 2018 (BLEU, sacreBLEU), Popović 2015 (chrF2, character n-grams to 6), Snover et al. 2006
(TER).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llmkit.metrics.bootstrap import Floats

Columns = Floats
"""(K, N): K numbers of each of N rows, to be added up."""

CHRF_ORDER, CHRF_BETA = 6, 2
_KANA = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Burmese and Khmer."""
_LETTER = re.compile(r"[^\W\d_]")


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacreBLEU's tokeniser for the script that most letters of the references are in: `zh` for Chinese, `char` for
    Japanese and other scripts without blanks, else `13a`."""
    letters = han = unspaced = kana = 0
    for text in references:
        letters += len(_LETTER.findall(text))
        han += len(_HAN.findall(text))
        kana += len(_KANA.findall(text))
        unspaced += len(_UNSPACED.findall(text))
    if 2 * (han + kana + unspaced) <= letters:
        return "13a"
    return "zh" if han > 20 * kana and han > unspaced else "char"


def bleu_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> Columns:
    """(10, N): length, reference length, 4 matches, 4 totals; a row may have any number of references."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize=tokenizer, effective_order=True)  # the counts are the same, and it does not warn
    found = [metric.sentence_score(text, list(own)) for text, own in zip(hypotheses, references, strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in found], dtype=np.float64).T


def bleu_of(sums: Floats) -> Floats:
    """(10, R) sums -> (R,) corpus BLEU, 0 to 100, smoothed as sacreBLEU's default (exp)."""
    from sacrebleu.metrics.bleu import BLEU

    return np.array(
        [
            BLEU.compute_bleu(
                [int(n) for n in column[2:6]],
                [int(n) for n in column[6:]],
                sys_len=int(column[0]),
                ref_len=int(column[1]),
                smooth_method="exp",
            ).score
            for column in sums.T
        ]
    )


def bleu_signature(tokenizer: str) -> str:
    """What sacreBLEU calls this configuration."""
    import sacrebleu

    return f"BLEU|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{sacrebleu.__version__}"


def chrf_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Columns:
    """(18, N): for each order, n-grams of the hypothesis, of the reference that suits it best, and of both."""
    rows = []
    for text, own in zip(hypotheses, references, strict=True):
        mine = _character_ngrams(text)
        candidates = np.array([_overlap(mine, _character_ngrams(reference)) for reference in own], dtype=np.float64)
        rows.append(candidates[int(np.argmax(chrf_of(candidates.T)))])
    return np.array(rows).T


def chrf_of(sums: Floats) -> Floats:
    """(18, R) sums -> (R,) chrF2, 0 to 100: F over precision and recall, each the mean over the orders that both sides
    have."""
    hypothesis, reference, match = sums[0::3], sums[1::3], sums[2::3]
    counts = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counts.sum(axis=0), 1)
    precision = np.where(counts, match / np.maximum(hypothesis, 1), 0.0).sum(axis=0) / orders
    recall = np.where(counts, match / np.maximum(reference, 1), 0.0).sum(axis=0) / orders
    factor = CHRF_BETA**2
    below = factor * precision + recall
    score: Floats = 100 * (1 + factor) * precision * recall / np.where(below > 0, below, 1.0)
    return score


def _character_ngrams(text: str) -> list[Counter[str]]:
    text = "".join(text.split())
    return [Counter(text[i : i + order] for i in range(len(text) - order + 1)) for order in range(1, CHRF_ORDER + 1)]


def _overlap(mine: list[Counter[str]], other: list[Counter[str]]) -> list[int]:
    """An order that the reference is too short for counts on neither side."""
    return [n for a, b in zip(mine, other, strict=True) for n in (a.total() if b else 0, b.total(), (a & b).total())]


def ter_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> Columns:
    """(2, N): edits, and the mean length of the references. Scripts without blanks are edited by character."""
    from sacrebleu.metrics.ter import TER

    asian = tokenizer != "13a"
    metric = TER(normalized=asian, asian_support=asian)
    found = [metric.sentence_score(text, list(own)) for text, own in zip(hypotheses, references, strict=True)]
    return np.array([[score.num_edits, score.ref_length] for score in found], dtype=np.float64).T


def ter_of(sums: Floats) -> Floats:
    """(2, R) sums -> (R,) TER, 0 to 100 and more."""
    score: Floats = 100 * sums[0] / np.where(sums[1] > 0, sums[1], np.nan)
    return score
