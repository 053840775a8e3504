"""A loss or gradient that is not finite, on one rank of two: all skip together, the optimiser untouched to the bit."""

import json
import sys
from pathlib import Path

from llmkit.train.launch import launch
from tests.faults.table import FaultTable


def test_sixty_of_sixty(tmp_path: Path, fault_table: FaultTable) -> None:
    """NaN, Inf, -Inf x loss, gradient x either rank x five steps; and the stop after k in a row."""
    target = tmp_path / "told"
    assert launch([str(target)], 2, print, (sys.executable, "-m", "tests.faults.nonfinite_script")) == 0
    for rank in (0, 1):
        *cases, last = json.loads(target.with_name(f"told.{rank}").read_text())
        assert len(cases) == 60
        for number, told in enumerate(cases):
            assert all(told.values()), (rank, number, told)
        assert last["diverges"]
    fault_table.record("a loss or gradient not finite, on one rank of two", 60, 60)
