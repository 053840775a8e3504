"""Says when validation turns up while training goes on falling: read off the events of metrics.jsonl, so that the
training view and the report tell the same, and a resumed run goes on where it was."""

from __future__ import annotations

import math
from typing import Any

from llmkit.report.text import finite, number

RISES = 2
"""Evaluations in a row whose loss rose: one alone is noise."""


class OverfitWatch:
    """Give it every event in order; it says each episode once. An episode ends with a new best validation loss."""

    def __init__(self) -> None:
        self._pending: list[float] = []
        self._best = math.inf
        self._last = math.inf
        self._turn: tuple[float, float | None] = (math.inf, None)
        self._rises = 0
        self._told = False

    def take(self, event: dict[str, Any]) -> str | None:
        """What to tell people after this event, if anything."""
        loss = finite(event.get("loss"))
        if loss is None:
            return None
        if event.get("split", "train") == "train":
            self._pending.append(loss)
            return None
        train = math.fsum(self._pending) / len(self._pending) if self._pending else None
        self._pending = []
        if loss > self._last:
            self._rises += 1
        else:
            self._rises, self._turn = 0, (loss, train)
        self._told = self._told and loss >= self._best
        self._best, self._last = min(self._best, loss), loss
        low, before = self._turn
        if self._rises < RISES or self._told or train is None or before is None or train >= before:
            return None
        self._told = True
        return (
            f"step {event.get('step')}: validation loss has risen for {self._rises} evaluations ({number(low)} to "
            f"{number(loss)}) while the training loss fell ({number(before)} to {number(train)}): the model is "
            "overfitting; early stopping (training.early_stopping_patience), more data, dropout, weight decay or "
            "data.augment work against it"
        )
