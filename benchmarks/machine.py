"""The machine under a benchmark: what it is, which versions run on it, and how much memory a process tree holds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "trl", "gigatoken")


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in bytes."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "memory_bytes": psutil.virtual_memory().total, "system": platform.platform()}


def versions(checkout: Path) -> dict[str, str]:
    """Python, the packages that matter here and are installed, and llmkit's commit where git knows it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True
        )
    except OSError:
        return found
    return found | {"llmkit": described.stdout.strip()} if described.returncode == 0 else found


class PeakMemory:
    """The most resident memory of a process and its children together, looked at every tenth of a second.

    A sum of the most that each living one has held so far (as Linux knows it): it is never told too low.
    """

    INTERVAL = 0.1

    def __init__(self, pid: int):
        self.peak_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.INTERVAL):
            self.peak_bytes = max(self.peak_bytes, self._resident())

    def _resident(self) -> int:
        total = 0
        try:
            root = psutil.Process(self._pid)
            members = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0
        for member in members:
            try:
                total += _most_resident(member)
            except psutil.Error:
                continue
        return total


def _most_resident(member: psutil.Process) -> int:
    """Bytes. Raises psutil.Error where it has ended."""
    try:
        status = Path(f"/proc/{member.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else int(member.memory_info().rss)
