from __future__ import annotations

import math
import subprocess
import sys

from llmkit.metrics.table import METRICS, TASK_METRICS
from llmkit.recipe.tasks import COMMAND_OF_TASK


def test_every_task_has_known_metrics() -> None:
    assert set(TASK_METRICS) == set(COMMAND_OF_TASK)
    for names in TASK_METRICS.values():
        assert names
        assert set(names) <= set(METRICS)


def test_directions() -> None:
    assert METRICS["loss"].improves(1.0, 2.0)
    assert not METRICS["loss"].improves(2.0, 2.0)
    assert METRICS["token_accuracy"].improves(0.9, 0.8)
    assert not METRICS["token_accuracy"].improves(0.8, 0.9)
    assert METRICS["loss"].improves(9.0, None)
    assert not METRICS["loss"].improves(math.nan, 5.0)
    assert not METRICS["loss"].improves(math.nan, None)


def test_tables_need_no_torch() -> None:
    """The recipe's checks import these; a bad recipe must fail before torch is loaded."""
    code = (
        "import sys, llmkit.metrics.table, llmkit.evaluate.conditions, llmkit.generate.settings; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
