"""What the recipe's schema names and this version does not do yet. Refused when set, never ignored.

A capability that arrives deletes its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.recipe.rules import Problem
from llmkit.recipe.sections import Recipe

NAMES = frozenset(
    {
        "minhash_dedup",
        "redact_pii",
        "quality",
        "decontaminate",
    }
)
"""Cleaning steps to come."""


@dataclass(frozen=True)
class Later:
    """`wanted(value)` tells the values that are not available; None of them is the key's default."""

    key: str
    wanted: Callable[[Any], bool] = bool
    instead: str = ""


def _in(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


LATER = (
    Later("distributed.strategy", _in("fsdp", "hybrid"), "ddp is"),
    Later("evaluation.suites"),
)


def refusals(recipe: Recipe) -> Iterator[Problem]:
    for row in LATER:
        value: Any = recipe
        for part in row.key.split("."):
            value = getattr(value, part) if value is not None else None
        if row.wanted(value):
            yield Problem(row.key, not_available(value, row.instead))


def not_available(value: Any, instead: str = "") -> str:
    what = f"{value} is" if isinstance(value, str) else "this is"
    return f"{what} not available in this version{f'; {instead}' if instead else ''}"
