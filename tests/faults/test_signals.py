"""A signal in every phase of a run, once and twice: saved within the step, documented status, and the run goes on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from llmkit.files import read_json
from llmkit.train import checkpoint
from tests.faults.table import FaultTable
from tests.faults.tiny import SAVE_STEPS, STEPS, TinyRun
from tests.faults.zygote import ROOT

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ROW = "signal in every phase, once and twice (SIGTERM, SIGUSR1, SIGINT)"


class Phase(NamedTuple):
    """A function that the phase begins with, which call of it, and the step that is saved; None: nothing is."""

    place: str
    at: int
    saved: int | None


PHASES = {
    "start": Phase("llmkit.train.command:train", 1, None),
    "preprocessing": Phase("llmkit.data.prepare:make_tokenizer", 1, None),
    "model": Phase("llmkit.train.execute:build", 1, None),
    "warm-up": Phase("llmkit.train.hardware:matrix_rate", 1, None),
    "first step": Phase("llmkit.train.loop:train_step", 1, 1),
    "step": Phase("llmkit.train.loop:train_step", 17, 17),
    "save": Phase("llmkit.train.checkpoint:_publish", 2, 2 * SAVE_STEPS),
    "evaluation": Phase("llmkit.evaluate.split:_predict", 1, 20),
    "last step": Phase("llmkit.train.loop:train_step", STEPS, STEPS),
    "last save": Phase("llmkit.train.checkpoint:_publish", STEPS // SAVE_STEPS, STEPS),
    "export": Phase("llmkit.train.export:export_model", 1, STEPS),
}


def stopped(tiny: TinyRun, phase: str, *signums: signal.Signals) -> None:
    """The run gets the signals in its phase and ends as documented; the same command then comes to the golden end."""
    place, at, saved = PHASES[phase]
    run = tiny.directory / f"{phase.replace(' ', '-')}-{'-'.join(signum.name for signum in signums)}"
    settings = [f"data.prepared_dir={run}-data"] if phase == "preprocessing" else []
    log = tiny.log(run)
    sabotage = ("signals_itself", place, at, *signums)
    status = tiny.zygote.wait(tiny.zygote.start(tiny.command(run, *settings), log, sabotage=sabotage))
    expected = {130 if signums[0] == signal.SIGINT else 143} if saved is None else {75}
    if signums == (signal.SIGINT, signal.SIGINT):
        expected |= {130, -signal.SIGINT}  # the user's way out: at once, whatever was going on
    assert status in expected, (status, log.read_text())
    told = log.read_text().rstrip().splitlines()
    assert not any("Traceback" in line for line in told)
    if status == 75:
        assert told[-1].endswith("run the same command again to go on")
        record = read_json(run / "run.json")
        assert (record["status"], record["exit_code"]) == ("stopped", 75)
        newest = checkpoint.newest_valid(run / "checkpoints", pytest.fail)
        assert newest is not None
        assert saved is not None
        # training goes on beside a save, up to the next one at most
        assert saved <= checkpoint.step_of(newest) <= saved + (SAVE_STEPS + 1 if phase == "save" else 0)
    tiny.finish(run, *settings)


def all_stopped(tiny: TinyRun, table: FaultTable, cases: list[tuple[str, tuple[signal.Signals, ...]]]) -> None:
    survived, failures = 0, []
    for phase, signums in cases:
        try:
            stopped(tiny, phase, *signums)
            survived += 1
        except AssertionError as error:
            failures.append(f"{phase} {signums}: {error}")
    table.record(ROW, len(cases), survived)
    assert not failures, "\n\n".join(failures)


def test_a_signal_in_a_sample_of_the_phases(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    sample = ("preprocessing", "warm-up", "step", "save", "evaluation", "last step", "export")
    cases = [(phase, (SIGNALS[turn % 3],) * (1 + turn % 2)) for turn, phase in enumerate(sample)]
    all_stopped(tiny_run, fault_table, cases)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_every_signal_in_each_phase(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    cases = [(phase, (signum,) * times) for phase in PHASES for signum in SIGNALS for times in (1, 2)]
    all_stopped(tiny_run, fault_table, cases)


def two_ranks(tiny: TinyRun, run: Path, sabotage: dict[int, tuple[str | int, ...]]) -> tuple[list[int], str]:
    """Statuses of a launch of two processes, as torchrun would make one, and what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    logs = [run.with_name(f"{run.name}-{rank}.log") for rank in range(2)]
    pids = []
    for rank, log in enumerate(logs):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        env = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        pids.append(tiny.zygote.start(tiny.command(run), log, env=env, sabotage=sabotage.get(rank, ())))
    return [tiny.zygote.wait(pid) for pid in pids], "\n".join(log.read_text() for log in logs)


def one_stopped(tiny: TinyRun, table: FaultTable, phase: str, rank: int, signum: signal.Signals) -> None:
    """One of two processes gets the signal; both save what it is, end with 75, and go on together."""
    place, at, saved = PHASES[phase]
    run = tiny.directory / f"ranks-{phase}-{rank}-{signum.name}"
    statuses, told = two_ranks(tiny, run, {rank: ("signals_itself", place, at, signum)})
    assert statuses == [75, 75], told
    assert read_json(run / "run.json")["steps"] == saved
    statuses, told = two_ranks(tiny, run, {})
    assert statuses == [0, 0], told
    assert f"going on from step-{saved:08d}" in told
    table.record("signal to one of two processes", 1, 1)


def test_a_signal_to_one_process(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    one_stopped(tiny_run, fault_table, "evaluation", 1, signal.SIGUSR1)


@pytest.mark.faults
@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", ["first step", "step", "evaluation", "last step"])
def test_every_signal_to_either_process(
    tiny_run: TinyRun, fault_table: FaultTable, phase: str, rank: int, signum: signal.Signals
) -> None:
    one_stopped(tiny_run, fault_table, phase, rank, signum)


def stopped_at_import(tiny: TinyRun, table: FaultTable, signum: signal.Signals, seconds: float) -> None:
    """A real start is signalled so long after it began to import torch; it ends of that, not of a library cut short."""
    run = tiny.directory / f"import-{signum.name}-{seconds}"
    program = [sys.executable, "-m", "llmkit", *tiny.command(run)]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "loading torch" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(seconds)
        process.send_signal(signum)
        told = process.stderr.read()
    early = 130 if signum == signal.SIGINT else 143
    assert process.returncode in (early, 75), told
    assert "Traceback" not in told
    assert "stopped by SIG" in told
    tiny.finish(run)
    table.record(ROW, 1, 1)


def test_a_signal_while_torch_is_imported(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    stopped_at_import(tiny_run, fault_table, signal.SIGUSR1, 0.7)


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("signum", SIGNALS)
def test_every_signal_during_imports(
    tiny_run: TinyRun, fault_table: FaultTable, signum: signal.Signals, seconds: float
) -> None:
    stopped_at_import(tiny_run, fault_table, signum, seconds)
