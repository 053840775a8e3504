"""Which tokens are hidden, counted over many draws, and windows and pairs that are what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.data.framing import Frame, WindowPlan
from llmkit.data.masking import NO_WORD, Masker
from llmkit.data.packing import generator
from llmkit.data.pairs import IS_NEXT, IS_RANDOM, PairPlan
from llmkit.errors import DataError
from tests.tasks.masking_data import CLS, MASK, SEP, Documents, documents

FRAME = Frame(CLS, SEP)
MASKER = Masker(0.15, MASK, np.arange(256))


def test_fifteen_of_a_hundred_are_chosen_and_eight_of_ten_masked():
    words = np.array([NO_WORD, *range(100), NO_WORD])
    tokens = np.array([CLS, *np.arange(100), SEP])
    hits, masked, kept, replaced = np.zeros(102), 0, 0, 0
    for i in range(2000):
        draw = generator(0, i)
        chosen = MASKER.choose(words, draw)
        hidden = MASKER.hide(tokens, chosen, draw)
        assert chosen.sum() == 15
        assert np.array_equal(hidden[~chosen], tokens[~chosen])
        hits += chosen
        masked += int((hidden[chosen] == MASK).sum())
        kept += int((hidden[chosen] == tokens[chosen]).sum())
        replaced += int(((hidden[chosen] != MASK) & (hidden[chosen] != tokens[chosen])).sum())
    total = 2000 * 15
    assert hits[0] == hits[-1] == 0
    assert np.abs(hits[1:-1] / 2000 - 0.15).max() < 5 * (0.15 * 0.85 / 2000) ** 0.5
    assert masked / total == pytest.approx(0.8, abs=0.01)
    assert kept / total == pytest.approx(0.1 + 0.1 / 256, abs=0.01)
    assert replaced / total == pytest.approx(0.1 * 255 / 256, abs=0.01)


def test_words_are_hidden_whole_and_within_the_budget():
    draw = np.random.default_rng(0)
    words = np.repeat(np.arange(60), draw.integers(1, 5, size=60))
    budget = round(0.15 * len(words))
    sizes = []
    for i in range(300):
        chosen = MASKER.choose(words, generator(1, i))
        for word in np.unique(words):
            assert len(set(chosen[words == word])) == 1
        assert 0 < chosen.sum() <= budget
        sizes.append(chosen.sum())
    assert np.mean(sizes) > budget - 1
    assert MASKER.choose(np.zeros(9, dtype=np.int64), generator(0, 0)).all()
    assert not MASKER.choose(np.full(3, NO_WORD), generator(0, 0)).any()


def test_every_chosen_token_is_masked_for_a_generator():
    chosen = np.arange(20) % 3 == 0
    hidden = Masker(0.15, MASK, np.arange(256), always_mask=True).hide(np.arange(20), chosen, generator(0, 0))
    assert (hidden[chosen] == MASK).all() and np.array_equal(hidden[~chosen], np.arange(20)[~chosen])


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_windows_show_each_token_of_each_document_once(whole_words, seed):
    split = documents(30)
    plan = WindowPlan(split, 20, FRAME, whole_words, seed)
    indices = np.arange(plan.num_samples(0))
    seen: dict[int, dict[int, list[int]]] = {}
    sizes = []
    for sample, length in zip(plan.samples(0, indices), plan.lengths(0, indices), strict=True):
        ids, words = sample.arrays["input_ids"], sample.arrays["words"]
        assert length == len(ids) == len(words) <= 20
        assert (ids[0], ids[-1], words[0], words[-1]) == (CLS, SEP, NO_WORD, NO_WORD)
        row, start = sample.arrays["key"].tolist()
        seen.setdefault(row, {})[start] = ids[1:-1].tolist()
        sizes.append(length)
        begins = split.row(row, "word_start", start, start + length - 2).astype(bool)
        steps = np.diff(words[1:-1])
        assert words[1] == 0
        assert np.array_equal(steps, begins[1:] if whole_words else np.ones(length - 3))
    rows = {row: [token for start in sorted(parts) for token in parts[start]] for row, parts in seen.items()}
    assert rows == {i: split.row(i).tolist() for i in range(30)}
    if seed is not None:
        again = WindowPlan(split, 20, FRAME, whole_words, seed)
        assert [s.arrays["key"].tolist() for s in again.samples(0, indices)] == [
            s.arrays["key"].tolist() for s in plan.samples(0, indices)
        ]
        assert [s.arrays["key"].tolist() for s in plan.samples(1, indices)] != [
            s.arrays["key"].tolist() for s in again.samples(0, indices)
        ]


def find(split: Documents, row: int, piece: np.ndarray) -> set[tuple[int, int]]:
    """Every (start, stop) at which the row holds the piece."""
    tokens = split.row(row).astype(np.int64)
    return {
        (i, i + len(piece))
        for i in range(len(tokens) - len(piece) + 1)
        if np.array_equal(tokens[i : i + len(piece)], piece)
    }


def test_pairs_are_what_they_claim():
    split = documents(40)
    plan = PairPlan(split, 40, FRAME, False, 5)
    labels, first_sizes, sizes = [], [], {IS_NEXT: [], IS_RANDOM: []}
    for epoch in range(12):
        indices = np.arange(plan.num_samples(epoch))
        lengths = plan.lengths(epoch, indices)
        for sample, length in zip(plan.samples(epoch, indices), lengths, strict=True):
            ids, types = sample.arrays["input_ids"], sample.arrays["token_type_ids"]
            assert length == len(ids) == len(types) == len(sample.arrays["words"]) <= 40
            assert ids[0] == CLS and (ids == SEP).sum() == 2 and ids[-1] == SEP
            middle = int(np.flatnonzero(ids == SEP)[0])
            assert types.tolist() == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
            one, two = ids[1:middle], ids[middle + 1 : -1]
            assert len(one) and len(two)
            a, b = sample.rows.tolist()
            label = int(sample.arrays["next_sentence_label"])
            places = find(split, a, one), find(split, b, two)
            assert all(places)
            ends = {place + 1 for place in np.flatnonzero(split.row(a, "sentence_end"))}
            if label == IS_NEXT:
                assert a == b
                assert any(stop == start and stop in ends for _, stop in places[0] for start, _ in places[1])
            else:
                assert a != b
                theirs = {place + 1 for place in np.flatnonzero(split.row(b, "sentence_end"))}
                assert any(start in theirs for start, _ in places[1])
            assert len(np.unique(sample.arrays["words"])) == len(one) + len(two) + 1
            labels.append(label)
            first_sizes.append(len(one))
            sizes[label].append(len(two))
    assert np.mean(labels) == pytest.approx(0.5, abs=4 * (0.25 / len(labels)) ** 0.5)
    # the length does not give the answer away
    spread = np.std(sizes[IS_NEXT]) / len(sizes[IS_NEXT]) ** 0.5 + np.std(sizes[IS_RANDOM]) / len(sizes[1]) ** 0.5
    assert abs(np.mean(sizes[IS_NEXT]) - np.mean(sizes[IS_RANDOM])) < 1.0 + 3 * spread
    assert (
        plan.samples(0, np.arange(3))[0].arrays["key"].tolist()
        != plan.samples(1, np.arange(3))[0].arrays["key"].tolist()
        or plan.num_samples(0) == 1
    )


def test_chunks_leave_no_sentence_out_and_none_alone():
    split = documents(40)
    chunks = PairPlan(split, 40, FRAME).chunks
    for row in range(40):
        mine = np.flatnonzero(chunks.rows == row)
        sentences = int(split.row(row, "sentence_end").sum())
        assert chunks.count[mine].sum() == (sentences if sentences > 1 else 0)
        assert (chunks.count[mine] >= 2).all()
        assert np.array_equal(mine, np.arange(chunks.begin[row], chunks.begin[row + 1]))


def test_pairs_of_evaluation_are_fixed_and_weights_count():
    split = documents(12)
    plan = PairPlan(split, 40, FRAME)
    indices = np.arange(plan.num_samples(0))
    keys = [sample.arrays["key"].tolist() for sample in plan.samples(0, indices)]
    assert keys == [sample.arrays["key"].tolist() for sample in PairPlan(split, 40, FRAME).samples(0, indices)]
    assert PairPlan(split, 40, FRAME, seed=1, weights=(2.0,)).num_samples(0) == 2 * len(keys)


def test_a_corpus_without_pairs_is_refused():
    split = documents(5)
    split._streams["sentence_end"] = [
        np.eye(1, len(r), len(r) - 1, dtype=np.uint8)[0] for r in split._streams["input_ids"]
    ]
    with pytest.raises(DataError, match="two documents of two sentences"):
        PairPlan(split, 40, FRAME).num_samples(0)
