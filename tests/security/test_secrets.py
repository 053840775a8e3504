"""Secrets of the environment and of recipes are in no byte that llmkit writes, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import EnvironmentFailure, RecipeError
from llmkit.recipe.load import load_recipe
from llmkit.secrets import names_secret, redact
from tests.e2e.conftest import Place, make_place

TOKEN = "hf_" + "CanaryCanary" * 3
PLAIN = "canary/of+no=known-form"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", PLAIN)
    monkeypatch.setenv("LLMKIT_TRACEBACK", "1")
    return make_place(tmp_path)


def assert_unwritten(place: Place, *said: str) -> None:
    for path in place.directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert TOKEN.encode() not in data, path
            assert PLAIN.encode() not in data, path
    for text in said:
        assert TOKEN not in text
        assert PLAIN not in text


def test_a_run_and_its_crashes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = place.run("pretrain", sets={"training.max_steps": 2})
    assert ended.status == 0, ended.err
    assert_unwritten(place, ended.out, ended.err)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"401 for the token {TOKEN}, key {PLAIN}")

    monkeypatch.setattr("llmkit.train.execute.fit", broken)
    for options in ((), ("--json",)):
        ended = place.run("pretrain", "recipe.yaml", "--overwrite", *options)
        assert ended.status == 1
        assert "RuntimeError: 401 for the token [HF_TOKEN], key [WANDB_API_KEY]" in ended.err
        assert json.loads((place.directory / "run" / "run.json").read_text())["status"] == "failed"
        assert_unwritten(place, ended.out, ended.err)


@pytest.mark.parametrize(
    "key",
    [
        "output_dir",
        "data.train.0.path",
        "model.config.name",
        TOKEN,
        f"model.config.{TOKEN}",
        "training.max_steps",
        "extends",
    ],
)
def test_a_token_in_a_recipe_is_refused_and_not_repeated(place: Place, key: str) -> None:
    for arguments in (("--set", f"{key}={TOKEN}"), ("--set", f"{key}={TOKEN}", "--json"), ("--set", f"{TOKEN}")):
        ended = place.run("pretrain", "recipe.yaml", *arguments)
        assert ended.status == 2, ended.err
        assert_unwritten(place, ended.out, ended.err)


def test_a_key_that_is_for_a_secret_is_refused(tmp_path: Path) -> None:
    for key in ("hub_token", "api_key", "password", "WANDB_API_KEY"):
        (tmp_path / "recipe.yaml").write_text(json.dumps({"model": {"config": {"model_type": "x", key: "y"}}}))
        with pytest.raises(RecipeError, match=r"looks like a secret; .* environment"):
            load_recipe(tmp_path / "recipe.yaml")
    assert not any(
        map(names_secret, ("eos_token", "pad_token", "tokens", "tokenizer", "key", "columns", "HF_TOKEN_PATH"))
    )


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "the")
    assert redact("the eos_token is </s>; sk-learn") == "the eos_token is </s>; sk-learn"
    assert str(EnvironmentFailure(f"x {TOKEN}")) == "x [secret]"
