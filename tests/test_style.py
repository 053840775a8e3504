"""The house rules that a machine can hold: layers, sizes, tables that equal the recipe's literals."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmkit"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"recipe"},
    {"data", "models", "metrics", "writing"},
    {"tasks"},
    {"train", "evaluate", "generate", "verify"},
    {"cli", "__main__"},
]
"""Lowest first: a module imports from its own layer and from those below."""

DRIVERS = {"data.command", "data.prepare", "data.tokenizer_make"}
"""What runs the stages of `preprocess` for a recipe and its task: of the layer of `train`, though it lives in data/."""

LEAVES = {
    "",  # the version
    "errors",
    "files",
    "handover",
    "manifest",
    "options",
    "outcome",
    "report",
    "secrets",
    "signals",
    "evaluate.conditions",
    "metrics.table",
    "data.records",
    "data.examples",
    "models.registry",
}
"""Importable from anywhere: they import nothing of llmkit but leaves (held below) and the recipe's types."""

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60


def module_of(path: Path) -> str:
    """`data.sources` for llmkit/data/sources.py."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything but what only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield child
            yield from nodes(child)


def imports(path: Path) -> set[str]:
    """Modules of llmkit that a file imports, anywhere in it, without the leading `llmkit.`."""
    known = {module_of(file) for file in FILES}
    found = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("llmkit.") in known else str(node.module) for name in full}
    ours = {name for name in found if name.split(".")[0] == "llmkit"}
    return {name.removeprefix("llmkit").removeprefix(".") for name in ours}


def leaf(module: str) -> bool:
    return any(module == name or (name and module.startswith(f"{name}.")) for name in LEAVES)


def layer(module: str) -> int:
    if module in DRIVERS:
        return layer("train")
    top = module.split(".")[0]
    ranks = [rank for rank, names in enumerate(LAYERS) if top in names]
    assert ranks, f"{module} is in no layer; add it to LAYERS or LEAVES"
    return ranks[0]


def test_the_files_are_found() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downward(path: Path) -> None:
    module = module_of(path)
    for imported in imports(path):
        if leaf(imported):
            continue
        if leaf(module):
            assert imported.split(".")[0] == "recipe", f"the leaf {module} imports {imported}"
        else:
            assert layer(imported) <= layer(module), f"{module} imports {imported} from above"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_the_recipe_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, pkgutil, importlib, llmkit.recipe as r\n"
    code += "[importlib.import_module(f'llmkit.recipe.{m.name}') for m in pkgutil.iter_modules(r.__path__)]\n"
    code += "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def tags(union: Any, key: str) -> set[str]:
    """The discriminators of a union of sections."""
    sections = get_args(get_args(union)[0])
    return {name for section in sections for name in get_args(section.model_fields[key].annotation)}


class TestTables:
    """A row in a table and a literal in the recipe are added together, or this fails."""

    def test_tasks(self) -> None:
        from llmkit.metrics.table import METRICS, TASK_METRICS
        from llmkit.recipe.tasks import COMMAND_OF_TASK, OVERFLOW, TaskSection
        from llmkit.tasks import TASKS

        known = tags(TaskSection, "type")
        assert set(TASKS) == known
        assert set(COMMAND_OF_TASK) == known
        assert set(TASK_METRICS) == known
        assert set(OVERFLOW) == known
        assert {name for names in TASK_METRICS.values() for name in names} <= set(METRICS)

    def test_cleaners(self) -> None:
        from llmkit.data.clean.steps import CLEANERS
        from llmkit.recipe.sections import CleanStep

        assert set(CLEANERS) == tags(CleanStep, "step")

    def test_optimizers_and_schedules(self) -> None:
        from llmkit.recipe.check import IGNORED_BY_OPTIMIZER
        from llmkit.recipe.sections import Optimizer, Scheduler
        from llmkit.train.optim import OPTIMIZERS
        from llmkit.train.schedules import SCHEDULES

        assert set(OPTIMIZERS) == set(get_args(Optimizer))
        assert set(SCHEDULES) == set(get_args(Scheduler))
        assert set(IGNORED_BY_OPTIMIZER) <= set(OPTIMIZERS)

    def test_later(self) -> None:
        from llmkit.recipe import shape
        from llmkit.recipe.later import LATER, NAMES
        from llmkit.recipe.sections import CleanStep
        from llmkit.recipe.tasks import TaskSection

        keys = {key for key, _ in shape.walk_keys()}
        assert {row.key for row in LATER} <= keys
        assert not NAMES & (tags(TaskSection, "type") | tags(CleanStep, "step")), (
            "a name that is here is still in LATER"
        )
