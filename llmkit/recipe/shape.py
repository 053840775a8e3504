"""The recipe's schema as questions: which keys stand at a place, what is expected there, where a name lives.

Read off the pydantic sections, so that error messages, suggestions and `llmkit schema` cannot drift from them.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmkit.recipe.sections import Recipe

SCALAR_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Shape:
    """One alternative of a value's type: `origin` is str, int, float, bool, list, dict, Literal or a section class."""

    origin: Any
    args: tuple[Any, ...] = ()
    bounds: tuple[Any, ...] = ()


def shapes(annotation: Any, bounds: tuple[Any, ...] = ()) -> list[Shape]:
    """The alternatives of an annotation, flat. None is among them as `Shape(NoneType)`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        for item in metadata:
            bounds += tuple(item.metadata) if isinstance(item, FieldInfo) else (item,)
        return shapes(inner, bounds)
    if origin in (Union, types.UnionType):
        return [shape for part in get_args(annotation) for shape in shapes(part, bounds)]
    if origin is not None:
        return [Shape(origin, get_args(annotation), bounds)]
    return [Shape(annotation, (), bounds)]


def field_shapes(info: FieldInfo) -> list[Shape]:
    return shapes(info.annotation, tuple(info.metadata))


def is_section(shape: Shape) -> bool:
    return isinstance(shape.origin, type) and issubclass(shape.origin, BaseModel)


def fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the name that a recipe uses (`list`, not `list_`)."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def accepts_null(options: list[Shape]) -> bool:
    return any(shape.origin in (types.NoneType, Any) for shape in options)


def discriminator_of(options: list[Shape]) -> str | None:
    """`type` or `step` where the alternatives are sections told apart by that key."""
    sections = [shape.origin for shape in options if is_section(shape)]
    for name in ("type", "step"):
        if sections and all(
            name in section.model_fields and get_origin(section.model_fields[name].annotation) is Literal
            for section in sections
        ):
            return name
    return None


def section_for(options: list[Shape], value: Any) -> type[BaseModel] | None:
    """The section that `value` (a plain map) is meant for; None where that cannot be told."""
    sections: list[type[BaseModel]] = [shape.origin for shape in options if is_section(shape)]
    key = discriminator_of(options)
    if key is not None and len(sections) > 1:
        chosen = value.get(key) if isinstance(value, dict) else None
        return next((s for s in sections if chosen in get_args(s.model_fields[key].annotation)), None)
    return sections[0] if sections else None


def child_shapes(options: list[Shape], value: Any, key: str | int) -> list[Shape]:
    """What may stand at `key` below a place of these `options` that holds `value`; [] where unknown."""
    if isinstance(key, int):
        return [child for shape in options if shape.origin is list for child in shapes(shape.args[0])]
    section = section_for(options, value)
    if section is not None:
        info = fields(section).get(key)
        return field_shapes(info) if info is not None else []
    return [child for shape in options if shape.origin is dict for child in shapes(shape.args[1])]


def literals(options: list[Shape]) -> list[str]:
    """The names a place accepts; discriminators of sections are not among them."""
    return [str(value) for shape in options if shape.origin is Literal for value in shape.args]


def describe(options: list[Shape]) -> str:
    """What is expected, in words: `a whole number of at least 1`, `one of bpe, wordpiece`."""
    words: list[str] = []
    for shape in options:
        word = _describe_one(shape)
        if word and word not in words:
            words.append(word)
    return " or ".join(words) if words else "nothing (null)"


def _describe_one(shape: Shape) -> str:
    if shape.origin is Literal:
        return ("one of " if len(shape.args) > 1 else "") + ", ".join(str(value) for value in shape.args)
    if shape.origin in SCALAR_WORDS:
        return SCALAR_WORDS[shape.origin] + _bounds(shape.bounds)
    if shape.origin is list:
        return f"a list of {_plural(describe(shapes(shape.args[0])))}"
    if shape.origin is dict:
        return "a map"
    if is_section(shape):
        return "a map with the keys " + ", ".join(fields(shape.origin))
    return "" if shape.origin is types.NoneType else "any value"


def _plural(words: str) -> str:
    return {"text": "texts", "a whole number": "whole numbers", "any value": "values"}.get(words, f"({words})")


def _bounds(bounds: tuple[Any, ...]) -> str:
    parts = []
    for bound in bounds:
        for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
            if (limit := getattr(bound, name, None)) is not None:
                parts.append(f"{words} {limit:g}" if limit < 1e6 else f"{words} {limit:,}")
    return f" of {' and '.join(parts)}" if parts else ""


def walk_sections(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(prefix of its keys, section) of the whole schema, depth first. List items are `*`; all of a union are walked."""
    yield prefix, section
    for name, info in fields(section).items():
        for option in field_shapes(info):
            for below, dotted in _sections_below(option, f"{prefix}{name}"):
                yield from walk_sections(below, f"{dotted}.")


def walk_keys() -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key of the schema, each once."""
    seen: set[str] = set()
    for prefix, section in walk_sections():
        for name, info in fields(section).items():
            if (key := f"{prefix}{name}") not in seen:
                seen.add(key)
                yield key, info


def _sections_below(option: Shape, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    if is_section(option):
        yield option.origin, path
    elif option.origin in (list, dict):
        for child in shapes(option.args[-1]):
            yield from _sections_below(child, f"{path}.*")


@cache
def homes() -> dict[str, tuple[str, ...]]:
    """Last part of a key -> the dotted keys that end in it."""
    found: dict[str, list[str]] = {}
    for key, _ in walk_keys():
        found.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    return {name: tuple(keys) for name, keys in found.items()}
