"""Faults inside the program, for a forked child of its own: nothing is put back. Named by requests to the zygote."""

from __future__ import annotations

import importlib
import os
import threading
import time
from typing import Any


def signals_itself(place: str, at: int, *signums: int) -> None:
    """The `at`-th call (from 1) of the function `module:name` begins with these signals, a moment apart."""
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    real, calls = getattr(owner, name), 0

    def send() -> None:
        for signum in signums:
            os.kill(os.getpid(), signum)
            time.sleep(0.002)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            sender = threading.Thread(target=send)  # a second one has to come while the first is being seen to
            sender.start()
            sender.join()
        return real(*args, **kwargs)

    setattr(owner, name, call)


def clock(seconds: int) -> None:
    """The wall clock is off by so much."""
    now, broken_down = time.time, time.gmtime
    time.time = lambda: now() + seconds
    time.gmtime = lambda at=None: broken_down(time.time() if at is None else at)
    time.time_ns = lambda: int(time.time() * 1e9)
