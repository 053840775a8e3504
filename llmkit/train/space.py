"""Whether the disk can take what a run will surely write, asked before any time is spent on it.

A lower bound on purpose: a run that would have fitted is never refused. Each save asks again with its real size.
"""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import EnvironmentFailure
from llmkit.files import free_bytes
from llmkit.recipe.sections import Recipe
from llmkit.train import checkpoint, tensorfile
from llmkit.train.build import Parts, checkpoint_tensors
from llmkit.train.optim import MOMENTS_AT_LEAST, trainable


def check_space(recipe: Recipe, parts: Parts, checkpoints: Path) -> None:
    """Raises EnvironmentFailure, naming the place and the bytes, where the checkpoints of this run cannot all be kept
    while the next one, or the model, is written. Those that are in `checkpoints` already count."""
    section, total_steps = recipe.checkpoint, parts.choices.total_steps
    assert recipe.training.optim is not None
    model_bytes = tensorfile.size_of(checkpoint_tensors(recipe, parts)["model"])
    moments = sum(p.numel() * p.element_size() for _, p in trainable(parts.module))
    each = model_bytes + MOMENTS_AT_LEAST[recipe.training.optim] * moments
    saves = -(-total_steps // section.save_steps) if section.save_steps else 1
    limit = section.save_total_limit or saves
    coming = max(min(limit + 1, saves) - len(checkpoint.published(checkpoints)), 1)
    need = coming * each + (model_bytes if saves <= limit else 0)  # else the model takes the room of an old one
    free = free_bytes(checkpoints)
    if need > free:
        raise EnvironmentFailure(
            f"not enough space on the disk for {coming} more checkpoint{'s' * (coming > 1)} of at least {each:,} bytes "
            f"and the model ({need:,} bytes needed, {free:,} bytes free); nothing was begun",
            file=str(checkpoints),
        )
