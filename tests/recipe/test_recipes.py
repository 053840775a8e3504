"""Every recipe that ships: it loads, resolves, says how it is run, and comes back from its dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import dump, resolve

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 8
    assert {path.parent.name for path in RECIPES} >= {"quickstart", "pretrain", "finetune"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe(path: Path, tmp_path: Path) -> None:
    opening = path.read_text(encoding="utf-8").split("\nversion:")[0]
    command = opening.split()[2]
    assert opening.startswith(f"# llmkit {command} {path.relative_to(ROOT)}")
    assert "# Hardware: " in opening
    assert "Expect: " in opening
    recipe = resolve(load_recipe(path, command=command))
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump(recipe), encoding="utf-8")
    assert resolve(load_recipe(stored, command=command)) == recipe


def test_the_readme_names_every_recipe() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [str(path.relative_to(ROOT)) for path in RECIPES if str(path.relative_to(ROOT)) not in readme]
    assert missing == []


def test_no_two_recipes_share_a_directory() -> None:
    directories = [load_recipe(path).output_dir for path in RECIPES]
    assert len(set(directories)) == len(directories)
