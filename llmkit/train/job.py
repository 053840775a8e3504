"""What `pretrain` and `finetune` hand to whatever makes the model: steps of an optimiser, counting, or one convex fit;
and the ends that all three have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.data.prepare import Prepared
from llmkit.options import Options
from llmkit.recipe import identity as identities
from llmkit.recipe.resolve import dump
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from llmkit.signals import StopRequest
from llmkit.train.rundir import MODEL, REPORT, RESULTS, Existing, RunDirectory

if TYPE_CHECKING:
    from torch import nn

    from llmkit.tasks.base import Task


@dataclass(frozen=True)
class Job:
    """One process's run of a recipe. `directory`: on the first rank alone, which holds the lock and writes."""

    recipe: Recipe
    prepared: Prepared
    options: Options
    existing: Existing
    directory: RunDirectory | None
    stop: StopRequest
    console: Console

    @property
    def is_new(self) -> bool:
        return self.existing.found == "absent"

    def begin(self, accelerators: list[str] | None = None) -> RunDirectory:
        """run.json and recipe.yaml say what is about to happen. Of the first rank."""
        from llmkit.train import machine

        assert self.directory is not None
        self.directory.start(
            command=self.options.command,
            recipe_yaml=dump(self.recipe),
            identity=identities.identity(self.recipe),
            data_fingerprint=self.prepared.fingerprint,
            sources=self.prepared.sources,
            seed=self.recipe.seed,
        )
        self.directory.update(versions=machine.versions(), hardware=machine.hardware(accelerators))
        return self.directory


def finish(
    directory: RunDirectory,
    console: Console,
    recipe: Recipe,
    task: Task,
    module: nn.Module,
    results: dict[str, Any],
    **totals: int,
) -> dict[str, Any]:
    """model/, results.json, run.json, report.html. `totals`: steps and tokens. Returns the results."""
    from llmkit.report.html import write_report
    from llmkit.train import export

    console.note("writing the model")
    export.export_model(task, module, recipe, directory.path / MODEL, results)
    export.write_results(directory.path / RESULTS, results)
    directory.finish("completed", 0, "done", **totals)
    write_report(directory.path)
    console.note(f"model: {directory.path / MODEL}   report: {directory.path / REPORT}")
    return results
