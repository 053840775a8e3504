"""Plans: every token a target exactly once, exact counts, pure functions of (seed, epoch, index), source weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmkit.data.examples import IGNORE
from llmkit.data.fim import FillInMiddle
from llmkit.data.packing import BinPlan, PackedPlan, PaddedPlan, best_fit, epoch_rows
from tests.fakes import MemorySplit

LENGTHS = [2, 9, 30, 1, 17, 3, 64, 5, 8, 2, 41]


def distinct(lengths: list[int]) -> MemorySplit:
    """Documents whose tokens are all different, so that each can be followed."""
    rows, at = [], 0
    for length in lengths:
        rows.append(list(range(at, at + length)))
        at += length
    return MemorySplit(rows)


def targets(split: MemorySplit) -> Counter[int]:
    """What must be predicted: all tokens but each document's first."""
    return Counter(int(t) for i in range(split.num_rows) for t in split.row(i)[1:])


def shown(plan, epoch: int = 0):
    samples = plan.samples(epoch, np.arange(plan.num_samples(epoch)))
    labels = np.concatenate([sample.arrays["labels"] for sample in samples])
    return samples, Counter(int(label) for label in labels if label != IGNORE)


@pytest.mark.parametrize("max_length", [4, 7, 16, 1000])
@pytest.mark.parametrize("kind", [PackedPlan, PaddedPlan])
def test_every_token_is_a_target_once(kind, max_length):
    split = distinct(LENGTHS)
    samples, seen = shown(kind(split, max_length, 1, (1.0,)))
    assert seen == targets(split)
    assert all(len(sample.arrays["input_ids"]) <= max_length for sample in samples)
    for sample in samples:
        # tokens are consecutive numbers: the label is the next token of the same document
        assert (sample.arrays["labels"] == sample.arrays["input_ids"] + 1).all()


def test_windows_are_full_and_positions_restart_with_each_document():
    split = distinct(LENGTHS)
    plan = PackedPlan(split, 16, 3, (1.0,))
    samples, _ = shown(plan)
    lengths = sorted(len(sample.arrays["input_ids"]) for sample in samples)
    assert plan.num_samples(0) == -(-sum(n - 1 for n in LENGTHS) // 16)
    assert lengths[1:] == [16] * (len(lengths) - 1)
    for sample in samples:
        inputs, positions = sample.arrays["input_ids"], sample.arrays["position_ids"]
        assert positions[0] == 0
        continues = inputs[1:] == inputs[:-1] + 1
        first_tokens = {int(split.row(i)[0]) for i in range(split.num_rows)}
        begins = np.array([int(token) in first_tokens for token in inputs[1:]])
        assert (positions[1:][begins] == 0).all()
        assert (positions[1:][~begins] == positions[:-1][~begins] + 1).all()
        assert continues[~begins].all()
        owners = {next(i for i in range(split.num_rows) if int(t) in split.row(i)) for t in inputs}
        assert owners == set(sample.rows.tolist())


@pytest.mark.parametrize(
    "make",
    [
        lambda split, seed: PackedPlan(split, 10, seed, (1.0,)),
        lambda split, seed: PaddedPlan(split, 10, seed, (1.0,)),
        lambda split, seed: BinPlan(split, 64, seed, (1.0,)),
    ],
)
def test_plans_are_pure_functions(make):
    split = distinct(LENGTHS)
    one, other = make(split, 5), make(split, 5)
    everything = np.arange(one.num_samples(1))
    other.samples(0, np.arange(2))  # another history changes nothing
    first = one.samples(1, everything)
    again = other.samples(1, everything[::-1])[::-1]
    for a, b in zip(first, again, strict=True):
        assert {k: v.tolist() for k, v in a.arrays.items()} == {k: v.tolist() for k, v in b.arrays.items()}
    lengths = [len(sample.arrays["input_ids"]) for sample in first]
    assert one.lengths(1, everything).tolist() == lengths

    def order(plan, epoch):
        samples = plan.samples(epoch, np.arange(plan.num_samples(epoch)))
        return [int(sample.arrays["input_ids"][0]) for sample in samples]

    assert order(one, 0) != order(one, 1)
    assert order(one, 0) != order(make(split, 6), 0)


def test_weights_are_shares_of_rows_drawn_by_seed():
    split = MemorySplit([[1, 2]] * 300, sources=[0] * 100 + [1] * 100 + [2] * 100)
    rows = epoch_rows(split, (0.5, 2.0, 1.3), 7, 0)
    copies = np.bincount(rows, minlength=300)
    assert sorted(set(copies[:100])) == [0, 1]
    assert copies[:100].sum() == 50
    assert (copies[100:200] == 2).all()
    assert copies[200:].sum() == 130
    assert set(copies[200:]) == {1, 2}
    later = np.bincount(epoch_rows(split, (0.5, 2.0, 1.3), 7, 1), minlength=300)
    assert (copies[:100] + later[:100] == 1).all(), "two epochs of one half each show every row once"
    assert (np.bincount(epoch_rows(split, (0.5, 2.0, 1.3), 8, 0), minlength=300) != copies).any()
    plan = PaddedPlan(split, 8, 7, (0.5, 2.0, 1.3))
    assert plan.num_samples(0) == len(rows) == 380


def test_evaluation_pieces_are_in_order_and_ignore_weights():
    split = distinct([5, 30, 2])
    plan = PaddedPlan(split, 8)
    samples, seen = shown(plan)
    assert seen == targets(split)
    assert [int(sample.rows[0]) for sample in samples] == [0, 1, 1, 1, 1, 2]
    assert samples[2].arrays["input_ids"][0] == samples[1].arrays["labels"][-1], "one token of context"


def test_masks_say_what_is_supervised():
    split = MemorySplit([[1, 2, 3, 4, 5]], masks=[[0, 0, 1, 0, 1]])
    expected = [IGNORE, 3, IGNORE, 5]
    for plan in (PaddedPlan(split, 8, mask_stream="loss_mask"), BinPlan(split, 8, 0, (1.0,), "loss_mask")):
        assert plan.samples(0, np.array([0]))[0].arrays["labels"].tolist() == expected
    # cut inside the row: the mask goes with its tokens
    pieces = PaddedPlan(split, 2, mask_stream="loss_mask").samples(0, np.arange(2))
    assert np.concatenate([piece.arrays["labels"] for piece in pieces]).tolist() == expected


def test_bins_hold_whole_examples():
    lengths = np.random.default_rng(0).integers(2, 60, size=500).tolist()
    split = MemorySplit([[i % 60000] * n for i, n in enumerate(lengths)])
    plan = BinPlan(split, 64, 1, (1.0,))
    samples = plan.samples(0, np.arange(plan.num_samples(0)))
    rows = np.concatenate([sample.rows for sample in samples])
    assert sorted(rows.tolist()) == list(range(500))
    for sample in samples:
        assert len(sample.arrays["input_ids"]) <= 64
        assert (sample.arrays["position_ids"] == 0).sum() == len(sample.rows)
    used = sum(n - 1 for n in lengths)
    assert plan.num_samples(0) * 64 < 1.05 * used, "best fit leaves little room"


def test_best_fit_takes_the_fullest_bin_that_has_room():
    assert best_fit(np.array([6, 5, 4, 3, 2]), 10).tolist() == [0, 1, 0, 1, 1]
    bins = best_fit(np.array([7, 8, 2, 3]), 10)
    assert bins.tolist() == [1, 0, 0, 1]


FIM = FillInMiddle(1.0, prefix_id=1001, suffix_id=1002, middle_id=1003, eos_id=0)


@pytest.mark.parametrize(("is_start", "is_end"), [(True, True), (True, False), (False, True), (False, False)])
def test_fill_in_the_middle_keeps_length_ends_and_text(is_start, is_end):
    tokens = np.arange(100, 140)
    if is_end:
        tokens[-1] = 0
    orders = set()
    for seed in range(40):
        out = FIM.apply(tokens, np.random.default_rng(seed), is_start=is_start, is_end=is_end)
        assert len(out) == len(tokens)
        if is_start:
            assert out[0] == tokens[0]
        if is_end:
            assert out[-1] == 0
        inside = out[int(is_start) : len(out) - int(is_end)].tolist()
        pre, suf, mid = (inside.index(i) for i in (1001, 1002, 1003))
        assert pre == 0
        if suf == 1:
            orders.add("spm" if mid > suf + 1 else "?")
        else:
            orders.add("psm")
            text = inside[1:suf] + inside[mid + 1 :] + inside[suf + 1 : mid]
            assert text == tokens[1 : 1 + len(text)].tolist(), "prefix, middle and suffix are the text again"
        dropped = sorted(set(tokens[1:].tolist()) - set(inside) - {0})
        assert dropped == list(range(dropped[0], dropped[0] + len(dropped))), "only the end of the suffix is lost"
        assert len(dropped) == (3 if is_start else 2)
    assert {"psm", "spm"} <= orders


def test_fill_in_the_middle_in_windows():
    split = distinct([50] * 40)
    never = PackedPlan(split, 32, 1, (1.0,), fim=FillInMiddle(0.0, 3001, 3002, 3003, 0))
    plain = PackedPlan(split, 32, 1, (1.0,))
    half = PackedPlan(split, 32, 1, (1.0,), fim=FillInMiddle(0.5, 3001, 3002, 3003, 0))
    assert shown(never)[1] == shown(plain)[1]
    everything = np.arange(half.num_samples(0))
    samples, again = half.samples(0, everything), half.samples(0, everything)
    assert all((a.arrays["labels"] == b.arrays["labels"]).all() for a, b in zip(samples, again, strict=True))
    marks = sum(int((sample.arrays["input_ids"] == 3003).sum()) for sample in samples)
    pieces = sum(len(sample.rows) for sample in samples)
    assert 0.3 * pieces < marks < 0.7 * pieces
    for sample, before in zip(samples, plain.samples(0, everything), strict=True):
        assert (sample.arrays["position_ids"] == before.arrays["position_ids"]).all()


def test_an_empty_split_has_no_samples():
    split = MemorySplit([])
    for plan in (PackedPlan(split, 8, 0, (1.0,)), PaddedPlan(split, 8), BinPlan(split, 8, 0, (1.0,))):
        assert plan.num_samples(0) == 0
        assert plan.samples(0, np.arange(0)) == []
