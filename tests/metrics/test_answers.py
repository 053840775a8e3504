"""Answers scored as the published evaluations say: restated here, word by word, in another way."""

from __future__ import annotations

import random
import re
import string

import pytest

from llmkit.metrics.answers import CMRC_PUNCTUATION, is_chinese, normalise, score_answer, shared_stretch, units

CMRC_LIST = list("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def squad(prediction: str, reference: str) -> tuple[float, float]:
    """Lower case; drop punctuation; drop articles as whole words; one blank between words; words as bags."""

    def words(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    ours, theirs = words(prediction), words(reference)
    rest = list(theirs)
    for word in ours:
        if word in rest:
            rest.remove(word)
    same = len(theirs) - len(rest)
    if not same:
        return float(ours == theirs), 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return float(ours == theirs), 2 * precision * recall / (precision + recall)


def cmrc(prediction: str, reference: str) -> tuple[float, float]:
    """Lower case; drop the listed punctuation; a Han character is a unit, other runs are cut into words; longest
    common substring of units."""

    def cut(text: str) -> list[str]:
        kept = "".join(c for c in text.strip().lower() if c not in CMRC_LIST)
        return re.findall(r"[\u4e00-\u9fa5]|[a-z0-9]+", kept)

    ours, theirs = cut(prediction), cut(reference)
    runs = [
        size
        for i in range(len(ours))
        for j in range(len(theirs))
        for size in range(1, len(ours) + 1)
        if ours[i : i + size] == theirs[j : j + size] and i + size <= len(ours) and j + size <= len(theirs)
    ]
    longest = max(runs, default=0)
    exact = float("".join(ours) == "".join(theirs))
    if not longest:
        return exact, 0.0
    precision, recall = longest / len(ours), longest / len(theirs)
    return exact, 2 * precision * recall / (precision + recall)


def test_english_equals_the_restatement() -> None:
    draw = random.Random(0)
    words = ["The", "a", "cat", "sat,", "on", "an", "anthem", "mat.", "U.S.", "42", "co-op", "the"]
    for _ in range(500):
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 6))) for _ in range(4)]
        expected = [squad(texts[0], reference) for reference in texts[1:]]
        found = score_answer(texts[0], texts[1:], chinese=False)
        assert found == pytest.approx(tuple(map(max, zip(*expected, strict=True))), abs=1e-12)


def test_chinese_equals_the_restatement() -> None:
    draw = random.Random(0)
    pieces = ["北京", "大", "学", "，", "1994", "年", "《", "》", "GPU", "的", "。", "·"]
    for _ in range(500):
        texts = ["".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(4)]
        expected = [cmrc(texts[0], reference) for reference in texts[1:]]
        found = score_answer(texts[0], texts[1:], chinese=True)
        assert found == pytest.approx(tuple(map(max, zip(*expected, strict=True))), abs=1e-12)


def test_the_lists_of_punctuation_are_the_same() -> None:
    assert set(CMRC_LIST) == CMRC_PUNCTUATION


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Paris", ["the Paris!", "London"], (1.0, 1.0)),
        ("in Paris", ["Paris"], (0.0, 2 / 3)),
        ("", [], (1.0, 1.0)),
        ("Paris", [], (0.0, 0.0)),
        ("", ["Paris"], (0.0, 0.0)),
        ("", ["the", "."], (1.0, 1.0)),  # of which nothing is left: no answer
    ],
)
def test_squad_2(prediction: str, references: list[str], expected: tuple[float, float]) -> None:
    assert score_answer(prediction, references, chinese=False, may_be_empty=True) == pytest.approx(expected)


def test_squad_1_has_no_f1_of_nothing() -> None:
    assert score_answer("the", ["a"], chinese=False) == (1.0, 0.0)


def test_units() -> None:
    assert units("1994年3.5万GPU（don't）……") == ["1994", "年", "3.5", "万", "gpudon't", "…", "…"]
    assert shared_stretch(list("abcd"), list("xbcy")) == 2
    assert shared_stretch([], ["a"]) == 0
    assert normalise("The  U.S.-led, an Anthem") == "usled anthem"


def test_the_script_decides() -> None:
    assert is_chinese(["who?", "王"])
    assert not is_chinese(["who?", "1994, «naïve»"])
