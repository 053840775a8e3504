"""Models of many languages (NLLB, mBART-50) mark which one a text is in: before the source, and before what is written.

The mark of the target is taught as its first token, and forced when the model writes. A tokenizer marks every text with
*some* language, so leaving the two out would silently teach the wrong one: they are asked for.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from llmkit.data.tokenizer_core import read_core
from llmkit.errors import RecipeError
from llmkit.recipe.tasks import Summarization, TaskSection, Translation


def of(section: TaskSection) -> tuple[str, str] | None:
    """The languages of source and target that the recipe names. Raises RecipeError where one is missing."""
    if not isinstance(section, Translation | Summarization) or (section.src_lang, section.tgt_lang) == (None, None):
        return None
    if section.src_lang is None or section.tgt_lang is None:
        missing = "src_lang" if section.src_lang is None else "tgt_lang"
        raise RecipeError("the languages of source and target go together; name it too", key=f"task.{missing}")
    return section.src_lang, section.tgt_lang


def mark(directory: Path, language: str) -> int | None:
    """The id of a language's mark."""
    found: int | None = read_core(directory).token_to_id(language)
    return found


def settle(tokenizer: Any, section: TaskSection) -> bool:
    """Gives a tokenizer that marks languages those of the recipe. Whether it does. Raises RecipeError where they are
    missing, not needed or unknown."""
    if not isinstance(section, Translation | Summarization):
        return False
    spoken = of(section)
    marks: list[str] = tokenizer.extra_special_tokens if getattr(tokenizer, "src_lang", None) is not None else []
    if not marks:
        if spoken is not None:
            raise RecipeError(f"{type(tokenizer).__name__} marks no languages: leave it out", key="task.src_lang")
        return False
    if spoken is None:
        raise RecipeError(
            f"this model marks the language of every text ({', '.join(marks[:3])}, ...): name those of source and "
            "target in task.src_lang and task.tgt_lang",
            key="task.src_lang",
        )
    for key, language in zip(("src_lang", "tgt_lang"), spoken, strict=True):
        if language not in marks:
            near = difflib.get_close_matches(language, marks, 1)
            hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(marks[:3])} and others"
            raise RecipeError(f"the tokenizer has no language {language!r}; {hint}", key=f"task.{key}")
    tokenizer.tgt_lang, tokenizer.src_lang = spoken[1], spoken[0]
    if tokenizer("a")["input_ids"][0] != tokenizer.convert_tokens_to_ids(spoken[0]):
        raise RecipeError(
            f"{type(tokenizer).__name__} puts the mark of a language after its text, which is not supported; a model "
            "such as NLLB or mBART-50 puts it first",
            key="model.name_or_path",
        )
    return True
