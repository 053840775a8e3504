"""The tasks by name, and how a recipe becomes one. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmkit.data.fim import SENTINELS, find_sentinels
from llmkit.data.roles import INSTRUCTION, TEXT, RoleSpec
from llmkit.errors import RecipeError
from llmkit.models.source import max_length
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import CausalLM, Instruction
from llmkit.tasks.base import Encoder, Task
from llmkit.tasks.causal_lm import CausalLMTask
from llmkit.tasks.instruction import InstructionTask
from llmkit.tasks.language_model import NetworkSpec
from llmkit.tasks.templates import control_tokens, resolve_template

__all__ = ["TASKS", "added_tokens", "build_task", "complete_tokenizer", "encoder_for", "role_spec"]

TASKS: dict[str, type[CausalLMTask] | type[InstructionTask]] = {
    "causal_lm": CausalLMTask,
    "instruction": InstructionTask,
}

_ROLES: dict[str, RoleSpec] = {"causal_lm": TEXT, "instruction": INSTRUCTION}


def role_spec(section: CausalLM | Instruction) -> RoleSpec:
    """The columns that a task reads."""
    return _ROLES[section.type]


def build_task(recipe: Recipe, tokenizer_dir: Path, *, allow_remote_code: bool = False) -> Task:
    """The recipe's task on a complete tokenizer (see `complete_tokenizer`). Raises RecipeError, ModelError.

    `allow_remote_code`: the command line had --trust-remote-code.
    """
    network = NetworkSpec(
        model=recipe.model,
        peft=recipe.peft,
        tokenizer_dir=tokenizer_dir,
        seed=recipe.seed,
        max_length=max_length(recipe),
        gradient_checkpointing=bool(recipe.training.gradient_checkpointing),
        allow_remote_code=allow_remote_code,
    )
    weights = tuple(source.weight for source in recipe.data.train)
    section, overflow = recipe.task, recipe.data.overflow
    if isinstance(section, CausalLM):
        if overflow not in (None, "split"):
            message = (
                "documents are cut into windows, so nothing overflows; leave it out, or limit lengths in data.clean"
            )
            raise RecipeError(message, key="data.overflow")
        return CausalLMTask(network, weights, recipe.data.packing, section.fim_rate)
    if overflow == "split":
        message = "a conversation cannot be split; expected one of truncate, drop, error"
        raise RecipeError(message, key="data.overflow")
    template = resolve_template(recipe.tokenizer.chat_template, tokenizer_dir)
    return InstructionTask(network, weights, recipe.data.packing, section.train_on, overflow or "truncate", template)


def encoder_for(recipe: Recipe, tokenizer_dir: Path) -> Encoder:
    """The torch-free half of the recipe's task."""
    return build_task(recipe, tokenizer_dir).encoder()


def added_tokens(recipe: Recipe, has: Callable[[str], bool], tokenizer_dir: Path | None) -> list[str]:
    """Special tokens that the task needs and a tokenizer lacks: those of its chat template, or of fill-in-the-middle.

    `has` tells whether the vocabulary holds a token.
    """
    if isinstance(recipe.task, CausalLM):
        wanted = SENTINELS[0] if recipe.task.fim_rate > 0 and find_sentinels(has) is None else ()
        return [token for token in wanted if not has(token)]
    template = resolve_template(recipe.tokenizer.chat_template, tokenizer_dir)
    return [token for token in control_tokens(template.text) if not has(token)]


def complete_tokenizer(recipe: Recipe, directory: Path) -> list[str]:
    """Adds to the tokenizer in `directory` what the task needs (special tokens, the chat template); the tokens added.

    `preprocess` calls it once, on the directory it is about to publish; a second call changes nothing.
    """
    from llmkit.data.tokenizer import load_tokenizer
    from llmkit.tasks.templates import own_template

    tokenizer = load_tokenizer(directory)
    vocabulary = tokenizer.get_vocab()
    tokens = added_tokens(recipe, vocabulary.__contains__, directory)
    template = None
    if isinstance(recipe.task, Instruction):
        template = resolve_template(recipe.tokenizer.chat_template, directory).text
    if tokens or (template is not None and template != own_template(directory)):
        if tokens:
            tokenizer.add_tokens(tokens, special_tokens=True)
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(str(directory))
    return tokens
