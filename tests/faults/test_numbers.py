"""Steps that go wrong in a real run: not finite, far above the others, too large for the memory; in several ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from llmkit.files import read_json
from tests.faults.table import FaultTable
from tests.faults.test_ranks import PLAIN, assert_same, launch, losses, trained
from tests.faults.tiny import TinyRun, sha256, without_clock

STEPS, SPIKE = 80, 70
LONG = (f"training.max_steps={STEPS}", "checkpoint.save_steps=10", "training.lr_scheduler_type=constant")


def events(run: Path) -> list[dict[str, Any]]:
    return [without_clock(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def end_of(run: Path) -> dict[str, Any]:
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    names = ("model.safetensors", "optimizer.safetensors")
    return {
        "tensors": [sha256(last / name) for name in names],
        "state": read_json(last / "state.json")["train"],
        "metrics": events(run),
    }


def spiked(tiny: TinyRun, name: str, action: str, kills: int = 0) -> Path:
    """A run whose data of one step spikes; killed at random moments where asked."""
    run, dice = tiny.directory / name, random.Random(7)
    command = tiny.command(run, *LONG, f"training.loss_spike_action={action}")
    log = tiny.log(run)
    while True:
        pid = tiny.zygote.start(command, log, sabotage=("spike", SPIKE))
        if kills > 0:
            time.sleep(dice.uniform(0.3, 1.2) * tiny.seconds)
            os.kill(pid, signal.SIGKILL)
            kills -= 1
        status = tiny.zygote.wait(pid)
        assert status in (0, -signal.SIGKILL), log.read_text()
        if status == 0 and kills <= 0:
            return run


@pytest.mark.parametrize(
    ("action", "kills"),
    [
        ("rollback", 1),
        pytest.param("rollback", 10, marks=pytest.mark.faults),
        pytest.param("skip", 5, marks=pytest.mark.faults),
    ],
)
def test_a_spike_is_acted_on_and_a_killed_run_ends_the_same(
    tiny_run: TinyRun, action: str, kills: int, fault_table: FaultTable
) -> None:
    whole = spiked(tiny_run, f"spike-{action}-{kills}", action)
    state = end_of(whole)["state"]
    told = tiny_run.log(whole).read_text()
    steps = [event["step"] for event in events(whole) if event["split"] == "train"]
    assert steps == sorted(set(steps)), "a line a step"
    if action == "rollback":
        assert (state["rollbacks"], state["passed_over"]) == ([SPIKE], SPIKE - 60 + 1)
        assert f"step {SPIKE + 1}: loss spike; back to step 60" in told
        assert [event for event in events(whole) if event["split"] == "train"][-1]["rollbacks"] == 1
    else:
        (line,) = [event for event in events(whole) if "step_loss" in event]
        assert (line["step"], line["spike"], line["skipped"], state["loss_spikes"]) == (SPIKE + 1, True, True, 1)
        assert f"step {SPIKE + 1}: loss spike" in told
    killed = spiked(tiny_run, f"spike-{action}-{kills}-killed", action, kills=kills)
    assert end_of(killed) == end_of(whole)
    fault_table.record("a loss spike acted on, the run killed and gone on", kills, kills)


@pytest.mark.faults
def test_a_spike_without_an_action_is_told(tiny_run: TinyRun) -> None:
    run = spiked(tiny_run, "spike-null", "null")
    (line,) = [event for event in events(run) if "step_loss" in event]
    assert (line["spike"], line["skipped"], line["loss_spikes"]) == (True, False, 1)


@pytest.mark.faults
def test_two_processes_go_back_as_one_does(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    action = (*LONG, "training.loss_spike_action=rollback")
    one = trained(tiny_run, "back-1", 1, *action, sabotage={0: ("spike", SPIKE)})
    two = trained(tiny_run, "back-2", 2, *action, sabotage=dict.fromkeys((0, 1), ("spike", SPIKE)))
    assert_same(two, one)
    assert end_of(two)["state"]["rollbacks"] == [SPIKE]
    fault_table.record("a loss spike, two processes going back as one", 1, 1)


def test_a_run_that_diverges_keeps_the_batch(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    run = tiny_run.directory / "diverged"
    settings = ("training.max_nonfinite_steps=2", "data.train.0.id=lines")
    pid = tiny_run.zygote.start(tiny_run.command(run, *settings), tiny_run.log(run), sabotage=("poison", 3, 60))
    assert tiny_run.zygote.wait(pid) == 7, tiny_run.log(run).read_text()
    place = run / "diverged" / "step-00000005"
    assert str(place) in tiny_run.log(run).read_text().splitlines()[-1]
    told = read_json(place.with_suffix(".json"))
    assert (told["step"], len(told["samples"])) == (5, 4)
    lines = (tiny_run.directory / "train.txt").read_text().splitlines()
    with safe_open(place.with_suffix(".safetensors"), "pt") as file:
        for sample in told["samples"]:
            assert file.get_tensor(f"{sample['sample']}/input_ids").ndim == 1
            for origin in sample["origins"]:
                assert origin["source"] == "lines"
                assert 1 <= origin["line"] <= len(lines)
    assert read_json(run / "run.json")["exit_code"] == 7
    assert sum("skipped" in event for event in events(run)) == 1  # the last one ended the run
    fault_table.record("a run that diverges keeps its batch", 1, 1)


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.faults), 2])
def test_out_of_memory_halves_the_micro_batch_on_all(tiny_run: TinyRun, number: int, fault_table: FaultTable) -> None:
    """On one rank alone it happens; the losses are those of a run with room enough, and a resume keeps the size."""
    settings = (*PLAIN, "training.per_device_train_batch_size=2", "training.max_steps=20")
    room = trained(tiny_run, f"room-{number}", number, *settings)
    short = trained(tiny_run, f"short-{number}", number, *settings, sabotage={number - 1: ("small_memory", 1)})
    assert_same(short, room)
    record = read_json(short / "run.json")
    assert record["resolved"]["per_device_train_batch_size"] == 1
    assert [s["layout"]["per_device_train_batch_size"] for s in record["segments"]][-1] == 1
    ranks = launch(tiny_run, short, number, *settings, "training.max_steps=25")
    assert ranks.wait() == [0] * number, ranks.told()
    assert "micro-batch 1" in ranks.told()
    assert losses(short)[-1][0] == 25
    fault_table.record("out of memory on one rank", 1, 1)


def test_a_limit_below_what_one_sequence_takes(tiny_run: TinyRun, fault_table: FaultTable) -> None:
    run = tiny_run.directory / "limit"
    pid = tiny_run.zygote.start(tiny_run.command(run, "training.max_memory=10MB"), tiny_run.log(run))
    assert tiny_run.zygote.wait(pid) == 6
    assert "out of memory with a single sequence" in tiny_run.log(run).read_text().splitlines()[-1]
    fault_table.record("max_memory below what one sequence takes", 1, 1)
