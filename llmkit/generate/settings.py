"""Checks of the recipe's `generation` section that need no model: a setting that would be ignored is an error.

transformers ignores a temperature without sampling and a length penalty without beams, with a warning at most.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.errors import RecipeError
from llmkit.recipe.sections import GenerationSection


def generation_problems(section: GenerationSection) -> Iterator[tuple[str, str]]:
    """Yields (key within `generation`, what is wrong) for settings that contradict each other or would do nothing."""
    if not section.do_sample:
        for name in ("temperature", "top_p", "top_k", "seed"):
            if getattr(section, name) is not None:
                yield name, "without generation.do_sample: true it would be ignored"
    if section.num_beams == 1:
        for name in ("length_penalty", "early_stopping"):
            if getattr(section, name) is not None:
                yield name, "without generation.num_beams above 1 it would be ignored"
        if section.num_return_sequences > 1 and not section.do_sample:
            yield "num_return_sequences", "several texts a prompt need do_sample: true, or as many num_beams"
    elif section.num_return_sequences > section.num_beams:
        count, beams = section.num_return_sequences, section.num_beams
        yield "num_return_sequences", f"{count} texts a prompt, and generation.num_beams is only {beams}"
    if (section.min_new_tokens or 0) > section.max_new_tokens:
        yield "min_new_tokens", f"more than generation.max_new_tokens ({section.max_new_tokens})"
    for index, text in enumerate(section.stop_strings):
        if not text:
            yield f"stop_strings.{index}", "an empty text would stop everything at once"


def interactive_problems(section: GenerationSection) -> Iterator[tuple[str, str]]:
    """What a streamed conversation cannot do."""
    if section.num_beams > 1:
        yield "num_beams", "beams cannot be streamed; --interactive needs 1"
    if section.num_return_sequences > 1:
        yield "num_return_sequences", "--interactive gives one answer; it needs 1"


def check_generation(section: GenerationSection, *, interactive: bool = False) -> None:
    """Raises RecipeError on the first problem."""
    for name, message in generation_problems(section):
        raise RecipeError(message, key=f"generation.{name}")
    if interactive:
        for name, message in interactive_problems(section):
            raise RecipeError(message, key=f"generation.{name}")
