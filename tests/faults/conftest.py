"""Where the faults happen, and the run that they happen to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.tiny import TinyRun
from tests.faults.zygote import Zygote


@contextmanager
def memory() -> Iterator[Path]:
    """A directory in memory where the machine has one: thousands of fsyncs would take minutes on a disk."""
    path = Path(tempfile.mkdtemp(prefix="llmkit-faults-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def ram() -> Iterator[Path]:
    with memory() as path:
        yield path


@pytest.fixture(scope="session")
def tiny_run() -> Iterator[TinyRun]:
    """A recipe whose data is prepared, and what its run comes to when nothing happens."""
    with memory() as path, Zygote() as zygote:
        yield TinyRun.prepare(path, zygote)
