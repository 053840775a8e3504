"""The benchmarks' own arithmetic: ratios within a round, targets, skipped sides, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import Figures, Side, Skip, Target, process, show, summarize, table

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()
)


def test_a_ratio_is_taken_within_its_round() -> None:
    """The machine slows down by half after the first round: the ratio of the medians would be 2.5."""
    rounds = [
        {"llmkit": {"rate": 10.0}, "peer": {"rate": 5.0}},
        {"llmkit": {"rate": 5.0}, "peer": {"rate": 2.0}},
        {"llmkit": {"rate": 4.0}, "peer": {"rate": 2.0}},
    ]
    found = summarize(rounds, [Target("rate", over="peer", at_least=2.0), Target("rate", over="peer", at_least=2.1)])
    assert found["figures"]["llmkit"]["rate"] == {"median": 5.0, "low": 4.0, "high": 10.0}
    first, second = found["targets"]
    assert first["rounds"] == [2.0, 2.5, 2.0]
    assert (first["median"], first["low"], first["high"]) == (2.0, 2.0, 2.5)
    assert (first["met"], second["met"]) == (True, False)


def test_targets_without_a_peer_and_without_a_bound() -> None:
    rounds = [{"llmkit": {"seconds": 0.4}}]
    found = summarize(rounds, [Target("seconds", at_most=0.3), Target("seconds"), Target("seconds", over="gone")])
    assert [target["met"] for target in found["targets"]] == [False, None]  # the peer that is gone has no ratio
    assert found["targets"][0]["target"] == "<= 0.3"


def sides(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    order = place / "order"

    def side(name: str) -> Figures:
        with order.open("a") as out:
            out.write(name)
        return {"rate": 2.0 if name == "A" else 1.0}

    def absent() -> Figures:
        raise Skip("not here")

    return {"llmkit": lambda: side("A"), "peer": lambda: side("B"), "absent": absent}


def test_a_whole_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "3", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    common.main("fake", "What it does.\n\nMore.", sides, [Target("rate", over="peer", at_least=1.5)])
    assert (tmp_path / "work/order").read_text() == "ABABAB"
    result = json.loads((tmp_path / "results/fake.json").read_text())
    assert result["targets"][0]["median"] == 2.0 and result["targets"][0]["met"] is True
    assert result["skipped"] == {"absent": "not here"}
    assert len(result["rounds"]) == 3 and result["what"] == "What it does."
    assert {"cpu", "cores", "memory_bytes", "load_before"} <= set(result["machine"])
    assert {"python", "torch", "transformers"} <= set(result["versions"])
    shown = capsys.readouterr().out
    assert shown.strip() == table(result)
    assert re.search(r"llmkit / peer +rate +2 +2 to 2 +>= 1.5 met", shown)
    assert "left out: absent: not here" in shown


def test_processes_are_measured_with_their_children() -> None:
    child = "import time; held = bytearray(100_000_000); time.sleep(0.6); print(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = process(sys.executable, "-c", parent)
    assert done.stdout == "1\n" and done.seconds >= 0.6
    assert done.peak_memory_bytes > 100_000_000
    with pytest.raises(SystemExit, match="ended with 3\nwhy"):
        process(sys.executable, "-c", "import sys; sys.stderr.write('why'); sys.exit(3)")


def test_numbers_for_people() -> None:
    assert [show(value) for value in (0.12345, 12.3456, 1234.5, 2_345_678.0)] == ["0.1235", "12.35", "1,234", "2.3M"]


def test_every_benchmark_has_a_help_a_row_in_the_readme_and_a_place_in_make() -> None:
    made = re.findall(r"^BENCHMARKS := ([\w \\\n\t]+?)\n\w", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(made[0].replace("\\", " ").split()) == BENCHMARKS
    readme = (ROOT / "benchmarks/README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in BENCHMARKS)

    def helped(name: str) -> str:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(4) as pool:
        for name, text in zip(BENCHMARKS, pool.map(helped, BENCHMARKS), strict=True):
            assert f"benchmarks.{name}" in text and "--rounds" in text


def test_the_command_in_the_results_names_no_directory() -> None:
    assert common.without_places(["--rounds", "1", "--data", "/home/me", "--steps", "2"]) == [
        "--rounds", "1", "--data", "DATA", "--steps", "2",
    ]  # fmt: skip
