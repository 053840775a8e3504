"""Two evaluated runs: joined by item, compared in pairs, refused on different data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.errors import DataError
from llmkit.evaluate import results
from llmkit.evaluate.compare import compare
from llmkit.metrics.bootstrap import sign_test
from llmkit.report.console import Console

PROVENANCE = {"tokenizer_sha256": "t", "precision": "float32", "attn_implementation": "sdpa", "conventions": ["w"]}


def quiet() -> Console:
    return Console(stdout=io.StringIO(), stderr=io.StringIO(), terminal=False)


def run_of(directory: Path, losses: np.ndarray, *, order: list[int] | None = None, **provenance: Any) -> Path:
    """An evaluated run with one item a loss, in `order`."""
    tokens = np.arange(10, 10 + len(losses))
    rows = order if order is not None else list(range(len(losses)))
    items = [
        {
            "row": place,
            "source": 0,
            "file": "test.jsonl",
            "line": row + 1,
            "hash": f"h{row // 2}",  # pairs of identical documents
            "loss": float(losses[row]),
            "tokens": int(tokens[row]),
            "bytes": int(tokens[row]) * 3,
            "token_accuracy": 0.5,
        }
        for place, row in enumerate(rows)
    ]
    mean = float((losses * tokens).sum() / tokens.sum())
    metrics = {
        name: {"value": value, "low": None, "high": None, "n": len(losses)}
        for name, value in (
            ("loss", mean),
            ("perplexity", float(np.exp(mean))),
            ("bits_per_byte", mean / 3 / np.log(2)),
        )
    }
    document = {"metrics": metrics, "suites": {}, "baselines": {}, "sources": {}}
    results.write(directory / "evaluation", {**document, "provenance": {**PROVENANCE, **provenance}}, items)
    return directory


@pytest.fixture
def losses() -> np.ndarray:
    return np.random.default_rng(0).normal(4.0, 1.0, 120)


def test_a_small_but_steady_gain_is_found(tmp_path: Path, losses: np.ndarray) -> None:
    """0.02 nats on losses that spread over one nat: invisible to separate intervals, clear in pairs."""
    noise = np.random.default_rng(1).normal(0, 0.02, 120)
    a, b = run_of(tmp_path / "a", losses), run_of(tmp_path / "b", losses - 0.02 + noise)
    found = compare(a, b, quiet())["metrics"]["loss"]
    assert found["low"] < found["difference"] < found["high"] < 0
    assert found["difference"] == pytest.approx(-0.02, abs=0.01)
    assert found["better"] == "b"
    assert found["p"] < 0.01
    back = compare(b, a, quiet())["metrics"]["loss"]
    assert (back["better"], back["difference"]) == ("a", pytest.approx(-found["difference"]))


def test_no_difference_is_said(tmp_path: Path, losses: np.ndarray) -> None:
    a = run_of(tmp_path / "a", losses)
    b = run_of(tmp_path / "b", losses + np.random.default_rng(2).normal(0, 0.5, 120))
    outcome = compare(a, b, quiet())
    assert outcome["metrics"]["perplexity"]["better"] is None
    assert outcome["metrics"]["bits_per_byte"]["low"] is not None


def test_items_are_joined_by_content_not_by_number(tmp_path: Path, losses: np.ndarray) -> None:
    order = [i ^ 2 for i in range(120)]  # other documents first, each pair of twins in order
    a, b = run_of(tmp_path / "a", losses), run_of(tmp_path / "b", losses, order=order)
    found = compare(a, b, quiet())["metrics"]["loss"]
    assert found["difference"] == pytest.approx(0, abs=1e-12)
    assert found["p"] == 1.0


def test_other_data_is_refused(tmp_path: Path, losses: np.ndarray) -> None:
    a, b = run_of(tmp_path / "a", losses), run_of(tmp_path / "b", losses[:110])
    with pytest.raises(
        DataError, match=r"different data: 10 of 120 items are only in the first and 0 of 110"
    ) as caught:
        compare(a, b, quiet())
    assert "test.jsonl:111" in str(caught.value)


def test_other_tokenizer_is_warned_about(tmp_path: Path, losses: np.ndarray) -> None:
    a = run_of(tmp_path / "a", losses)
    b = run_of(tmp_path / "b", losses - 1, tokenizer_sha256="other", precision="bf16")
    outcome = compare(a, b, quiet())
    assert outcome["metrics"]["perplexity"]["better"] is None
    assert outcome["metrics"]["bits_per_byte"]["better"] == "b"
    assert any("tokenizers differ" in warning for warning in outcome["warnings"])
    assert any("precision differs" in warning for warning in outcome["warnings"])


def test_unevaluated_and_damaged_runs_are_named(tmp_path: Path, losses: np.ndarray) -> None:
    a, b = run_of(tmp_path / "a", losses), run_of(tmp_path / "b", losses)
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="holds no evaluation; run `llmkit evaluate"):
        compare(a, tmp_path / "c", quiet())
    path = b / "evaluation" / "predictions.jsonl"
    path.write_bytes(path.read_bytes().replace(b"4", b"5", 1))
    with pytest.raises(DataError, match="is not the file that"):
        compare(a, b, quiet())
    path.write_bytes(b"{")
    with pytest.raises(DataError, match="damaged"):
        compare(a, b, quiet())


def test_people_see_intervals(tmp_path: Path, losses: np.ndarray) -> None:
    console = quiet()
    compare(run_of(tmp_path / "a", losses), run_of(tmp_path / "b", losses - 0.5), console)
    text = console.stdout.getvalue()  # type: ignore[attr-defined]
    assert "120 items, paired" in text
    assert "b is better" in text
    assert "95%" in text


def test_items_with_a_score_of_their_own_are_paired(tmp_path: Path) -> None:
    """A classifier's accuracy: the interval is over items, and the test is McNemar's."""
    draw = np.random.default_rng(0)
    first = (draw.random(200) < 0.6).astype(float)
    second = np.where(draw.random(200) < 0.3, 1.0, first)
    runs = []
    for name, hits in (("a", first), ("b", second)):
        items = [
            {"row": i, "source": 0, "file": "x", "line": i, "hash": f"{i}", "accuracy": float(hit)}
            for i, hit in enumerate(hits)
        ]
        provenance = PROVENANCE
        document = {"metrics": {"accuracy": {"value": float(hits.mean())}}, "provenance": provenance}
        results.write(tmp_path / name, document, items)
        runs.append(tmp_path / name)
    found = compare(runs[0], runs[1], quiet())["metrics"]["accuracy"]
    better, worse = int((second > first).sum()), int((second < first).sum())
    assert found["difference"] == pytest.approx((better - worse) / 200)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p"] == pytest.approx(sign_test(better, worse))
    assert found["better"] == "b"


def evaluated(directory: Path, metrics: dict[str, float], items: list[dict[str, Any]]) -> Path:
    places = [{"row": i, "source": 0, "file": "x", "line": i, "hash": f"{i}"} for i in range(len(items))]
    document = {"metrics": {name: {"value": value} for name, value in metrics.items()}, "provenance": PROVENANCE}
    results.write(directory, document, [{**place, **item} for place, item in zip(places, items, strict=True)])
    return directory


def test_metrics_of_classes_have_intervals(tmp_path: Path) -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    draw = np.random.default_rng(1)
    names = np.array(["bad", "good", "odd"])
    gold = names[draw.integers(0, 3, 300)]
    guesses = [np.where(draw.random(300) < share, gold, names[draw.integers(0, 3, 300)]) for share in (0.4, 0.8)]
    values = [
        {"f1": f1_score(gold, guess, average="macro"), "mcc": matthews_corrcoef(gold, guess)} for guess in guesses
    ]
    a, b = (
        evaluated(
            tmp_path / side,
            values[i],
            [{"label": g, "prediction": p, "accuracy": 1.0 * (g == p)} for g, p in zip(gold, guesses[i], strict=True)],
        )
        for i, side in enumerate("ab")
    )
    for name, found in compare(a, b, quiet())["metrics"].items():
        assert found["difference"] == pytest.approx(values[1][name] - values[0][name])
        assert 0 < found["low"] < found["difference"] < found["high"]
        assert found["p"] is None
        assert found["better"] == "b"


def test_written_texts_are_compared_by_the_corpus_score(tmp_path: Path) -> None:
    """sacreBLEU's own paired bootstrap is over the same sums; its BLEU is the difference's."""
    import sacrebleu

    draw = np.random.default_rng(2)
    words = ["a", "man", "in", "red", "walks", "his", "old", "dog", "along", "the", "quiet", "river", "today"]
    references = [" ".join(draw.choice(words, 9)) for _ in range(60)]
    texts = [
        [" ".join(w if draw.random() < keep else "x" for w in text.split()) for text in references]
        for keep in (0.6, 0.9)
    ]
    scores = [sacrebleu.corpus_bleu(own, [references]).score for own in texts]
    runs = [
        evaluated(
            tmp_path / side,
            {"sacrebleu": scores[i]},
            [
                {"prediction": text, "references": [reference], "sacrebleu": 50.0, "loss": 1.0, "tokens": 3}
                for text, reference in zip(texts[i], references, strict=True)
            ],
        )
        for i, side in enumerate("ab")
    ]
    found = compare(runs[0], runs[1], quiet())["metrics"]["sacrebleu"]
    assert found["difference"] == pytest.approx(scores[1] - scores[0])
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p"] < 0.01
    assert found["better"] == "b"
