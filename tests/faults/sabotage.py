"""Faults inside the program, for a forked child of its own: nothing is put back. Named by requests to the zygote."""

from __future__ import annotations

import importlib
import os
import threading
import time
from typing import Any

import torch

from llmkit.train import loop
from llmkit.train.feed import Feed, StepFeed


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


def hang(step: int) -> None:
    """The main thread stops for good before the step after `step` completed ones."""
    take = Feed.take

    def slow(self: Feed, number: int) -> StepFeed:
        if number == step:
            time.sleep(3600)
        return take(self, number)

    Feed.take = slow  # type: ignore[method-assign]


def small_memory(rows: int) -> None:
    """A micro-batch of more than `rows` sequences does not fit, found after a part of its work."""
    backward = loop._backward

    def limited(run: Any, state: Any, feed: StepFeed, counts: Any, scale: float) -> torch.Tensor:
        sums = backward(run, state, feed, counts, scale)
        if max(len(micro.batch["input_ids"]) for micro in feed.micro_batches) > rows:
            raise torch.OutOfMemoryError("made up")
        return sums

    loop._backward = limited


def poison(first: int, last: int) -> None:
    """The loss of this rank is not a number in the steps after `first` to `last` completed ones."""
    backward = loop._backward

    def poisoned(run: Any, state: Any, feed: StepFeed, counts: Any, scale: float) -> torch.Tensor:
        return backward(run, state, feed, counts, scale) * (float("nan") if first <= state.step <= last else 1.0)

    loop._backward = poisoned


def spike(step: int) -> None:
    """The data of that step has a loss thirty times as high, whenever in the run it is shown."""
    make, backward = Feed.make, loop._backward
    high: list[StepFeed] = []

    def made(self: Feed, number: int) -> StepFeed:
        feed = make(self, number)
        if number == step:
            high.append(feed)
        return feed

    def raised(run: Any, state: Any, feed: StepFeed, counts: Any, scale: float) -> torch.Tensor:
        return backward(run, state, feed, counts, scale) * (30.0 if any(feed is one for one in high) else 1.0)

    Feed.make = made  # type: ignore[method-assign]
    loop._backward = raised
