"""Saving beside training: the tensors are copied to host memory, training goes on, a thread writes the copy.

What a save costs a step is that copy, and the wait for the save before where it is not done yet. The thread spends its
time in hashing, writing and syncing, all of which let go of Python's lock. One snapshot at a time, its memory kept for
the next one. A save that failed says so at the next call; older checkpoints are as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
import torch

from llmkit.train import tensorfile

Tensors = dict[str, dict[str, torch.Tensor]]
"""File stem -> name -> tensor, as `checkpoint.save` takes them."""


class Saver:
    """Writes snapshots, one at a time.

    saves, stall_seconds, write_seconds: how many were begun, how long training stood for them altogether, and how long
    writing took beside it.
    """

    def __init__(self) -> None:
        self.saves = 0
        self.stall_seconds = 0.0
        self.write_seconds = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._writing: Future[None] | None = None
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def save(self, tensors: Tensors, write: Callable[[Tensors], object]) -> float:
        """Has `write` called with what the tensors are now; returns the seconds that the caller had to wait.

        Where the machine has no memory left for a copy, `write` gets the tensors themselves and is waited for.
        Raises what the save before ended with.
        """
        started = time.perf_counter()
        self.wait()
        fits = bool(self._buffers) or size_of(tensors) < psutil.virtual_memory().available // 2
        snapshot = self._copy(tensors) if fits else tensors
        self._writing = self._pool.submit(self._write, write, snapshot)
        if not fits:
            self.wait()
        stall = time.perf_counter() - started
        self.saves += 1
        self.stall_seconds += stall
        return stall

    def check(self) -> None:
        """Raises what the last save ended with, if it has ended and failed."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises what the last save ended with, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Until nothing is being written, whatever came of it: for the way out of a run that has failed anyhow."""
        self._pool.shutdown(wait=True)

    def told(self) -> dict[str, float]:
        """What saving has cost so far, for run.json."""
        return {
            "saves": self.saves,
            "stall_seconds": round(self.stall_seconds, 4),
            "write_seconds": round(self.write_seconds, 4),
        }

    def _write(self, write: Callable[[Tensors], object], snapshot: Tensors) -> None:
        started = time.perf_counter()
        write(snapshot)
        self.write_seconds += time.perf_counter() - started

    def _copy(self, tensors: Tensors) -> Tensors:
        """The tensors in host memory of our own; those that are the same memory are the same here too."""
        copies: Tensors = {}
        on_device = False
        with torch.no_grad():
            for stem, part in tensors.items():
                kept, aliases = tensorfile.without_aliases(part)
                for name, tensor in kept.items():
                    on_device |= tensor.device.type != "cpu"
                    self._buffer(stem, name, tensor).copy_(tensor, non_blocking=True)
                copies[stem] = {name: self._buffers[stem, aliases.get(name, name)] for name in part}
        if on_device:
            torch.accelerator.synchronize()
        return copies

    def _buffer(self, stem: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get((stem, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[stem, name] = buffer
        return buffer


def size_of(tensors: Tensors) -> int:
    """Bytes of a checkpoint of these tensors, within a few hundred a tensor."""
    return sum(tensorfile.size_of(part) for part in tensors.values())
