"""A run and its files: what the loop calls back for logging, validation and saving, and how a run is resumed.

The loop computes; this module decides when something is due and writes it. Only the first rank writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from llmkit.data.shards import Split
from llmkit.errors import RecipeError
from llmkit.evaluate.split import evaluate_split
from llmkit.metrics.table import METRICS
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console, TrainingView
from llmkit.report.overfit import OverfitWatch
from llmkit.report.spikes import spike_warning
from llmkit.signals import GivenUp, StopRequest
from llmkit.train import checkpoint, hardware, machine, optim, recover
from llmkit.train.build import Parts, checkpoint_tensors, load_model_tensors
from llmkit.train.loop import Run, TrainState
from llmkit.train.metricslog import MetricsLog
from llmkit.train.rundir import CHECKPOINTS, RunDirectory
from llmkit.train.saver import Saver, Tensors

T = TypeVar("T")


@dataclass
class Phase:
    """What a process is doing, for the others to tell when it is gone."""

    name: str = "loading the model"
    state: TrainState | None = None

    def __str__(self) -> str:
        return self.name if self.state is None else f"{self.name}, {self.state.step} steps done"


@dataclass
class Session:
    """One process's part in a run. Everything here is the same on every rank but for what is written."""

    recipe: Recipe
    parts: Parts
    accelerator: Accelerator
    output_dir: Path
    directory: RunDirectory | None
    """On the first rank alone, which holds the lock and writes."""
    validation: Split | None
    stop: StopRequest
    console: Console
    matrix_rate: float
    phase: Phase
    log_file: MetricsLog | None = None
    view: TrainingView | None = None
    last_save: float = 0.0
    best_metric: str = "loss"
    watch: OverfitWatch = field(default_factory=OverfitWatch)
    saver: Saver = field(default_factory=Saver)
    stall: float = 0.0
    """Seconds that training has stood for saves since the last train line."""

    # --- resuming ---------------------------------------------------------------------------------------------------

    def resume(self) -> TrainState:
        """The state of the newest valid checkpoint, its tensors loaded; a fresh state where there is none."""
        path = None
        if self.accelerator.is_main_process:  # choosing clears leftovers, which is writing
            path = checkpoint.newest_valid(self.output_dir / CHECKPOINTS, self.console.warn)
        path = broadcast_object_list([path])[0]
        if path is None:
            return TrainState()
        state = self.load(path)
        self.parts.feed.pass_over(state.passed_over)
        self.stop.saved = True
        self.console.note(f"going on from {path.name}")
        return state

    def load(self, path: Path) -> TrainState:
        tensors, saved = checkpoint.load(path)
        load_model_tensors(self.parts.module, tensors["model"])
        optim.load_state_tensors(self.parts.module, self.parts.optimizers, tensors["optimizer"])
        return TrainState(**saved["train"])

    # --- what the loop calls ----------------------------------------------------------------------------------------

    def run(self) -> Run:
        """Everything the loop needs, in one frozen object."""
        recipe, parts = self.recipe, self.parts
        self.last_save = time.monotonic()
        return Run(
            module=parts.module,
            wrapped=parts.wrapped,
            optimizers=parts.optimizers,
            schedule=parts.schedule,
            feed=parts.feed,
            accelerator=self.accelerator,
            loss_weights=parts.task.loss_weights,
            seed=recipe.seed,
            max_grad_norm=recipe.training.max_grad_norm,
            max_nonfinite_steps=recipe.training.max_nonfinite_steps,
            loss_spike_action=recipe.training.loss_spike_action,
            logging_steps=recipe.logging.logging_steps,
            autocast=parts.autocast,
            scale_losses=parts.choices.mixed_precision == "fp16",
            stop=self.stop,
            log=self.log,
            evaluate=self.during("validation", self.evaluate),
            save=self.during("saving", self.save),
            save_is_due=self.save_is_due,
            evaluation_is_due=self.evaluation_is_due(),
            after_evaluation=self.after_evaluation,
            patience=recipe.training.early_stopping_patience,
            check_memory=parts.check_memory,
            halve=partial(recover.halve, self),
            roll_back=partial(recover.roll_back, self),
        )

    def warn(self, text: str) -> None:
        """Something that people should know, wherever they look."""
        (self.view.warn if self.view is not None else self.console.note)(text)

    def during(self, name: str, work: Callable[[TrainState], T]) -> Callable[[TrainState], T]:
        """`work`, while the phase is `name`."""

        def named(state: TrainState) -> T:
            before, self.phase.name = self.phase.name, name
            result = work(state)
            self.phase.name = before
            return result

        return named

    def log(self, event: dict[str, Any]) -> None:
        """One line of metrics.jsonl, the live view and the trackers, on the first rank."""
        if not self.accelerator.is_main_process:
            return
        if "tokens_per_second" in event:
            used = 6.0 * self.parts.num_parameters * event["tokens_per_second"] / self.accelerator.num_processes
            event["mfu"] = round(used / self.matrix_rate, 4)
            event["memory_bytes"] = hardware.peak_memory(self.accelerator.device)
            if self.stall:
                event["save_stall_seconds"], self.stall = round(self.stall, 4), 0.0
        assert self.log_file is not None
        self.log_file.write(event)
        warning = self.watch.take(event) or spike_warning(event)
        if self.view is not None:
            self.view.log(event)
            if warning is not None:
                self.view.warn(warning)
        if self.recipe.logging.report_to:
            prefix = event["split"]
            values = {f"{prefix}/{k}": v for k, v in event.items() if isinstance(v, (int, float)) and k != "step"}
            self.accelerator.log(values, step=event["step"])

    def evaluate(self, state: TrainState) -> dict[str, float] | None:
        """Validation on all ranks; its line is logged. None without validation rows. Raises GivenUp."""
        if self.validation is None or self.validation.num_rows == 0:
            return None
        section = self.recipe.evaluation
        started = time.perf_counter()
        with self.parts.autocast():
            evaluated = evaluate_split(
                self.parts.task,
                self.parts.module,
                self.validation,
                self.accelerator,
                batch_size=section.per_device_eval_batch_size,
                max_samples=section.max_samples,
                bootstrap=False,
                before_batch=self._heed_stop,
            )
        chosen = section.metrics
        own = {k: m.value for k, m in evaluated.metrics.items() if chosen is None or k == "loss" or k in chosen}
        metrics: dict[str, float] = broadcast_object_list([own])[0]
        seconds = round(time.perf_counter() - started, 3)
        self.log({"step": state.step, "split": "validation", **metrics, "tokens": state.tokens, "seconds": seconds})
        return metrics

    def _heed_stop(self) -> None:
        """Gives an evaluation up, on all ranks, where one of them was asked to stop. Raises GivenUp."""
        asked = float(self.stop.signum is not None)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(torch.tensor(asked, device=self.accelerator.device), "sum").item()
        if asked:
            raise GivenUp

    def evaluation_is_due(self) -> Callable[[TrainState], bool]:
        """Every `eval_steps`; null: at the end of each epoch."""
        every = self.recipe.evaluation.eval_steps
        ends = self.parts.calendar.epoch_ends()
        return lambda state: state.step % every == 0 if every is not None else state.step in ends

    @property
    def keeps_best(self) -> bool:
        section = self.recipe
        return bool(section.checkpoint.save_best) or section.training.early_stopping_patience is not None

    def after_evaluation(self, state: TrainState, metrics: dict[str, float]) -> bool:
        if not self.keeps_best:
            return False
        if self.best_metric not in metrics:
            raise RecipeError(
                f"{self.best_metric} is not among this task's metrics ({', '.join(sorted(metrics))})",
                key="evaluation.metric_for_best_model",
            )
        value = metrics[self.best_metric]
        if METRICS[self.best_metric].improves(value, state.best_value):
            state.best_value, state.best_step = value, state.step
            state.evaluations_without_improvement = 0
            return True
        state.evaluations_without_improvement += 1
        return False

    def save_is_due(self, state: TrainState) -> bool:
        """For the step about to be made. Raises what the save before ended with, where it has failed."""
        self.saver.check()
        section = self.recipe.checkpoint
        if section.save_steps is not None and (state.step + 1) % section.save_steps == 0:
            return True
        minutes = section.save_minutes
        return minutes is not None and time.monotonic() - self.last_save >= 60 * minutes

    def save(self, state: TrainState) -> None:
        """Begins a checkpoint of what is now; `settle` waits for it. The first rank writes what all have agreed on."""
        if self.accelerator.is_main_process:
            self.stall += self.saver.save(checkpoint_tensors(self.recipe, self.parts), self._writer(state))
        self.last_save = time.monotonic()

    def _writer(self, state: TrainState) -> Callable[[Tensors], None]:
        """What the saving thread does with the tensors: a checkpoint of `state` as it is now, and run.json."""
        directory, log_file, view = self.directory, self.log_file, self.view
        assert directory is not None and log_file is not None
        step, tokens, saved = state.step, state.tokens, {"train": state.as_json()}
        protect = {state.best_step} if self.keeps_best and state.best_step is not None else set()
        protect |= recover.needed(self.recipe, state)

        def write(tensors: Tensors) -> None:
            log_file.sync()  # a checkpoint must not know of lines that a crash of the machine loses
            keep = self.recipe.checkpoint.save_total_limit
            path = checkpoint.save(directory.checkpoints, step, tensors, saved, keep=keep, protect=protect)
            self.stop.saved = True
            directory.update(steps=step, tokens=tokens)
            if view is not None:
                view.saved(path)

        return write

    def settle(self) -> None:
        """Until the last checkpoint is on the disk, on all ranks. Raises what its save ended with."""
        if self.directory is not None:
            self.saver.wait()
            self.directory.update(saving=self.saver.told())
        self.accelerator.wait_for_everyone()
        self.stop.saved = True

    def open_segment(self, step: int) -> None:
        """Notes in run.json under which choices the steps from `step` on are made; says what has changed."""
        if self.directory is None:
            return
        choices = self.parts.choices.as_json()
        layout = {key: value for key, value in choices.items() if key != "total_steps"}
        changed = self.directory.open_segment(step, {**layout, "versions": machine.versions()})
        if changed:
            what = ", ".join(f"{key} was {before}, is now {after}" for key, before, after in changed)
            self.console.note(f"{what}: from here the run is equal to rounding, not to the bit")
