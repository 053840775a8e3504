"""Faults at the Nth system call: `os` functions wrapped so that one of them dies, fails or stops half way.

Only for a process of its own (a fork) or under `with`: the real functions come back at the end.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

CALLS = ("open", "mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir")
"""Everything in a save that changes the disk. `os.open` counts only where it creates."""


@dataclass
class Fault:
    """What happens at the `at`-th call (from 1) of those in `names`: `act(call, args)` runs instead of the call.

    seen: the calls so far, by name, for tests that need to know how many there are.
    """

    at: int
    act: Callable[[Callable[..., Any], tuple[Any, ...]], Any]
    names: tuple[str, ...] = CALLS
    seen: list[str] = field(default_factory=list)

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            self.seen.append(name)
            if len(self.seen) == self.at:
                return self.act(lambda *a: real(*a, **kwargs), args)
            return real(*args, **kwargs)

        return call


@contextmanager
def injected(fault: Fault) -> Iterator[Fault]:
    """`os` with the fault in it."""
    real = {name: getattr(os, name) for name in fault.names}
    for name, function in real.items():
        setattr(os, name, fault.wrap(name, function))
    try:
        yield fault
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def fails(errno_: int) -> Callable[[Callable[..., Any], tuple[Any, ...]], Any]:
    """The call raises OSError; a write has first written half of its bytes, as a disk that fills up does."""

    def act(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        _half(real, args)
        raise OSError(errno_, os.strerror(errno_))

    return act


def dies(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """kill -9 in the middle of the call."""
    _half(real, args)
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """kill -9 when the call has done its work, or failed at it."""
    try:
        real(*args)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _half(real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if len(args) == 2 and isinstance(args[0], int) and isinstance(args[1], bytes | memoryview):
        view = memoryview(args[1])
        real(args[0], view[: len(view) // 2])


FORK_SECONDS = 60.0


def in_fork(work: Callable[[], object]) -> int:
    """Runs `work` in a forked child; returns its wait status as `os.waitstatus_to_exitcode` gives it (-9: killed).

    The child computes with one thread: the pool that OpenMP has in the parent does not exist after a fork, and a
    parallel region would wait for it for ever. A child that hangs all the same is ended and fails its test.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must never come back into the test runner
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + FORK_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the forked child did not end within {FORK_SECONDS:.0f} s")
