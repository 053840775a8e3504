"""From what the user gives (a text, or messages) to the token ids that the model reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmkit.errors import DataError, ModelError
from llmkit.recipe.tasks import CHATS
from llmkit.tasks.chat import ChatFormat, ConversationError
from llmkit.tasks.templates import own_template, resolve_template
from llmkit.writing.engine import Prompt

ROLES = ("system", "user", "assistant", "tool")
EncodePrompt = Callable[["Item"], Prompt]


@dataclass(frozen=True)
class Item:
    """One object of the input, its place from 0, and where it stands (`file` and `line` are None for --prompt)."""

    fields: dict[str, Any]
    row: int
    file: str | None = None
    line: int | None = None

    @property
    def name(self) -> str:
        return f"--prompt {self.row + 1}" if self.line is None else f"{self.file}:{self.line}: the prompt"

    def error(self, message: str, key: str | None = None) -> DataError:
        return DataError(message, file=self.file, line=self.line, key=key)


def read_items(lines: Iterator[bytes], file: str) -> Iterator[Item]:
    """JSON objects of the lines; blank lines and a byte order mark are skipped. Raises DataError naming the line."""
    row = 0
    for number, raw in enumerate(lines, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        item = Item(_parse(raw, file, number), row, file, number)
        check_item(item)
        yield item
        row += 1


def _parse(raw: bytes, file: str, line: int) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start + 1} of the line)", file=file, line=line) from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"not JSON ({reason}); expected an object a line", file=file, line=line) from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise DataError(f'{kind}; expected an object with "prompt" or "messages"', file=file, line=line)
    return value


def check_item(item: Item) -> None:
    """Raises DataError unless the item has a text `prompt`, or `messages` that wait for an answer."""
    fields = item.fields
    if ("prompt" in fields) == ("messages" in fields):
        found = "both" if "prompt" in fields else f"only {', '.join(map(repr, fields)) or 'nothing'}"
        raise item.error(f'expected "prompt" or "messages", found {found}')
    if "prompt" in fields:
        _check_text(item, fields["prompt"], "prompt")
        return
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise item.error("expected a list with at least one message", "messages")
    for place, message in enumerate(messages):
        key = f"messages.{place}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise item.error(f"expected an object whose role is one of {', '.join(ROLES)}", key)
        if "content" in message or "tool_calls" not in message:
            _check_text(item, message.get("content"), f"{key}.content")
    if messages[-1]["role"] == "assistant":
        raise item.error("the last message is the assistant's own, so there is nothing to answer", "messages")


def _check_text(item: Item, text: Any, key: str) -> None:
    if not isinstance(text, str):
        raise item.error(f"expected a text, found {type(text).__name__}", key)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise item.error("holds half of a character (a lone surrogate)", key)


def chat_format(tokenizer_dir: Path, *, required: bool) -> ChatFormat | None:
    """How a conversation becomes tokens: the very code that training used. None where the tokenizer has no template of
    its own and none is `required`; a model tuned without one saw the default."""
    if not required and own_template(tokenizer_dir) is None:
        return None
    return ChatFormat(tokenizer_dir, resolve_template(None, tokenizer_dir))


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatFormat | None,
    task: str,
    source: Callable[[str], list[int]] | None = None,
    suffix: Sequence[int] = (),
) -> EncodePrompt:
    """How this model's prompts are made. Of a chat task a `prompt` is one user message, and messages go through the
    chat template. With `source`: a `prompt` is the source text of a task, encoded by it. Else a `prompt` is text to
    continue, with the special tokens that the tokenizer itself puts first. `suffix` ends what an encoder reads."""

    def encode(item: Item) -> Prompt:
        if source is not None:
            if "messages" in item.fields:
                raise item.error(f"the task {task} takes a prompt, not a conversation", "messages")
            ids = source(item.fields["prompt"])
        elif "messages" in item.fields:
            ids = encode_chat(chat, item.fields["messages"], item, item.fields.get("tools")) + list(suffix)
        elif task in CHATS:
            asked = [{"role": "user", "content": item.fields["prompt"]}]
            ids = encode_chat(chat, asked, item, None) + list(suffix)
        else:
            ids = encode_text(tokenizer, item.fields["prompt"]) + list(suffix)
        return Prompt(tuple(ids), item.row, item.name)

    return encode


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text to continue. An empty one starts from the token that begins (else ends) a document; an
    end-of-sequence token that the tokenizer puts last is taken off, for nothing continues after it."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    eos = tokenizer.eos_token
    if ids and eos is not None and ids[-1] == tokenizer.eos_token_id and not text.endswith(eos):
        ids.pop()
    if not ids:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ModelError("the tokenizer has neither a beginning nor an end token: an empty prompt cannot start")
        ids = [int(start)]
    return ids


def encode_chat(
    chat: ChatFormat | None, messages: list[dict[str, Any]], item: Item, tools: list[Any] | None
) -> list[int]:
    """Ids of a conversation up to where the assistant's answer begins."""
    if chat is None:
        raise ModelError(
            "the model's tokenizer has no chat template, so messages cannot be put to it; give a plain prompt, or "
            "fine-tune the model with task.type: instruction"
        )
    try:
        return chat.encode_prompt(messages, tools)
    except ConversationError as error:
        raise item.error(str(error), "messages") from None


def file_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file. Raises DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise DataError(f"cannot read it: {error.strerror}", file=str(path)) from None
