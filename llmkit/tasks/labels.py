"""What the labels of the training data are: classes, sets of classes or numbers, under which names. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import DataError
from llmkit.tasks.label_encoder import LABEL, ProblemType, number

if TYPE_CHECKING:
    from llmkit.data.shards import Split

Spelled = str | list[str]
IN_TRANSFORMERS: dict[ProblemType, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class Labels:
    """`names`: the classes in the order of the head's outputs; ("LABEL_0",) for a number, as transformers has it."""

    problem_type: ProblemType
    names: tuple[str, ...]

    def ids(self, split: Split, where: str) -> np.ndarray:
        """Gold of a split: (N,) int64 classes, (N, L) int64 of 0 and 1, or (N,) float64 numbers.

        Raises DataError naming the first label that is none of the names; `where` is the split's name.
        """
        values = spelled(split)
        if self.problem_type == "regression":
            numbers = [number(value) if isinstance(value, str) else None for value in values]
            for row, found in enumerate(numbers):
                if found is None:
                    raise self._strange(split, row, values[row], where)
            return np.array(numbers, np.float64)
        known = {name: i for i, name in enumerate(self.names)}
        gold = np.zeros((len(values), len(known)), np.int64)
        for row, value in enumerate(values):
            parts = value if isinstance(value, list) else [value]
            if self.problem_type == "single_label" and isinstance(value, list):
                raise self._strange(split, row, value, where)
            for part in parts:
                if part not in known:
                    raise self._strange(split, row, part, where)
                gold[row, known[part]] = 1
        return gold if self.problem_type == "multi_label" else gold.argmax(1)

    def named(self, gold: Any) -> Any:
        """A class, a row of 0 and 1, or a number as people read it."""
        if self.problem_type == "regression":
            return float(gold)
        if self.problem_type == "single_label":
            return self.names[int(gold)]
        return [name for name, there in zip(self.names, gold, strict=True) if there]

    def _strange(self, split: Split, row: int, value: Any, where: str) -> DataError:
        place = split.origin(row)
        if self.problem_type == "regression":
            what = f"label {value!r} is not a number, and those of the training data are"
        elif isinstance(value, list):
            what = f"label {value!r} is a list, and no row of the training data has several labels"
        else:
            known = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            what = f"label {value!r} of data.{where} was never seen in training, which has {known}"
        return DataError(
            f"{what}; correct it, or name every label in the sources' label_names",
            file=place["file"],
            line=place["line"],
            key=f"data.{where}",
        )


def spelled(split: Split) -> list[Spelled]:
    """The labels of all rows."""
    return [json.loads(text) for text in split.field(LABEL).to_pylist()]


def decide(values: Sequence[Spelled], wanted: ProblemType | None, given: Sequence[tuple[str, ...] | None]) -> Labels:
    """Problem type and names from the training rows; `given`: `label_names` of the sources of data.train.

    Lists mean several labels; numbers of which one has a fraction mean regression; everything else is one class.
    Raises DataError where there is nothing to learn.
    """
    problem_type = wanted or _problem_type(values)
    if problem_type == "regression":
        return Labels(problem_type, ("LABEL_0",))
    seen = {part for value in values for part in (value if isinstance(value, list) else [value])}
    named = list(dict.fromkeys(name for names in given if names is not None for name in names))
    whole = all(part.lstrip("-").isdecimal() for part in seen)
    others = sorted(seen - set(named), key=lambda part: (int(part), part) if whole else (0, part))
    names = (*named, *others)
    if len(names) < 2 and problem_type == "single_label":
        raise DataError(
            f"every row of data.train has the label {names[0]!r}; a classifier needs two labels at least",
            key="data.train",
        )
    if not names:
        raise DataError("no row of data.train has a label", key="data.train")
    return Labels(problem_type, names)


def _problem_type(values: Sequence[Spelled]) -> ProblemType:
    if any(isinstance(value, list) for value in values):
        return "multi_label"
    numbers = [number(value) for value in values if isinstance(value, str)]
    fractions = any(found is not None and not found.is_integer() for found in numbers)
    return "regression" if fractions and None not in numbers else "single_label"


def from_config(config: dict[str, Any]) -> Labels:
    """The labels that a finished classifier's config.json names."""
    names = names_in(config)
    kinds: dict[str, ProblemType] = {name: kind for kind, name in IN_TRANSFORMERS.items()}
    kind = kinds.get(str(config.get("problem_type")))
    return Labels(kind or ("regression" if len(names) == 1 else "single_label"), names)


def names_in(config: dict[str, Any]) -> tuple[str, ...]:
    """`id2label` in order; two labels without names where a config says nothing, as transformers has it."""
    named = config.get("id2label") or {}
    count = len(named) or int(config.get("num_labels") or 2)
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(count))
