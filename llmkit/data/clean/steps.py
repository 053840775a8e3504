"""The cleaning steps. A step is made from its recipe section and is one of three kinds:

- a change: text -> text, applied to every text of a record;
- a filter: record text -> None, or the reason why the record is dropped;
- exact_dedup: drops by the hash of the record as it is at that point; what was seen lives in `dedup.py`.

A new step is a section in recipe/sections.py, a function here and a row in `CLEANERS`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmkit.data.clean.html import strip_html
from llmkit.data.text import count_words
from llmkit.errors import RecipeError
from llmkit.recipe.sections import (
    CleanStep,
    ExactDedup,
    FixUnicode,
    LanguageFilter,
    LengthFilter,
    Normalize,
    StripHtml,
)


@dataclass(frozen=True)
class Cleaner:
    """One step, ready to run. Exactly one of change and reason is given; neither for exact_dedup."""

    name: str
    change: Callable[[str], str] | None = None
    reason: Callable[[str], str | None] | None = None

    @property
    def is_dedup(self) -> bool:
        return self.change is None and self.reason is None


def fix_unicode(section: FixUnicode) -> Cleaner:
    """Mojibake, stray control characters and lone surrogates (ftfy); Chinese punctuation keeps its width."""
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=False, fix_character_width=False, uncurl_quotes=False, normalization=None, explain=False
    )

    def change(text: str) -> str:
        return ftfy.fix_text(text, config)

    return Cleaner("fix_unicode", change=change)


BLANKS = re.compile(r"[^\S\n]+")
LINE_EDGES = re.compile(r" *\n *")
BLANK_LINES = re.compile(r"\n{3,}")
LINE_BREAKS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")


def normalize(section: Normalize) -> Cleaner:
    """Unicode normal form; with `whitespace`, runs of blanks become one, at most one empty line stays."""

    def change(text: str) -> str:
        text = unicodedata.normalize(section.form, text)
        if not section.whitespace:
            return text
        text = BLANKS.sub(" ", LINE_BREAKS.sub("\n", text))
        return BLANK_LINES.sub("\n\n", LINE_EDGES.sub("\n", text)).strip()

    return Cleaner("normalize", change=change)


def strip_html_step(section: StripHtml) -> Cleaner:
    return Cleaner("strip_html", change=strip_html)


def length(section: LengthFilter) -> Cleaner:
    """Bounds in characters and words; a CJK character is a word."""

    def reason(text: str) -> str | None:
        size = len(text)
        if section.min_characters is not None and size < section.min_characters:
            return f"{size} characters, fewer than {section.min_characters}"
        if section.max_characters is not None and size > section.max_characters:
            return f"{size} characters, more than {section.max_characters}"
        if section.min_words is None and section.max_words is None:
            return None
        words = int(count_words([text])[0][0])
        if section.min_words is not None and words < section.min_words:
            return f"{words} words, fewer than {section.min_words}"
        if section.max_words is not None and words > section.max_words:
            return f"{words} words, more than {section.max_words}"
        return None

    return Cleaner("length", reason=reason)


LANGUAGE_SAMPLE = 20_000
"""Characters of a document that decide its language: the identifier walks bytes in Python."""


def language(section: LanguageFilter) -> Cleaner:
    """Keeps the languages named (ISO 639-1 codes, `zh` for Chinese), identified by py3langid."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    keep = frozenset(section.keep)
    unknown = sorted(keep - set(identifier.labels))
    if unknown:
        raise RecipeError(
            f"unknown language {unknown[0]!r}; expected ISO 639-1 codes such as en, zh, de", key="data.clean: keep"
        )

    def reason(text: str) -> str | None:
        code, probability = identifier.classify(text[:LANGUAGE_SAMPLE])
        if code not in keep:
            return f"language {code}"
        if section.min_probability is not None and probability < section.min_probability:
            return f"language {code} with probability {probability:.2f}, below {section.min_probability}"
        return None

    return Cleaner("language", reason=reason)


def exact_dedup(section: ExactDedup) -> Cleaner:
    return Cleaner("exact_dedup")


CLEANERS: dict[str, Callable[[Any], Cleaner]] = {
    "fix_unicode": fix_unicode,
    "normalize": normalize,
    "strip_html": strip_html_step,
    "length": length,
    "language": language,
    "exact_dedup": exact_dedup,
}


def build_cleaners(steps: list[CleanStep]) -> list[Cleaner]:
    """The recipe's steps in order. Raises RecipeError for a language that the identifier does not know."""
    return [CLEANERS[section.step](section) for section in steps]
