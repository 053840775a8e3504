"""What a run ran on, for run.json: versions of the libraries that decide its bits, and the hardware. Torch-free."""

from __future__ import annotations

import os
import platform
import socket
import sys
from importlib import metadata
from typing import Any

LIBRARIES = (
    "llmkit",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "numpy",
    "pyarrow",
    "gigatoken",
)


def versions() -> dict[str, str]:
    """Name -> version of Python and of each library that is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(accelerators: list[str] | None = None) -> dict[str, Any]:
    """Host, processor, usable cores, bytes of memory; `accelerators`: names of devices, from whoever imported torch."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": accelerators or [],
        "byte_order": sys.byteorder,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
