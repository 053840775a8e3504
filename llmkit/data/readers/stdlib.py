"""`builtin:python-stdlib`: the running interpreter's own source, the corpus that every machine has.

As text a file is a record. As instructions a record is a function: signature and docstring are the question, the rest
of its body the answer.
"""

from __future__ import annotations

import ast
import io
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.readers.base import Chunk, Reading

NAME = "builtin:python-stdlib"
_LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "turtledemo", "lib-dynload"}
_MIN_LINES, _MAX_LINES = 2, 40

Pair = tuple[int, str, str]
"""Line of the function, its signature and docstring, the rest of its body."""


def stdlib_files() -> list[str]:
    """Paths of the source files, sorted by their place in the library."""
    root = sysconfig.get_path("stdlib")
    found: list[str] = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        found += [str(Path(directory, name)) for name in files if name.endswith(".py")]
    return sorted(found)


def read_stdlib(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are {"text"}, for instruction roles {"messages"}; `name: functions` with text roles: a text a function."""
    stream = reading.open()
    data = b"".join(iter(lambda: stream.read(1 << 20), b""))
    done: dict[str, Any] = {"done": True}
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding).replace("\r\n", "\n")
    except (SyntaxError, UnicodeDecodeError) as error:
        yield Chunk([], [], [], [(1, 0, f"not text in its declared encoding: {error}")], done)
        return
    if reading.section.name is None and "messages" not in reading.roles.made:
        rows: list[Any] = [{"text": text}] if text.strip() else []
        yield Chunk(rows, [1] * len(rows), [0] * len(rows), [], done)
        return
    pairs = function_pairs(text)
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line.encode()) + 1)
    if "messages" in reading.roles.made:
        rows = [
            {"messages": [{"role": "user", "content": head}, {"role": "assistant", "content": body}]}
            for _, head, body in pairs
        ]
    else:
        rows = [{"text": f"{head}\n{body}\n"} for _, head, body in pairs]
    lines: list[int | None] = [line for line, _, _ in pairs]
    yield Chunk(rows, lines, [starts[line - 1] for line, _, _ in pairs], [], done)


def function_pairs(source: str) -> list[Pair]:
    """Functions and methods with a docstring and a body of 2 to 40 lines that does something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return []
        lines = source.split("\n")
        found = (_pair(node, lines) for node in _functions(tree))
        return [pair for pair in found if pair is not None]


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its classes, not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.ClassDef | ast.If | ast.Try):
            yield from _functions(child)


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Pair | None:
    if len(node.body) < 2 or ast.get_docstring(node, clean=False) is None:
        return None
    docstring, first = node.body[0], node.body[1]
    assert docstring.end_lineno is not None
    assert node.end_lineno is not None
    start = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", []))])
    if docstring.lineno == node.lineno or start <= docstring.end_lineno or all(map(_is_trivial, node.body[1:])):
        return None
    head = _dedent(lines[node.lineno - 1 : docstring.end_lineno], node.col_offset)
    body = _dedent(lines[docstring.end_lineno : node.end_lineno], node.col_offset)
    while body and not body[0].strip():
        body.pop(0)
    if not _MIN_LINES <= len(body) <= _MAX_LINES:
        return None
    question, answer = "\n".join(head), "\n".join(body)
    if node.col_offset == 0:
        return node.lineno, question, answer
    try:
        ast.parse(f"{question}\n{answer}\n")
    except (SyntaxError, ValueError, RecursionError):
        return None
    return node.lineno, question, answer


def _dedent(lines: list[str], columns: int) -> list[str]:
    """Takes the function's own indentation away; text inside a string that is indented less stays as it is."""
    prefix = lines[0][:columns] if lines[0][:columns].isspace() else " " * columns
    return [line.removeprefix(prefix) if line.strip() else "" for line in lines]


def _is_trivial(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return False
