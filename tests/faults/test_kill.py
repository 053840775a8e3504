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
from tests.faults.tiny import STEPS, TinyRun

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


def kill_many(tiny: TinyRun, number: int, seed: int) -> None:
    dice = random.Random(seed)
    kills = runs = 0
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
    print(f"{kills} kills over {runs} runs, seed {seed}: 0 lost")


def test_twenty_kills_lose_nothing(tiny_run: TinyRun) -> None:
    kill_many(tiny_run, number=20, seed=20)


@pytest.mark.faults
def test_two_hundred_kills_lose_nothing(tiny_run: TinyRun) -> None:
    kill_many(tiny_run, number=200, seed=200)


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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
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


def test_two_runs_one_directory(tiny_run: TinyRun) -> None:
    """The second is refused at once and told who holds it; the first does not notice."""
    run = tiny_run.directory / "shared"
    pid = tiny_run.start(run, until=lambda run: (run / "run.json").is_file())
    refusal = run.with_name("refusal.log")
    assert tiny_run.zygote.run(tiny_run.command(run), refusal) == 6
    assert f"in use by process {pid} on" in refusal.read_text()
    assert "Traceback" not in refusal.read_text()
    assert tiny_run.zygote.wait(pid) == 0, tiny_run.log(run).read_text()
    assert "finished" in tiny_run.finish(run)
