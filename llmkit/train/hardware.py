"""What the machine can do: allocator, matrix rate, micro-batch and compilation chosen by fixed rules.

Every automatic choice is a function of the recipe and the machine, never of a timing, so that a run that is started
twice is the same run; `run.json` records it and a resume keeps it.
"""

from __future__ import annotations

import ctypes
import platform
import resource
import shutil
import time
from pathlib import Path

import torch
from torch import nn

from llmkit.models.linear import multiply

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1

CPU_MICRO_BATCH_TOKENS = 4096
"""Beyond this a larger micro-batch is no faster on a CPU: its matrices fill the caches and both cores."""
CPU_MICRO_BATCH_LOGITS = 2**26
"""As many float32 logits take 256 MiB."""
MICRO_BATCH_COST = {"cpu": (64, 1e9), "accelerator": (1024, 2.5e12)}
"""What a micro-batch costs beside its tokens: as many tokens (small matrices, adding up its gradients), and as many
floating-point operations (calls and launches: 5 ms). Measured on a CPU, reckoned for the others."""
RECURRENT_ROWS = 64
"""What a time step of a recurrent network costs beside its rows, in rows."""
COMPILE_PAYS_AFTER = {"cpu": 2e13, "cuda": 5e16}
"""Floating-point operations of a run (a core's share on a CPU) from which compiling costs less than it saves: five to
ten minutes of training."""


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks: a step frees and takes the same large tensors, and page faults on fresh pages
    cost a CPU step 10 to 30% of its time. Does nothing with other allocators."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def add_up_in_order(device: torch.device) -> None:
    """Before a module is compiled for a CPU: the compiler would add up an embedding's gradients by atomic additions, in
    any order, and no two runs would be equal to the bit. Costs nothing that could be measured."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product at its best: the limit that training is measured against.

    Of random numbers: a GPU multiplies ones and zeros faster, for they take less power.
    """
    size, repeats = (1024, 12) if device.type == "cpu" else (8192, 10)
    draw = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, generator=draw, device=device).to(dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(2 * size**3 / min(times))


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:  # ru_maxrss begins with the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_recurrent(module: nn.Module) -> bool:
    return any(isinstance(part, nn.RNNBase | nn.RNNCellBase) for part in module.modules())


def choose_compile(asked: bool | str | None, *, operations: float, packed: bool, device_type: str) -> bool:
    """`auto` compiles where every batch has one shape, a compiler is there, and the run is long enough to earn the
    compile time back."""
    if asked != "auto":
        return bool(asked)
    if not packed:
        return False
    if device_type == "cuda":
        return operations > COMPILE_PAYS_AFTER["cuda"]
    compiler = shutil.which("g++") or shutil.which("clang++")
    return compiler is not None and operations > COMPILE_PAYS_AFTER["cpu"] * torch.get_num_threads()


def micro_batch_cost(device_type: str, num_parameters: int) -> int:
    """Tokens that would take as long as what a micro-batch costs beside its own."""
    tokens, operations = MICRO_BATCH_COST["cpu" if device_type == "cpu" else "accelerator"]
    return int(tokens + operations / (6.0 * num_parameters))


def choose_micro_batch(*, samples_per_rank: int, max_length: int, vocabulary: int = 0) -> int:
    """Samples of a process's micro-batch on a CPU, where memory is not what limits it and all have one length.

    vocabulary: logits a token. Where they are many, they are what fills the memory, and fewer tokens at once train as
    fast."""
    tokens = min(CPU_MICRO_BATCH_TOKENS, CPU_MICRO_BATCH_LOGITS // max(vocabulary, 1))
    limit = max(tokens // max_length, 1)
    return max(size for size in range(1, samples_per_rank + 1) if samples_per_rank % size == 0 and size <= limit)
