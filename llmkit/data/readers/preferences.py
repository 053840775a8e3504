"""Rows of preference data: two answers to one prompt, or one answer that is good or bad, as conversations.

Shapes: prompt, chosen and rejected as text or as messages; whole conversations that share their beginning; transcripts
(paragraphs that begin with `Human:` or `Assistant:`, as in Anthropic's hh-rlhf), which are split after the last
assistant mark that both share.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmkit.data.readers.messages import Message, Unusable, conversation, finished, normalise, tools_of
from llmkit.recipe.sections import MessageKeys

_MARK = re.compile(r"(?:\A|\n\n)\s*(Human|User|Assistant|用户|人类|助手)\s*[:：][ ]?")
_SPEAKERS = {"Assistant": "assistant", "助手": "assistant"}


def pair_of_answers(row: dict[str, Any], keys: MessageKeys | None) -> dict[str, Any]:
    """{chosen, rejected: conversations that differ in what follows the prompt, answered: the assistant's turns in the
    prompt, tools}.

    Raises Unusable.
    """
    chosen, rejected = (_side(row[side], keys) for side in ("chosen", "rejected"))
    prompt = row.get("prompt")
    if prompt is not None:
        turns = _prompt(prompt, keys)
        answers = [_answer(side, name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
    elif isinstance(chosen, str) and isinstance(rejected, str):
        turns, answers = _split_transcripts(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        shared = _num_shared(chosen, rejected)
        turns, answers = chosen[:shared], [chosen[shared:], rejected[shared:]]
        if not all(answers):
            raise Unusable("one answer is the beginning of the other")
    else:
        raise Unusable("chosen and rejected are not both text or both messages")
    if answers[0] == answers[1]:
        raise Unusable("chosen and rejected are the same")
    system = row.get("system")
    whole = [finished([*turns, *answer], system) for answer in answers]
    answered = sum(message["role"] == "assistant" for message in turns)
    return {"chosen": whole[0], "rejected": whole[1], "answered": answered, "tools": tools_of(row.get("tools"))}


def rated_answer(row: dict[str, Any], keys: MessageKeys | None) -> dict[str, Any]:
    """{messages: a conversation that ends in the rated answer, label: whether it is good, tools}. Raises Unusable."""
    label = row["label"]
    if isinstance(label, str) and label.strip().lower() in ("true", "false", "1", "0"):
        label = label.strip().lower() in ("true", "1")
    if label not in (True, False):
        raise Unusable("label is neither true nor false")
    if "messages" not in row and row.get("prompt") is None:
        raise Unusable("there is no prompt")
    made = normalise({role: value for role, value in row.items() if role != "label"}, keys)
    if made["messages"][-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's")
    return {**made, "label": bool(label)}


def _num_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _side(value: Any, keys: MessageKeys | None) -> str | list[Message]:
    """An answer as text, or as messages (a single message may stand alone)."""
    if isinstance(value, str):
        return value
    return conversation([value] if isinstance(value, dict) else value, keys)


def _prompt(value: Any, keys: MessageKeys | None) -> list[Message]:
    if not isinstance(value, str):
        return conversation(value, keys)
    return transcript(value) or [{"role": "user", "content": value}]


def _answer(side: str | list[Message], name: str) -> list[Message]:
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    if len(side) != 1 or side[0]["role"] != "assistant":
        raise Unusable(f"{name} is not one answer of the assistant, although the row has a prompt")
    return side


def _split_transcripts(chosen: str, rejected: str) -> tuple[list[Message], list[list[Message]]]:
    shared = chosen[: _num_shared(chosen, rejected)]
    marks = [found for found in _MARK.finditer(shared) if found[1] in _SPEAKERS]
    if not marks:
        raise Unusable("there is no prompt, and no assistant mark (`Assistant:`) that chosen and rejected share")
    turns = transcript(shared[: marks[-1].start()])
    if not turns:
        raise Unusable("nobody speaks before the assistant does")
    texts = (chosen[marks[-1].end() :].strip(), rejected[marks[-1].end() :].strip())
    return turns, [[{"role": "assistant", "content": text}] for text in texts]


def transcript(text: str) -> list[Message]:
    """The messages of a text whose speakers are marked at the start of paragraphs; empty where it has no marks, or
    something stands before the first."""
    marks = list(_MARK.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    messages = [
        {"role": _SPEAKERS.get(mark[1], "user"), "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()  # the mark after which the answer begins
    return messages
