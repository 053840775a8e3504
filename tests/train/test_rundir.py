"""One owner a directory, run.json whole at every moment, and nothing deleted that llmkit did not make."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import CheckpointError, DataError, EnvironmentFailure, RecipeError
from llmkit.files import sha256_file
from llmkit.train import machine, metricslog, rundir
from llmkit.train.rundir import RunDirectory, inspect

CONTRACT_KEYS = {
    "command", "status", "exit_code", "exit_reason", "started_at", "finished_at", "recipe_sha256", "data_fingerprint",
    "seed", "steps", "tokens", "resolved", "segments", "versions", "hardware",
}  # fmt: skip
SPAWN = multiprocessing.get_context("spawn")


def started(path: Path, **changes: Any) -> RunDirectory:
    run = RunDirectory(path, command="test")
    values: dict[str, Any] = {
        "command": "pretrain",
        "recipe_yaml": "seed: 1\n",
        "identity": {"seed": 1},
        "data_fingerprint": "abc",
        "sources": {"wiki": "111", "books": "222"},
        "seed": 1,
    }
    run.start(**{**values, **changes})
    return run


def listing(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir())


def run_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "run.json").read_text())
    return value


def test_run_json_has_the_contract_s_keys_from_the_first_moment(tmp_path: Path) -> None:
    with started(tmp_path / "run") as run:
        record = run_json(run.path)
        assert set(record) >= CONTRACT_KEYS
        assert (record["status"], record["exit_code"], record["seed"]) == ("running", None, 1)
        assert record["recipe_sha256"] == sha256_file(run.path / "recipe.yaml")
        run.update(
            steps=10, tokens=640, resolved={"micro_batch": 4}, versions=machine.versions(), hardware=machine.hardware()
        )
        assert run_json(run.path)["steps"] == 10
        (run.path / "results.json").write_text("{}")
        run.finish("completed", 0, "done", steps=20)
    record = run_json(run.path)
    assert (record["status"], record["exit_code"], record["steps"], record["tokens"]) == ("completed", 0, 20, 640)
    assert set(record["files"]) == {"recipe.yaml", "results.json"}
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["hardware"]["cores"] >= 1
    assert inspect(run.path).found == "finished"


def test_a_run_that_goes_on_keeps_its_history(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.update(steps=10, tokens=640, resolved={"micro_batch": 4}, started_at="then")
        run.open_segment(0, {"num_processes": 1})
        run.finish("stopped", 75, "SIGTERM")
    with RunDirectory(tmp_path) as again:
        assert again.found == "unfinished"
        assert not again.started
    with started(tmp_path) as again:
        record = run_json(tmp_path)
        assert (record["status"], record["exit_code"], record["finished_at"]) == ("running", None, None)
        assert (record["steps"], record["resolved"], record["started_at"]) == (10, {"micro_batch": 4}, "then")
        assert len(record["segments"]) == 1
        assert "files" not in record


def test_segments_open_where_the_layout_changes(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        first: dict[str, Any] = {"num_processes": 1, "versions": {"torch": "2"}}
        assert run.open_segment(0, first) == []
        assert run.open_segment(10, dict(first)) == []
        assert run.open_segment(20, {**first, "num_processes": 2}) == [("num_processes", 1, 2)]
        assert [segment["first_step"] for segment in run_json(tmp_path)["segments"]] == [0, 20]
        # Step 20 was lost with its checkpoint: the run goes on from 10 under the first layout.
        assert run.open_segment(10, first) == []
        assert [segment["first_step"] for segment in run_json(tmp_path)["segments"]] == [0]


def test_directories_that_are_not_ours_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RecipeError, match=r"output_dir: .*thesis\.tex"):
            RunDirectory(foreign, overwrite=overwrite)
    assert listing(foreign) == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="is a file"):
        RunDirectory(tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text('{"fast": true}')
    with pytest.raises(RecipeError, match=r"not the run\.json of an llmkit run"):
        RunDirectory(other, overwrite=True)


def test_what_may_stand_in_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / "prepared" / "abc").mkdir(parents=True)
    (tmp_path / ".lock").write_text("")
    (tmp_path / "slurm-1.out").write_text("")
    assert inspect(tmp_path).found == "absent"
    assert inspect(tmp_path / "missing").found == "absent"
    assert not (tmp_path / "missing").exists()


def test_overwrite_deletes_what_llmkit_made_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with started(path) as run:
        for name in ("checkpoints/step-00000010", "model", "evaluation", "diverged", "prepared/abc", "notes"):
            (path / name).mkdir(parents=True)
            (path / name / "file").write_text("x")
        for name in ("metrics.jsonl", "results.json", "report.html", "mine.txt"):
            (path / name).write_text("x")
        run.finish("completed", 0, "done")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (path / "model" / "link").symlink_to(outside)
    with RunDirectory(path, overwrite=True) as run:
        assert (run.found, run.record) == ("absent", {})
        assert listing(path) == [".lock", "mine.txt", "notes", "prepared"]
        assert (outside / "kept").exists()
        run.start(command="pretrain", recipe_yaml="", identity={}, data_fingerprint=None, sources={}, seed=2)
    assert inspect(path).found == "unfinished"


def test_a_deletion_that_was_killed_is_finished_and_never_taken_for_a_run(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        (tmp_path / "checkpoints").mkdir()
        run.update(status=rundir.DISCARDED)
    assert inspect(tmp_path).found == "absent"
    with RunDirectory(tmp_path) as run:
        assert run.found == "absent"
        assert listing(tmp_path) == [".lock"]


def test_a_broken_run_json_is_named(tmp_path: Path) -> None:
    started(tmp_path).release()
    (tmp_path / "run.json").write_text('{"status": "runn')
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        RunDirectory(tmp_path)


def test_changed_data_names_its_source(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.check_data("abc", {})
        with pytest.raises(DataError, match="content of books has changed"):
            run.check_data("abd", {"wiki": "111", "books": "333"})
        with pytest.raises(DataError, match="content of books has changed"):
            run.check_data("abd", {"wiki": "111"})
        with pytest.raises(DataError, match="prepared data has changed"):
            run.check_data("abd", {"wiki": "111", "books": "222"})
    with RunDirectory(tmp_path / "new") as run:
        run.check_data("abd", {"wiki": "1"})


def hold(path: str, pipe: Connection) -> None:
    with RunDirectory(Path(path), command="llmkit pretrain 秘.yaml"):
        pipe.send(os.getpid())
        pipe.recv()


def test_a_holder_that_was_killed_is_not_named_for_the_one_that_just_locked(tmp_path: Path) -> None:
    gone = SPAWN.Process(target=int)
    gone.start()
    gone.join()
    told = {"host": socket.gethostname(), "started_at": "now", "command": "llmkit"}
    lock = tmp_path / rundir.LOCK
    lock.write_text(json.dumps({**told, "pid": gone.pid}))
    with lock.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        threading.Timer(0.05, lock.write_text, [json.dumps({**told, "pid": os.getpid()})]).start()
        with pytest.raises(EnvironmentFailure, match=f"in use by process {os.getpid()} on "):
            RunDirectory(tmp_path)


def test_a_second_owner_is_refused_at_once_and_told_who_holds_it(tmp_path: Path) -> None:
    ours, theirs = SPAWN.Pipe()
    holder = SPAWN.Process(target=hold, args=(str(tmp_path), theirs))
    holder.start()
    try:
        pid = ours.recv()
        begun = time.monotonic()
        for _ in range(50):
            with pytest.raises(
                EnvironmentFailure, match=rf"in use by process {pid} on .* \(llmkit pretrain 秘\.yaml\)"
            ):
                RunDirectory(tmp_path)
        assert time.monotonic() - begun < 5
        os.kill(pid, signal.SIGKILL)
        holder.join()
        with RunDirectory(tmp_path) as run:  # a dead holder's lock is free
            assert run.found == "absent"
    finally:
        holder.kill()
        holder.join()


def race(path: str, start: float, pipe: Connection) -> None:
    time.sleep(max(0.0, start - time.time()))
    try:
        with RunDirectory(Path(path)):
            pipe.send("won")
            pipe.recv()
    except EnvironmentFailure:
        pipe.send("refused")


def test_of_two_that_start_together_one_wins(tmp_path: Path) -> None:
    pipes = [SPAWN.Pipe() for _ in range(4)]
    start = time.time() + 2.0
    racers = [SPAWN.Process(target=race, args=(str(tmp_path), start, theirs)) for _, theirs in pipes]
    for racer in racers:
        racer.start()
    said = [ours.recv() for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send("go home")
    for racer in racers:
        racer.join()
    assert sorted(said) == ["refused", "refused", "refused", "won"]


def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (go, tell_go), (ready, tell_ready) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell_ready, b"x")
        os.read(go, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        run.release()
        RunDirectory(tmp_path).release()
    finally:
        os.write(tell_go, b"x")
        os.waitpid(child, 0)
        for handle in (go, tell_go, ready, tell_ready):
            os.close(handle)


def test_a_directory_that_cannot_be_written_fails_before_anything(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="cannot write into"):
        rundir.probe_writable(Path("/proc/llmkit"))
    rundir.probe_writable(tmp_path / "a" / "b")
    assert listing(tmp_path / "a" / "b") == []


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def test_metrics_are_seen_at_once_and_have_no_nan(tmp_path: Path) -> None:
    log = metricslog.MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 2.5, "说": "好"})
    log.write({"step": 2, "loss": float("nan"), "nested": {"grad_norm": [float("inf"), 1.0]}})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"step": 1, "loss": 2.5, "说": "好"}',
        '{"step": 2, "loss": null, "nested": {"grad_norm": [null, 1.0]}}',
    ]
    log.sync()
    log.close()
    log.close()
    assert [event["step"] for event in metricslog.read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert metricslog.read(tmp_path / "none.jsonl") == []


def test_metrics_are_cut_back_to_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metricslog.cut_back(path, 5)
    assert not path.exists()
    path.write_text('{"step": 0}\n{"event": "note"}\n{"step": 5}\n{"step": 6}\n{"step": 7, "lo')
    metricslog.cut_back(path, 5)
    assert path.read_text() == '{"step": 0}\n{"event": "note"}\n{"step": 5}\n'
    path.write_text('{"step": 4}\n{"step": 5, "x{"step": 5}\n[1]\n')
    metricslog.cut_back(path, 5)
    assert path.read_text() == '{"step": 4}\n'
    metricslog.cut_back(path, -1)
    assert path.read_text() == ""
