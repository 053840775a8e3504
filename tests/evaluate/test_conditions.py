from __future__ import annotations

import math

import pytest

from llmkit.errors import RecipeError
from llmkit.evaluate.conditions import Condition, failures, parse_condition, parse_conditions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("< 0.8", Condition("m", "<", 0.8)),
        (">=40", Condition("m", ">=", 40.0)),
        ("  <= -1.5e-3 ", Condition("m", "<=", -0.0015)),
        (">.5", Condition("m", ">", 0.5)),
    ],
)
def test_parses(text: str, expected: Condition) -> None:
    assert parse_condition("m", text) == expected


@pytest.mark.parametrize(
    "text", ["", "0.8", "= 3", "< ", "< abc", "< 1 2", "=> 3", "< nan", "< 1,5", "<> 2", "< 0.8 or > 1"]
)
def test_refuses(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_condition("accuracy", text)
    assert caught.value.key == "evaluation.fail_if.accuracy"
    assert "expected an operator" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "below", "at", "above"),
    [
        ("< 2", True, False, False),
        ("<= 2", True, True, False),
        ("> 2", False, False, True),
        (">= 2", False, True, True),
    ],
)
def test_boundaries(text: str, below: bool, at: bool, above: bool) -> None:
    condition = parse_condition("m", text)
    assert [condition.holds(value) for value in (1.9, 2.0, 2.1)] == [below, at, above]


def test_a_number_that_is_none_fails_every_gate() -> None:
    assert all(parse_condition("m", text).holds(value) for text in ("< 1", "> 1") for value in (math.nan, math.inf))


def test_unknown_metric_suggests() -> None:
    with pytest.raises(RecipeError, match="did you mean perplexity") as caught:
        parse_conditions({"perplexty": "> 40"}, ("loss", "perplexity"))
    assert caught.value.key == "evaluation.fail_if.perplexty"


def test_failures_name_value_and_limit() -> None:
    conditions = parse_conditions({"loss": "> 3", "perplexity": "> 40"}, ("loss", "perplexity"))
    assert failures(conditions, {"loss": 2.0, "perplexity": 41.25}) == [
        "perplexity is 41.25, and the recipe fails perplexity > 40"
    ]
