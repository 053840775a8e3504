"""Labels as rows hold them (text, numbers, lists, joined text) in the terms of the source's `label_names`."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from llmkit.errors import DataError
from llmkit.recipe.sections import SourceSection

LABEL_ROLES = ("label", "labels")


@cache
def _read_names(path: str) -> tuple[str, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"label_names: {path} cannot be read: {reason}", file=path) from error
    return tuple(line.strip() for line in lines if line.strip())


def names_of(section: SourceSection) -> tuple[str, ...] | None:
    """`label_names` of a source, read where it is a file (a name a line). Raises DataError."""
    given = section.label_names
    if given is None:
        return None
    names = _read_names(given) if isinstance(given, str) else tuple(given)
    if len(set(names)) < len(names) or not names:
        raise DataError(f"label_names: {'a name occurs twice' if names else 'there are no names'}")
    return names


def spell(value: Any) -> str:
    """A label as text: numbers as short as they are exact (1.0 is 1). Raises ValueError with the reason."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"label {value} is not a number")
        return str(int(value)) if value.is_integer() else repr(value)
    if not isinstance(value, int | str):
        raise ValueError(f"label is {type(value).__name__}, not text, a number or a list of them")
    text = str(value).strip()
    if not text:
        raise ValueError("label is empty")
    return text


def apply_names(section: SourceSection, columns: dict[str, list[Any]], bad: dict[int, str]) -> None:
    """Splits labels at `label_separator` and turns 0-based numbers into `label_names`, in place; rows with a label that
    is none of the names go to `bad` with the reason."""
    names, separator = names_of(section), section.label_separator
    if names is None and separator is None:
        return
    for values in (columns[role] for role in LABEL_ROLES if role in columns):
        for row, value in enumerate(values):
            if row in bad or value is None:
                continue
            if separator is not None and isinstance(value, str):
                value = [part.strip() for part in value.split(separator) if part.strip()]
            try:
                if names is not None:
                    value = [_named(one, names) for one in value] if isinstance(value, list) else _named(value, names)
            except ValueError as error:
                bad[row] = str(error)
                continue
            values[row] = value


def _named(value: Any, names: tuple[str, ...]) -> str:
    """A text that is a name is that name; a whole number counts the names from 0."""
    text = spell(value)
    if text in names and not (isinstance(value, int | float) and not isinstance(value, bool)):
        return text
    if text.isdecimal():
        if int(text) < len(names):
            return names[int(text)]
        raise ValueError(f"label {text} is none of the {len(names)} label_names (0 to {len(names) - 1})")
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise ValueError(f"label {text!r} is not among label_names ({shown})")
