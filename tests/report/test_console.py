"""What commands say: streams, plain lines off a terminal, the live view on one, nothing that a terminal obeys."""

from __future__ import annotations

import io
import json
import time

import pytest

from llmkit.report import console as module
from llmkit.report.console import Console
from llmkit.report.live import Clock, LiveView, PlainView
from llmkit.report.text import duration, escape, number, size, sparkline, width

TRAIN = {
    "step": 10,
    "split": "train",
    "loss": 3.25,
    "learning_rate": 1e-3,
    "grad_norm": 0.5,
    "tokens": 20480,
    "tokens_per_second": 4321.0,
    "mfu": 0.31,
    "memory_bytes": 1_500_000_000,
}
VALIDATION = {"step": 10, "split": "validation", "loss": 3.5, "perplexity": 33.1, "tokens": 20480}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(**options: bool) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Console(stdout=out, stderr=err, **options), out, err


def test_results_and_notes_go_to_their_streams() -> None:
    said, out, err = console()
    said.note("a note")
    said.warn("careful")
    said.fail("it broke")
    said.result("文 result")
    said.result({"loss": 1.5, "文": "红"})
    assert err.getvalue() == "a note\nwarning: careful\nit broke\n"
    assert out.getvalue().splitlines()[0] == "文 result"
    assert json.loads(out.getvalue().splitlines()[1]) == {"loss": 1.5, "文": "红"}


def test_a_silent_console_says_only_failures() -> None:
    said, out, err = console()
    said.silence()
    said.note("a")
    said.warn("b")
    said.phase("c")
    with said.progress("count", 3, "rows") as advance:
        advance(3)
    with said.training(10, {"model": "x"}) as view:
        view.log(TRAIN)
        view.saved("somewhere")
    assert err.getvalue() == out.getvalue() == ""
    said.fail("it broke")
    assert err.getvalue() == "it broke\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("bell\x07 nul\x00 c1\x9b", "bell\\x07 nul\\x00 c1\\x9b"),
        ("half \ud800", "half \\ud800"),
        ("carriage\rreturn", "carriage\\rreturn"),
        ("红楼梦\n\tتجربة é 👍", "红楼梦\n\tتجربة é 👍"),
    ],
)
def test_escapes(text: str, expected: str) -> None:
    assert escape(text) == expected
    said, _, err = console()
    said.note(text)
    assert err.getvalue() == expected + "\n"


def test_results_are_escaped_on_a_terminal_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        said = Console(stdout=stream, stderr=io.StringIO())
        said.result("\x1b[31m")
        said.write("\x07")
    assert terminal.getvalue() == "\\x1b[31m\n\\x07"
    assert pipe.getvalue() == "\x1b[31m\n\x07"


def test_training_off_a_terminal_is_plain_lines() -> None:
    said, out, err = console()
    with said.training(100, {"model": "gpt2, 3M parameters", "saves to": "runs/" + "x" * 300}) as view:
        assert isinstance(view, PlainView)
        view.log(TRAIN)
        view.log({**TRAIN, "step": 20})
        view.phase("validating")
        view.log(VALIDATION)
        view.saved("runs/x/checkpoints/step-00000010")
        view.note("going on")
    lines = err.getvalue().splitlines()
    assert "\x1b" not in err.getvalue()
    assert lines[:2] == ["model: gpt2, 3M parameters", "saves to: runs/" + "x" * 300]
    facts = "loss 3.2500  lr 1.00e-03  grad 0.5  tokens/s 4,321  of matrix rate 31%  memory 1.5 GB"
    assert lines[2] == f"step 10/100  {facts}"
    assert lines[3].startswith(f"step 20/100  {facts}") and lines[3].endswith(" left")
    assert lines[4] == "validation at step 10/100  loss 3.5000  perplexity 33.10"
    assert lines[5:] == ["saved runs/x/checkpoints/step-00000010", "going on"]
    assert out.getvalue() == ""


def test_progress_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    said, _, err = console()
    with said.progress("tokenise", 200, "documents") as advance:
        time.sleep(0.01)
        advance(50, "a.txt")
        advance(150)
    lines = err.getvalue().splitlines()
    assert lines[0].startswith("tokenise: 50 of 200 documents (25%), 0 s left  a.txt")
    assert lines[-1].startswith("tokenise: 200 documents in ")
    with said.progress("load", None, "") as advance:
        pass
    assert err.getvalue().splitlines() == lines


def test_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said, out, err = console(terminal=True)
    with said.training(100, {"saves to": "runs/红楼梦\x1b"}) as view:
        assert isinstance(view, LiveView)
        for step in range(1, 50):
            view.log({**TRAIN, "step": step, "loss": 5.0 - step / 20})
        view.log(VALIDATION)
        view.saved("runs/x/checkpoints/step-00000010")
        view.note("a note above")
        view.phase("validating")
    text = err.getvalue()
    for expected in (
        "49 / 100",
        "2.5500",
        "█",
        "▁",
        "1.00e-03",
        "4,321",
        "31%",
        "33.10",
        "step-00000010",
        "红楼梦\\x1b",
    ):
        assert expected in text, expected
    assert "a note above" in text
    assert "done" in text
    assert out.getvalue() == ""


def test_the_live_view_says_when_it_was_stopped() -> None:
    said, _, err = console(terminal=True)
    with pytest.raises(KeyError), said.training(100, {}):
        raise KeyError
    assert "stopped" in err.getvalue()


def test_the_bar() -> None:
    said, _, err = console(terminal=True)
    with said.progress("tokenise [x]", 10, "documents") as advance:
        advance(4, "[bold]a.txt")
        advance(6)
    assert "tokenise [x]" in err.getvalue()
    assert "10/10 documents" in err.getvalue()


def test_time_left_counts_from_where_a_resumed_run_began() -> None:
    clock = Clock(1000)
    assert clock.left() is None
    clock.take(900)
    assert clock.left() is None
    time.sleep(0.02)
    clock.take(950)
    left = clock.left()
    assert left is not None and 0.015 < left < 1.0


def test_words() -> None:
    assert [duration(s) for s in (0, 59.4, 61, 3600, 90000, -1, float("nan"))] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "1 d 1 h",
        "?",
        "?",
    ]
    assert [number(v) for v in (3.25, 33.104, 1234, 1234.56, 1e-5, 0, float("inf"))] == [
        "3.2500",
        "33.10",
        "1,234",
        "1,234.6",
        "1e-05",
        "0",
        "inf",
    ]
    assert [size(v) for v in (10, 1500, 2.5e9, 3e13)] == ["10 B", "1.5 kB", "2.5 GB", "30.0 TB"]
    assert width("红楼a") == 5


def test_sparklines() -> None:
    assert sparkline([1, 2, 3, 4], 4) == "▁▃▆█"
    assert sparkline([4, float("nan"), 1], 9) == "█▁"
    assert sparkline([2, 2], 5) == "▄▄"
    assert sparkline([], 5) == ""
    assert len(sparkline(list(range(1000)), 30)) == 30
