"""Several processes, signals and closed pipes, with the real program: the message comes once, the status is right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Place, environment, settings

TWO = ("--num-processes", "2")


def test_a_mistake_is_told_once(trained: Place) -> None:
    """All ranks meet it, one message and one JSON object tell it."""
    sets = {"output_dir": "other", "data.prepared_dir": "run/prepared", "model.config.n_layers": 2}
    ended = trained.start("pretrain", "recipe.yaml", "--json", *TWO, sets=sets)
    assert ended.status == 2
    assert ended.err.count("did you mean n_layer?") == 1
    assert ended.json["error"]["key"] == "model.config.n_layers"
    assert "rank" not in ended.err


def test_two_processes_end_as_one_does(trained: Place) -> None:
    sets = {"output_dir": "two", "data.prepared_dir": "run/prepared"}
    ended = trained.start("pretrain", "recipe.yaml", "--json", *TWO, sets=sets)
    assert ended.status == 0, ended.err
    alone = json.loads(Path("run/results.json").read_text())
    assert ended.json["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert ended.json["tokens"] == alone["tokens"]
    again = trained.run("pretrain", sets=sets)  # another number of processes is the same run
    assert again.status == 0
    assert "finished" in again.err


@pytest.mark.parametrize("processes", [(), TWO], ids=["one process", "two processes"])
def test_a_closed_pipe_is_quiet(trained: Place, processes: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llmkit", "evaluate", "recipe.yaml", *processes]
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False, timeout=100
    )
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE
    told = [line for line in done.stderr.splitlines() if not line.startswith("evaluate: ")]
    assert [line for line in told if " items scored in " not in line] == []


def test_a_signal_stops_all_ranks_with_one_message_and_the_run_goes_on(trained: Place) -> None:
    sets = {"output_dir": "two", "data.prepared_dir": "run/prepared", "training.max_steps": 120}
    sets |= {"checkpoint.save_steps": None, "evaluation.eval_steps": 120}
    command = [sys.executable, "-m", "llmkit", "pretrain", "recipe.yaml", *TWO, *settings(sets)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 2/"):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 75, rest
    assert rest.count("run the same command again to go on") == 1
    record = json.loads(Path("two/run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", 75)
    ended = trained.run("pretrain", sets=sets)
    assert ended.status == 0, ended.err
    assert f"going on from step-{record['steps']:08d}" in ended.err


def test_a_run_whose_reader_is_gone_says_so_and_goes_on(trained: Place) -> None:
    sets = {"output_dir": "read", "data.prepared_dir": "run/prepared", "training.max_steps": 40}
    command = [sys.executable, "-m", "llmkit", "pretrain", "recipe.yaml", *settings(sets)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 2/"):
                break
        process.stderr.close()
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    record = json.loads(Path("read/run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", 128 + signal.SIGPIPE)
    ended = trained.run("pretrain", sets=sets)
    assert ended.status == 0, ended.err
    assert "going on from step-0" in ended.err
