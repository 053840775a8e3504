"""Recipes that count instead of training: `model.config: {model_type: ngram}`. What such a run would ignore is refused.

Nothing steps, so that `training` and `checkpoint` have nothing to say, nor has anything that shapes a network.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from llmkit.recipe.rules import Problem
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import CausalLM

NGRAM = "ngram"
WHY = "an n-gram model is counted, in one pass and without steps, and would ignore it"
ALL: tuple[str, ...] = ()


def counts(recipe: Recipe) -> bool:
    """Whether the recipe's model is counted."""
    return recipe.model.config is not None and recipe.model.config.get("model_type") == NGRAM


def problems(recipe: Recipe) -> Iterator[Problem]:
    """What an n-gram model would ignore, key by key."""
    if recipe.evaluation.interpolate is not None and not isinstance(recipe.task, CausalLM):
        yield Problem("evaluation.interpolate", f"mixes language models, and the task {recipe.task.type} trains none")
    if not counts(recipe):
        return
    if not isinstance(recipe.task, CausalLM):
        message = f"an n-gram model goes with task.type: causal_lm, not with {recipe.task.type}"
        yield Problem("model.config.model_type", message)
        return
    ignored: list[tuple[str, BaseModel, tuple[str, ...]]] = [
        ("training", recipe.training, ALL),
        ("checkpoint", recipe.checkpoint, ALL),
        ("distributed", recipe.distributed, ALL),
        ("logging", recipe.logging, ALL),
        ("model", recipe.model, ("dropout", "attn_implementation")),
        ("data", recipe.data, ("packing",)),
        ("evaluation", recipe.evaluation, ("eval_steps", "metric_for_best_model")),
    ]
    for prefix, section, names in ignored:
        for name in names or type(section).model_fields:
            if name in section.model_fields_set and getattr(section, name) not in (None, "auto", []):
                yield Problem(f"{prefix}.{name}", WHY)
    if recipe.task.fim_rate > 0:
        yield Problem("task.fim_rate", WHY)
