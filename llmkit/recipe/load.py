"""A recipe file to a validated `Recipe`: YAML, `extends`, `--set`, types, rules across sections.

Torch-free. Every mistake is told with file, line and key; where there are several, all are told, a line each.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from llmkit.errors import RecipeError
from llmkit.recipe import check, later, problems, shape
from llmkit.recipe.nodes import MAX_BYTES, Node, parse
from llmkit.recipe.sections import Recipe
from llmkit.secrets import names_secret, secret_kind

SET = "--set"
MAX_EXTENDS = 20


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    command: str | None = None,
    num_processes: int | None = None,
    trust_remote_code: bool = False,
) -> Recipe:
    """The recipe at `path` with `KEY=VALUE` overrides, validated and checked; unset keys are None (see `resolve`).

    command: refuse a task that belongs to the other command. num_processes: for the global batch size.
    trust_remote_code: the command-line flag was given. Raises RecipeError.
    """
    root = read_nodes(path, overrides)
    _refuse_secrets(root)
    recipe = validate(root)
    context = check.Context(command=command, num_processes=num_processes, trust_remote_code=trust_remote_code)
    found = [*later.refusals(recipe), *check.problems(recipe, context)]
    raise_problems([problems.located(root, problem.key, problem.message) for problem in found])
    return recipe


def locate(path: Path, overrides: Sequence[str], key: str) -> tuple[str | None, int | None]:
    """File and line of a dotted key in a recipe that has loaded before, for errors that are found later."""
    node, _ = problems.deepest(read_nodes(path, overrides), key)
    return node.file, node.line


def read_nodes(path: Path, overrides: Sequence[str] = ()) -> Node:
    """The tree of a recipe, `extends` merged and `--set` applied; not yet validated."""
    root = _with_bases(path, (), None)
    for override in overrides:
        _apply(root, override)
    return root


def validate(root: Node) -> Recipe:
    """Types and keys. Raises RecipeError with all that is wrong."""
    try:
        return Recipe.model_validate_json(json.dumps(prune_nulls(root)), strict=True)
    except ValidationError as error:
        raise_problems(problems.explain(root, error.errors(include_url=False, include_context=False)))
        raise AssertionError("unreachable") from error


def raise_problems(found: Sequence[RecipeError]) -> None:
    """Raises one error that says all of `found`, each on a line of its own; the first gives place and key."""
    if not found:
        return
    ordered = sorted(found, key=lambda problem: (problem.file == SET, problem.file or "", problem.line or 0))
    first = ordered[0]
    lines = list(dict.fromkeys([str(problem) for problem in ordered]))
    message = "\n".join([first.message, *(line for line in lines if line != str(first))])
    raise RecipeError(message, file=first.file, line=first.line, key=first.key)


def prune_nulls(root: Node) -> object:
    """Plain values, without the nulls on keys whose type has no null: there null means the default."""
    return _prune(root, [shape.Shape(Recipe)])


def _prune(node: Node, options: list[shape.Shape]) -> object:
    if node.kind == "list":
        return [_prune(item, shape.child_shapes(options, None, index)) for index, item in enumerate(node.items)]
    if node.kind != "map":
        return node.scalar
    below = {key: shape.child_shapes(options, node.plain(), key) for key in node.entries}
    return {
        key: _prune(child, below[key])
        for key, child in node.entries.items()
        if not (child.is_null and below[key] and not shape.accepts_null(below[key]))
    }


def _read_text(path: Path, shown: str, asked_by: Node | None) -> str:
    file, line = (asked_by.file, asked_by.line) if asked_by is not None else (shown, None)
    key = "extends" if asked_by is not None else None

    def fail(message: str) -> RecipeError:
        return RecipeError(message, file=file, line=line, key=key)

    name = f"{shown}: " if asked_by is not None else ""
    try:
        if path.is_dir():
            raise fail(f"{name}is a directory; a recipe is a YAML file")
        with path.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise fail(f"{name}no such recipe{_nearest_file(path)}") from None
    except (OSError, ValueError) as error:
        raise fail(f"{name}cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise fail(f"{name}larger than {MAX_BYTES:,} bytes; this is not a recipe")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"not UTF-8 (byte {error.start})", file=shown, line=row) from None


def _nearest_file(path: Path) -> str:
    parent = path.parent
    try:
        names = [file.name for file in parent.iterdir() if file.suffix in (".yaml", ".yml")]
    except OSError:
        return f"; the directory {parent} does not exist" if not parent.exists() else ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {parent / near[0]}?" if near else ""


def _with_bases(path: Path, chain: tuple[Path, ...], asked_by: Node | None) -> Node:
    """The file's tree merged over the tree it extends. `chain`: the files that led here, to find a cycle."""
    shown = str(path)
    text = _read_text(path, shown, asked_by)
    real = Path(os.path.realpath(path))
    if real in chain and asked_by is not None:
        raise RecipeError(
            f"{shown} extends itself: " + " -> ".join(str(step) for step in (*chain, real)),
            file=asked_by.file,
            line=asked_by.line,
            key="extends",
        )
    if len(chain) >= MAX_EXTENDS and asked_by is not None:
        message = f"a chain of more than {MAX_EXTENDS} recipes"
        raise RecipeError(message, file=asked_by.file, line=asked_by.line, key="extends")
    node = parse(text, shown)
    if node.kind != "map":
        message = "the file is empty; a recipe is a map" if node.is_null else "a recipe is a map of keys"
        raise RecipeError(f"{message} (output_dir, task, ...)", file=shown, line=node.line)
    base = node.entries.pop("extends", None)
    node.key_lines.pop("extends", None)
    if base is None or base.is_null:
        return node
    if not isinstance(base.scalar, str):
        message = "expected the path of another recipe, relative to this file"
        raise RecipeError(message, file=base.file, line=base.line, key="extends")
    return _merge(_with_bases(path.parent / base.scalar, (*chain, real), base), node)


def _merge(base: Node, over: Node) -> Node:
    """`over` on `base`: maps key by key, all else replaced. A map with another `type` or `model_type` is too."""
    if base.kind != "map" or over.kind != "map":
        return over
    for name in ("type", "model_type"):
        old, new = base.entries.get(name), over.entries.get(name)
        if old is not None and new is not None and old.scalar != new.scalar:
            return over
    merged = Node("map", over.file, over.line, entries=dict(base.entries), key_lines=dict(base.key_lines))
    for key, node in over.entries.items():
        merged.entries[key] = _merge(merged.entries[key], node) if key in merged.entries else node
        merged.key_lines[key] = over.key_lines[key]
    return merged


def _apply(root: Node, override: str) -> None:
    """One `--set KEY=VALUE`: dotted keys, list items by index (the index after the last appends)."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise RecipeError(f"expected KEY=VALUE, got {override!r}; for example {SET} training.max_steps=100", file=SET)
    if key.split(".")[0] == "extends":
        raise RecipeError("the base recipe cannot be chosen on the command line", file=SET, key=key)
    try:
        value = parse(text, SET, numbered=False)
    except RecipeError as error:
        raise RecipeError(error.message, file=SET, key=key) from None
    node = root
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        node = _enter(node, part, key, ".".join(parents[:depth]))
    _put(node, last, value, key, ".".join(parents))


def _enter(node: Node, part: str, key: str, where: str) -> Node:
    """The map or list at `part`, made where it is absent or null."""
    child = node.items[_index(node, part, key, where)] if node.kind == "list" else node.entries.get(part)
    if child is None or child.is_null:
        child = Node("map", SET, None)
        _put(node, part, child, key, where)
    elif child.kind == "scalar":
        inside = f"{where}.{part}" if where else part
        raise RecipeError(f"{inside} is a single value, {key} cannot be set inside it", file=SET, key=key)
    return child


def _put(node: Node, part: str, value: Node, key: str, where: str) -> None:
    if node.kind == "map":
        node.entries[part] = value
        node.key_lines[part] = None
    elif part == str(len(node.items)):
        node.items.append(value)
    else:
        node.items[_index(node, part, key, where)] = value


def _index(node: Node, part: str, key: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(node.items):
        held = f"its items are counted from 0 to {len(node.items) - 1}" if node.items else "it is empty"
        raise RecipeError(f"{where} is a list: {held}; {part!r} is none of them", file=SET, key=key)
    return int(part)


def _refuse_secrets(root: Node) -> None:
    """Before anything that repeats values: tokens do not belong in recipes, which are stored beside every run."""
    found = []
    for key, node in root.scalars():
        kind = secret_kind(f"{key} {node.scalar}") or ("a secret" if names_secret(key.rpartition(".")[2]) else None)
        if kind is not None and node.scalar:
            message = f"this looks like {kind}; recipes are stored with every run, so pass it by the environment"
            found.append(RecipeError(message, file=node.file, line=node.line, key=key))
    raise_problems(found)
