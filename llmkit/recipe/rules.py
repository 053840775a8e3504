"""What rules on recipes are made of."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True)
class Problem:
    """A rule that a recipe breaks, at a dotted key."""

    key: str
    message: str


def is_set(section: BaseModel, name: str) -> bool:
    """The recipe gives this key a value; null counts as not set."""
    return name in section.model_fields_set and getattr(section, name) is not None


def nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
