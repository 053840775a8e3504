"""Kill -9 at random moments, run the same command again: the result is the unkilled run's, to the bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from llmkit.files import read_json
from llmkit.train import checkpoint
from tests.faults.table import FaultTable
from tests.faults.tiny import STEPS, TinyRun

MAX_CALLS = 1000
DISK_CALLS = 400
"""Random kills by count fall within the first calls that change the disk; a whole run makes more than these."""


def has_checkpoints(run: Path) -> bool:
    return len(checkpoint.published(run / "checkpoints")) >= 2


def kill_once(tiny: TinyRun, run: Path, dice: random.Random) -> int:
    """Starts the run and kills it: at a random moment, or in the middle of a random write. Returns its status."""
    argv, log = tiny.command(run), tiny.log(run)
    if dice.random() < 0.5:
        return tiny.zygote.run(argv, log, die_at_call=dice.randint(1, DISK_CALLS))
    pid = tiny.zygote.start(argv, log)
    time.sleep(dice.uniform(0, tiny.seconds))
    os.kill(pid, signal.SIGKILL)
    return tiny.zygote.wait(pid)


def kill_many(tiny: TinyRun, table: FaultTable, number: int, seed: int) -> None:
    dice = random.Random(seed)
    kills = runs = told = 0
    while kills < number:
        run = tiny.directory / f"killed-{runs}"
        runs += 1
        for _ in range(dice.randint(3, 8)):
            status = kill_once(tiny, run, dice)
            assert status in (0, -signal.SIGKILL), tiny.log(run).read_text()
            if status == 0:
                break
            kills += 1
        tiny.finish(run)
        shutil.rmtree(run)
        table.record("kill -9 at random moments", kills - told, kills - told)
        told = kills


def test_twenty_kills_lose_nothing(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    kill_many(tiny_run, fault_table, number=20, seed=20)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_nothing(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    kill_many(tiny_run, fault_table, number=200, seed=200)


def kill_at_calls(tiny: TinyRun, table: FaultTable, stride: int) -> None:
    """The program killed in the middle of every `stride`-th call that changes the disk, from a resume over saves that
    delete older checkpoints to the exported model; then run again, to the bit."""
    template = tiny.directory / f"template-{stride}"
    stopped = ("signals_itself", "llmkit.train.loop:train_step", STEPS - 8, signal.SIGTERM)
    pid = tiny.zygote.start(tiny.command(template), tiny.log(template), sabotage=stopped)
    assert tiny.zygote.wait(pid) == 75, tiny.log(template).read_text()
    for at in range(1, MAX_CALLS, stride):
        run = tiny.directory / f"call-{at}"
        shutil.copytree(template, run)
        status = tiny.zygote.run(tiny.command(run), tiny.log(run), die_at_call=at)
        assert status in (0, -signal.SIGKILL), tiny.log(run).read_text()
        tiny.finish(run)
        shutil.rmtree(run)
        if status == 0:
            break
        table.record("kill -9 in the middle of a call of resume, saves, retention, export", 1, 1)
    assert status == 0, "the run never came to its end"


def test_killed_at_some_calls_from_resume_to_export(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    kill_at_calls(tiny_run, fault_table, stride=97)


@pytest.mark.faults
@pytest.mark.timeout(5400)
def test_killed_at_every_call_from_resume_to_export(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    kill_at_calls(tiny_run, fault_table, stride=1)


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(tiny_run: TinyRun) -> None:
    run = tiny_run.directory / "damaged"
    pid = tiny_run.start(run, until=has_checkpoints)
    os.kill(pid, signal.SIGKILL)
    assert tiny_run.zygote.wait(pid) == -signal.SIGKILL
    newest = checkpoint.published(run / "checkpoints")[-1]
    data = bytearray((newest / "optimizer.safetensors").read_bytes())
    data[len(data) // 2] ^= 16
    (newest / "optimizer.safetensors").write_bytes(data)
    assert f"{newest.name}/optimizer.safetensors is damaged" in tiny_run.finish(run)


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_the_end_is_the_same(tiny_run: TinyRun, signum: signal.Signals) -> None:
    run = tiny_run.directory / signum.name
    never = "checkpoint.save_steps=null"
    metrics = run / "metrics.jsonl"
    pid = tiny_run.start(run, never, until=lambda run: metrics.is_file() and metrics.stat().st_size)
    os.kill(pid, signum)
    begun = time.monotonic()
    assert tiny_run.zygote.wait(pid) == 75, tiny_run.log(run).read_text()
    assert time.monotonic() - begun < 10
    record = read_json(run / "run.json")
    assert (record["status"], record["exit_code"]) == ("stopped", 75)
    assert 0 < record["steps"] < STEPS
    tiny_run.finish(run, never)
