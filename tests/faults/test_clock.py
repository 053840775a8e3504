"""A wall clock that jumps by a year between two starts: nothing is decided by it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llmkit.files import read_json
from llmkit.train import checkpoint
from tests.faults.table import FaultTable
from tests.faults.tiny import TinyRun

YEAR = 366 * 24 * 3600


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(YEAR, id="ahead", marks=pytest.mark.faults), pytest.param(-YEAR, id="back")],
)
def test_a_year_between_two_starts(tiny_run: TinyRun, fault_table: FaultTable, seconds: int) -> None:
    """The first start is killed; the second has another year, in its clock and in what it finds on the disk."""
    run = tiny_run.directory / f"clock{seconds}"
    pid = tiny_run.start(run, until=lambda run: len(checkpoint.published(run / "checkpoints")) >= 2)
    os.kill(pid, signal.SIGKILL)
    tiny_run.zygote.wait(pid)
    first = read_json(run / "run.json")["started_at"]
    for path in [run, *run.rglob("*")]:
        touch(path, -seconds)
    log = tiny_run.log(run)
    pid = tiny_run.zygote.start(tiny_run.command(run), log, sabotage=("clock", seconds))
    assert tiny_run.zygote.wait(pid) == 0, log.read_text()
    assert "going on from step-0" in log.read_text()
    record = read_json(run / "run.json")
    assert record["started_at"] == first
    assert abs(int(record["finished_at"][:4]) - int(first[:4])) == 1
    tiny_run.finish(run)
    fault_table.record("clock a year ahead or back between two starts", 1, 1)


def touch(path: Path, seconds: int) -> None:
    status = path.stat()
    os.utime(path, (status.st_atime + seconds, status.st_mtime + seconds))
