"""The n-gram model against KenLM, against a second implementation from the formulas, and as a model of transformers."""

from __future__ import annotations

import errno
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from llmkit.errors import EnvironmentFailure
from llmkit.models import ngram
from llmkit.models.lm import CausalLMModule
from llmkit.models.ngram import NgramForCausalLM
from llmkit.models.ngram_config import NgramConfig
from llmkit.models.ngram_counting import BUFFER_TOKENS, Scratch, count_ngrams
from llmkit.models.ngram_smoothing import Documents, Smoothed, discounts_of, estimate, thresholds
from tests.fakes import MemorySplit
from tests.models.kneser_ney import KneserNey
from tests.models.toy_corpus import END, SCORED, START, TRAINING, VOCABULARY

KENLM = {
    (2, (0,)): 125.96455060433003,
    (3, (0, 0, 1)): 127.08989074190565,
    (4, (0,)): 129.45658792564055,
    (5, (0, 1, 1, 2)): 130.74420209097957,
}
"""(order, lmplz --prune) -> perplexity of SCORED by KenLM's own lmplz and query, unknown words included."""


def fit(
    rows: list[list[int]],
    order: int,
    size: int,
    place: Path,
    *,
    start: int = START,
    end: int = END,
    prune: tuple[int, ...] = (),
    buffer: int = BUFFER_TOKENS,
) -> Smoothed:
    place.mkdir(parents=True, exist_ok=True)
    documents = Documents(MemorySplit(rows), np.arange(len(rows)), size, start, end)
    return estimate(documents, order=order, prune=list(prune), scratch=Scratch(place, buffer))


def model_of(smoothed: Smoothed, size: int) -> NgramForCausalLM:
    model = NgramForCausalLM(NgramConfig(vocab_size=size, order=len(smoothed.tables)))
    model.set_tables(smoothed.tables)
    return model.eval()


def costs(model: NgramForCausalLM, row: list[int]) -> list[float]:
    ids = torch.tensor([row])
    found: list[float] = model.score_labels(ids[:, :-1], ids[:, 1:])[0][0].tolist()
    return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> NgramForCausalLM:
    return model_of(fit(TRAINING, 4, len(VOCABULARY), tmp_path_factory.mktemp("toy")), len(VOCABULARY))


@pytest.mark.parametrize(("order", "prune"), KENLM)
def test_perplexity_is_that_of_kenlm(order: int, prune: tuple[int, ...], tmp_path: Path) -> None:
    model = model_of(fit(TRAINING, order, len(VOCABULARY), tmp_path, prune=prune), len(VOCABULARY))
    found = [cost for row in SCORED for cost in costs(model, row)]
    assert math.exp(np.mean(found)) == pytest.approx(KENLM[order, prune], rel=1e-6)


def random_rows(count: int, words: int, seed: int, start: int, end: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, words + 1)
    drawn = (draw.choice(words, size=draw.integers(0, 15), p=weights / weights.sum()) for _ in range(count))
    return [[start, *(row + 2).tolist(), end] for row in drawn]


@pytest.mark.parametrize("start", [0, 1], ids=["distinct", "shared"])
@pytest.mark.parametrize(("order", "prune"), [(1, (0,)), (2, (0,)), (3, (0, 1)), (5, (0,)), (6, (0, 0, 1, 1, 3))])
def test_every_token_costs_what_the_formulas_say(
    start: int, order: int, prune: tuple[int, ...], tmp_path: Path
) -> None:
    """start 0 is a token of its own; start 1 is the one that ends documents too, as GPT-2's."""
    size = 90
    rows, others = (random_rows(count, 80, seed, start, 1) for count, seed in ((150, 1), (30, 2)))
    reference = KneserNey(rows, order, range(size), start, 1, prune)
    smoothed = fit(rows, order, size, tmp_path, start=start, end=1, prune=prune)
    model = model_of(smoothed, size)
    for n in range(1, order + 1):
        assert smoothed.discounts[n - 1] == pytest.approx(tuple(reference.discounts[n].values()), rel=1e-12)
    assert set(smoothed.fallback) == reference.used_fallback
    for row in [*others, [start, 88, 89, 5, 1]]:
        expected = [-math.log(reference.probability(row[:i], row[i])) for i in range(1, len(row))]
        assert costs(model, row) == pytest.approx(expected, abs=2e-6)
    total = sum(sum(costs(model, row)) for row in others)
    expected_total = sum(
        -math.log(reference.probability(row[:i], row[i])) for row in others for i in range(1, len(row))
    )
    assert total == pytest.approx(expected_total, rel=1e-6)


@pytest.mark.parametrize("prune", [(0,), (0, 1, 2)])
def test_probabilities_sum_to_one_after_every_context(prune: tuple[int, ...], tmp_path: Path) -> None:
    """Every context of the training text at every length, and contexts that never occurred."""
    size, order = 40, 4
    rows = random_rows(60, 38, 3, 1, 1)
    model = model_of(fit(rows, order, size, tmp_path, start=1, end=1, prune=prune), size)
    seen = {tuple(row[i : i + n]) for row in rows for n in range(1, order) for i in range(len(row) - n + 1)}
    draw = np.random.default_rng(0)
    unseen = {tuple(draw.integers(0, size, n).tolist()) for n in (1, 2, 3) for _ in range(100)} - seen
    assert len(seen) > 300 and len(unseen) > 150
    for n, group in itertools.groupby(sorted(seen | unseen, key=len), key=len):
        logits = model(input_ids=torch.tensor(list(group)), logits_to_keep=1).logits
        assert logits.shape[1:] == (1, size)
        assert (logits.double().exp().sum(-1) - 1).abs().max() < 1e-6, n


@pytest.mark.parametrize("prune", [(), (0, 0, 1)])
@pytest.mark.parametrize("buffer", [1, 7, 100])
def test_tiny_buffers_give_the_same_model(buffer: int, prune: tuple[int, ...], tmp_path: Path) -> None:
    rows = TRAINING[:40]
    whole = fit(rows, 4, len(VOCABULARY), tmp_path / "whole", prune=prune)
    pieces = fit(rows, 4, len(VOCABULARY), tmp_path / "pieces", prune=prune, buffer=buffer)
    assert pieces.discounts == whole.discounts
    for one, other in zip(whole.tables, pieces.tables, strict=True):
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_array_equal(one.log_probs, other.log_probs)
        np.testing.assert_array_equal(one.backoffs, other.backoffs)


def test_no_array_holds_more_than_the_buffer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sorted in memory is a buffer of tokens, whatever the corpus."""
    largest = 0
    sort = np.unique

    def watched(values, **options):
        nonlocal largest
        largest = max(largest, len(values))
        return sort(values, **options)

    monkeypatch.setattr(np, "unique", watched)
    fit(TRAINING[:60], 4, len(VOCABULARY), tmp_path, buffer=64)
    assert largest == 64


def test_rows_count_as_often_as_they_are_named_and_n_grams_stay_within_rows(tmp_path: Path) -> None:
    split = MemorySplit([[1, 5, 6, 2], [1, 6, 2], [1]])
    one, two, three = count_ngrams(split, np.array([0, 0, 1, 2]), 3, 8, Scratch(tmp_path))
    assert one.counts.tolist() == [0, 0, 3, 0, 0, 2, 3, 0]
    pairs = {(int(key) // 8, int(key) % 8): int(count) for key, count in zip(two.keys, two.counts, strict=True)}
    assert pairs == {(1, 5): 2, (5, 6): 2, (6, 2): 3, (1, 6): 1}
    assert sorted(three.counts.tolist()) == [1, 2, 2]


def test_nothing_to_count_is_uniform(tmp_path: Path) -> None:
    model = model_of(fit([], 3, 8, tmp_path, start=1, end=1), 8)
    assert costs(model, [1, 5, 6]) == pytest.approx([math.log(8)] * 2, rel=1e-6)


def test_scores_and_hits_are_those_of_the_whole_distribution(toy: NgramForCausalLM) -> None:
    for row in SCORED:
        ids = torch.tensor([row])
        logits = toy(input_ids=ids[:, :-1]).logits
        losses, hits = toy.score_labels(ids[:, :-1], ids[:, 1:])
        expected = -logits.double().gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(losses, expected, atol=2e-6, rtol=0)
        chosen = logits.gather(-1, ids[:, 1:, None])[..., 0]
        assert (hits == (chosen == logits.amax(-1)) | (~hits & (chosen == logits.amax(-1)))).all()
        assert not (hits & (chosen < logits.amax(-1))).any()


def test_labels_that_are_ignored_cost_nothing(toy: NgramForCausalLM) -> None:
    module = CausalLMModule(toy, split_head=False)
    ids = torch.tensor([SCORED[0]])
    labels = ids[:, 1:].clone()
    labels[0, 1] = -100
    losses, hits = module.score({"input_ids": ids[:, :-1], "labels": labels})
    assert losses[0, 1] == 0 and not hits[0, 1] and (losses[0, [0, 2]] > 0).all()
    whole = module({"input_ids": ids[:, :-1], "labels": labels})["loss"]
    assert float(losses.sum()) == pytest.approx(float(whole), rel=1e-6)


def test_transformers_loads_it_scores_it_and_generates(toy: NgramForCausalLM, tmp_path: Path) -> None:
    ngram.register()
    toy.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        for name, tensor in toy.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    for n in range(1, 5):
        np.testing.assert_array_equal(loaded.table(n).log_probs, toy.table(n).log_probs)
    ids = torch.tensor([SCORED[0]])
    loss = loaded(input_ids=ids, labels=ids).loss
    assert float(loss) == pytest.approx(np.mean(costs(toy, SCORED[0])), rel=1e-6)

    def greedy(prompt: list[int], count: int) -> list[int]:
        row = list(prompt)
        for _ in range(count):
            row.append(int(toy(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        return row[len(prompt) :]

    prompts = [SCORED[0][:4], SCORED[1][:2]]
    config = GenerationConfig(max_new_tokens=6, eos_token_id=None, pad_token_id=START)
    for prompt in prompts:
        made = loaded.generate(input_ids=torch.tensor([prompt]), generation_config=config)
        assert made[0, len(prompt) :].tolist() == greedy(prompt, 6)
    # the padding is a token that begins documents: the mask alone tells that it is no context
    padded = torch.tensor([prompts[0], [START, START, *prompts[1]]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    made = loaded.generate(input_ids=padded, attention_mask=mask, generation_config=config)
    assert [row[4:].tolist() for row in made] == [greedy(prompt, 6) for prompt in prompts]
    beams = GenerationConfig(max_new_tokens=6, num_beams=3, eos_token_id=END, pad_token_id=START)
    assert loaded.generate(input_ids=padded, attention_mask=mask, generation_config=beams).shape[0] == 2


def test_the_start_of_documents_is_never_predicted(toy: NgramForCausalLM) -> None:
    logits = toy(input_ids=torch.tensor([SCORED[0]])).logits
    assert (logits[..., START] < -200).all() and torch.isfinite(logits).all()


def test_discounts_of_chen_and_goodman() -> None:
    assert discounts_of(np.array([9, 100, 50, 30, 20])) == pytest.approx((0.5, 1.1, 1 + 2 / 3), rel=1e-12)
    assert discounts_of(np.array([0, 100, 0, 30, 20])) is None
    assert discounts_of(np.array([0, 10, 10, 900, 1])) is None


def test_limits_of_pruning() -> None:
    assert thresholds([0, 0, 1], 5) == [0, 0, 1, 1, 1]
    assert thresholds([], 2) == [0, 0]
    for wrong in ({"order": 0}, {"prune": [1]}, {"prune": [0, 2, 1]}, {"order": 2, "prune": [0, 0, 1]}):
        with pytest.raises(Exception, match=r"order must|prune must"):
            NgramConfig(**wrong)


def test_a_full_disk_is_told_before_a_page_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EnvironmentFailure, match="No space left"):
        fit(TRAINING, 2, len(VOCABULARY), tmp_path)
