"""The end of a run: the final model as transformers loads it, its card, results.json.

`model/` is written beside its place and renamed, so that a directory of that name is always whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from llmkit.files import environment_errors, fsync_directory, read_json, write_atomic, write_json
from llmkit.manifest import write_manifest
from llmkit.models.registry import OWN_ARCHITECTURES
from llmkit.recipe.resolve import dump
from llmkit.recipe.sections import Recipe
from llmkit.tasks.base import Task

PIPELINES = {
    "causal_lm": "text-generation",
    "instruction": "text-generation",
    "preference": "text-generation",
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "translation": "translation",
    "summarization": "summarization",
}
"""What the Hub calls a task; the rest has no name there."""


def export_model(task: Task, module: nn.Module, recipe: Recipe, target: Path, results: dict[str, Any]) -> None:
    """Writes `target` (model/). Raises EnvironmentFailure where the disk does not take it; an older one stays then."""
    partial = target.with_name(f".{target.name}.partial")
    with environment_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            task.export(module, partial)
            write_atomic(partial / "README.md", model_card(recipe, results, _model_type(partial)).encode())
            write_manifest(partial)
            old = target.with_name(f".{target.name}.replaced")
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.rename(target, old)
            os.rename(partial, target)
            fsync_directory(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_results(path: Path, results: dict[str, Any]) -> None:
    write_json(path, results)


def _model_type(directory: Path) -> str | None:
    """Of the exported model; None for an adapter alone."""
    config = directory / "config.json"
    return read_json(config).get("model_type") if config.exists() else None


def model_card(recipe: Recipe, results: dict[str, Any], model_type: str | None) -> str:
    """README.md of the model directory, with the metadata block that the Hub reads."""
    base = recipe.model.name_or_path
    head = ["---", "library_name: transformers", "tags: [llmkit]"]
    if recipe.task.type in PIPELINES:
        head.append(f"pipeline_tag: {PIPELINES[recipe.task.type]}")
    if base is not None and not Path(base).exists():
        head.append(f"base_model: {base}")
    origin = (
        f"Fine-tuned or continued from `{Path(base).name if Path(base).exists() else base}`."
        if base
        else (f"Trained from scratch (`{(recipe.model.config or {}).get('model_type')}`).")
    )
    ours = model_type in OWN_ARCHITECTURES
    rows = [f"| {name} | {value:.6g} |" for name, value in results.items() if isinstance(value, (int, float))]
    sources = [f"- {source.id or source.path}" for source in recipe.data.train]
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {Path(recipe.output_dir).name}",
            "",
            f"{origin} Task: `{recipe.task.type}`.",
            *(["", "Its architecture is llmkit's own: `import llmkit` before it is loaded."] if ours else []),
            "",
            "## Results",
            "",
            "| metric | value |",
            "|---|---|",
            *rows,
            "",
            "## Training data",
            "",
            *sources,
            "",
            "Whether the data's licences and contents permit a given use is for the user to judge; a model repeats the",
            "biases of its data and may repeat passages of it.",
            "",
            "## Recipe",
            "",
            "```yaml",
            dump(recipe).rstrip(),
            "```",
            "",
        ]
    )
