"""Several processes of one run: the same run as one process, and all of them end when one does, which is named.

The processes are forked from the zygote with a launcher's environment; real launchers are in test_launchers.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmkit.files import read_json
from llmkit.train.peers import BEAT_SECONDS
from tests.faults.table import FaultTable
from tests.faults.tiny import STEPS, TinyRun

PLAIN = (
    "model.dropout=0.0",
    "training.per_device_train_batch_size=1",
    "training.lr_scheduler_type=constant",
    "logging.logging_steps=1",
)
TIMEOUT = 6
IMPATIENT = (f"distributed.ddp_timeout={TIMEOUT}", "training.max_steps=100000", "evaluation.eval_steps=100000")


class Ranks:
    """The processes of one launch of the tiny run."""

    def __init__(
        self, tiny: TinyRun, run: Path, number: int, settings: Sequence[str], sabotage: dict[int, Sequence[str | int]]
    ):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.tiny, self.run = tiny, run
        self.logs = [run.with_name(f"{run.name}-{rank}.log") for rank in range(number)]
        self.pids = []
        for rank, log in enumerate(self.logs):
            log.unlink(missing_ok=True)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            env = {name: str(value) for name, value in place.items()}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = tiny.command(run, *settings)
            self.pids.append(tiny.zygote.start(command, log, env=env, sabotage=sabotage.get(rank, ())))

    def wait(self) -> list[int]:
        return [self.tiny.zygote.wait(pid) for pid in self.pids]

    def told(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def launch(
    tiny: TinyRun, run: Path, number: int, *settings: str, sabotage: dict[int, Sequence[str | int]] | None = None
) -> Ranks:
    return Ranks(tiny, run, number, settings, sabotage or {})


def trained(tiny: TinyRun, name: str, number: int, *settings: str, **more: Any) -> Path:
    """A launch that ends well; its directory."""
    run = tiny.directory / name
    ranks = launch(tiny, run, number, *PLAIN, *settings, **more)
    assert ranks.wait() == [0] * number, ranks.told()
    return run


def losses(run: Path) -> list[tuple[int, str, float, int]]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(event["step"], event["split"], event["loss"], event["tokens"]) for event in events]


def assert_same(run: Path, other: Path) -> None:
    """The same steps, tokens and, to 1e-5, losses: every step's and validation's."""
    ours, theirs = losses(run), losses(other)
    assert [(a, b, d) for a, b, _, d in ours] == [(a, b, d) for a, b, _, d in theirs]
    assert [loss for _, _, loss, _ in ours] == pytest.approx([loss for _, _, loss, _ in theirs], abs=1e-5)


@pytest.fixture(scope="session")
def alone(tiny_run: TinyRun) -> Path:
    return trained(tiny_run, "alone", 1)


def test_two_processes_have_the_losses_of_one_and_it_goes_on_alone(
    tiny_run: TinyRun, alone: Path, fault_table: FaultTable
) -> None:
    """It ends at 20 steps first, where the whole run validates too."""
    trained(tiny_run, "two-then-one", 2, "training.max_steps=20")
    run = trained(tiny_run, "two-then-one", 1)
    assert_same(run, alone)
    segments = read_json(run / "run.json")["segments"]
    assert [(s["first_step"], s["layout"]["num_processes"]) for s in segments] == [(0, 2), (20, 1)]
    fault_table.record("losses of 1, 2 and 4 processes", 2, 2)


@pytest.mark.faults
def test_one_two_and_four_processes(tiny_run: TinyRun, alone: Path, fault_table: FaultTable) -> None:
    for number in (2, 4):
        assert_same(trained(tiny_run, f"of-{number}", number), alone)
    fault_table.record("losses of 1, 2 and 4 processes", 2, 2)


@pytest.mark.faults
@pytest.mark.parametrize("numbers", [(1, 4, 2), (4, 1, 2), (2, 4, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    tiny_run: TinyRun, alone: Path, numbers: tuple[int, ...], fault_table: FaultTable
) -> None:
    name = "elastic-" + "".join(map(str, numbers))
    for steps, number in zip((20, 40, STEPS), numbers, strict=True):
        run = trained(tiny_run, name, number, f"training.max_steps={steps}")
    assert_same(run, alone)
    fault_table.record("a run that goes on with another number of processes", 2, 2)


# --- one of them dies -------------------------------------------------------------------------------------------------


@contextmanager
def no_leftovers() -> Iterator[None]:
    """Nothing new stays in shared memory, beside the tests' own directories."""
    before = set(os.listdir("/dev/shm"))
    yield
    assert not {name for name in set(os.listdir("/dev/shm")) - before if not name.startswith("llmkit-")}


def running(tiny: TinyRun, name: str, number: int, **more: Any) -> Ranks:
    """A long launch that has made its first steps."""
    ranks = launch(tiny, tiny.directory / name, number, *PLAIN, *IMPATIENT, **more)
    metrics = ranks.run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < deadline, ranks.told()
        time.sleep(0.01)
    time.sleep(3 * BEAT_SECONDS)  # the others have heard of it
    return ranks


def finishes(ranks: Ranks) -> None:
    """The lock is free and the run goes on, in one process."""
    tiny, run = ranks.tiny, ranks.run
    steps = read_json(run / "run.json")["steps"]
    log = tiny.log(run)
    settings = [*PLAIN, "training.max_steps=100000", "evaluation.eval_steps=100000"]
    pid = tiny.zygote.start(tiny.command(run, *settings), log)
    deadline = time.monotonic() + 60
    while read_json(run / "run.json")["steps"] <= steps:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    assert tiny.zygote.wait(pid) == 75, log.read_text()


def assert_named(ranks: Ranks, culprit: int, what: str, begun: float) -> None:
    """All but the culprit have ended with 6 within the bound, and say who it was and what it was doing."""
    number = len(ranks.pids)
    for rank in range(number):
        if rank != culprit:
            assert ranks.tiny.zygote.wait(ranks.pids[rank]) == 6, ranks.told()
    assert time.monotonic() - begun < TIMEOUT + 10
    phase = r"\(last seen at (training|saving), \d+ steps done\)"
    message = rf"rank {culprit} of {number} is {what} {phase}"
    gone = rf"rank {culprit} is gone or out of reach {phase}"
    for rank in set(range(number)) - {culprit}:
        text = ranks.logs[rank].read_text()
        assert re.search(message, text) or (culprit == 0 and re.search(gone, text)), ranks.told()
        assert "Traceback" not in text
    if culprit:
        record = read_json(ranks.run / "run.json")
        assert (record["status"], record["exit_code"]) == ("failed", 6)
        assert re.search(message, record["exit_reason"])


def kill_one(tiny: TinyRun, number: int, culprit: int, signum: signal.Signals) -> None:
    with no_leftovers():
        ranks = running(tiny, f"{signum.name}-{culprit}-of-{number}", number)
        begun = time.monotonic()
        os.kill(ranks.pids[culprit], signum)
        try:
            assert_named(ranks, culprit, "dead or frozen", begun)
        finally:
            os.kill(ranks.pids[culprit], signal.SIGKILL)  # a launcher would; frozen, it cannot end itself
            tiny.zygote.wait(ranks.pids[culprit])
        finishes(ranks)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_process_ends_the_others(
    tiny_run: TinyRun, signum: signal.Signals, fault_table: FaultTable
) -> None:
    kill_one(tiny_run, 2, 1, signum)
    fault_table.record("a process that dies or freezes", 1, 1)


@pytest.mark.faults
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("number", "culprit"), [(2, 0), (4, 0), (4, 1), (4, 3)])
def test_any_of_two_or_four(
    tiny_run: TinyRun, number: int, culprit: int, signum: signal.Signals, fault_table: FaultTable
) -> None:
    kill_one(tiny_run, number, culprit, signum)
    fault_table.record("a process that dies or freezes", 1, 1)


@pytest.mark.faults
@pytest.mark.parametrize(("number", "culprit"), [(2, 0), (2, 1), (4, 2)])
def test_a_stalled_process_is_named_and_ends_with_the_others(
    tiny_run: TinyRun, number: int, culprit: int, fault_table: FaultTable
) -> None:
    """Its threads live, its main thread does not come to the collective in which the others wait."""
    with no_leftovers():
        ranks = running(tiny_run, f"stalled-{culprit}-of-{number}", number, sabotage={culprit: ("hang", 1)})
        begun = time.monotonic()
        assert_named(ranks, culprit, "stalled", begun)
        assert tiny_run.zygote.wait(ranks.pids[culprit]) == 6, ranks.told()
        assert time.monotonic() - begun < TIMEOUT + 10
        finishes(ranks)
    fault_table.record("a process that stalls", 1, 1)
