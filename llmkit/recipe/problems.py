"""What pydantic found, for people: file, line and key, what was expected, what stood there, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from llmkit.errors import RecipeError
from llmkit.recipe import later, shape
from llmkit.recipe.nodes import Node
from llmkit.recipe.sections import Recipe

ALIASES = {
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "batch_size": "training.global_batch_size",
    "train_batch_size": "training.global_batch_size",
    "optimizer": "training.optim",
    "scheduler": "training.lr_scheduler_type",
    "lr_scheduler": "training.lr_scheduler_type",
    "fp16": "distributed.mixed_precision",
    "bf16": "distributed.mixed_precision",
    "fp8": "distributed.mixed_precision",
    "precision": "distributed.mixed_precision",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "block_size": "data.max_length",
    "model_name_or_path": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_id": "model.name_or_path",
    "train_file": "data.train",
    "validation_file": "data.validation",
    "dataset": "data.train",
    "datasets": "data.train",
    "eval_batch_size": "evaluation.per_device_eval_batch_size",
    "save_every": "checkpoint.save_steps",
    "eval_every": "evaluation.eval_steps",
    "lora": "peft",
    "adapter": "peft",
    "lora_r": "peft.r",
    "lora_rank": "peft.r",
    "gradient_clip": "training.max_grad_norm",
}
"""Names of other tools that people type, and where the same thing is said here."""

NOTES = {
    "gradient_accumulation_steps": "it is derived from training.global_batch_size and per_device_train_batch_size",
    "resume_from_checkpoint": "the same command goes on from the newest checkpoint by itself",
    "overwrite_output_dir": "use the option --overwrite",
    "do_train": "the command says what is done",
    "do_eval": "the command says what is done",
}


def located(root: Node, key: str, message: str) -> RecipeError:
    """An error about a dotted key, with the place of the key or of the nearest thing above it."""
    node, line = deepest(root, key)
    return RecipeError(message, file=node.file, line=line, key=key)


def deepest(root: Node, key: str) -> tuple[Node, int | None]:
    """The node at the dotted key or the deepest one above it, and the line where its key stands."""
    node, line = root, root.line
    for part in key.split("."):
        if node.kind == "map" and part in node.entries:
            line, node = node.key_lines[part], node.entries[part]
        elif node.kind == "list" and part.isdecimal() and int(part) < len(node.items):
            node = node.items[int(part)]
            line = node.line
        else:
            break
    return node, line


def explain(root: Node, errors: Iterable[Any]) -> list[RecipeError]:
    """One error a place. pydantic reports each alternative of a union; they are the same mistake."""
    found: dict[str, RecipeError] = {}
    for error in errors:
        path, parents, options = _follow(root, error["loc"])
        kind = error["type"]
        key = ".".join(str(part) for part in path)
        if kind == "extra_forbidden":
            message = _unknown_key(path, parents[-2] if len(parents) > 1 else parents[-1])
        elif kind == "missing":
            if path and parents[-1][0].is_null:  # `output_dir: null` is walked to, and yet is missing
                path, options = path[:-1], parents[-2][1]
            key, message = _missing(root, path, str(error["loc"][-1]), options)
        elif kind.startswith("union_tag"):
            key, message = _wrong_tag(path, parents[-1][0], options)
        else:
            message = _wrong_value(parents[-1][0], options, error["msg"])
        found.setdefault(key, located(root, key, message))
    return list(found.values())


Step = tuple[Node, list[shape.Shape]]


def _follow(root: Node, loc: Sequence[str | int]) -> tuple[list[str | int], list[Step], list[shape.Shape]]:
    """Walks pydantic's location over the nodes, leaving out the parts that only name an alternative of a union."""
    options = [shape.Shape(Recipe)]
    node, path = root, list[str | int]()
    steps: list[Step] = [(node, options)]
    for part in loc:
        if node.kind == "map" and str(part) in node.entries:
            options = shape.child_shapes(options, node.plain(), str(part))
            node = node.entries[str(part)]
        elif node.kind == "list" and isinstance(part, int) and part < len(node.items):
            options = shape.child_shapes(options, None, part)
            node = node.items[part]
        else:
            continue
        path.append(part)
        steps.append((node, options))
    return path, steps, options


def _unknown_key(path: list[str | int], parent: Step) -> str:
    node, options = parent
    name = str(path[-1])
    section = shape.section_for(options, node.plain())
    known = list(shape.fields(section)) if section is not None else []
    if name in NOTES:
        return f"unknown key; {NOTES[name]}"
    elsewhere = [home for home in shape.homes().get(name, ()) if "*" not in home]
    if elsewhere and not any(difflib.SequenceMatcher(None, name, other).ratio() > 0.9 for other in known):
        return f"unknown key; did you mean {' or '.join(elsewhere[:3])}?"
    near = difflib.get_close_matches(name, [key for key in known if key != name], n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    if name.lower() in ALIASES:
        return f"unknown key; did you mean {ALIASES[name.lower()]}?"
    far = difflib.get_close_matches(name, shape.homes(), n=1, cutoff=0.75)
    homes = [home for home in shape.homes()[far[0]] if "*" not in home] if far else []
    if homes:
        return f"unknown key; did you mean {' or '.join(homes[:3])}?"
    return f"unknown key; expected one of {', '.join(known)}"


def _missing(root: Node, path: list[str | int], name: str, options: list[shape.Shape]) -> tuple[str, str]:
    key = ".".join(str(part) for part in (*path, name))
    section = shape.section_for(options, deepest(root, ".".join(map(str, path)))[0].plain()) if path else Recipe
    expected = ""
    if section is not None and name in shape.fields(section):
        alternatives = shape.field_shapes(shape.fields(section)[name])
        tag = shape.discriminator_of(alternatives)
        expected = f"; expected {f'a map with the key {tag}' if tag else shape.describe(alternatives)}"
    where = f"the section {'.'.join(map(str, path))}" if path else "the recipe"
    return key, f"required key is missing in {where}{expected}"


def _wrong_tag(path: list[str | int], node: Node, options: list[shape.Shape]) -> tuple[str, str]:
    tag = shape.discriminator_of(options) or "type"
    known = [
        name
        for option in options
        if shape.is_section(option) and tag in option.origin.model_fields
        for name in shape.literals(shape.field_shapes(option.origin.model_fields[tag]))
    ]
    where = ".".join(map(str, path))
    if node.kind != "map":
        return where, f"expected a map with the key {tag} (one of {', '.join(known)}), got {got(node)}"
    chosen = node.entries.get(tag)
    if chosen is None or chosen.is_null:
        return f"{where}.{tag}", f"required key is missing in the section {where}; expected one of {', '.join(known)}"
    if (name := str(chosen.scalar)) in later.NAMES:
        return f"{where}.{tag}", f"{name} is not available in this version; it has {', '.join(known)}"
    return f"{where}.{tag}", f"expected one of {', '.join(known)}, got {got(chosen)}{suggest(name, known)}"


def _wrong_value(node: Node, options: list[shape.Shape], fallback: str) -> str:
    if not options:
        return f"{fallback[:1].lower()}{fallback[1:]}, got {got(node)}"
    hint = ""
    value = node.scalar
    wanted = {option.origin for option in options}
    if isinstance(value, str):
        hint = suggest(value, shape.literals(options))
        if not hint and bool in wanted and value.lower() in ("yes", "no", "on", "off"):
            hint = f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
        elif not hint and wanted & {int, float} and _is_number(value):
            hint = f"; write {value.replace('_', '')} without quotes or underscores"
    elif isinstance(value, float) and int in wanted and float not in wanted and value.is_integer():
        hint = f"; write {value:.0f}"
    elif value is not None and str in wanted:
        hint = "; quote it to make it text"
    return f"expected {shape.describe(options)}, got {got(node)}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def got(node: Node) -> str:
    """What stands there, short."""
    if node.kind != "scalar":
        return f"a {node.kind}"
    if isinstance(node.scalar, str):
        text = node.scalar if len(node.scalar) <= 60 else node.scalar[:57] + "..."
        return f"the text {text!r}"
    return "null" if node.scalar is None else str(node.scalar).lower()[:60]


def suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
