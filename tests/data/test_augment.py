"""Augmentation: labels stay true, nothing changes where nothing is drawn, English and Chinese, seeded per showing."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from llmkit.data.augment import Augmenter, augmenter, cut, entities, joined
from llmkit.data.packing import generator
from llmkit.data.rows import RowPlan
from llmkit.errors import RecipeError
from llmkit.recipe.sections import AugmentStep
from tests.fakes import MemorySplit

ENGLISH = "The film's plot, I must say, was really good."
CHINESE = "这家酒店的服务态度非常好，我很喜欢iPhone的屏幕。"
WORDS = ["EU", "rejects", "German", "call", "to", "boycott", "New", "York", "lamb", "."]
LABELS = ["B-ORG", "O", "B-MISC", "O", "O", "O", "B-LOC", "I-LOC", "O", "O"]


def make(*steps: dict) -> Augmenter:
    found = augmenter([TypeAdapter(AugmentStep).validate_python(step) for step in steps])
    assert found is not None
    return found


def draws(count: int = 300):
    return (generator(7, 17, 0, i) for i in range(count))


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "synonyms.tsv"
    path.write_text(
        "good\tgreat\tfine\nfilm's\tmovie's\n喜欢\t喜爱\t中意\n服务态度\t服务质量\n\nfine\texcellent\n", "utf-8"
    )
    return str(path)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "", "  ", "，。", "a", "我", "x  y\n z", "3.5 e.g. well-known"])
def test_cut_and_joined_are_inverse(text):
    gaps, words = cut(text)
    assert joined(gaps, words) == text
    assert len(gaps) == len(words) + 1


def test_words_of_both_languages():
    assert cut(ENGLISH)[1] == ["The", "film's", "plot", "I", "must", "say", "was", "really", "good"]
    assert {"酒店", "非常", "喜欢", "iPhone", "屏幕"} <= set(cut(CHINESE)[1])


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
@pytest.mark.parametrize("step", ["word_dropout", "swap", "span_cutoff"])
def test_probability_zero_changes_nothing(step, text):
    plain = make({"step": step, "p": 0.0})
    assert all(plain.text(text, draw) == text for draw in draws(20))
    assert all(plain.words(WORDS, LABELS, draw) == (WORDS, LABELS) for draw in draws(20))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_word_dropout_leaves_out_its_share(text):
    count = len(cut(text)[1])
    kept = [len(cut(make({"step": "word_dropout", "p": 0.3}).text(text, draw))[1]) for draw in draws()]
    assert np.mean(kept) == pytest.approx(0.7 * count, rel=0.1)
    one = [make({"step": "word_dropout", "p": 1.0}).text(text, draw) for draw in draws(30)]
    assert all(len(cut(found)[1]) >= 1 for found in one)
    assert make({"step": "word_dropout"}).text("", next(draws())) == ""


def test_punctuation_and_blanks_stay_well():
    half = make({"step": "word_dropout", "p": 0.5})
    for draw in draws():
        found = half.text(ENGLISH, draw)
        assert "  " not in found and not found.startswith(" ")
        assert found[0].isalpha() and found.endswith(".") and ",." not in found.replace(" ", "")[:-3]
        assert found.count(",") == 2 or cut(found)[1][0] not in cut(ENGLISH)[1][:3]
    mixed = "用iPhone的App看"
    for draw in draws():
        assert "iPhoneApp" not in half.text(mixed, draw), "words of Latin letters do not run together"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_swap_moves_words_alone(text):
    swap = make({"step": "swap", "p": 0.3})
    changed = 0
    for draw in draws():
        found = swap.text(text, draw)
        changed += found != text
        assert collections.Counter(found.replace(" ", "")) == collections.Counter(text.replace(" ", ""))
        assert cut(found)[0][0] == cut(text)[0][0] and found[-1] == text[-1]
    assert changed > 200


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_span_cutoff_removes_one_stretch(text):
    words = cut(text)[1]
    size = round(0.3 * len(words))
    seen = set()
    for draw in draws():
        found = cut(make({"step": "span_cutoff", "ratio": 0.3, "p": 0.5}).text(text, draw))[1]
        if len(found) == len(words):
            seen.add(None)
            continue
        starts = [s for s in range(len(words) - size + 1) if words[:s] + words[s + size :] == found]
        assert starts
        seen.add(starts[0])
    assert len(seen) > 4 and None in seen


def test_synonyms_keep_the_case_and_stay_in_their_group(table):
    always = make({"step": "synonyms", "path": table, "p": 1.0})
    seen = collections.Counter()
    for draw in draws():
        found = always.text("Good film's GOOD day", draw).split()
        assert found[1] == "movie's" and found[3] == "day"
        assert found[0] in ("Great", "Fine") and found[2] in ("GREAT", "FINE")
        seen[found[0]] += 1
    assert min(seen.values()) > 100
    assert {make({"step": "synonyms", "path": table, "p": 1.0}).text("fine", d) for d in draws(50)} == {
        "good",
        "great",
        "excellent",
    }
    assert {always.text("我很喜欢", draw) for draw in draws(50)} == {"我很喜爱", "我很中意"}


def test_entities_stay_whole_with_their_labels(table):
    everything = make(
        {"step": "swap", "p": 0.4},
        {"step": "word_dropout", "p": 0.3},
        {"step": "span_cutoff", "ratio": 0.2, "p": 0.5},
        {"step": "synonyms", "path": table, "p": 1.0},
    )
    whole = {tuple(unit) for unit in entities(WORDS, LABELS)}
    assert (("New", "B-LOC"), ("York", "I-LOC")) in whole and len(whole) == 9
    orders = set()
    for draw in draws():
        words, labels = everything.words(WORDS, LABELS, draw)
        assert words and {tuple(unit) for unit in entities(words, labels)} <= whole
        orders.add(tuple(words))
    assert len(orders) > 100


@pytest.mark.parametrize(
    ("labels", "sizes"),
    [
        (["I-PER", "I-PER", "O", "I-PER", "I-ORG"], [2, 1, 1, 1]),
        (["B-NAME", "M-NAME", "E-NAME", "S-RACE", "O"], [3, 1, 1]),
        (["B-X", "I-X", "L-X", "U-X", "B-X"], [3, 1, 1]),
        (["NN", "NN", "VB", "O", "NN"], [1, 1, 1, 1, 1]),
        (["B-X", "B-X", "I-X", "O", "O"], [1, 2, 1, 1]),
    ],
)
def test_units_of_every_scheme(labels, sizes):
    assert [len(unit) for unit in entities(list("我你他她它"), labels)] == sizes


def test_two_entities_never_become_one():
    """Without B-, neighbours of one type would be one entity."""
    words, labels = list("甲乙丙丁戊"), ["I-PER", "O", "I-PER", "O", "O"]
    mixed = make({"step": "swap", "p": 0.5}, {"step": "word_dropout", "p": 0.3})
    for draw in draws():
        found = entities(*mixed.words(words, labels, draw))
        assert all(len(unit) == 1 for unit in found)


def test_showings_differ_and_come_again():
    """As a plan uses it: another draw each epoch, the same in a resumed run, none in evaluation."""
    texts = [ENGLISH, CHINESE]
    changes = make({"step": "swap", "p": 0.3}, {"step": "word_dropout", "p": 0.2})

    def read(row, draw):
        text = texts[row] if draw is None else changes.text(texts[row], draw)
        return {"input_ids": np.frombuffer(text.encode(), np.uint8)}

    split = MemorySplit([[1], [1]])

    def shown(seed, epoch):
        samples = RowPlan(split, split.lengths(), read, seed).samples(epoch, np.arange(2))
        return {int(sample.rows[0]): bytes(sample.arrays["input_ids"]) for sample in samples}

    assert shown(3, 0) == shown(3, 0)
    assert shown(3, 0) != shown(3, 1) and shown(3, 0) != shown(4, 0)
    assert shown(None, 0) == dict(enumerate(text.encode() for text in texts))


def test_tables_are_checked(tmp_path):
    def fails(match: str):
        with pytest.raises(RecipeError, match=match) as caught:
            make({"step": "swap"}, {"step": "synonyms", "path": str(tmp_path / "table.tsv")})
        assert caught.value.key == "data.augment.1.path"

    fails("cannot be read")
    (tmp_path / "table.tsv").write_text("good\tfine\nalone\n")
    fails(r"table\.tsv:2: 'alone' stands alone")
    (tmp_path / "table.tsv").write_text("\n")
    fails("holds no synonyms")
    assert augmenter([]) is None
