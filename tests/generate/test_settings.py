from __future__ import annotations

import pytest

from llmkit.errors import RecipeError
from llmkit.generate.settings import check_generation
from llmkit.recipe.sections import GenerationSection


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"seed": 1}, "seed"),
        ({"length_penalty": 1.0}, "length_penalty"),
        ({"early_stopping": False}, "early_stopping"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences"),
        ({"num_return_sequences": 3, "num_beams": 2, "do_sample": True}, "num_return_sequences"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"stop_strings": ["a", ""]}, "stop_strings.1"),
    ],
)
def test_ignored_or_impossible_settings_are_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_generation(GenerationSection.model_validate(settings))
    assert caught.value.key == f"generation.{key}"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 1, "num_return_sequences": 4},
        {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True, "num_return_sequences": 4},
        {"min_new_tokens": 8, "max_new_tokens": 8, "stop_strings": ["\n"]},
    ],
)
def test_sensible_settings_pass(settings: dict[str, object]) -> None:
    check_generation(GenerationSection.model_validate(settings))


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_conversation_streams_one_answer(settings: dict[str, object]) -> None:
    section = GenerationSection.model_validate(settings)
    check_generation(section)
    with pytest.raises(RecipeError, match="--interactive"):
        check_generation(section, interactive=True)
