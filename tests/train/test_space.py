"""A disk that cannot take the run's checkpoints is refused before training, one that can never is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmkit.errors import EnvironmentFailure
from llmkit.recipe.sections import CheckpointSection, TrainingSection
from llmkit.train import checkpoint, optim, space
from llmkit.train.build import checkpoint_tensors
from llmkit.train.saver import size_of

SIZE = 100
BYTES = 4 * (SIZE * SIZE + SIZE)
"""Of the model; AdamW's checkpoint has three times that."""


def world(save_steps: int | None, limit: int | None, steps: int = 100, name: str = "adamw") -> tuple:
    training = TrainingSection(optim=name, learning_rate=1e-3, weight_decay=0.0)
    module = nn.Linear(SIZE, SIZE)
    recipe = SimpleNamespace(
        checkpoint=CheckpointSection(save_steps=save_steps, save_total_limit=limit),
        training=training,
        model=SimpleNamespace(config={}),
    )
    optimizers = optim.build_optimizers(module, training)
    return recipe, SimpleNamespace(module=module, optimizers=optimizers, choices=SimpleNamespace(total_steps=steps))


@pytest.mark.parametrize(
    ("save_steps", "limit", "there", "models"),
    [
        (None, 2, 0, 4),  # the last checkpoint and the model
        (10, 2, 0, 9),  # two kept, one being written; the model then takes the room of one
        (10, 2, 2, 3),  # two are there
        (10, 2, 3, 3),
        (50, 2, 0, 7),  # two in all, and the model
        (30, None, 0, 13),  # four, all kept
        (200, 2, 0, 4),
    ],
)
def test_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int | None, limit: int | None, there: int, models: int
) -> None:
    for step in range(there):
        (tmp_path / checkpoint.name_of(step)).mkdir(parents=True)
    recipe, parts = world(save_steps, limit)
    monkeypatch.setattr(space, "free_bytes", lambda path: models * BYTES - 1)
    with pytest.raises(EnvironmentFailure, match="bytes needed") as told:
        space.check_space(recipe, parts, tmp_path)
    assert str(tmp_path) in str(told.value)
    monkeypatch.setattr(space, "free_bytes", lambda path: models * BYTES * 1.3)
    space.check_space(recipe, parts, tmp_path)


@pytest.mark.parametrize("name", [name for name in optim.OPTIMIZERS if name != "adamw_8bit"])
def test_a_checkpoint_is_never_smaller_than_what_is_asked_for(tmp_path: Path, name: str) -> None:
    recipe, parts = world(None, 2, name=name)
    parts.module(torch.ones(2, SIZE)).sum().backward()
    for optimizer in parts.optimizers:
        optimizer.step()
    real = size_of(checkpoint_tensors(recipe, parts))
    assert real >= BYTES * (1 + optim.MOMENTS_AT_LEAST[name])
