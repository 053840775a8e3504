"""BLEU, chrF and TER against sacreBLEU on made texts, English and Chinese, with any number of references a row."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from llmkit.metrics import translation
from llmkit.metrics.bootstrap import sums_interval

WORDS = "the cat sat on a mat , and dogs' run fast ; 3.5 times (twice) at 10:30".split()
CHARACTERS = "今天天气很好，我们去北京。他昨天看了2本书"


def corpus(seed: int, *, chinese: bool) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(seed)

    def text() -> str:
        return ("" if chinese else " ").join(draw.choices(CHARACTERS if chinese else WORDS, k=draw.randint(1, 14)))

    hypotheses = [text() for _ in range(30)]
    return ["", *hypotheses], [[text() for _ in range(draw.randint(1, 3))] for _ in range(31)]


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """As sacreBLEU takes them: the n-th references of all rows."""
    return [[own[i] if i < len(own) else None for own in references] for i in range(max(map(len, references)))]


@pytest.mark.parametrize("chinese", [False, True], ids=["en", "zh"])
def test_corpus_scores_are_sacrebleu_s(chinese: bool) -> None:
    hypotheses, references = corpus(3, chinese=chinese)
    tokenizer = translation.bleu_tokenizer([own[0] for own in references])
    assert tokenizer == ("zh" if chinese else "13a")
    reference = BLEU(tokenize=tokenizer)
    expected = reference.corpus_score(hypotheses, streams(references)).score
    table = translation.bleu_columns(hypotheses, references, tokenizer)
    assert translation.bleu_of(table.sum(axis=1, keepdims=True))[0] == pytest.approx(expected, abs=1e-12)
    signature = str(reference.get_signature()).split("|")
    assert set(translation.bleu_signature(tokenizer).split("|")) == {"BLEU", *signature[1:]}
    expected = CHRF().corpus_score(hypotheses, streams(references)).score
    table = translation.chrf_columns(hypotheses, references)
    assert translation.chrf_of(table.sum(axis=1, keepdims=True))[0] == pytest.approx(expected, abs=1e-10)
    expected = TER(normalized=chinese, asian_support=chinese).corpus_score(hypotheses, streams(references)).score
    edits, length = translation.ter_columns(hypotheses, references, tokenizer).sum(axis=1)
    assert 100 * edits / length == pytest.approx(expected, abs=1e-10)


def test_an_empty_hypothesis_and_an_equal_one() -> None:
    for text in ("今天天气很好", "a good day to you"):
        table = translation.chrf_columns(["", text], [[text], [text]])
        assert translation.chrf_of(table).tolist() == pytest.approx([0.0, 100.0])
        table = translation.bleu_columns(["", text], [[text], [text]], "zh")
        assert translation.bleu_of(table).tolist() == pytest.approx([0.0, 100.0])


def test_the_interval_resamples_rows() -> None:
    hypotheses, references = corpus(5, chinese=False)
    hypotheses = [own[0] if i % 3 else text for i, (text, own) in enumerate(zip(hypotheses, references, strict=True))]
    table = translation.bleu_columns(hypotheses, references, "13a")
    value, low, high = sums_interval(table, translation.bleu_of)
    assert low is not None and high is not None and low < value < high
    whole = BLEU().corpus_score(hypotheses, streams(references), n_bootstrap=1000)
    assert high - low == pytest.approx(2 * whole._ci, rel=0.2)


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [
        (["Guten Tag, Welt", "Привет, мир"], "13a"),
        (["안녕하세요 여러분"], "13a"),
        (["他说 OK 就走了", "好"], "zh"),
        (["今日はいい天気ですね", "東京"], "char"),
        (["สวัสดีชาวโลก"], "char"),
        (["1234", ""], "13a"),
    ],
)
def test_the_tokenizer_follows_the_script(texts: list[str], tokenizer: str) -> None:
    assert translation.bleu_tokenizer(texts) == tokenizer


def test_columns_are_a_row_an_item() -> None:
    hypotheses, references = corpus(1, chinese=True)
    assert translation.bleu_columns(hypotheses, references, "zh").shape == (10, 31)
    assert translation.chrf_columns(hypotheses, references).shape == (18, 31)
    assert np.isfinite(translation.ter_columns(hypotheses, references, "zh")).all()
