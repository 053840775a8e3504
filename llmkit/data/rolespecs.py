"""Which columns a task reads: a `RoleSpec` a kind of row, with the names that public datasets give their columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmkit.data.readers.messages import normalise
from llmkit.data.readers.preferences import pair_of_answers, rated_answer
from llmkit.recipe.sections import MessageKeys


@dataclass(frozen=True)
class RoleSpec:
    """What a task reads.

    required: alternatives, in order of preference; `name?` is optional in one. synonyms: column names of public sets,
    by role. texts: roles whose values must be text that is not empty. content: roles that hold the record's text, which
    cleaning changes, filters look at and words are counted of (empty: `texts`). converse: for rows of conversations,
    the columns (`made`) that a row {role: value} becomes; it raises Unusable. documents: a text file is one document,
    not a record a line. several: roles whose columns, where `columns` lists some without saying how to join them, stay
    texts of their own (references).
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    synonyms: dict[str, tuple[str, ...]]
    texts: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    converse: Callable[[dict[str, Any], MessageKeys | None], dict[str, Any]] | None = None
    made: tuple[str, ...] = ()
    documents: bool = False
    several: tuple[str, ...] = ()

    def roles(self) -> list[str]:
        """Every role that `columns` may name."""
        names = [role.removesuffix("?") for alternative in self.required for role in alternative]
        return list(dict.fromkeys([*names, *self.optional]))

    def content_roles(self) -> tuple[str, ...]:
        """Roles that hold the record's text, in order."""
        return self.content or self.texts


_TEXT_NAMES = (
    *("content", "document", "sentence", "article", "body", "raw_content", "passage", "page", "story"),
    *("paragraph", "review", "code", "text_a", "articleBody", "contents", "文本", "正文", "内容"),
)

TEXT = RoleSpec(required=(("text",),), optional=(), synonyms={"text": _TEXT_NAMES}, texts=("text",), documents=True)

INSTRUCTION = RoleSpec(
    required=(("messages",), ("instruction", "input?", "output"), ("prompt", "completion")),
    optional=("tools", "system", "history"),
    synonyms={
        "messages": ("conversations", "conversation", "dialogue", "dialog", "chat"),
        "instruction": ("指令",),
        "input": ("context", "输入"),
        "output": ("response", "answer", "completion", "输出"),
        "prompt": ("question", "query", "input", "source", "问题"),
        "completion": ("response", "answer", "output", "target", "chosen_response", "回答", "答案"),
        "tools": ("functions",),
        "system": ("system_prompt",),
    },
    content=("messages",),
    converse=normalise,
    made=("messages", "tools"),
)

CLASSIFICATION = RoleSpec(
    required=(("text", "text_pair?", "label"),),
    optional=(),
    synonyms={
        "text": (*_TEXT_NAMES, "sentence1", "premise", "question1", "question", "tweet", "comment"),
        "text_pair": ("text_b", "sentence2", "hypothesis", "question2"),
        "label": ("labels", "class", "category", "target", "sentiment", "score", "rating", "标签", "类别"),
    },
    texts=("text",),
    content=("text", "text_pair"),
)

TAGGING = RoleSpec(
    required=(("tokens", "labels"),),
    optional=(),
    synonyms={"tokens": ("words", "text"), "labels": ("ner_tags", "tags", "pos_tags", "chunk_tags", "ner")},
    content=("tokens",),
)

QUESTIONS = RoleSpec(
    required=(("question", "context", "answers?"),),
    optional=("id", "is_impossible"),
    synonyms={
        "question": ("query", "问题"),
        "context": ("passage", "paragraph", "document", "text", "文章"),
        "answers": ("answer",),
        "id": ("qid", "question_id", "query_id"),
    },
    texts=("question", "context"),
)

PAIRS = RoleSpec(
    required=(("source", "target"),),
    optional=(),
    synonyms={
        "source": ("src", "document", "article", "dialogue", "text", "input", "原文"),
        "target": ("tgt", "reference", "references", "summary", "highlights", "translation", "output", "译文", "摘要"),
    },
    texts=("source",),
    content=("source", "target"),
    several=("target",),
)

PREFERENCE = RoleSpec(
    required=(("prompt?", "chosen", "rejected"),),
    optional=("system", "tools"),
    synonyms={
        "prompt": ("messages", "conversations", "question", "instruction"),
        "chosen": ("preferred", "better"),
        "rejected": ("dispreferred", "worse"),
    },
    content=("chosen", "rejected"),
    converse=pair_of_answers,
    made=("chosen", "rejected", "answered", "tools"),
)

RATED = RoleSpec(
    required=(("prompt?", "completion", "label"), ("messages", "label")),
    optional=("system", "tools"),
    synonyms={
        "prompt": ("question", "instruction"),
        "completion": ("response", "answer", "output"),
        "label": ("kto_tag", "rating", "desirable"),
        "messages": ("conversations",),
    },
    content=("messages",),
    converse=rated_answer,
    made=("messages", "label", "tools"),
)
"""Single answers that are good or bad (kto)."""
