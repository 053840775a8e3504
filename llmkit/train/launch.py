"""`--num-processes`: N child processes of this program, and this process's place in a launch made by anybody.

Children are `python -m llmkit` with the environment that torchrun would give them, in a session of their own so that a
terminal's Ctrl-C reaches them once, through us. They die with us (PR_SET_PDEATHSIG), we end them all when one dies, and
what ended the first of them is told once, by us (`handover`), and decides the exit status.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit import handover
from llmkit.errors import EnvironmentFailure
from llmkit.signals import STOPPING

_PARENT = "LLMKIT_PARENT_PID"
_PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 30.0
"""How long the others may take to end after a signal: they save."""
KILLED_SECONDS = 2.0
"""And after one was killed, which none of the others can have been told."""
OWN_END_SECONDS = 5.0
"""And after one of them has failed: they have met the same, or been told of it (`peers`)."""


@dataclass(frozen=True)
class Place:
    """Where this process stands in its launch."""

    rank: int
    world_size: int
    ours: bool
    """Started by `--num-processes`, not by torchrun, accelerate or srun."""


def place() -> Place:
    """Reads the launcher's environment; torchrun and accelerate set RANK, srun SLURM_PROCID where we are told so."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return Place(int(os.environ.get("RANK", "0")), world_size, _PARENT in os.environ)


def die_with_parent() -> None:
    """In a child of ours: be killed when the parent is, even by SIGKILL."""
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(EnvironmentFailure.status)


def launch(
    arguments: Sequence[str],
    num_processes: int,
    note: Callable[[str], None],
    program: Sequence[str] = (sys.executable, "-m", "llmkit"),
) -> int:
    """Runs `python -m llmkit ARGUMENTS` as `num_processes` ranks and returns the exit status of the whole.

    Raises EnvironmentFailure naming the rank when one dies of a signal that nobody sent through us, and LlmkitError
    with the message and status of the rank that failed first.
    """
    with tempfile.TemporaryDirectory(prefix="llmkit-launch-") as left:
        code = _run_ranks(arguments, num_processes, note, program, left)
        told = handover.earliest(Path(left)) if code else None
    if told is not None:
        raise told
    return code


def _run_ranks(
    arguments: Sequence[str], num_processes: int, note: Callable[[str], None], program: Sequence[str], left: str
) -> int:
    port = _free_port()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(cores // num_processes, 1)))
    children = []
    for rank in range(num_processes):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": threads,
            _PARENT: str(os.getpid()),
            handover.DIRECTORY: left,
        }
        command = [*program, *arguments]
        children.append(subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL))
    return _wait(children, note)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(children: list[subprocess.Popen[bytes]], note: Callable[[str], None]) -> int:
    forwarded: list[int] = []

    def forward(signum: int, frame: object) -> None:
        forwarded.append(signum)
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    old = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        while any(child.poll() is None for child in children):
            codes = [child.poll() for child in children]
            failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            failed.sort(key=lambda rank: codes[rank] or 0)  # a killed one first: the others failed of its loss
            if failed:
                return _end_all(children, failed[0], bool(forwarded), note)
            time.sleep(0.05)
        return _verdict(children, None, bool(forwarded))
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
        for number, handler in old.items():
            signal.signal(number, handler)


def _end_all(children: list[subprocess.Popen[bytes]], first: int, forwarded: bool, note: Callable[[str], None]) -> int:
    """One has failed; the others would wait for it in a collective. They get a moment to end by themselves."""
    killed = (children[first].returncode or 0) < 0
    deadline = time.monotonic() + (GRACE_SECONDS if forwarded else KILLED_SECONDS if killed else OWN_END_SECONDS)
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(0.05)
    for rank, child in enumerate(children):
        if child.poll() is None:
            note(f"ending rank {rank}: rank {first} has ended with status {children[first].returncode}")
            child.kill()
            child.wait()
    return _verdict(children, first, forwarded)


def _verdict(children: list[subprocess.Popen[bytes]], first: int | None, forwarded: bool) -> int:
    codes = [child.returncode for child in children]
    if first is None:
        return max(codes)
    code = codes[first]
    if code < 0 and not forwarded:
        name = signal.Signals(-code).name
        raise EnvironmentFailure(
            f"rank {first} of {len(codes)} was killed by {name}; all ranks were ended. "
            "Run the same command again to go on from the last checkpoint"
        )
    return code if code > 0 else 128 - code
