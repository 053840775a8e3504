"""The one table at the end of `make test-faults`: fault, tries, survived, lost.

A test takes the fixture `fault_table` and says how many times it did something and how often all was well after;
several tests may add to the same row. What they say travels in the reports, so that it survives pytest-xdist too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

PROPERTY = "fault"


@dataclass
class FaultTable:
    """One test's part of the table. `properties` are the test's `user_properties`."""

    properties: list[tuple[str, Any]] = field(default_factory=list)

    def record(self, fault: str, tries: int, survived: int) -> None:
        """Adds `tries` of `fault` (the row's name, as a reader should see it), of which `survived` lost nothing.

        Call it before the assertion that would end the test, so that what was lost is in the table too; or after the
        last one with `survived=tries`: a test that failed without a record stands in the table as one try lost.
        """
        assert 0 <= survived <= tries
        self.properties.append((PROPERTY, [fault, tries, survived]))


def lines(reports: Iterable[pytest.TestReport]) -> list[str]:
    """The table of all that the tests recorded, rows in the order of their first record; empty where nothing was."""
    rows: dict[str, list[int]] = {}
    for report in reports:
        recorded = [value for name, value in report.user_properties if name == PROPERTY and report.when == "call"]
        if report.failed and not any(survived < tries for _, tries, survived in recorded):
            recorded.append([report.nodeid.rpartition("/")[2], 1, 0])
        for fault, tries, survived in recorded:
            row = rows.setdefault(fault, [0, 0])
            row[0] += tries
            row[1] += survived
    if not rows:
        return []
    width = max(map(len, rows))
    head = f"{'fault':<{width}}  {'tries':>7}  {'survived':>8}  {'lost':>5}"
    body = [f"{fault:<{width}}  {tries:>7,}  {ok:>8,}  {tries - ok:>5,}" for fault, (tries, ok) in rows.items()]
    return [head, *body]
