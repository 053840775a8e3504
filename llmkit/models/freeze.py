"""Freezing by name pattern: which parameters of a network are not trained."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from torch import nn

from llmkit.errors import RecipeError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Takes the gradient from every parameter whose name a shell pattern matches (`*.embeddings.*`, `*layers.0.*`).

    Tied weights have several names and are frozen by any of them. Raises RecipeError for a pattern that matches
    nothing, and where nothing is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for number, pattern in enumerate(patterns):
        hits = fnmatch.filter(parameters, pattern)
        if not hits:
            parts = {name.rsplit(".", depth)[0] for name in parameters for depth in range(name.count(".") + 1)}
            near = difflib.get_close_matches(pattern.strip("*."), sorted(parts), 3, cutoff=0.3)
            hint = f"nearest: {', '.join(near)}" if near else f"the first is {next(iter(parameters))}"
            message = f"{pattern!r} matches no parameter; patterns cover whole names ({hint})"
            raise RecipeError(message, key=f"model.freeze.{number}")
        for name in hits:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RecipeError("everything is frozen, nothing is left to train", key="model.freeze")
