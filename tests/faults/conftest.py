"""Where the faults happen, the run that they happen to, and the table of how it went."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.table import FaultTable
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


@pytest.fixture
def fault_table(request: pytest.FixtureRequest) -> FaultTable:
    """Takes what a test did into the table: `fault_table.record("kill -9 at random", tries=200, survived=200)`."""
    return FaultTable(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table of the tests that ran here."""
    here = Path(__file__).parent.name
    reports = [report for kind in ("passed", "failed", "error") for report in terminalreporter.getreports(kind)]
    shown = table.lines(report for report in reports if f"{here}/" in report.nodeid)
    if shown:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(shown))
