"""`evaluation.fail_if`: conditions on metrics that turn a result into exit status 5. Torch-free; the recipe check
uses it.

A condition says when the command fails: `{perplexity: "> 40"}` fails above 40. A metric that is not a finite number
fails every condition: a broken evaluation must not pass a gate.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from llmkit.errors import RecipeError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CONDITION = re.compile(rf"\s*(<=|>=|<|>)\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Condition:
    metric: str
    operator: str
    limit: float

    def holds(self, value: float) -> bool:
        return not math.isfinite(value) or OPERATORS[self.operator](value, self.limit)

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.limit:g}"


def parse_condition(metric: str, text: str) -> Condition:
    """Reads `"< 0.8"`. Raises RecipeError naming the key."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise RecipeError(
            f'{text!r} is not a condition; expected an operator (< <= > >=) and a number, e.g. "< 0.8"',
            key=f"evaluation.fail_if.{metric}",
        )
    return Condition(metric, match[1], float(match[2]))


def parse_conditions(fail_if: Mapping[str, str], known: Collection[str]) -> list[Condition]:
    """All conditions of a recipe. `known`: the metrics that the evaluation will give. Raises RecipeError on another."""
    for metric in fail_if:
        if metric not in known:
            near = difflib.get_close_matches(metric, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"this task gives {', '.join(sorted(known))}"
            raise RecipeError(f"unknown metric; {hint}", key=f"evaluation.fail_if.{metric}")
    return [parse_condition(metric, text) for metric, text in fail_if.items()]


def failures(conditions: list[Condition], values: Mapping[str, float]) -> list[str]:
    """One line for each condition that holds, with the value and the limit."""
    return [
        f"{condition.metric} is {values[condition.metric]:.6g}, and the recipe fails {condition}"
        for condition in conditions
        if condition.holds(values[condition.metric])
    ]
