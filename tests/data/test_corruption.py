"""Span corruption and denoising as pure functions: what comes out can be put together again, and how much is hidden."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.data.boundaries import sentence_ends
from llmkit.data.corruption import Denoising, SpanCorruption, infill, noise_counts, permute_sentences, span_mask

SENTINELS = tuple(range(1000, 1100))
END, MASK = 1, 7


def restored(read: np.ndarray, target: np.ndarray) -> list[int]:
    """The tokens that T5's two sides stand for: each sentinel replaced by what follows it in the target."""
    assert read[-1] == target[-1] == END
    spans: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token in SENTINELS:
            last = spans.setdefault(token, [])
        else:
            last.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)]), "sentinels in order"
    return [token for place in read[:-1].tolist() for token in spans.get(place, [place])]


@pytest.mark.parametrize("length", [1, 2, 3, 10, 57, 114, 512])
def test_both_sides_make_the_text(length: int) -> None:
    noise = SpanCorruption(4096, 0.15, 3.0, SENTINELS, END)
    tokens = np.arange(2000, 2000 + length)
    for seed in range(20):
        read, target = noise.apply(tokens, None, np.random.default_rng(seed))
        assert restored(read, target) == tokens.tolist()
        left_out, spans = noise_counts(length, 0.15, 3.0)
        assert len(read) == length - left_out + spans + 1
        assert len(target) == left_out + spans + 1 == noise.num_targets(length)


def test_known_sizes_of_the_paper_s_setting() -> None:
    """Windows of 568 tokens give the 512 and 114 that T5's pretraining has (arXiv:1910.10683 and its code)."""
    noise = SpanCorruption(512, 0.15, 3.0, SENTINELS, END)
    assert noise.window == 568
    read, target = noise.apply(np.arange(2000, 2568), None, np.random.default_rng(0))
    assert (len(read), len(target)) == (512, 114)


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.8, 10.0), (0.15, 1.0)])
def test_no_side_is_too_long_and_no_sentinel_is_missing(density: float, mean: float) -> None:
    for max_length in (4, 16, 128, 1024):
        noise = SpanCorruption(max_length, density, mean, SENTINELS, END)
        for length in {1, 2, noise.window // 2, noise.window}:
            if length:
                read, target = noise.apply(np.arange(2000, 2000 + length), None, np.random.default_rng(length))
                assert max(len(read), len(target)) <= max_length
                assert restored(read, target) == list(range(2000, 2000 + length))


def test_spans_are_where_they_should_be() -> None:
    masks = np.stack([span_mask(100, 0.15, 3.0, np.random.default_rng(seed)) for seed in range(2000)])
    assert (masks.sum(axis=1) == 15).all()
    starts = masks & ~np.concatenate([np.zeros((2000, 1), bool), masks[:, :-1]], axis=1)
    assert (starts.sum(axis=1) == 5).all()
    shares = masks.mean(axis=0)
    assert shares.min() > 0.04 and shares.max() < 0.22, "no place is left out or favoured"
    short = {tuple(span_mask(12, 0.15, 3.0, np.random.default_rng(seed)).tolist()) for seed in range(200)}
    assert len(short) == 11, "a short text does not always lose the same span"


def test_infilling_replaces_what_the_ratio_says() -> None:
    sizes, empty, spans = [], 0, 0
    for seed in range(300):
        tokens = np.arange(100, 300)
        noisy = infill(tokens, 0.3, 3.0, MASK, np.random.default_rng(seed))
        kept = noisy[noisy != MASK]
        assert len(kept) == 140 and (np.diff(kept) > 0).all(), "60 of 200 are gone, the others in order"
        masks = np.flatnonzero(noisy == MASK)
        assert (np.diff(masks) > 1).all(), "spans stand apart"
        for place in masks.tolist():
            before = noisy[place - 1] if place else 99
            after = noisy[place + 1] if place + 1 < len(noisy) else 300
            sizes.append(after - before - 1)
        empty += sum(size == 0 for size in sizes[-len(masks) :])
        spans += len(masks)
    assert np.mean(sizes) == pytest.approx(3.0, abs=0.1)
    assert empty / spans == pytest.approx(np.exp(-3.0), abs=0.01), "Poisson: some spans are empty"


@pytest.mark.parametrize("mean", [0.05, 1.0, 3.0, 50.0])
def test_infilling_makes_nothing_longer(mean: float) -> None:
    for length in (1, 2, 5, 64):
        for ratio in (0.01, 0.3, 0.99):
            noisy = infill(np.arange(100, 100 + length), ratio, mean, MASK, np.random.default_rng(length))
            assert 1 <= len(noisy) <= length
            assert MASK in noisy


@pytest.mark.parametrize(
    ("text", "sentences"),
    [("He left. She stayed! Why?", 3), ("他走了。她留下！为什么？好", 4), ("no mark at all", 1)],
)
def test_sentences_change_places_whole(text: str, sentences: int) -> None:
    tokens = np.array([ord(character) for character in text])
    ends = sentence_ends(text, np.arange(len(text)))
    assert ends.sum() == sentences
    expected = {"".join(map(chr, part)) for part in np.split(tokens, np.flatnonzero(ends[:-1]) + 1)}
    seen = set()
    for seed in range(30):
        found = "".join(map(chr, permute_sentences(tokens, ends, np.random.default_rng(seed))))
        seen.add(found)
        assert sorted(found) == sorted(text)
        assert all(part in found for part in expected)
    assert (len(seen) > 1) is (sentences > 1)


def test_denoising_frames_both_sides() -> None:
    noise = Denoising(32, 0.3, 3.0, True, MASK, (0,), (2,))
    assert noise.window == 30
    tokens, ends = np.arange(100, 130), np.zeros(30)
    ends[[9, 19, 29]] = 1
    read, target = noise.apply(tokens, ends, np.random.default_rng(0))
    assert target.tolist() == [0, *range(100, 130), 2]
    assert len(target) == noise.num_targets(30)
    assert read[0] == 0 and read[-1] == 2 and MASK in read and len(read) <= 32
    again, _ = noise.apply(tokens, ends, np.random.default_rng(0))
    assert again.tolist() == read.tolist()
