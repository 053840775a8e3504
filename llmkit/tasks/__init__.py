"""The tasks by name, and how a recipe becomes one. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.rolespecs import CLASSIFICATION, INSTRUCTION, PAIRS, QUESTIONS, TAGGING, TEXT, RoleSpec
from llmkit.models.source import is_encoder_decoder, max_length
from llmkit.recipe.sections import ModelSection, Recipe
from llmkit.recipe.tasks import TaskSection
from llmkit.tasks import (
    causal_lm,
    corruption,
    instruction,
    languages,
    masked_lm,
    pairs,
    preference,
    question_answering,
    replaced_tokens,
    sequence_classification,
    token_classification,
)
from llmkit.tasks.base import Encoder, Task
from llmkit.tasks.masked_text import TOKENS
from llmkit.tasks.network import NetworkSpec
from llmkit.tasks.pair_encoder import read_frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmkit.data.shards import Split

__all__ = [
    "TASKS",
    "TaskKind",
    "added_tokens",
    "build_task",
    "check_splits",
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


def _no_check(recipe: Recipe, splits: Mapping[str, Split]) -> None:
    return None


@dataclass(frozen=True)
class TaskKind:
    """roles: the columns it reads. build: the task of a recipe, on a complete tokenizer. tokens: special tokens that it
    needs and the tokenizer (in a directory, where there is one) lacks. named: special tokens that must have a name in
    the tokenizer (`pad_token`: one that is no end of text), with the text of one to add where it has none. template:
    the chat template to store with the tokenizer. check: what prepared splits show to be wrong before training
    (DataError). words: its rows are lists of words. All raise RecipeError, ModelError.
    """

    roles: Callable[[TaskSection], RoleSpec]
    build: Callable[[Recipe, NetworkSpec], Task]
    tokens: Callable[[Recipe, Has, Path | None], list[str]] = _no_tokens
    named: Callable[[Recipe], dict[str, str]] = _no_names
    template: Callable[[Recipe, Path], str] | None = None
    check: Callable[[Recipe, Mapping[str, Split]], None] = _no_check
    words: bool = False


TASKS: dict[str, TaskKind] = {
    "causal_lm": TaskKind(lambda _: TEXT, causal_lm.build, causal_lm.added_tokens),
    "instruction": TaskKind(
        lambda _: INSTRUCTION,
        instruction.build,
        instruction.added_tokens,
        named=pairs.named_tokens,
        template=instruction.template_text,
    ),
    "token_classification": TaskKind(
        lambda _: TAGGING, token_classification.build, check=token_classification.check, words=True
    ),
    "question_answering": TaskKind(
        lambda _: QUESTIONS, question_answering.build, named=question_answering.named_tokens
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
    "replaced_token_detection": TaskKind(lambda _: TEXT, replaced_tokens.build, named=lambda _: TOKENS),
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


def check_splits(recipe: Recipe, splits: Mapping[str, Split]) -> None:
    """What is wrong with prepared splits that are each right. Raises DataError."""
    TASKS[recipe.task.type].check(recipe, splits)


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
    from llmkit.tasks.framing import close_texts, frame, keep_frame
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
    spoken = languages.settle(tokenizer, recipe.task)
    framed = {"cls_token", "sep_token"} <= set(named) and frame(tokenizer, recipe.model)
    closed = is_encoder_decoder(recipe.model) and close_texts(tokenizer, list(read_frame(directory).prefix))
    spaced = TASKS[recipe.task.type].words and space_words(tokenizer)
    if (
        tokens
        or names
        or framed
        or closed
        or spaced
        or spoken
        or (template is not None and template != own_template(directory))
    ):
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(str(directory))
        if framed:
            keep_frame(directory)
    return [*tokens, *names.values()]


def space_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Lets a byte-level tokenizer see words as they stand in running text, a blank before each: transformers'
    `add_prefix_space`, without which its RoBERTa refuses lists of words. Whether that was new to it."""
    from tokenizers.pre_tokenizers import ByteLevel

    core: Any = getattr(tokenizer, "backend_tokenizer", None)
    before = getattr(core, "pre_tokenizer", None)
    if not isinstance(before, ByteLevel) or before.add_prefix_space:
        return False
    core.pre_tokenizer = ByteLevel(add_prefix_space=True, use_regex=before.use_regex)
    tokenizer.init_kwargs["add_prefix_space"] = True  # saved from here, or from the attribute where a class has it
    if hasattr(tokenizer, "add_prefix_space"):
        tokenizer.add_prefix_space = True
    return True


def lacks(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether the tokenizer has no special token of that name; a padding that also ends texts is none."""
    token = getattr(tokenizer, name)
    return token is None or (name == "pad_token" and token in (tokenizer.eos_token, tokenizer.bos_token))
