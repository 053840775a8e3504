"""ROUGE equals rouge_score on English, and counts Chinese characters as rouge_score counts words."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from llmkit.metrics.rouge import ROUGE, Words, rouge_columns

PIECES = ["The", "cat's", "café", "sat", "on", "U.S.", "it", "3.5%", "well-known", "\n", "dogs", "—", "x_y", "Über"]


def test_english_is_rouge_score_s() -> None:
    draw = random.Random(0)
    texts = [[" ".join(draw.choices(PIECES, k=draw.randint(1, 25))) for _ in range(60)] for _ in range(3)]
    scorer = RougeScorer(list(ROUGE))
    found = rouge_columns(texts[0], [[a, b] for a, b in zip(texts[1], texts[2], strict=True)])
    for i, (text, first, second) in enumerate(zip(*texts, strict=True)):
        scores = scorer.score_multi([first, second], text)
        assert found[:, i].tolist() == [scores[name].fmeasure for name in ROUGE]


def test_a_chinese_character_is_a_word() -> None:
    characters = {character: f"w{i}" for i, character in enumerate("今天气很好我们去公园")}
    draw = random.Random(1)
    texts = ["".join(draw.choices(list(characters), k=draw.randint(2, 12))) for _ in range(20)]
    spelt = [" ".join(characters[character] for character in text) for text in texts]
    found = rouge_columns(texts[:10], [[text] for text in texts[10:]])
    scorer = RougeScorer(list(ROUGE))
    for i in range(10):
        scores = scorer.score(spelt[10 + i], spelt[i])
        assert found[:, i].tolist() == pytest.approx([scores[name].fmeasure for name in ROUGE])


def test_words() -> None:
    assert Words().tokenize("GPT-4 发布了，Über 100 万") == ["gpt", "4", "发", "布", "了", "ber", "100", "万"]
    assert rouge_columns([""], [["今天"]]).tolist() == [[0.0], [0.0], [0.0], [0.0]]
