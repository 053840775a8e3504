"""From the recipe's sections to a frozen `Run`: all wiring is here, and nothing else is.

Values that are chosen automatically (precision, micro-batch, compilation, steps) come as `Choices`, which `run.json`
keeps; a resumed run gets them from there.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from torch import nn

from llmkit.data.prepare import Prepared
from llmkit.errors import CheckpointError, EnvironmentFailure, RecipeError
from llmkit.models import source as model_source
from llmkit.models.lm import CausalLMModule
from llmkit.recipe.memory import bytes_of
from llmkit.recipe.sections import Recipe
from llmkit.tasks.base import Plan, Task
from llmkit.train import hardware, memory, micro_batch, optim
from llmkit.train.cuts import Budget
from llmkit.train.feed import Calendar, Feed, Layout, calendar
from llmkit.train.noise import install_noise
from llmkit.train.precision import autocast_of, choose_precision, install_kernels
from llmkit.train.schedules import Schedule, whole_steps


@dataclass(frozen=True)
class Choices:
    """What was chosen automatically, kept for the run's life."""

    mixed_precision: str
    per_device_train_batch_size: int
    """Samples of a process's micro-batch, at most."""
    micro_batch_tokens: int | None
    """Padded tokens of one, at most; None: they are cut by their number alone."""
    torch_compile: bool
    max_length: int
    packing: bool
    total_steps: int
    warmup_steps: int
    num_processes: int
    num_threads: int
    attention: str | None = None
    """The kernel that training calls; `llmkit_varlen` is models.varlen. None: not transformers' choice to make."""
    task: dict[str, Any] = field(default_factory=dict)
    """What the task settled (problem type, labels), beside `packing`."""

    def as_json(self) -> dict[str, Any]:
        """Flat, the task's choices among the others."""
        values = asdict(self)
        return {**values.pop("task"), **values}

    def rows_of(self, length: int) -> int:
        """Samples of `length` tokens that go into a micro-batch."""
        rows = self.per_device_train_batch_size
        return rows if self.micro_batch_tokens is None else max(min(rows, self.micro_batch_tokens // length), 1)

    def with_rows(self, rows: int, length: int) -> Choices:
        """The choices where as many samples of `length` tokens, the longest, fit into memory and no more."""
        if self.packing:
            return replace(self, per_device_train_batch_size=rows)
        return replace(self, micro_batch_tokens=rows * length)

    @property
    def micro_batch(self) -> str:
        """For people."""
        if self.micro_batch_tokens is None:
            return f"{self.per_device_train_batch_size}"
        return f"up to {self.per_device_train_batch_size}, {self.micro_batch_tokens} tokens"


@dataclass(frozen=True)
class Parts:
    """The pieces of a run that exist before its files do; preflight uses them too."""

    task: Task
    module: nn.Module
    wrapped: nn.Module
    optimizers: list[torch.optim.Optimizer]
    schedule: Schedule
    plan: Plan
    calendar: Calendar
    feed: Feed
    choices: Choices
    autocast: Callable[[], AbstractContextManager[Any]]
    check_memory: Callable[[], None]
    num_parameters: int


def make_accelerator(report_to: list[str], logging_dir: str, timeout_seconds: int | None) -> Accelerator:
    """Device, process group and trackers. Precision is ours (`autocast`), so that training and evaluation share it.

    timeout_seconds: of collectives; null: torch's own.
    """
    installed = {str(tracker.value) for tracker in get_available_trackers()}
    if missing := [name for name in report_to if name not in installed]:
        raise EnvironmentFailure(f"{missing[0]} is not installed: pip install {missing[0]}", key="logging.report_to")
    timeout = None if timeout_seconds is None else datetime.timedelta(seconds=timeout_seconds)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else Accelerate ignores a launch of several CPU processes
        log_with=report_to or None,
        project_dir=logging_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        step_scheduler_with_optimizer=False,
    )


def batch_layout(recipe: Recipe, world_size: int) -> tuple[int, int]:
    """(global batch, samples that a process sees at once, at most); RecipeError where they cannot be reconciled."""
    section = recipe.training
    assert section.global_batch_size is not None
    per_rank, remainder = divmod(section.global_batch_size, world_size)
    asked = section.per_device_train_batch_size
    if remainder or (asked is not None and per_rank % asked):
        size = f"per_device_train_batch_size {asked} x {world_size} processes" if asked else f"{world_size} processes"
        raise RecipeError(f"{section.global_batch_size} is no multiple of {size}", key="training.global_batch_size")
    return section.global_batch_size, asked or per_rank


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def logits_of(module: nn.Module) -> int:
    """Of one token of a language model; 0 for modules that compute few."""
    head = module.inner().get_output_embeddings() if isinstance(module, CausalLMModule) else None
    return 0 if head is None else int(head.weight.shape[0])


def resolve_choices(
    recipe: Recipe,
    plan: Plan,
    *,
    settled: dict[str, Any],
    module: nn.Module,
    accelerator: Accelerator,
    kept: dict[str, Any] | None,
) -> tuple[Choices, Calendar]:
    """`settled`: the task's own choices. `kept`: those of the run that is being resumed, or null."""
    kept, packing = kept or {}, bool(settled.get("packing"))
    device_type, world_size = accelerator.device.type, accelerator.num_processes
    max_length = model_source.max_length(recipe)
    global_batch, micro = batch_layout(recipe, world_size)
    section, micro_tokens = recipe.training, None
    if kept.get("num_processes") == world_size:
        micro, micro_tokens = kept["per_device_train_batch_size"], kept.get("micro_batch_tokens")
    elif section.per_device_train_batch_size is None and device_type == "cpu":
        if packing:
            micro = hardware.choose_micro_batch(
                samples_per_rank=micro, max_length=max_length, vocabulary=logits_of(module)
            )
        else:
            micro_tokens = hardware.CPU_MICRO_BATCH_TOKENS
    days = calendar(
        plan, global_batch=global_batch, max_steps=section.max_steps, epochs=section.num_train_epochs or 1.0
    )
    tokens = float(days.total_steps) * global_batch * max_length
    compiled = hardware.choose_compile(
        section.torch_compile, operations=6.0 * parameters_of(module) * tokens, packed=packing, device_type=device_type
    )
    return (
        Choices(
            mixed_precision=kept.get(
                "mixed_precision",
                choose_precision(recipe.distributed.mixed_precision, device_type, module),
            ),
            per_device_train_batch_size=micro,
            micro_batch_tokens=micro_tokens,
            torch_compile=kept.get("torch_compile", compiled),
            max_length=max_length,
            packing=packing,
            total_steps=days.total_steps,
            # a warm-up given as a fraction stays what it was when the run is extended
            warmup_steps=kept.get("warmup_steps", whole_steps(section.warmup_steps or 0.0, days.total_steps)),
            num_processes=world_size,
            num_threads=torch.get_num_threads(),
            task={key: value for key, value in settled.items() if key != "packing"},
        ),
        days,
    )


def build(
    recipe: Recipe, task: Task, prepared: Prepared, accelerator: Accelerator, kept: dict[str, Any] | None
) -> Parts:
    """Model, optimisers, schedule and data order of a training run."""
    torch.manual_seed(recipe.seed)
    module = task.build_model().to(accelerator.device)
    task, automatic = task.settle(module, kept)
    if recipe.training.neftune_noise_alpha:
        install_noise(module, recipe.training.neftune_noise_alpha)
    plan = task.train_plan(prepared.splits["train"], recipe.seed)
    choices, days = resolve_choices(
        recipe,
        plan,
        settled=automatic,
        module=module,
        accelerator=accelerator,
        kept=kept,
    )
    autocast = autocast_of(choices.mixed_precision, accelerator.device)
    kernel = install_kernels(module, choices.mixed_precision, packing=choices.packing)
    choices = replace(choices, attention=kernel)
    limit, given = bytes_of(recipe.training.max_memory), recipe.training.per_device_train_batch_size is not None
    check_memory = memory.limited(limit, accelerator.device)
    if (accelerator.device.type == "cuda" or limit is not None) and not given and not kept:
        longest = micro_batch.longest(plan)
        found = micro_batch.choose(
            module,
            task,
            plan,
            samples_per_rank=choices.rows_of(longest),
            seed=recipe.seed,
            accelerator=accelerator,
            autocast=autocast,
            check_memory=check_memory,
        )
        choices = choices.with_rows(found, longest)
    optimizers = optim.build_optimizers(module, recipe.training)
    layout = layout_of(choices, days, module, accelerator)
    return Parts(
        task=task,
        module=module,
        wrapped=wrap(module, choices, recipe.training.torch_compile == "auto"),
        optimizers=optimizers,
        schedule=schedule_of(recipe, choices),
        plan=plan,
        calendar=days,
        feed=Feed(task, plan, days, layout, seed=recipe.seed, device=accelerator.device),
        choices=choices,
        autocast=autocast,
        check_memory=check_memory,
        num_parameters=parameters_of(module),
    )


def layout_of(choices: Choices, days: Calendar, module: nn.Module, accelerator: Accelerator) -> Layout:
    """How this process takes its part of a global batch."""
    size = choices.per_device_train_batch_size
    return Layout(
        days.global_batch,
        size,
        accelerator.process_index,
        accelerator.num_processes,
        (size, choices.max_length) if choices.torch_compile and choices.packing else None,
        budget_of(choices, module, accelerator.device.type),
        getattr(module, "varlen", False),
    )


def budget_of(choices: Choices, module: nn.Module, device_type: str) -> Budget | None:
    """What the micro-batches are cut by, where their tokens are what limits them."""
    if choices.micro_batch_tokens is None:
        return None
    return Budget(
        choices.micro_batch_tokens,
        fixed=hardware.micro_batch_cost(device_type, parameters_of(module)),
        serial_rows=hardware.RECURRENT_ROWS if hardware.is_recurrent(module) else 0,
    )


def schedule_of(recipe: Recipe, choices: Choices) -> Schedule:
    section = recipe.training
    assert section.learning_rate is not None and section.lr_scheduler_type is not None
    return Schedule(
        section.lr_scheduler_type,
        section.learning_rate,
        choices.total_steps,
        choices.warmup_steps,
        section.min_lr_ratio or 0.0,
    )


def wrap(module: nn.Module, choices: Choices, may_fall_back: bool) -> nn.Module:
    """The module as the loop calls it: compiled where chosen.

    may_fall_back: nobody asked for compilation, so a compiler that fails is no error.
    """
    if not choices.torch_compile:
        return module
    hardware.add_up_in_order(next(module.parameters()).device)
    torch._dynamo.config.suppress_errors = may_fall_back
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    compiled: nn.Module = torch.compile(module, dynamic=None if choices.packing else True)  # type: ignore[assignment]
    return compiled


def model_tensors(module: nn.Module, *, whole: bool = False) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the module: trained parameters and persistent buffers; a frozen base is pinned.

    whole: what is frozen too, for a model from scratch, whose frozen weights are nowhere else.
    """
    if whole:
        return module.state_dict()
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def checkpoint_tensors(recipe: Recipe, parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
    """File stem -> tensors of a run as they are now, nothing copied."""
    return {
        "model": model_tensors(parts.module, whole=recipe.model.config is not None),
        "optimizer": optim.state_tensors(parts.module, parts.optimizers),
    }


def load_model_tensors(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `model_tensors`; copies in place, so that ties and the optimiser's references hold."""
    own = module.state_dict(keep_vars=True)
    missing = model_tensors(module).keys() - tensors.keys()
    if missing or tensors.keys() - own.keys():
        strange = sorted(missing | (tensors.keys() - own.keys()))
        raise CheckpointError(f"the checkpoint is not of this model: {', '.join(strange[:3])} do not match")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
