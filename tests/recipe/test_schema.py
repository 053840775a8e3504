"""The JSON Schema for editors, and the questions that messages ask of the sections."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkit.recipe import shape
from llmkit.recipe.descriptions import DESCRIPTIONS, description_of
from llmkit.recipe.schema import DIALECT, schema
from llmkit.recipe.sections import Recipe


def test_every_key_has_a_sentence_and_every_sentence_a_key() -> None:
    keys = {key for key, _ in shape.walk_keys()}
    assert len(keys) > 150
    assert [key for key in sorted(keys) if description_of(key) is None] == []
    sources = {f"source.{key.removeprefix('data.train.*.')}" for key in keys if key.startswith("data.train.*.")}
    assert set(DESCRIPTIONS) - keys - sources == set()


def properties(made: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    tables = [made, *made["$defs"].values()]
    return [(name, value) for table in tables for name, value in table.get("properties", {}).items()]


def test_the_schema() -> None:
    made = schema()
    assert made["$schema"] == DIALECT == "https://json-schema.org/draft/2020-12/schema"
    assert made["anyOf"] == [{"required": ["output_dir", "task"]}, {"required": ["extends"]}]
    assert made["properties"]["extends"]["anyOf"][0] == {"type": "string"}
    assert all(table["additionalProperties"] is False for table in [made, *made["$defs"].values()])
    json.dumps(made)
    found = properties(made)
    assert len(found) > 100
    for name, value in found:
        assert {"type": "null"} in value["anyOf"], name
        assert value["title"] == name
        assert value["description"]


def test_every_reference_of_the_schema_resolves() -> None:
    made = schema()
    text = json.dumps(made)
    for name in made["$defs"]:
        assert f'"#/$defs/{name}"' in text
    assert text.count('"$ref"') > 20


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed", "a whole number of at least 0"),
        ("output_dir", "text"),
        ("training", "a map with the keys num_train_epochs"),
        ("logging", "a map with the keys logging_steps, report_to"),
    ],
)
def test_expectations_in_words(key: str, words: str) -> None:
    assert shape.describe(shape.field_shapes(Recipe.model_fields[key])).startswith(words)


def test_homes_of_keys() -> None:
    assert shape.homes()["learning_rate"] == ("training.learning_rate",)
    assert "model.name_or_path" in shape.homes()["name_or_path"]
