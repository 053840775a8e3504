"""The JSON Schema of the recipe (draft 2020-12), for editors: `# yaml-language-server: $schema=recipe.schema.json`."""

from __future__ import annotations

from typing import Any

from llmkit.recipe import shape
from llmkit.recipe.descriptions import description_of
from llmkit.recipe.sections import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NULL = {"type": "null"}


def schema() -> dict[str, Any]:
    """What pydantic says, and what the loader adds: `extends`, null on every key, a sentence on each."""
    made = Recipe.model_json_schema()
    definitions: dict[str, Any] = made.get("$defs", {})
    for prefix, section in shape.walk_sections():
        target = made if section is Recipe else definitions[section.__name__]
        for name, value in target["properties"].items():
            if "anyOf" not in value or NULL not in value["anyOf"]:
                value = _or_null(value)
            value["title"] = name
            if (sentence := description_of(f"{prefix}{name}")) is not None:
                value["description"] = sentence
            target["properties"][name] = value
    made["title"] = "llmkit recipe"
    made["properties"]["extends"] = {
        "title": "extends",
        "description": "A base recipe that this one is merged over; relative to this file.",
        "anyOf": [{"type": "string"}, NULL],
        "default": None,
    }
    # what a base recipe says need not be said again
    made["anyOf"] = [{"required": made.pop("required")}, {"required": ["extends"]}]
    return {"$schema": DIALECT, **made}


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    """The same property with null among its values: null means the default everywhere."""
    outer: dict[str, Any] = {name: value[name] for name in ("default", "description") if name in value}
    inner = {name: part for name, part in value.items() if name not in (*outer, "title")}
    return {"anyOf": [inner, NULL], **outer}
