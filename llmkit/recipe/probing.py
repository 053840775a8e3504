"""Recipes of a probe (`model.probe`): a linear model fitted on frozen features. What a run would ignore is refused.

Nothing steps, so that `training` and `checkpoint` have nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.recipe.rules import Problem
from llmkit.recipe.sections import Recipe

WHY = "a probe is fitted on frozen features, without steps, and would ignore it"


def probes(recipe: Recipe) -> bool:
    """Whether the recipe's model is a probe."""
    return recipe.model.probe is not None


def problems(recipe: Recipe) -> Iterator[Problem]:
    """What does not go with a probe."""
    if not probes(recipe):
        return
    if recipe.task.type != "sequence_classification":
        yield Problem("model.probe", f"a probe goes with task.type: sequence_classification, not {recipe.task.type}")
    if recipe.model.freeze is not None:
        yield Problem("model.freeze", WHY)
    if recipe.model.dropout is not None:
        yield Problem("model.dropout", WHY)
    if recipe.peft is not None:
        yield Problem("peft", WHY)
    for prefix, section in (("training", recipe.training), ("checkpoint", recipe.checkpoint)):
        for name in section.model_fields_set:
            if getattr(section, name) not in (None, "auto"):
                yield Problem(f"{prefix}.{name}", WHY)
    for name in ("eval_steps", "metric_for_best_model"):
        if getattr(recipe.evaluation, name) is not None:
            yield Problem(f"evaluation.{name}", WHY)
