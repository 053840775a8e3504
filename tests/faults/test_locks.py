"""Two runs for one directory, and its holder killed: one wins each time, a dead holder's lock is taken over."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.table import FaultTable
from tests.faults.tiny import TinyRun

ROW = "two runs for one directory at once; the winner killed"


def race(tiny: TinyRun, run: Path) -> bool:
    """Two starts at once in a directory whose last holder was killed: one is refused and told of the other, the other
    trains until it is killed too. Whether it was so."""
    logs = [run.with_name(f"{run.name}-{number}.log") for number in range(2)]
    for log in logs:
        log.write_text("")
    pids = [tiny.zygote.start(tiny.command(run), log) for log in logs]
    deadline = time.monotonic() + 60
    while not (loser := [n for n, log in enumerate(logs) if "in use by" in log.read_text()]):
        assert time.monotonic() < deadline, [log.read_text() for log in logs]
        time.sleep(0.002)
    winner = 1 - loser[0]
    os.kill(pids[winner], signal.SIGKILL)
    statuses = [tiny.zygote.wait(pid) for pid in pids]
    refusal = logs[loser[0]].read_text()
    return (
        statuses[winner] == -signal.SIGKILL
        and statuses[1 - winner] == 6
        and f"in use by process {pids[winner]} on" in refusal
        and "Traceback" not in refusal
    )


def races(tiny: TinyRun, table: FaultTable, number: int) -> None:
    run = tiny.directory / f"raced-{number}"
    won = sum(race(tiny, run) for _ in range(number))
    table.record(ROW, number, won)
    assert won == number
    tiny.finish(run)


def test_four_races(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    races(tiny_run, fault_table, 4)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_fifty_races(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    races(tiny_run, fault_table, 50)


def test_two_runs_one_directory(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    """The second is refused at once and told who holds it; the first does not notice."""
    run = tiny_run.directory / "shared"
    pid = tiny_run.start(run, until=lambda run: (run / "run.json").is_file())
    refusal = run.with_name("refusal.log")
    assert tiny_run.zygote.run(tiny_run.command(run), refusal) == 6
    assert f"in use by process {pid} on" in refusal.read_text()
    assert tiny_run.zygote.wait(pid) == 0, tiny_run.log(run).read_text()
    assert "finished" in tiny_run.finish(run)
    fault_table.record(ROW, 1, 1)
