"""Freezing by name pattern: which parameters stay, through any of a tied weight's names."""

from __future__ import annotations

import pytest
import torch

from llmkit.errors import RecipeError
from llmkit.models.freeze import freeze
from tests.fakes import tiny_model


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_patterns_over_whole_names():
    model = tiny_model("llama")
    freeze(model, ["*.embed_tokens.*", "model.layers.0.*"])
    assert trained(model) == {
        name
        for name, _ in model.named_parameters()
        if "embed_tokens" not in name and not name.startswith("model.layers.0.")
    }
    ids = torch.arange(6)[None]
    model(ids).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad is None
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("pattern", ["lm_head.*", "transformer.wte.weight"])
def test_a_tied_weight_is_frozen_by_any_of_its_names(pattern):
    model = tiny_model("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    freeze(model, [pattern])
    assert not model.lm_head.weight.requires_grad


def test_a_pattern_without_a_parameter_is_told():
    with pytest.raises(RecipeError, match=r"matches no parameter.*nearest: .*transformer\.wte") as caught:
        freeze(tiny_model("gpt2"), ["*.h.0.*", "transformer.wte"])
    assert caught.value.key == "model.freeze.1"


def test_something_must_be_left():
    with pytest.raises(RecipeError, match="everything is frozen"):
        freeze(tiny_model("gpt2"), ["*"])
