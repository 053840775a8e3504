"""Roles: which columns a task needs, how a source's columns are found for them, and the values taken out of rows.

A role is bound once a file, on its first rows; the binding is plain JSON, so that a stopped read goes on with the same.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from llmkit.data.labels import apply_names
from llmkit.data.readers.base import Chunk, Reading
from llmkit.data.readers.conll import DEFAULT_COLUMNS
from llmkit.data.readers.messages import Unusable
from llmkit.data.rolespecs import RoleSpec
from llmkit.recipe.sections import ColumnJoin

EMPTY = "text is empty"
"""Reason of a reject that is no fault of the data: blank rows of line-split corpora."""


@dataclass(frozen=True)
class Column:
    """Columns of one role: names (dotted for nested values) or positions; several are joined by `join`, or listed."""

    columns: tuple[str | int, ...]
    join: str | None = None


Binding = dict[str, Column]

_MISSING: Any = object()


def to_json(binding: Binding) -> dict[str, Any]:
    return {role: [list(column.columns), column.join] for role, column in binding.items()}


def from_json(value: dict[str, Any]) -> Binding:
    return {role: Column(tuple(columns), join) for role, (columns, join) in value.items()}


def bind(reading: Reading, chunk: Chunk) -> Binding:
    """The columns of each role, from the recipe or from the names in the first rows.

    Raises DataError that names what exists.
    """
    spec = reading.roles
    given = _given(reading)
    names = available(chunk)
    for role, column in given.items():
        for one in column.columns:
            if all(value(row, one, chunk.names) is _MISSING for row in chunk.rows):
                raise reading.fail(f"column {one!r} (columns.{role}) is not there; {_listing(one, chunk, names)}")
    best: Binding = {}
    for alternative in spec.required:
        found: Binding = dict(given)
        for role in (*alternative, *spec.optional):
            name = role.removesuffix("?")
            auto = None if name in found else _find(spec, name, names, reading)
            if auto is not None:
                found[name] = auto
        needed = [role for role in alternative if not role.endswith("?")]
        inside = {role.removesuffix("?") for role in alternative} | set(spec.optional)
        if all(role in found for role in needed) and set(given) <= inside:
            best = {role: column for role, column in found.items() if role in inside}
            break
    if not best:
        raise reading.fail(_not_found(reading, chunk, names))
    return best


def _given(reading: Reading) -> Binding:
    given: Binding = {}
    for role, column in (reading.section.columns or {}).items():
        if isinstance(column, ColumnJoin):
            given[role] = Column(tuple(column.columns), column.join)
        elif isinstance(column, list):
            given[role] = Column(tuple(column), None if role in reading.roles.several else "\n")
        else:
            given[role] = Column((column,))
    keys = reading.section.message_keys
    if keys is not None and keys.list_ is not None and reading.roles.converse is not None:
        given["messages" if "messages" in reading.roles.roles() else "prompt"] = Column((keys.list_,))
    return given


def available(chunk: Chunk) -> list[str]:
    """Column names of the first rows."""
    if chunk.names is not None:
        return [name for name in chunk.names if name]
    names: dict[str, None] = {}
    for row in chunk.rows[:1000]:
        if isinstance(row, dict):
            names.update(dict.fromkeys(row))
    return list(names)


def _find(spec: RoleSpec, role: str, names: list[str], reading: Reading) -> Column | None:
    lower = {name.lower(): name for name in reversed(names)}
    for candidate in (role, *spec.synonyms.get(role, ())):
        if candidate in names:
            return Column((candidate,))
        if candidate.lower() in lower:
            return Column((lower[candidate.lower()],))
    if reading.file.format == "conll" and role in DEFAULT_COLUMNS:
        return Column((DEFAULT_COLUMNS[role],))
    return None


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:40]}..."


def _listing(wanted: str | int, chunk: Chunk, names: list[str]) -> str:
    if not names:
        width = max((len(row) for row in chunk.rows[:1000]), default=0)
        return f"the file names no columns; its rows have {width}, positions 0 to {width - 1}"
    near = difflib.get_close_matches(str(wanted), names, n=1)
    shown = ", ".join(map(_short, names[:30])) + (", ..." if len(names) > 30 else "")
    return f"the columns are {shown}" + (f"; did you mean {near[0]!r}?" if near else "")


def _not_found(reading: Reading, chunk: Chunk, names: list[str]) -> str:
    spec = reading.roles
    ways = " or ".join(
        " + ".join(role for role in alternative if not role.endswith("?")) for alternative in spec.required
    )
    first = spec.required[0][0].removesuffix("?")
    wanted = f"no column for {ways}; {_listing(first, chunk, names)}"
    if not names:
        return f"{wanted}; say which with columns, e.g. columns: {{{first}: 0}}"
    hint = (
        " (if the first row is data, set header: false)"
        if chunk.names and reading.file.format in ("csv", "tsv")
        else ""
    )
    if len(names) == 1 and any(mark in names[0] for mark in "\t;|,"):
        hint = " (one column only: is the delimiter right?)"
    return f"{wanted}{hint}; say which with columns, e.g. columns: {{{first}: {_short(names[0])}}}"


def value(row: Any, column: str | int, names: list[str] | None) -> Any:
    """One column's value in a row, `_MISSING` where there is none."""
    if isinstance(column, int):
        try:
            return row[column] if not isinstance(row, dict) else list(row.values())[column]
        except IndexError:
            return _MISSING
    if not isinstance(row, dict):
        if names is None:
            return _MISSING
        if column in names:
            return row[names.index(column)]
        head, _, rest = column.partition(".")
        return _walk(row[names.index(head)], rest) if rest and head in names else _MISSING
    if column in row:
        return row[column]
    return _walk(row, column) if "." in column else _MISSING


def _walk(node: Any, path: str) -> Any:
    """Follows a dotted path: keys of objects, positions in lists; a key on a list is taken from each of its items."""
    if isinstance(node, dict):
        if path in node:
            return node[path]
        head, _, rest = path.partition(".")
        return _walk(node[head], rest) if rest and head in node else _MISSING
    if isinstance(node, list | tuple):
        head, _, rest = path.partition(".")
        if head.removeprefix("-").isdigit():
            if not -len(node) <= int(head) < len(node):
                return _MISSING
            return _walk(node[int(head)], rest) if rest else node[int(head)]
        inner = [_walk(item, path) for item in node]
        return _MISSING if not inner or any(one is _MISSING for one in inner) else inner
    return _MISSING


def _values(chunk: Chunk, column: Column) -> list[Any]:
    """The role's value in every row; joined text where it says how to join, a list where there are several columns."""
    if len(column.columns) == 1 and column.join is None:
        name = column.columns[0]
        if chunk.names is not None and name in chunk.names:
            position = chunk.names.index(str(name))
            return [row[position] for row in chunk.rows]
        if isinstance(name, str) and "." not in name and chunk.names is None:
            return [row.get(name, _MISSING) if isinstance(row, dict) else _MISSING for row in chunk.rows]
        return [value(row, name, chunk.names) for row in chunk.rows]
    joined: list[Any] = []
    for row in chunk.rows:
        parts = [value(row, name, chunk.names) for name in column.columns]
        if any(part is _MISSING for part in parts):
            joined.append(_MISSING)
            continue
        flat = [str(one) for part in parts for one in (part if isinstance(part, list) else [part]) if one is not None]
        if column.join is None:
            joined.append(flat)
        else:
            joined.append(column.join.join(one for one in flat if one))
    return joined


def extract(reading: Reading, binding: Binding, chunk: Chunk) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """(columns by role with a value for every row, {row: reason} of rows that cannot be used).

    With `converse`, the columns are what it gives.
    """
    raw = {role: _values(chunk, column) for role, column in binding.items()}
    required = _required(reading.roles, binding)
    bad: dict[int, str] = {}
    for role, values in raw.items():
        for index, one in enumerate(values) if any(one is _MISSING or one is None for one in values) else ():
            if one is _MISSING or one is None:
                values[index] = None
                if role in required:
                    names = ", ".join(str(name) for name in binding[role].columns)
                    bad.setdefault(index, f"column {names!r} is {'missing' if one is _MISSING else 'null'}")
    if reading.roles.converse is not None:
        return _conversations(reading, raw, bad, len(chunk.rows)), bad
    for role in reading.roles.texts:
        if role in raw:
            _check_texts(role, raw[role], bad)
    apply_names(reading.section, raw, bad)
    return raw, bad


def _required(spec: RoleSpec, binding: Binding) -> set[str]:
    for alternative in spec.required:
        needed = {role for role in alternative if not role.endswith("?")}
        if needed <= set(binding):
            return needed
    return set()


def _check_texts(role: str, values: list[Any], bad: dict[int, str]) -> None:
    for index, text in enumerate(values):
        if type(text) is not str:
            if isinstance(text, list) and all(isinstance(part, str) for part in text):
                text = values[index] = "\n".join(text)
            else:
                bad.setdefault(index, f"{role} is not text")
                continue
        if not text or text.isspace():
            bad.setdefault(index, EMPTY)
        elif "\0" in text:
            bad.setdefault(index, f"{role} contains a NUL character")


def _conversations(
    reading: Reading, raw: dict[str, list[Any]], bad: dict[int, str], count: int
) -> dict[str, list[Any]]:
    converse = reading.roles.converse
    assert converse is not None
    made: list[dict[str, Any]] = [{}] * count
    for index in range(count):
        if index in bad:
            continue
        try:
            made[index] = converse({role: values[index] for role, values in raw.items()}, reading.section.message_keys)
        except Unusable as problem:
            bad[index] = str(problem)
    return {name: [row.get(name) for row in made] for name in reading.roles.made}
