"""Defaults that depend on the task, filled in without torch; the resolved recipe as YAML that loads back the same."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from llmkit.recipe import counting, probing
from llmkit.recipe.check import IGNORED_BY_OPTIMIZER, LORA_TYPES
from llmkit.recipe.nodes import resolve_scalar
from llmkit.recipe.paths import absolute
from llmkit.recipe.sections import (
    DataSection,
    EvaluationSection,
    ModelSection,
    ParallelPath,
    PeftSection,
    Recipe,
    SourceSection,
    TokenizerSection,
    TrainingSection,
)
from llmkit.recipe.tasks import COMMAND_OF_TASK, OVERFLOW, PREFERENCE_BETA, Preference, TaskSection

S = TypeVar("S", bound=BaseModel)

PRETRAIN = {
    "learning_rate": 5e-4,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine_with_min_lr",
    "warmup": 0.02,
    "global_batch_size": 32,
}
FINETUNE = {
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "lr_scheduler_type": "linear",
    "warmup": 0.03,
    "global_batch_size": 16,
}
ADAPTER_LEARNING_RATE = {"lora": 2e-4, "dora": 2e-4, "rslora": 2e-4, "ia3": 3e-3, "prompt_tuning": 3e-2}
"""IA3's is its paper's (arXiv:2205.05638); both train so little that they need and bear more."""
PREFERENCE_LEARNING_RATE = 1e-6
MIN_LR_RATIO = 0.1


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every automatic value that its own text decides, and absolute local paths. Idempotent.

    What needs the data, the model or the machine (micro-batch, precision, packing, max_length) stays null.
    """
    return recipe.model_copy(
        update={
            "output_dir": absolute_path(recipe.output_dir),
            "task": _task(recipe.task),
            "model": _model(recipe.model),
            "tokenizer": _tokenizer(recipe.tokenizer),
            "peft": _peft(recipe.peft),
            "data": _data(recipe.data, recipe.task.type),
            "training": _training(recipe),
            "evaluation": _evaluation(recipe.evaluation),
        }
    )


def absolute_path(name: str) -> str:
    """For keys that are always paths, whatever they look like (`org/name` too)."""
    return os.path.abspath(os.path.expanduser(name))


def _update(section: S, values: dict[str, Any]) -> S:
    """A copy with those `values` that differ, so that what was not set stays not set."""
    changed = {name: value for name, value in values.items() if getattr(section, name) != value}
    return section.model_copy(update=changed) if changed else section


def _task(section: TaskSection) -> TaskSection:
    if isinstance(section, Preference):
        return _update(section, {"beta": section.beta or PREFERENCE_BETA[section.loss]})
    return section


def _model(section: ModelSection) -> ModelSection:
    if section.name_or_path is None:
        return section
    return _update(section, {"name_or_path": absolute(section.name_or_path)})


def _tokenizer(section: TokenizerSection) -> TokenizerSection:
    values: dict[str, Any] = {}
    if section.name_or_path is not None:
        values["name_or_path"] = absolute(section.name_or_path)
    template = section.chat_template
    if template is not None and ("/" in template or template.endswith((".jinja", ".jinja2", ".txt"))):
        values["chat_template"] = absolute_path(template)
    return _update(section, values)


def _peft(section: PeftSection | None) -> PeftSection | None:
    """For the types that go on linear layers: which ones."""
    if section is None or section.target_modules is not None or section.type not in LORA_TYPES:
        return section
    return section.model_copy(update={"target_modules": "all-linear"})


def _data(section: DataSection, task: str) -> DataSection:
    values: dict[str, Any] = {
        split: [_source(source) for source in getattr(section, split)] for split in ("train", "validation", "test")
    }
    values["augment"] = [
        step.model_copy(update={"path": absolute_path(step.path)}) if step.step == "synonyms" else step
        for step in section.augment
    ]
    values["overflow"] = section.overflow or OVERFLOW[task][0]
    if section.prepared_dir is not None:
        values["prepared_dir"] = absolute_path(section.prepared_dir)
    return _update(section, values)


def _source(section: SourceSection) -> SourceSection:
    path: str | list[str] | ParallelPath
    if isinstance(section.path, str):
        path = absolute(section.path, data=True)
    elif isinstance(section.path, list):
        path = [absolute(name, data=True) for name in section.path]
    else:
        path = ParallelPath(source=absolute_path(section.path.source), target=absolute_path(section.path.target))
    values: dict[str, Any] = {"path": path}
    if isinstance(section.label_names, str):
        values["label_names"] = absolute_path(section.label_names)
    return _update(section, values)


def _training(recipe: Recipe) -> TrainingSection:
    section = recipe.training
    if counting.counts(recipe) or probing.probes(recipe):
        return section
    pretraining = COMMAND_OF_TASK[recipe.task.type] == "pretrain"
    defaults = PRETRAIN if pretraining else FINETUNE
    optim = "adamw" if section.optim in (None, "adamw_torch", "adamw_torch_fused") else section.optim
    adam = {"adam_beta1": 0.9, "adam_beta2": defaults["adam_beta2"], "adam_epsilon": 1e-8}
    scheduler = section.lr_scheduler_type or defaults["lr_scheduler_type"]
    found: dict[str, Any] = {
        "optim": optim,
        "learning_rate": _learning_rate(recipe, float(str(defaults["learning_rate"]))),
        "lr_scheduler_type": scheduler,
        "weight_decay": defaults["weight_decay"],
        "global_batch_size": _global_batch_size(section, int(str(defaults["global_batch_size"]))),
        **{name: value for name, value in adam.items() if name not in IGNORED_BY_OPTIMIZER.get(str(optim), ())},
    }
    if scheduler == "cosine_with_min_lr":
        found["min_lr_ratio"] = MIN_LR_RATIO
    if section.max_steps is None:
        found["num_train_epochs"] = 1.0
    warmup = section.warmup_steps if section.warmup_ratio is None else section.warmup_ratio
    values = {name: value for name, value in found.items() if getattr(section, name) is None}
    values["optim"] = optim
    values["warmup_steps"] = _warmup(scheduler, defaults["warmup"]) if warmup is None else warmup
    values["warmup_ratio"] = None
    return _update(section, values)


def _learning_rate(recipe: Recipe, default: float) -> float:
    if recipe.task.type == "preference":
        return PREFERENCE_LEARNING_RATE
    return ADAPTER_LEARNING_RATE[recipe.peft.type] if recipe.peft is not None else default


def _warmup(scheduler: object, share: object) -> object:
    """A constant rate needs no run length, so that its run can be prolonged; others warm up for a share of the run."""
    return 0.0 if scheduler == "constant" else share


def _global_batch_size(section: TrainingSection, default: int) -> int:
    """The default, rounded up to a multiple of a per-device size that was asked for."""
    each = section.per_device_train_batch_size or 1
    return -(-default // each) * each


def _evaluation(section: EvaluationSection) -> EvaluationSection:
    if section.interpolate is None:
        return section
    ngram = absolute_path(section.interpolate.ngram)
    return _update(section, {"interpolate": section.interpolate.model_copy(update={"ngram": ngram})})


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would otherwise be read as something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        plain = resolve_scalar(text) == text and isinstance(resolve_scalar(text), str)
    except ValueError:
        plain = False
    style = None if plain else '"'
    if "\n" in text and plain:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(recipe: Recipe) -> str:
    """YAML of the keys that differ from their default, in the schema's order. `load_recipe` gives the same recipe."""
    values = {"version": recipe.version, **_plain(recipe)}
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=1_000_000, indent=2)


def _plain(section: BaseModel) -> dict[str, Any]:
    """The fields of a section that differ from their default; required ones always."""
    found: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if info.is_required() or value != info.default:
            found[info.alias or name] = _plain_value(value)
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value)
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    return value
