"""Metrics of tasks whose predictions are sums: joined a row, added up over rows, with intervals over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmkit.metrics.bootstrap import Floats, sums_interval
from llmkit.tasks.base import Metric, Prediction

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class RowSums:
    """rows (R,) ascending; columns: sums of each name a row, (R,) each."""

    rows: np.ndarray
    columns: dict[str, np.ndarray]

    def metric(self, names: Sequence[str], statistic: Callable[[Floats], Floats], *, bootstrap: bool) -> Metric:
        """`statistic` of the sums (K, n) of the named columns over rows; NaN where it is undefined."""
        table = np.stack([self.columns[name] for name in names])
        if bootstrap:
            return Metric(*sums_interval(table, statistic, seed=BOOTSTRAP_SEED), n=len(self.rows))
        return Metric(float(statistic(table.sum(axis=1, keepdims=True))[0]), n=len(self.rows))


def join_rows(predictions: Sequence[Prediction], names: Sequence[str]) -> RowSums:
    """The predictions' values of these names, added up a row; exact (math.fsum), so batches do not show."""
    parts: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        parts.setdefault(prediction.row, []).append(prediction)
    rows = sorted(parts)
    columns = {name: np.array([math.fsum(p.values[name] for p in parts[row]) for row in rows]) for name in names}
    return RowSums(np.array(rows, dtype=np.int64), columns)


def divide(numerators: Floats, denominators: Floats) -> Floats:
    """Element by element; NaN where nothing counts."""
    return numerators / np.where(denominators > 0, denominators, np.nan)
