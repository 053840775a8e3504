"""`training.max_memory`: what a process may use, measured after every micro-batch on a CPU, enforced by torch on a GPU.

A CPU process is measured by its anonymous memory: pages of prepared data, which is mapped, belong to the system and go
when something else needs them. Freed memory stays with the process (`hardware.keep_freed_memory`), so what it holds
after a backward is what that backward took.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from llmkit.errors import EnvironmentFailure

SMALLER = (
    "a smaller data.max_length, training.gradient_checkpointing: true, training.optim: adafactor, or a smaller model "
    "needs less, and training.max_memory, where it is given, may be what is too small"
)


def limited(max_bytes: int | None, device: torch.device) -> Callable[[], None]:
    """A function that raises torch.OutOfMemoryError where this process uses more than `max_bytes` (None: no limit)."""
    if max_bytes is None:
        return lambda: None
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(max_bytes / whole, 1.0), device)
        return lambda: None  # the allocator raises it itself

    def check() -> None:
        used = used_bytes()
        if used > max_bytes:
            raise torch.OutOfMemoryError(f"{used:,} bytes in use, training.max_memory is {max_bytes:,}")

    return check


def used_bytes() -> int:
    """Anonymous and shared memory of this process. Raises EnvironmentFailure where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        message = "training.max_memory cannot be measured here: there is no /proc/self/status"
        raise EnvironmentFailure(message) from error
    return sum(1024 * int(status.split(f"{name}:")[1].split()[0]) for name in ("RssAnon", "RssShmem"))


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of this process. torch's CPU allocator has no exception type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def free(device: torch.device) -> None:
    """Gives back what the last attempt took, so that the next one is measured, and has room, by itself."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
