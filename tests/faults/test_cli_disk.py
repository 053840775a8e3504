"""The whole program on disks that are full, limited or read-only: one message, status 6, no half-written files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.files import read_json
from llmkit.train import checkpoint
from tests.faults.mounts import NOT_PERMITTED
from tests.faults.tiny import TinyRun
from tests.faults.zygote import ROOT


def assert_told(log: Path, *parts: str) -> None:
    """One message, with these parts; no traceback."""
    text = log.read_text()
    assert "Traceback" not in text
    last = text.rstrip().splitlines()[-1]
    for part in parts:
        assert part in last, text


def test_a_save_that_fails_ends_with_6_and_the_run_goes_on_later(tiny_run: TinyRun) -> None:
    run = tiny_run.directory / "limited"
    pid = tiny_run.start(run, until=lambda run: checkpoint.published(run / "checkpoints"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, 100_000))  # less than the weights take
    assert tiny_run.zygote.wait(pid) == 6, tiny_run.log(run).read_text()
    assert_told(tiny_run.log(run), str(run), "File too large", "bytes needed", "bytes free")
    record = read_json(run / "run.json")
    assert (record["status"], record["exit_code"]) == ("failed", 6)
    assert not list((run / "checkpoints").glob(".*"))
    for path in checkpoint.published(run / "checkpoints"):
        checkpoint.verify(path)
    tiny_run.finish(run)


def test_a_disk_too_small_for_a_checkpoint(tiny_run: TinyRun) -> None:
    run = tiny_run.directory / "small"
    run.mkdir()
    status = tiny_run.zygote.run(tiny_run.command(run), tiny_run.log(run), mount={"place": str(run), "size": 1 << 20})
    if status == NOT_PERMITTED:
        pytest.skip("this machine does not let us mount a tmpfs in a namespace of our own")
    assert status == 6, tiny_run.log(run).read_text()
    assert_told(tiny_run.log(run), str(run), "space", "bytes free")


def test_a_read_only_place(tiny_run: TinyRun) -> None:
    run = tiny_run.directory / "readonly"
    run.mkdir()
    mount = {"place": str(run), "size": 1 << 20, "read_only": True}
    status = tiny_run.zygote.run(tiny_run.command(run), tiny_run.log(run), mount=mount)
    if status == NOT_PERMITTED:
        pytest.skip("this machine does not let us mount a tmpfs in a namespace of our own")
    assert status == 6, tiny_run.log(run).read_text()
    assert_told(tiny_run.log(run), str(run), "Read-only file system")
    assert len(tiny_run.log(run).read_text().splitlines()) == 1  # nothing was begun before


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("injection", "status"),
    [("fsync:signal=SIGKILL:when=20", -9), ("fsync:error=EIO:when=20", 6), ("fsync:error=ENOSPC:when=33+", 6)],
)
def test_the_real_program_under_strace(tiny_run: TinyRun, injection: str, status: int) -> None:
    """A real start, nothing of ours in it: the kernel's answer is what is changed."""
    run = tiny_run.directory / f"strace{status}-{injection[-3:-1]}"
    tracing = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", f"inject={injection}"]
    program = [sys.executable, "-m", "llmkit", *tiny_run.command(run)]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the zygote's children have: the bits depend on their number
    ended = subprocess.run([*tracing, *program], cwd=ROOT, env=threads, capture_output=True, text=True, check=False)
    assert ended.returncode in (status, 128 - status), ended.stderr
    assert "Traceback" not in ended.stderr
    tiny_run.finish(run)
