"""Rules that span sections: keys that contradict each other, and keys that the task would ignore.

Each rule is a generator of problems; `problems` runs them all, so that a user sees every mistake at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.recipe import check_evaluation, counting, probing
from llmkit.recipe.memory import bytes_of
from llmkit.recipe.paths import is_local
from llmkit.recipe.rules import Problem, is_set
from llmkit.recipe.sections import Recipe, SourceSection
from llmkit.recipe.tasks import CHATS, COMMAND_OF_TASK, LABELLED, OVERFLOW

IGNORED_BY_OPTIMIZER = {
    "adafactor": ("adam_beta1", "adam_beta2", "adam_epsilon"),
    "sgd": ("adam_beta1", "adam_beta2", "adam_epsilon"),
    "lion": ("adam_epsilon",),
}

LORA_TYPES = ("lora", "dora", "rslora")
READ_BY_PEFT = {
    "r": LORA_TYPES,
    "lora_alpha": LORA_TYPES,
    "lora_dropout": LORA_TYPES,
    "target_modules": (*LORA_TYPES, "ia3"),
    "num_virtual_tokens": ("prompt_tuning",),
}
"""Keys of `peft` that only some types read."""

WRITERS = ("causal_lm", "instruction", "span_corruption", "denoising", "translation", "summarization")
READ_BY_TASK: dict[str, tuple[str, ...]] = {
    "training.label_smoothing_factor": (*WRITERS, *LABELLED, "question_answering", "masked_lm"),
    "training.neftune_noise_alpha": (*WRITERS, *LABELLED, "question_answering", "masked_lm"),
    "data.augment": LABELLED,
}
"""Keys that only some tasks can use; elsewhere they would be ignored, or make labels wrong."""

PROMPT_TASKS = (*WRITERS, "sequence_classification")
"""Tasks whose heads do not point at positions of the text, which a prompt's vectors would shift."""

COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Context:
    """What the command line says that rules depend on; None: not known here, the rule is left to the command."""

    command: str | None = None
    num_processes: int | None = None
    trust_remote_code: bool = False


def problems(recipe: Recipe, context: Context) -> Iterator[Problem]:
    """Every rule the recipe breaks."""
    yield from _command(recipe, context)
    yield from _model(recipe, context)
    yield from _tokenizer(recipe)
    yield from _data(recipe)
    for split in ("train", "validation", "test"):
        for index, source in enumerate(getattr(recipe.data, split)):
            yield from _source(source, f"data.{split}.{index}", recipe.task.type)
    yield from _clean(recipe)
    yield from _peft(recipe)
    yield from _read_by_task(recipe)
    yield from _length_of_run(recipe)
    yield from _batch(recipe, context)
    yield from _optimizer(recipe)
    yield from _faults(recipe)
    yield from check_evaluation.problems(recipe)
    yield from _generation(recipe)
    yield from counting.problems(recipe)
    yield from probing.problems(recipe)


def _command(recipe: Recipe, context: Context) -> Iterator[Problem]:
    right = COMMAND_OF_TASK[recipe.task.type]
    if context.command in ("pretrain", "finetune") and context.command != right:
        yield Problem("task.type", f"{recipe.task.type} is a task of llmkit {right}, not of llmkit {context.command}")
    if context.command == "pretrain" and counting.counts(recipe) and (context.num_processes or 1) > 1:
        yield Problem("model.config", "an n-gram model is counted in one process; leave --num-processes out")
    if context.command == "finetune" and probing.probes(recipe) and (context.num_processes or 1) > 1:
        yield Problem("model.probe", "a probe is fitted in one process; leave --num-processes out")
    if context.command in ("preprocess", "pretrain", "finetune") and not recipe.data.train:
        yield Problem(
            "data.train", "required key is missing; expected a list of sources, e.g. [{path: data/train.jsonl}]"
        )
    if not recipe.output_dir.strip():
        yield Problem("output_dir", "expected a directory, got an empty text")
    if recipe.seed >= 2**63:
        yield Problem("seed", "expected a whole number below 2^63")


def _model(recipe: Recipe, context: Context) -> Iterator[Problem]:
    model = recipe.model
    if model.name_or_path is not None and model.config is not None:
        yield Problem(
            "model.config", "model.name_or_path is given too; a model has weights or is made from scratch, not both"
        )
    if model.name_or_path is None and model.config is None and context.command in ("pretrain", "finetune"):
        yield Problem("model", "one of model.name_or_path (weights) and model.config (from scratch) is required")
    if model.name_or_path is not None and not model.name_or_path.strip():
        yield Problem("model.name_or_path", "expected a directory or a Hub id, got an empty text")
    if model.config is not None and not isinstance(model.config.get("model_type"), str):
        yield Problem("model.config", "required key model_type is missing, e.g. {model_type: gpt2, n_layer: 4}")
    local = model.name_or_path is not None and is_local(model.name_or_path)
    if is_set(model, "revision") and (model.name_or_path is None or local):
        yield Problem("model.revision", "only a model of the Hub has revisions, and model.name_or_path names none")
    if model.trust_remote_code:
        if not context.trust_remote_code:
            yield Problem(
                "model.trust_remote_code", "running a model's own code needs the option --trust-remote-code too"
            )
        if not local and not COMMIT.match(model.revision or ""):
            yield Problem("model.trust_remote_code", "needs model.revision, the 40 hexadecimal digits of a commit")
    if model.freeze is not None and recipe.peft is not None:
        yield Problem("model.freeze", "peft trains nothing but its adapter and a new head already; leave it out")


def _faults(recipe: Recipe) -> Iterator[Problem]:
    try:
        bytes_of(recipe.training.max_memory)
    except ValueError as error:
        yield Problem("training.max_memory", str(error))
    if recipe.training.loss_spike_action == "rollback" and recipe.checkpoint.save_steps is None:
        message = "rollback goes back to the last multiple of checkpoint.save_steps, which is not given"
        yield Problem("training.loss_spike_action", message)


def _peft(recipe: Recipe) -> Iterator[Problem]:
    peft = recipe.peft
    if peft is None:
        return
    if recipe.model.config is not None:
        yield Problem("peft", "an adapter needs pretrained weights (model.name_or_path); model.config is from scratch")
    for name, types in READ_BY_PEFT.items():
        if is_set(peft, name) and peft.type not in types:
            yield Problem(f"peft.{name}", f"{peft.type} would ignore it; it belongs to {', '.join(types)}")
    if peft.type == "prompt_tuning":
        if peft.merge:
            yield Problem("peft.merge", "a tuned prompt is an input, not a change of weights: it cannot be merged")
        if recipe.task.type not in PROMPT_TASKS:
            message = f"prompt_tuning shifts positions, and {recipe.task.type} reads them; lora and ia3 do not"
            yield Problem("peft.type", message)
        if recipe.training.layerwise_lr_decay is not None:
            yield Problem("training.layerwise_lr_decay", "prompt_tuning trains no layer of the model")


def _read_by_task(recipe: Recipe) -> Iterator[Problem]:
    for key, tasks in READ_BY_TASK.items():
        section, name = key.split(".")
        if recipe.task.type not in tasks and getattr(getattr(recipe, section), name) not in (None, []):
            yield Problem(key, f"the task {recipe.task.type} cannot use it; {', '.join(tasks)} can")
    task = recipe.task
    smoothed = recipe.training.label_smoothing_factor is not None
    if smoothed and task.type == "sequence_classification" and task.problem_type in ("multi_label", "regression"):
        yield Problem("training.label_smoothing_factor", f"{task.problem_type} has no single label to smooth")


def _tokenizer(recipe: Recipe) -> Iterator[Problem]:
    tokenizer = recipe.tokenizer
    if tokenizer.train is not None:
        if tokenizer.name_or_path is not None:
            yield Problem(
                "tokenizer.train", "tokenizer.name_or_path is given too; a tokenizer is loaded or trained, not both"
            )
        if recipe.model.name_or_path is not None:
            yield Problem("tokenizer.train", "the weights of model.name_or_path belong to their own tokenizer")
        if not recipe.data.train:
            yield Problem("tokenizer.train", "needs data.train")
    elif tokenizer.name_or_path is None and recipe.model.config is not None:
        yield Problem("tokenizer", "a model from scratch needs tokenizer.train, or tokenizer.name_or_path")
    if is_set(tokenizer, "tokenizer_class") and tokenizer.name_or_path is None:
        yield Problem("tokenizer.tokenizer_class", "goes with tokenizer.name_or_path, which is not given")
    if is_set(tokenizer, "chat_template") and recipe.task.type not in CHATS:
        yield Problem("tokenizer.chat_template", f"the task {recipe.task.type} has no chats and would ignore it")


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.validation and data.validation_fraction is not None:
        yield Problem(
            "data.validation_fraction",
            "data.validation is given too; name validation data or hold out a share, not both",
        )
    if data.packing and recipe.task.type == "sequence_classification":
        yield Problem("data.packing", "a row of sequence_classification stands alone; it would be ignored")
    ways = OVERFLOW[recipe.task.type]
    if data.overflow is not None and data.overflow not in ways:
        why = (
            "texts are cut into windows, so nothing overflows; leave it out, or limit lengths in data.clean"
            if ways == ("split",)
            else f"a row of {recipe.task.type} cannot be split; expected one of {', '.join(ways)}"
        )
        yield Problem("data.overflow", why)


def _source(source: SourceSection, key: str, task: str) -> Iterator[Problem]:
    """What needs no look at the files; `data.sources` judges the keys that depend on their format."""
    paths = source.path if isinstance(source.path, list) else [source.path]
    if not paths or any(isinstance(path, str) and not path.strip() for path in paths):
        yield Problem(f"{key}.path", "expected a path, got an empty one")
    if not key.startswith("data.train") and is_set(source, "weight"):
        yield Problem(f"{key}.weight", "only data.train is drawn by weight; every row here counts once")
    if is_set(source, "label_names") and task not in LABELLED:
        yield Problem(f"{key}.label_names", f"the task {task} has no labels and would ignore it")
    if is_set(source, "label_separator") and task != "sequence_classification":
        yield Problem(f"{key}.label_separator", "only sequence_classification splits labels; it would be ignored")


def _clean(recipe: Recipe) -> Iterator[Problem]:
    for index, step in enumerate(recipe.data.clean):
        if step.step != "length":
            continue
        key = f"data.clean.{index}"
        bounds = (step.min_characters, step.max_characters, step.min_words, step.max_words)
        if all(bound is None for bound in bounds):
            yield Problem(key, "expected at least one of min_characters, max_characters, min_words, max_words")
        for unit, low, high in (("characters", *bounds[:2]), ("words", *bounds[2:])):
            if low is not None and high is not None and low > high:
                yield Problem(f"{key}.min_{unit}", f"more than max_{unit} ({high}), so that nothing would be kept")


def _length_of_run(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    if training.max_steps is not None and training.num_train_epochs is not None:
        yield Problem(
            "training.max_steps", "training.num_train_epochs is given too; one of them says how long a run is"
        )
    if training.warmup_steps is not None and training.warmup_ratio is not None:
        yield Problem(
            "training.warmup_ratio", "training.warmup_steps is given too; one of them says how long warm-up is"
        )
    warmup = training.warmup_steps
    if warmup is not None and warmup >= 1:
        if warmup != int(warmup):
            yield Problem("training.warmup_steps", "expected a whole number, or a fraction of the run below 1")
        elif training.max_steps is not None and warmup > training.max_steps:
            yield Problem("training.warmup_steps", f"more than training.max_steps ({training.max_steps})")
    if training.min_lr_ratio is not None and training.lr_scheduler_type in ("constant", "inverse_sqrt"):
        yield Problem(
            "training.min_lr_ratio",
            f"the schedule {training.lr_scheduler_type} would ignore it; cosine_with_min_lr has it",
        )


def _batch(recipe: Recipe, context: Context) -> Iterator[Problem]:
    training = recipe.training
    total, each = training.global_batch_size, training.per_device_train_batch_size
    processes = context.num_processes or 1
    if total is None:
        return
    if each is not None and total % (each * processes):
        product = f"per_device_train_batch_size ({each}) x processes ({processes})"
        yield Problem("training.global_batch_size", f"{total} is no multiple of {product} = {each * processes}")
    elif each is None and total % processes:
        yield Problem("training.global_batch_size", f"{total} is no multiple of the number of processes ({processes})")


def _optimizer(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    for name in IGNORED_BY_OPTIMIZER.get(training.optim or "", ()):
        if is_set(training, name):
            yield Problem(f"training.{name}", f"the optimiser {training.optim} would ignore it")


def _generation(recipe: Recipe) -> Iterator[Problem]:
    generation = recipe.generation
    if not generation.do_sample:
        for name in ("temperature", "top_p", "top_k"):
            if is_set(generation, name):
                yield Problem(f"generation.{name}", "without generation.do_sample: true it would be ignored")
    if generation.num_beams == 1:
        for name in ("length_penalty", "early_stopping"):
            if is_set(generation, name):
                yield Problem(f"generation.{name}", "without generation.num_beams above 1 it would be ignored")
    if generation.num_return_sequences > generation.num_beams and not generation.do_sample:
        message = "several texts a prompt need do_sample: true, or as many num_beams"
        yield Problem("generation.num_return_sequences", message)
    if (generation.min_new_tokens or 0) > generation.max_new_tokens:
        yield Problem("generation.min_new_tokens", f"more than generation.max_new_tokens ({generation.max_new_tokens})")
