"""What all benchmarks share: rounds in turn, fresh processes, ratios pair by pair, the table and the JSON.

A benchmark is some sides (ours, and its peers') and some targets. A round runs every side once, one after the other,
each in whole processes of its own; rounds follow each other (A B A B ...), and a ratio is taken within its round, for
a shared machine drifts by half from one minute to the next. What is quoted is the median of the ratios and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import PeakMemory, machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = "llmkit"

Figures = dict[str, float]
Side = Callable[[], Figures]


class Skip(Exception):
    """A side, or a whole benchmark, that cannot run here; the text says why."""


@dataclass(frozen=True)
class Target:
    """A figure of one side, or its ratio to the same figure of another (`over`), and what it should be."""

    figure: str
    over: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    side: str = OURS

    def values(self, rounds: list[dict[str, Figures]]) -> list[float]:
        """One value a round; empty where a side was skipped."""
        found = []
        for sides in rounds:
            own, other = sides.get(self.side, {}).get(self.figure), sides.get(self.over or "", {}).get(self.figure)
            if own is not None and (self.over is None or other):
                found.append(own if self.over is None else own / (other or 1.0))
        return found

    def met(self, value: float) -> bool | None:
        """None where nothing was asked."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def wanted(self) -> str:
        parts = [(">=", self.at_least), ("<=", self.at_most)]
        return " ".join(f"{sign} {show(value)}" for sign, value in parts if value is not None)


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A process that ended: what it printed, its wall-clock seconds, and what it and its children held at most."""

    stdout: str
    stderr: str
    seconds: float
    peak_memory_bytes: int

    def last_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout.strip().splitlines()[-1])
        return found


def process(*command: object, status: int = 0) -> Done:
    """Runs a command in the checkout. Raises SystemExit with the end of its stderr where it ends otherwise."""
    words = [str(word) for word in command]
    started = time.perf_counter()
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with PeakMemory(child.pid) as memory:
        stdout, stderr = child.communicate()
    seconds = time.perf_counter() - started
    if child.returncode != status:
        raise SystemExit(f"{' '.join(words)}\nended with {child.returncode}\n{stderr[-3000:]}")
    return Done(stdout, stderr, seconds, memory.peak_bytes)


def llmkit(*arguments: object, status: int = 0) -> Done:
    """`python -m llmkit` of this checkout."""
    return process(sys.executable, "-m", "llmkit", *arguments, status=status)


def peer(name: str, *arguments: object) -> Figures:
    """The figures that benchmarks/peers/NAME.py prints, and the process's own. Raises Skip where it prints `skip`."""
    done = process(sys.executable, "-m", f"benchmarks.peers.{name}", *arguments)
    figures = done.last_json()
    if "skip" in figures:
        raise Skip(figures["skip"])
    return {**figures, "process_seconds": done.seconds, "peak_memory_bytes": done.peak_memory_bytes}


def measure(sides: dict[str, Side], rounds: int) -> tuple[list[dict[str, Figures]], dict[str, str]]:
    """(the figures of each round by side, why sides were left out); a line a measurement on stderr."""
    found: list[dict[str, Figures]] = []
    skipped: dict[str, str] = {}
    for number in range(1, rounds + 1):
        found.append({})
        for name, side in sides.items():
            if name in skipped:
                continue
            try:
                found[-1][name] = {key: float(value) for key, value in side().items()}
            except Skip as reason:
                skipped[name] = str(reason)
                continue
            shown = ", ".join(f"{key} {show(value)}" for key, value in found[-1][name].items())
            print(f"round {number}: {name}: {shown}", file=sys.stderr, flush=True)
    return found, skipped


# --- telling ----------------------------------------------------------------------------------------------------------


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarize(rounds: list[dict[str, Figures]], targets: list[Target]) -> dict[str, Any]:
    """The spread of every figure of every side, and of every target's values with whether the median meets it."""
    names = dict.fromkeys((side, figure) for sides in rounds for side, own in sides.items() for figure in own)
    figures: dict[str, dict[str, Any]] = {}
    for side, figure in names:
        values = [sides[side][figure] for sides in rounds if figure in sides.get(side, {})]
        figures.setdefault(side, {})[figure] = spread(values)
    told = []
    for target in targets:
        values = target.values(rounds)
        if values:
            found: dict[str, Any] = {"side": target.side, "figure": target.figure, "over": target.over}
            found |= {**spread(values), "rounds": values, "target": target.wanted() or None}
            told.append({**found, "met": target.met(found["median"])})
    return {"figures": figures, "targets": told}


def show(value: float) -> str:
    """Three or four digits, thousands with commas."""
    if abs(value) >= 1e10:
        return f"{value / 1e9:,.0f}G"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(result: dict[str, Any]) -> str:
    """For people: figures by side, then the targets."""
    rows = [("side", "figure", "median", "range", "target")]
    for side, figures in result["figures"].items():
        for figure, own in figures.items():
            rows.append((side, figure, show(own["median"]), f"{show(own['low'])} to {show(own['high'])}", ""))
    for found in result["targets"]:
        what = f"{found['side']} / {found['over']}" if found["over"] else found["side"]
        met = {True: "met", False: "NOT met", None: ""}[found["met"]]
        wanted = f"{found['target'] or ''} {met}".strip()
        spread_of = f"{show(found['low'])} to {show(found['high'])}"
        rows.append((what, found["figure"], show(found["median"]), spread_of, wanted))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"left out: {side}: {reason}" for side, reason in result.get("skipped", {}).items()]
    return "\n".join([f"{result['benchmark']}: {result['what']}", *lines])


def without_places(arguments: list[str]) -> list[str]:
    """The command line with the names of this machine's directories as in --help."""
    return [
        word if before not in ("--data", "--work", "--results") else before.removeprefix("--").upper()
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]


Prepare = Callable[[Path, argparse.Namespace], dict[str, Side]]


def main(
    name: str,
    doc: str,
    prepare: Prepare,
    targets: list[Target],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """The command line of a benchmark: `prepare` makes what every round needs in a directory and returns the sides."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="directory of public sets, for the benchmarks that read them")
    parser.add_argument("--work", type=Path, help="where runs and prepared data go (default: a temporary directory)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where NAME.json goes")
    add_options(parser)
    options = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix=f"llmkit-{name}-") as scratch:
        place = (options.work or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        try:
            rounds, skipped = measure(prepare(place, options), options.rounds)
        except Skip as reason:
            print(f"{name}: skipped: {reason}")
            return
    settings = {key: value for key, value in vars(options).items() if key not in ("data", "work", "results")}
    result = {
        "benchmark": name,
        "what": doc.splitlines()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *without_places(sys.argv[1:])]),
        "settings": settings,
        "machine": {**machine(), "load_before": [round(one, 2) for one in load]},
        "versions": versions(ROOT),
        **summarize(rounds, targets),
        "skipped": skipped,
        "rounds": rounds,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
