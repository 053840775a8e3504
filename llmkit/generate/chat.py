"""`generate --interactive`: a conversation in the terminal, streamed as it is made.

Answers go to standard output, everything else to standard error. Ctrl-C stops an answer and keeps what it said; Ctrl-D
or /exit ends. Half characters (a Chinese character may be several tokens) are held back until they are whole. The
console makes escape sequences in an answer visible on a terminal, so that they are not obeyed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from llmkit.errors import DataError
from llmkit.generate.prompts import EncodePrompt, Item
from llmkit.writing.engine import Prompt, TransformersEngine
from llmkit.writing.stopping import REPLACEMENT, Ending, continuation, find_ending

HELP = "/reset forgets the conversation, /exit ends (so does Ctrl-D), Ctrl-C stops an answer"
ReadLine = Callable[[], str | None]
Write = Callable[[str], None]


class AnswerStreamer:
    """What `generate` calls with the prompt, each new token, and at the end. Writes text as soon as it is certain."""

    def __init__(self, engine: TransformersEngine, prompt: Prompt, write: Write):
        self.engine = engine
        self.prompt = prompt
        self.emit = write
        self.ids: list[int] = []
        self.shown = ""
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        self._show(_certain(self._text(), self.engine.section.stop_strings))

    def end(self) -> None:
        """`generate` is done; `finish` shows the rest."""

    def finish(self) -> Ending:
        """Shows what was held back, and tells how the answer ended."""
        stops = self.engine.section.stop_strings
        context = self.engine.context(self.prompt)
        ending = find_ending(self.engine.tokenizer, context, self.ids, self.engine.eos_ids, stops)
        self._show(ending.text)
        return ending

    def _text(self) -> str:
        return continuation(self.engine.tokenizer, self.engine.context(self.prompt), self.ids)

    def _show(self, text: str) -> None:
        if text.startswith(self.shown):
            self.emit(text[len(self.shown) :])
            self.shown = text


def _certain(text: str, stop_strings: list[str]) -> str:
    """The part of an unfinished text that will stay: without half characters and without what may become a stop
    string."""
    text = text.rstrip(REPLACEMENT)
    for stop in stop_strings:
        place = text.find(stop)
        if place >= 0:
            text = text[:place]
        held = next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
        text = text[: len(text) - held]
    return text


def chat(
    engine: TransformersEngine, encode: EncodePrompt, *, history: bool, read_line: ReadLine, write: Write, note: Write
) -> int:
    """Runs the conversation until `read_line` returns None; returns the number of answers. `history` false: a model
    that continues text; each line stands alone. `write` gets answers piece by piece, `note` everything else."""
    messages: list[dict[str, Any]] = []
    turn = 0
    note(HELP)
    while (line := read_line()) is not None:
        command = line.strip()
        if command in ("/exit", "/quit"):
            break
        if command == "/reset":
            messages.clear()
            note("the conversation is forgotten")
        elif command == "/help":
            note(HELP)
        elif command.startswith("/") and " " not in command:
            note(f"unknown command {command}; {HELP}")
        elif command:
            said = _answer(engine, encode, messages, line, turn, history, write, note)
            turn += said
    return turn


def _answer(
    engine: TransformersEngine,
    encode: EncodePrompt,
    messages: list[dict[str, Any]],
    line: str,
    turn: int,
    history: bool,
    write: Write,
    note: Write,
) -> int:
    """Streams one answer and adds it to `messages`. Returns 1, or 0 where the line could not be answered."""
    asked = {"role": "user", "content": line}
    try:
        prompt = (
            _fitting(engine, encode, messages, asked, turn, note) if history else encode(Item({"prompt": line}, turn))
        )
        engine.allowance(prompt)
    except DataError as error:
        note(str(error))
        return 0
    streamer = AnswerStreamer(engine, prompt, write)
    try:
        engine.stream(prompt, streamer)
        ending = streamer.finish()
    except KeyboardInterrupt:
        write("\n")
        note("stopped")
        messages += [asked, {"role": "assistant", "content": streamer.shown}]
        return 1
    write("\n")
    if ending.finish_reason == "length":
        note("(cut at max_new_tokens or the end of the model's context)")
    messages += [asked, {"role": "assistant", "content": ending.text}]
    return 1


def _fitting(
    engine: TransformersEngine,
    encode: EncodePrompt,
    messages: list[dict[str, Any]],
    asked: dict[str, Any],
    turn: int,
    note: Write,
) -> Prompt:
    """The conversation's prompt; its oldest exchanges are forgotten where it would leave an answer no room."""
    while True:
        prompt = encode(Item({"messages": [*messages, asked]}, turn))
        wanted = min(engine.section.max_new_tokens, (engine.limit or 0) // 2)
        if engine.limit is None or not messages or engine.limit - len(prompt.ids) >= wanted:
            return prompt
        del messages[:2]
        note("the conversation is longer than the model's context; its oldest exchange is forgotten")


def terminal_reader() -> ReadLine:
    """Lines of standard input, with editing and a prompt mark on a terminal; None at its end or on Ctrl-C at the
    mark."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):

        def read_plain() -> str | None:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None

        return read_plain
    import readline  # noqa: F401  (gives `input` its line editing)

    def read() -> str | None:
        try:
            return input("> ")
        except (EOFError, KeyboardInterrupt):
            return None

    return read
