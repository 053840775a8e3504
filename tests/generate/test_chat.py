"""Streaming never shows half characters or part of a stop string; a conversation remembers, forgets and stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from llmkit.generate.chat import AnswerStreamer, chat
from llmkit.generate.prompts import Item, chat_format, prompt_encoder
from llmkit.writing.engine import Prompt, TransformersEngine
from tests.generate.conftest import engine_of, make_model


@pytest.fixture
def engine(tokenizer: PreTrainedTokenizerBase) -> TransformersEngine:
    return engine_of(make_model("gpt2", len(tokenizer), positions=128), tokenizer, stop_strings=["END"])


def stream(engine: TransformersEngine, text: str) -> tuple[list[str], str]:
    """(pieces written after each token, how it ended)."""
    pieces: list[str] = []
    streamer = AnswerStreamer(engine, Prompt((5,), 0, "p"), pieces.append)
    streamer.put(torch.tensor([[5]]))
    for token in engine.tokenizer(text)["input_ids"]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return pieces, streamer.finish().finish_reason


def test_chinese_comes_in_whole_characters(engine: TransformersEngine) -> None:
    pieces, reason = stream(engine, "今天天气很好😀 ok")
    assert "".join(pieces) == "今天天气很好😀 ok"
    assert all("\ufffd" not in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 6  # as it comes, not all at the end
    assert reason == "length"


def test_nothing_of_a_stop_string_is_shown(engine: TransformersEngine) -> None:
    pieces, reason = stream(engine, "the ENEND of")
    assert "".join(pieces) == "the EN"
    assert reason == "stop_string"
    pieces, _ = stream(engine, "the EN")
    assert "".join(pieces) == "the EN"


def test_bytes_that_are_no_character_are_shown_at_the_end(engine: TransformersEngine) -> None:
    half = engine.tokenizer("今")["input_ids"][:2]
    pieces: list[str] = []
    streamer = AnswerStreamer(engine, Prompt((5,), 0, "p"), pieces.append)
    for ids in ([[5]], half):
        streamer.put(torch.tensor(ids))
    assert "".join(pieces) == ""
    streamer.finish()
    assert "".join(pieces) == "\ufffd"


class Conversation:
    """Runs a chat on given lines and keeps what was put to the model."""

    def __init__(self, engine: TransformersEngine, directory: Path, *, history: bool = True):
        engine.tokenizer.save_pretrained(str(directory))
        self.engine = engine
        self.history = history
        form = chat_format(directory, required=True)
        self._encode = prompt_encoder(engine.tokenizer, form, "instruction" if history else "causal_lm")
        self.asked: list[dict[str, Any]] = []
        self.written: list[str] = []
        self.notes: list[str] = []

    def encode(self, item: Item) -> Prompt:
        self.asked.append(item.fields)
        return self._encode(item)

    def run(self, *lines: str) -> int:
        source: Iterator[str] = iter(lines)
        return chat(
            self.engine,
            self.encode,
            history=self.history,
            read_line=lambda: next(source, None),
            write=self.written.append,
            note=self.notes.append,
        )


def test_history_reset_and_exit(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path)
    assert talk.run("hello", "", "the fox", "/reset", "今天", "/exit", "never read") == 3
    assert [len(fields["messages"]) for fields in talk.asked] == [1, 3, 1]
    assert [message["role"] for message in talk.asked[1]["messages"]] == ["user", "assistant", "user"]
    answer = talk.asked[1]["messages"][1]["content"]
    assert "".join(talk.written).startswith(answer + "\n")
    assert "the conversation is forgotten" in talk.notes


def test_streamed_answer_equals_the_batch_answer(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path)
    talk.run("the fox")
    prompt = talk.encode(Item({"prompt": "the fox"}, 0))
    assert "".join(talk.written) == engine.generate([prompt])[0].text + "\n"


def test_unknown_command_is_not_sent(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path)
    assert talk.run("/rest", "/help", "/etc is a path") == 1
    assert any("unknown command /rest" in note for note in talk.notes)
    assert talk.asked[0]["messages"][0]["content"] == "/etc is a path"


def test_old_exchanges_make_room(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path)
    assert talk.run(*["the quick brown fox jumps over the lazy dog"] * 8) == 8
    assert any("oldest exchange is forgotten" in note for note in talk.notes)


def test_a_line_too_long_is_told_and_the_chat_goes_on(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path)
    assert talk.run("今" * 200, "the") == 1
    assert any("reads at most 128" in note for note in talk.notes)


def test_ctrl_c_stops_the_answer_and_keeps_it(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path)
    real, calls = engine.stream, []

    def interrupted(prompt: Prompt, streamer: AnswerStreamer) -> None:
        calls.append(prompt)
        if len(calls) > 1:
            return real(prompt, streamer)
        streamer.put(torch.tensor([prompt.ids]))
        streamer.put(torch.tensor(engine.tokenizer("fox")["input_ids"]))
        raise KeyboardInterrupt

    engine.stream = interrupted  # type: ignore[method-assign, assignment]
    assert talk.run("one", "two") == 2
    assert talk.asked[1]["messages"][1] == {"role": "assistant", "content": "fox"}
    assert "stopped" in talk.notes


def test_a_base_model_continues_each_line_alone(engine: TransformersEngine, tmp_path: Path) -> None:
    talk = Conversation(engine, tmp_path, history=False)
    assert talk.run("the", "fox") == 2
    assert talk.asked == [{"prompt": "the"}, {"prompt": "fox"}]
