"""report.html: written from whatever is there, self-contained, and inert whatever the texts hold."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmkit.report.html import write_report
from llmkit.report.svg import Line, chart, ticks

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e 红楼梦 & \"'"


class Page(HTMLParser):
    """Tags and attributes of a page; fails on what must not be there."""

    void = frozenset({"meta", "line", "circle", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "link", "iframe", "img", "object", "form")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href")
            assert "url(" not in (value or "")
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / f"run-{HOSTILE[:8].replace('/', '')}"
    (directory / "evaluation").mkdir(parents=True)

    def write(name: str, value: object) -> None:
        (directory / name).write_text(json.dumps(value, ensure_ascii=True), encoding="utf-8")

    write(
        "run.json",
        {
            "command": "pretrain",
            "status": "completed",
            "steps": 300,
            "tokens": 614400,
            "seed": 42,
            "resolved": {"packing": True},
            "versions": {"torch": HOSTILE},
        },
    )
    events = [
        {"step": s, "split": "train", "loss": 9 - s / 50, "learning_rate": 1e-3, "tokens_per_second": 4000.0}
        for s in range(10, 301, 10)
    ]
    events += [{"step": 300, "split": "validation", "loss": 3.2}, {"step": 150, "split": "validation", "loss": 6.0}]
    lines = [*(json.dumps(event) for event in events), '{"step": 310, "los']
    (directory / "metrics.jsonl").write_text("\n".join(lines))
    write("results.json", {"loss": 3.2, "perplexity": 24.5, "name": "x"})
    write(
        "evaluation/results.json",
        {
            "metrics": {"perplexity": {"value": 24.5, "low": 23.0, "high": 26.1, "n": 120}, "odd": None},
            "suites": {HOSTILE: {"accuracy": {"value": 0.5}}},
            "notes": [HOSTILE],
        },
    )
    rows = [json.dumps({"text": HOSTILE, "loss": 2.5}), json.dumps({"text": "x" * 5000})]
    (directory / "evaluation" / "predictions.jsonl").write_text("\n".join(rows))
    return directory


def test_a_full_run(run: Path) -> None:
    page = read(write_report(run))
    assert page.tags.count("svg") == 3
    assert "polyline" in page.tags
    for expected in (
        "23.00 to 26.10",
        "24.50",
        "300 steps",
        "614,400 tokens",
        "红楼梦",
        "resolved.packing",
        "accuracy",
    ):
        assert expected in page.text, expected
    assert "<script>alert(1)</script>\\x1b[31m\\u202e 红楼梦" in page.text
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\x1b" not in text and "\u202e" not in text
    assert "default-src 'none'" in text
    assert len(text) < 60_000


def test_an_empty_directory(tmp_path: Path) -> None:
    page = read(write_report(tmp_path))
    assert "svg" not in page.tags
    assert tmp_path.name in page.text


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"metrics": 5, "suites": [1]}', "\x00\xff", "5\n{}\n[]"])
def test_broken_files_do_not_break_the_page(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation").mkdir()
    names = ["run.json", "metrics.jsonl", "results.json", "evaluation/results.json", "evaluation/predictions.jsonl"]
    for name in names:
        (tmp_path / name).write_text(text, encoding="latin-1")
    read(write_report(tmp_path))


def test_charts() -> None:
    assert chart([Line("a", "a", [(1, 2.0)])], x_label="x", y_label="y") == ""
    assert chart([Line("a", "a", [(1, float("nan")), (2, 1.0)])], x_label="x", y_label="y") == ""
    flat = chart([Line("a", "a", [(1, 2.0), (2, 2.0)])], x_label="x", y_label="y")
    assert "nan" not in flat and "<polyline" in flat
    long = chart([Line("a", "a", [(i, i % 7) for i in range(100_000)])], x_label="x", y_label="y")
    assert len(long) < 60_000


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(2.3, 8.9)[0] <= 2.3 and ticks(2.3, 8.9)[-1] >= 8.9
    assert len(ticks(5, 5)) >= 3


def test_a_classifier_shows_its_classes(tmp_path: Path) -> None:
    scores = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "gold": 4, "predicted": 2}
    found = {
        "metrics": {"accuracy": {"value": 0.5, "low": None, "high": None, "n": 4}},
        "per_class": {HOSTILE: scores, "好评": scores},
        "confusion_matrix": {"labels": [HOSTILE, "好评"], "counts": [[1, 2], [0, 1234]]},
    }
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(found), encoding="utf-8")
    page = Page()
    page.feed(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "好评" in page.text
    assert "1,234" in page.text
    assert "0.3333" in page.text
