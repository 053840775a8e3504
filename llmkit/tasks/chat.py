"""Conversations to tokens, segment by segment, so that training sees a prompt exactly as inference will.

A conversation is rendered up to each assistant turn, as generation would render it. What the whole text has beyond
that, up to the end-of-turn token, is the assistant's segment. Each segment is tokenised on its own: no token straddles
the place where the prompt ends and the answer begins. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.tokenizer_core import unspelled
from llmkit.errors import ModelError
from llmkit.files import read_object
from llmkit.tasks.templates import Template, control_tokens, on_trial

Message = dict[str, Any]

_PROBE = "\ue010answer\ue010"
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Around what looks like a special token in a message: private-use characters that no template writes."""

_FIRST, _LATER, _LITERAL = range(3)
"""How a piece of text is tokenised: at the start, after other text, or with special tokens as plain text."""


class ConversationError(ValueError):
    """A conversation that a template refuses; the record is rejected with this reason."""


@dataclass(frozen=True)
class Segment:
    """Text of one side. `closes`: the end-of-sequence token follows, because the template writes no end of turn."""

    text: str
    is_answer: bool
    closes: bool = False


@dataclass
class ChatFormat:
    """A template with the tokenizer it is used with. Picklable."""

    tokenizer_dir: Path
    template: Template
    special_map: dict[str, str] = field(init=False)
    eos_id: int = field(init=False)
    end_of_turn: str | None = field(init=False)
    _tokenizers: tuple[Any, Any, Any] = field(init=False, repr=False)
    _literals: re.Pattern[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokenizers = _load_tokenizers(self.tokenizer_dir)
        self.special_map = _special_map(self.tokenizer_dir)
        eos = self.special_map.get("eos_token")
        eos_id = self._tokenizers[0].token_to_id(eos) if eos is not None else None
        if eos_id is None:
            raise ModelError(f"the tokenizer in {self.tokenizer_dir} has no end-of-sequence token; answers need one")
        self.eos_id = int(eos_id)
        added = self._tokenizers[0].get_added_tokens_decoder().values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._literals = re.compile("|".join(map(re.escape, special))) if special else None
        missing = [t for t in control_tokens(self.template.text) if self._tokenizers[0].token_to_id(t) is None]
        if missing:
            message = f"the tokenizer has no token {missing[0]}, which chat template {self.template.name} writes"
            raise ModelError(f"{message}; run preprocess again", key="tokenizer.chat_template")
        with on_trial(self.template):
            self.end_of_turn = self._find_end_of_turn()

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: end of sequence, and end of turn where that is another."""
        ids = [self.eos_id]
        if self.end_of_turn is not None:
            turn = int(self._tokenizers[0].token_to_id(self.end_of_turn))
            ids += [turn] if turn != self.eos_id else []
        return ids

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, *, prompt: bool) -> str:
        """The template's text, with the opening of an answer where `prompt`. Raises ConversationError, ModelError."""
        from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
        from transformers.utils.chat_template_utils import render_jinja_template

        names: dict[str, Any] = {**self.special_map}
        try:
            rendered: Any = render_jinja_template(
                conversations=[list(messages)],
                tools=self._mark(tools),
                chat_template=self.template.text,
                add_generation_prompt=prompt,
                **names,
            )
        except (SecurityError, TemplateSyntaxError, UndefinedError) as error:
            raise ModelError(f"chat template {self.template.name}: {error}", key="tokenizer.chat_template") from error
        except TemplateError as error:  # raise_exception in the template: it refuses this conversation
            raise ConversationError(f"the chat template refuses it: {error}") from error
        except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
            what = str(error) or type(error).__name__
            raise ModelError(f"chat template {self.template.name}: {what}", key="tokenizer.chat_template") from error
        return str(rendered[0][0])

    def segments(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[Segment]:
        """Alternating text of the two sides, up to the last answer. Raises ConversationError, ModelError."""
        turns = [self._marked(message) for message in messages]
        answers = [i for i, message in enumerate(turns) if message.get("role") == "assistant"]
        if not answers:
            raise ConversationError("no assistant turn")
        turns = turns[: answers[-1] + 1]
        whole = self.render(turns, tools, prompt=False)
        segments: list[Segment] = []
        done = 0
        for i in answers:
            prompt = self.render(turns[:i], tools, prompt=True)
            end = whole if i == answers[-1] else self.render(turns[: i + 1], tools, prompt=False)
            if not (whole.startswith(prompt) and whole.startswith(end) and done <= len(prompt) <= len(end)):
                raise self._not_appending()
            if done < len(prompt):
                segments.append(Segment(whole[done : len(prompt)], False))
            answer, closes = self._answer(end[len(prompt) :])
            segments.append(Segment(answer, True, closes))
            done = len(prompt) + len(answer)
        return segments

    def _not_appending(self) -> ModelError:
        return ModelError(
            f"chat template {self.template.name}: the prompt rendered for an answer is not the beginning of the whole "
            "conversation, so training would not see what inference shows; expected a template that only appends "
            "(built in: plain, alpaca, chatml, llama3)",
            key="tokenizer.chat_template",
        )

    def encode_prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """Tokens of everything up to the answer, exactly as training saw them. Raises ConversationError, ModelError."""
        turns = list(messages)
        before = self.segments(turns, tools) if any(turn.get("role") == "assistant" for turn in turns) else []
        text = self.render([self._marked(turn) for turn in turns], tools, prompt=True)
        done = sum(len(segment.text) for segment in before)
        if not text.startswith("".join(segment.text for segment in before)):
            raise self._not_appending()
        ids, _ = self.encode([[*before, Segment(text[done:], False)]])[0]
        return [int(i) for i in ids]

    def encode(self, conversations: Sequence[Sequence[Segment]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids (L,) int64, is_answer (L,) uint8) of each conversation."""
        pieces: list[tuple[int, str]] = []
        places: list[list[tuple[int, bool, bool]]] = []
        for segments in conversations:
            place = []
            for number, segment in enumerate(segments):
                parts = self._pieces(segment.text, is_first=number == 0)
                for part, piece in enumerate(parts):
                    place.append((len(pieces), segment.is_answer, segment.closes and part == len(parts) - 1))
                    pieces.append(piece)
            places.append(place)
        ids = self._tokenise(pieces)
        made = []
        for place in places:
            tokens = [[*ids[at], self.eos_id] if closes else ids[at] for at, _, closes in place]
            values = np.array([i for part in tokens for i in part], dtype=np.int64)
            answer = np.repeat([is_answer for _, is_answer, _ in place], [len(part) for part in tokens])
            made.append((values, answer.astype(np.uint8)))
        return made

    def _tokenise(self, pieces: list[tuple[int, str]]) -> list[list[int]]:
        ids: list[list[int]] = [[]] * len(pieces)
        for mode, tokenizer in enumerate(self._tokenizers):
            mine = [i for i, (kind, _) in enumerate(pieces) if kind == mode]
            if mine:
                texts = [pieces[i][1] for i in mine]
                for i, encoding in zip(mine, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
                    ids[i] = encoding.ids
        return ids

    def _pieces(self, text: str, *, is_first: bool) -> list[tuple[int, str]]:
        """A segment cut where a message spelt a special token, which stays text."""
        parts = re.split(f"{_OPEN}(.*?){_CLOSE}", text) if _OPEN in text else [text]
        modes = [_LITERAL if i % 2 else _LATER for i in range(len(parts))]
        modes[0] = _FIRST if is_first else _LATER
        return [(mode, part) for mode, part in zip(modes, parts, strict=True) if part] or [(modes[0], "")]

    def _marked(self, message: Message) -> Message:
        """The message without one closing end-of-turn literal of an answer, other spelt special tokens marked."""
        content = message.get("content")
        if message.get("role") == "assistant" and isinstance(content, str):
            ends = [self.special_map["eos_token"], *([self.end_of_turn] if self.end_of_turn else [])]
            end = next((end for end in ends if content.endswith(end)), "")
            message = {**message, "content": content.removesuffix(end)}
        marked: Message = self._mark(message)
        return marked

    def _mark(self, value: Any) -> Any:
        """Special tokens marked wherever a value spells them: in contents, reasoning, calls and tools alike."""
        if isinstance(value, str):
            text = value.replace(_OPEN, "").replace(_CLOSE, "")
            return text if self._literals is None else self._literals.sub(f"{_OPEN}\\g<0>{_CLOSE}", text)
        if isinstance(value, list):
            return [self._mark(item) for item in value]
        if isinstance(value, dict):
            return {self._mark(key): self._mark(item) for key, item in value.items()}
        return value

    def _answer(self, text: str) -> tuple[str, bool]:
        """An assistant's segment up to its end of turn, and whether one has to be appended."""
        if self.end_of_turn is None:
            return text.rstrip("\n"), True
        at = text.rfind(self.end_of_turn)
        return (text.rstrip("\n"), True) if at < 0 else (text[: at + len(self.end_of_turn)], False)

    def _find_end_of_turn(self) -> str | None:
        """The first special token that the template writes after an answer; None where it writes none."""
        conversation = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self.render(conversation, prompt=False)
        except ConversationError:
            return None
        _, found, tail = text.rpartition(_PROBE)
        if not found or self._literals is None:
            return None
        match = self._literals.search(tail)
        return None if match is None else match[0]


def _special_map(tokenizer_dir: Path) -> dict[str, str]:
    """{bos_token: "<s>", ...} as templates see it."""
    path = tokenizer_dir / "tokenizer_config.json"
    config = read_object(path, ModelError) if path.exists() else {}
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            special[name] = content
    return special


def _load_tokenizers(tokenizer_dir: Path) -> tuple[Any, Any, Any]:
    """One tokenizer a mode. The later ones put no space before a text, because it does not stand at the start."""
    from tokenizers import Tokenizer

    path = tokenizer_dir / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        first = Tokenizer.from_str(text)
        later = Tokenizer.from_str(json.dumps(_without_prefix_space(json.loads(text)), ensure_ascii=False))
    except Exception as error:  # the library raises a bare Exception for any defect of the file
        raise ModelError(f"cannot read {path}: {error}") from error
    literal = unspelled(later) or Tokenizer.from_str(later.to_str())
    literal.encode_special_tokens = True
    for tokenizer in (first, later, literal):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return first, later, literal


def _without_prefix_space(part: Any) -> Any:
    """tokenizer.json without what puts a space before the first word (Metaspace, Prepend, ByteLevel)."""
    if not isinstance(part, dict):
        return part
    kept = dict(part)
    for key in ("normalizer", "pre_tokenizer"):
        kept[key] = _never_prepend(part.get(key))
    return kept


def _never_prepend(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    step = dict(step)
    for key in ("normalizers", "pretokenizers"):
        if isinstance(step.get(key), list):
            step[key] = [_never_prepend(inner) for inner in step[key]]
            step[key] = [inner for inner in step[key] if inner is not None]
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Metaspace":
        step["prepend_scheme"] = "never"
    if step.get("type") == "ByteLevel":
        step["add_prefix_space"] = False
    return step
