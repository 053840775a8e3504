"""The tasks by name, and how a recipe becomes one. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.data.rolespecs import CLASSIFICATION, INSTRUCTION, PAIRS, TEXT, RoleSpec
from llmkit.models.source import max_length
from llmkit.recipe.sections import ModelSection, Recipe
from llmkit.recipe.tasks import TaskSection
from llmkit.tasks import causal_lm, corruption, instruction, masked_lm, pairs, preference, sequence_classification
from llmkit.tasks.base import Encoder, Task
from llmkit.tasks.masked_text import TOKENS
from llmkit.tasks.network import NetworkSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TASKS",
    "TaskKind",
    "added_tokens",
    "build_task",
    "complete_tokenizer",
    "encoder_for",
    "named_tokens",
    "role_spec",
]

Has = Callable[[str], bool]
"""Tells whether a vocabulary holds a token."""


def _no_tokens(recipe: Recipe, has: Has, tokenizer_dir: Path | None) -> list[str]:
    return []


def _no_names(recipe: Recipe) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class TaskKind:
    """roles: the columns it reads. build: the task of a recipe, on a complete tokenizer. tokens: special tokens that it
    needs and the tokenizer (in a directory, where there is one) lacks. named: special tokens that must have a name in
    the tokenizer (`pad_token`: one that is no end of text), with the text of one to add where it has none. template:
    the chat template to store with the tokenizer. All raise RecipeError, ModelError.
    """

    roles: Callable[[TaskSection], RoleSpec]
    build: Callable[[Recipe, NetworkSpec], Task]
    tokens: Callable[[Recipe, Has, Path | None], list[str]] = _no_tokens
    named: Callable[[Recipe], dict[str, str]] = _no_names
    template: Callable[[Recipe, Path], str] | None = None


TASKS: dict[str, TaskKind] = {
    "causal_lm": TaskKind(lambda _: TEXT, causal_lm.build, causal_lm.added_tokens),
    "instruction": TaskKind(
        lambda _: INSTRUCTION,
        instruction.build,
        instruction.added_tokens,
        named=pairs.named_tokens,
        template=instruction.template_text,
    ),
    "preference": TaskKind(
        preference.roles, preference.build, instruction.added_tokens, template=instruction.template_text
    ),
    "span_corruption": TaskKind(
        lambda _: TEXT,
        corruption.build_span_corruption,
        corruption.sentinel_tokens,
        named=lambda _: corruption.PADDING,
    ),
    "denoising": TaskKind(
        lambda _: TEXT, corruption.build_denoising, named=lambda _: corruption.PADDING | corruption.MASK
    ),
    "translation": TaskKind(lambda _: PAIRS, pairs.build, named=pairs.named_tokens),
    "summarization": TaskKind(lambda _: PAIRS, pairs.build, named=pairs.named_tokens),
    "masked_lm": TaskKind(lambda _: TEXT, masked_lm.build, named=lambda _: TOKENS),
    "sequence_classification": TaskKind(
        lambda _: CLASSIFICATION, sequence_classification.build, named=sequence_classification.named_tokens
    ),
}


def role_spec(section: TaskSection) -> RoleSpec:
    """The columns that a task reads."""
    return TASKS[section.type].roles(section)


def build_task(
    recipe: Recipe,
    tokenizer_dir: Path,
    *,
    allow_remote_code: bool = False,
    trained: bool = False,
    start: ModelSection | None = None,
    trial: bool = False,
) -> Task:
    """The recipe's task on a complete tokenizer (see `complete_tokenizer`). Raises RecipeError, ModelError.

    allow_remote_code: the command line had --trust-remote-code. trained: `model.name_or_path` is a finished run's model
    (`evaluate`), which brings its own head and labels; start: the section that its run started from. trial: see
    NetworkSpec.
    """
    network = NetworkSpec(
        model=recipe.model,
        peft=recipe.peft,
        tokenizer_dir=tokenizer_dir,
        seed=recipe.seed,
        max_length=max_length(recipe),
        gradient_checkpointing=bool(recipe.training.gradient_checkpointing),
        allow_remote_code=allow_remote_code,
        trained=trained,
        label_smoothing=recipe.training.label_smoothing_factor or 0.0,
        start=start,
        trial=trial,
    )
    return TASKS[recipe.task.type].build(recipe, network)


def encoder_for(recipe: Recipe, tokenizer_dir: Path) -> Encoder:
    """The torch-free half of the recipe's task."""
    return build_task(recipe, tokenizer_dir).encoder()


def added_tokens(recipe: Recipe, has: Has, tokenizer_dir: Path | None) -> list[str]:
    """Special tokens that the task needs and a tokenizer lacks: those of its chat template, sentinels, a mask."""
    return TASKS[recipe.task.type].tokens(recipe, has, tokenizer_dir)


def named_tokens(recipe: Recipe) -> dict[str, str]:
    """Special tokens by name (`mask_token`, ...) that the task needs, whether the tokenizer has them or not."""
    return TASKS[recipe.task.type].named(recipe)


def complete_tokenizer(recipe: Recipe, directory: Path) -> list[str]:
    """Adds to the tokenizer in `directory` what the task needs (special tokens, the chat template); the tokens added.

    `preprocess` calls it once, on the directory it is about to publish; a second call changes nothing.
    """
    from llmkit.data.tokenizer import load_tokenizer
    from llmkit.tasks.framing import frame, keep_frame
    from llmkit.tasks.templates import own_template

    tokenizer = load_tokenizer(directory)
    tokens = added_tokens(recipe, tokenizer.get_vocab().__contains__, directory)
    make = TASKS[recipe.task.type].template
    template = make(recipe, directory) if make is not None else None
    named = named_tokens(recipe)
    names = {name: token for name, token in named.items() if lacks(tokenizer, name)}
    if tokens:
        tokenizer.add_tokens(tokens, special_tokens=True)
    if names:
        tokenizer.add_special_tokens({**names})
    framed = {"cls_token", "sep_token"} <= set(named) and frame(tokenizer, recipe.model)
    if tokens or names or framed or (template is not None and template != own_template(directory)):
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(str(directory))
        if framed:
            keep_frame(directory)
    return [*tokens, *names.values()]


def lacks(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether the tokenizer has no special token of that name; a padding that also ends texts is none."""
    token = getattr(tokenizer, name)
    return token is None or (name == "pad_token" and token in (tokenizer.eos_token, tokenizer.bos_token))
