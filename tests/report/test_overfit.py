"""Overfitting is told once an episode: on the console, in the live panel and on the report's page."""

from __future__ import annotations

import io
import json
from pathlib import Path

from llmkit.report.console import Console
from llmkit.report.html import write_report
from llmkit.report.overfit import OverfitWatch


def events(pairs: list[tuple[float | None, float]]) -> list[dict]:
    made: list[dict] = []
    for number, (train, validation) in enumerate(pairs, 1):
        if train is not None:
            made += [{"step": number * 10 - 5, "split": "train", "loss": train + 0.1}]
            made += [{"step": number * 10, "split": "train", "loss": train - 0.1}]
        made += [{"step": number * 10, "split": "validation", "loss": validation, "seconds": 1.0}]
    return made


def told(pairs: list[tuple[float | None, float]]) -> list[str]:
    watch = OverfitWatch()
    return [warning for event in events(pairs) if (warning := watch.take(event)) is not None]


def test_an_episode_is_told_once():
    falling = [(3.0, 2.0), (2.0, 1.5), (1.5, 1.6), (1.0, 1.7), (0.8, 1.8), (0.6, 1.75), (0.5, 1.9), (0.4, 2.0)]
    (warning,) = told(falling)
    assert warning.startswith("step 40: validation loss has risen for 2 evaluations (1.5000 to 1.7000)")
    assert "training loss fell (2.0000 to 1.0000): the model is overfitting" in warning
    again = [*falling, (0.4, 1.4), (0.3, 1.5), (0.2, 1.6)]
    assert len(told(again)) == 2, "a new best ends the episode"


def test_noise_and_divergence_are_not_overfitting():
    assert told([(3.0, 2.0), (2.0, 2.1), (1.0, 1.9), (0.5, 2.0), (0.4, 1.8)]) == []
    assert told([(1.0, 2.0), (1.5, 2.5), (2.0, 3.0), (2.5, 3.5)]) == [], "training rises too"
    assert told([(None, 2.0), (None, 2.5), (None, 3.0)]) == [], "nothing is known of training"
    assert told([(2.0, float("nan")), (1.0, 2.0)]) == []


def test_a_resumed_watch_is_where_it_was():
    pairs = events([(3.0, 1.5), (2.0, 1.6), (1.0, 1.7), (0.9, 1.8)])
    for cut in range(len(pairs)):
        first, second = OverfitWatch(), OverfitWatch()
        before = [first.take(event) for event in pairs]
        for event in pairs[:cut]:
            second.take(event)
        assert [second.take(event) for event in pairs[cut:]] == before[cut:]


def test_every_view_says_it(tmp_path: Path):
    for terminal in (False, True):
        stream = io.StringIO()
        console = Console(terminal=terminal, stderr=stream)
        with console.training(50, {}) as view:
            view.warn("validation loss has risen")
        assert "warning" in stream.getvalue() and "validation loss has risen" in stream.getvalue()
    lines = events([(3.0, 1.5), (2.0, 1.6), (1.0, 1.7)])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    assert page.count("the model is overfitting") == 1
