"""YAML text to a tree that remembers where each value stood, so that every later message can name file and line.

Scalars follow the YAML 1.2 core schema: `5e-5` is a float, only true and false are booleans (`no` is text). Duplicate
keys, tags, several documents, recursive aliases and non-finite numbers are refused; size, depth and aliases are capped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml import events

from llmkit.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 100_000
"""Nodes of a recipe after its aliases are expanded: far above any real recipe, far below what hurts."""

NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
TRUE = re.compile(r"(?:true|True|TRUE)\Z")
FALSE = re.compile(r"(?:false|False|FALSE)\Z")
INT = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
NON_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")

Scalar = str | int | float | bool | None


@dataclass
class Node:
    """One value: `kind` is scalar, map or list. `file`, `line` (from 1; None for --set) say where it begins."""

    kind: str
    file: str
    line: int | None
    scalar: Scalar = None
    entries: dict[str, Node] = field(default_factory=dict)
    key_lines: dict[str, int | None] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    size: int = 1

    @property
    def is_null(self) -> bool:
        return self.kind == "scalar" and self.scalar is None

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars."""
        if self.kind == "map":
            return {key: node.plain() for key, node in self.entries.items()}
        if self.kind == "list":
            return [node.plain() for node in self.items]
        return self.scalar

    def copy(self) -> Node:
        return Node(
            self.kind,
            self.file,
            self.line,
            self.scalar,
            {key: node.copy() for key, node in self.entries.items()},
            dict(self.key_lines),
            [node.copy() for node in self.items],
            self.size,
        )

    def scalars(self, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """(dotted key, node) of every text value under this node, and of every other that has a key."""
        children = self.entries.items() if self.kind == "map" else ((str(i), n) for i, n in enumerate(self.items))
        if self.kind == "scalar" and not self.is_null:
            yield prefix, self
        for key, node in children:
            yield from node.scalars(f"{prefix}.{key}" if prefix else key)


def resolve_scalar(text: str) -> Scalar:
    """Value of a plain (unquoted) scalar by YAML 1.2's core schema. Raises ValueError for an unusable number."""
    if NULL.match(text):
        return None
    if TRUE.match(text):
        return True
    if FALSE.match(text):
        return False
    if INT.match(text):
        if len(text) > 100:
            raise ValueError("a whole number of more than 100 digits; quote it if it is text")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if NON_FINITE.match(text):
        raise ValueError(f"{text} is not a finite number; quote it if it is text")
    if FLOAT.match(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"{text} is too large for a number")
        return value
    return text


def parse(text: str, file: str, *, numbered: bool = True) -> Node:
    """The tree of a one-document YAML text. Raises RecipeError with the line; `numbered=False` leaves lines out."""
    return _Builder(file, numbered).build(text)


class _Builder:
    """Turns the parser's events into nodes without recursion, so that nesting cannot exhaust the stack."""

    def __init__(self, file: str, numbered: bool):
        self.file = file
        self.numbered = numbered
        self.anchors: dict[str, Node] = {}
        self.stack: list[tuple[Node, str | None]] = []
        self.pending: str | None = None
        self.root: Node | None = None
        self.total = 0

    def error(self, message: str, line: int | None, key: str | None = None) -> RecipeError:
        return RecipeError(message, file=self.file, line=line, key=key)

    def line_of(self, mark: Any) -> int | None:
        return mark.line + 1 if mark is not None and self.numbered else None

    def build(self, text: str) -> Node:
        try:
            documents = 0
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                if isinstance(event, events.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        raise self.error(
                            "a second YAML document begins here; a recipe is one document",
                            self.line_of(event.start_mark),
                        )
                self.take(event)
        except yaml.MarkedYAMLError as error:
            raise self.syntax_error(error, text) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1 if self.numbered else None
            raise self.error(f"the character U+{ord(text[error.position]):04X} is not allowed in YAML", line) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise self.error(f"not valid YAML: {error}", None) from None
        return self.root if self.root is not None else Node("scalar", self.file, 1 if self.numbered else None)

    def syntax_error(self, error: yaml.MarkedYAMLError, text: str) -> RecipeError:
        mark = error.problem_mark or error.context_mark
        line = self.line_of(mark)
        rows = text.splitlines()
        row = rows[mark.line] if mark is not None and mark.line < len(rows) else ""
        if "\t" in row[: len(row) - len(row.lstrip())] or (error.problem or "").find("'\\t'") >= 0:
            return self.error("a tab cannot indent YAML; use spaces", line)
        context = f" {error.context}" if error.context else ""
        at = f" (column {mark.column + 1})" if mark is not None else ""
        return self.error(f"not valid YAML: {error.problem}{context}{at}", line)

    def take(self, event: yaml.Event) -> None:
        line = self.line_of(event.start_mark)
        if isinstance(event, events.AliasEvent):
            self.take_alias(event.anchor, line)
            return
        if isinstance(event, (events.MappingEndEvent, events.SequenceEndEvent)):
            self.close()
            return
        if not isinstance(event, events.NodeEvent):
            return
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise self.error(f"the tag {tag} is not allowed in a recipe; quote a value to make it text", line)
        if isinstance(event, events.ScalarEvent):
            self.take_scalar(event, line)
            return
        node = Node("map" if isinstance(event, events.MappingStartEvent) else "list", self.file, line)
        self.refuse_complex_key(line)
        if len(self.stack) >= MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels", line)
        self.stack.append((node, self.pending))
        self.pending = None
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
            node.scalar = event.anchor  # kept here until the node is whole

    def take_scalar(self, event: yaml.ScalarEvent, line: int | None) -> None:
        if self.expects_key():
            self.take_key(event.value, line)
            if event.anchor is not None:
                raise self.error("an anchor on a key is not allowed", line)
            return
        value: Scalar = event.value
        if event.implicit[0] and event.style is None:
            try:
                value = resolve_scalar(event.value)
            except ValueError as error:
                raise self.error(str(error), line, self.where()) from None
        if isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udfff]", value)):
            raise self.error("the text holds a NUL or half a surrogate pair", line, self.where())
        node = Node("scalar", self.file, line, value)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self.attach(node, self.pending)

    def take_key(self, key: str, line: int | None) -> None:
        node = self.stack[-1][0]
        if key == "<<":
            raise self.error("merge keys (<<) are not part of YAML 1.2; use extends, or write the keys out", line)
        if key in node.entries:
            first = node.key_lines[key]
            raise self.error(f"duplicate key; it is already on line {first}", line, self.where(key))
        node.key_lines[key] = line
        self.pending = key

    def take_alias(self, anchor: str | None, line: int | None) -> None:
        self.refuse_complex_key(line)
        if anchor is None or anchor not in self.anchors:
            raise self.error(f"the alias *{anchor} names no finished anchor", line)
        self.attach(self.anchors[anchor], self.pending, copy=True)

    def close(self) -> None:
        node, key = self.stack.pop()
        anchor, node.scalar = node.scalar, None
        if isinstance(anchor, str):
            self.anchors[anchor] = node
        self.attach(node, key)

    def attach(self, node: Node, key: str | None, *, copy: bool = False) -> None:
        self.total += node.size if copy else 1
        if self.total > MAX_NODES:
            raise self.error(f"more than {MAX_NODES:,} values after aliases are expanded", node.line)
        node = node.copy() if copy else node
        self.pending = None
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1][0]
        parent.size += node.size
        if parent.kind == "map":
            assert key is not None
            parent.entries[key] = node
        else:
            parent.items.append(node)

    def expects_key(self) -> bool:
        return bool(self.stack) and self.stack[-1][0].kind == "map" and self.pending is None

    def refuse_complex_key(self, line: int | None) -> None:
        if self.expects_key():
            raise self.error("a key must be a plain name", line)

    def where(self, key: str | None = None) -> str | None:
        """Dotted key of the value being read, for messages."""
        parts: list[str] = []
        for depth, (_, name) in enumerate(self.stack[1:]):
            parts.append(name if name is not None else str(len(self.stack[depth][0].items)))
        if self.stack and self.stack[-1][0].kind == "list":
            parts.append(str(len(self.stack[-1][0].items)))
        elif (last := key if key is not None else self.pending) is not None:
            parts.append(last)
        return ".".join(parts) or None
