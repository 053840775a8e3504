"""Roles: which columns are chosen, and instruction rows of every shape as messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.readers.messages import Unusable, normalise
from llmkit.data.rolespecs import INSTRUCTION
from llmkit.errors import DataError
from llmkit.recipe.sections import MessageKeys
from tests.data.test_readers_text import read_all, records, rejects, write

USER, ANSWER = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}


def messages_of(row: dict[str, Any], tmp_path: Path, **keys: Any) -> Any:
    path = write(tmp_path / "row.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    return records(read_all(path, INSTRUCTION, **keys), "messages")[0]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        {"conversation": [{"role": "Human", "content": "问"}, {"role": "ASSISTANT", "content": "答"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]}, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"instruction": "问", "input": "", "output": "答"},
        {"instruction": "问", "output": "答"},
        {"instruction": "", "input": "问", "output": "答"},
        {"instruction": "问", "context": None, "response": "答", "category": "x"},
        {"prompt": "问", "completion": "答"},
        {"question": "问", "answer": "答"},
        {"query": "问", "response": "答"},
        {"input": "问", "output": "答"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"Prompt": "问", "Completion": "答", "id": 3},
    ],
)
def test_shapes_are_one(row: dict[str, Any], tmp_path: Path) -> None:
    assert messages_of(row, tmp_path) == [USER, ANSWER]


def test_instruction_with_input_system_and_history() -> None:
    row = {"instruction": "Translate", "input": "好", "output": 5, "system": "Be brief", "history": [["a", "b"]]}
    messages, tools = normalise(row, None).values()
    assert [(one["role"], one["content"]) for one in messages] == [
        ("system", "Be brief"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Translate\n好"),
        ("assistant", "5"),
    ]
    assert tools is None


def test_tools_and_calls() -> None:
    call = '{"name": "天气", "arguments": {"city": "北京"}}'
    turns = [("human", "?"), ("function_call", call), ("observation", '{"t": 3}'), ("gpt", "3 度")]
    row = {
        "messages": [{"from": name, "value": text} for name, text in turns],
        "tools": '[{"name": "天气", "parameters": {}}]',
    }
    messages, tools = normalise(row, None).values()
    wanted = {"type": "function", "function": {"name": "天气", "arguments": {"city": "北京"}}}
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [wanted]}
    assert messages[2] == {"role": "tool", "content": '{"t": 3}'}
    assert tools == [{"type": "function", "function": {"name": "天气", "parameters": {}}}]
    for none in ("", "[]", [], None):
        assert normalise({**row, "tools": none}, None)["tools"] is None
    openai = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": json.loads(call)}]}
    assert normalise({"messages": [USER, openai]}, None)["messages"][1]["tool_calls"] == [wanted]
    two = [turns[0], ("gpt", "let me see"), turns[1], turns[1], *turns[2:]]
    joined = normalise({"messages": [{"from": name, "value": text} for name, text in two]}, None)["messages"]
    assert joined[1] == {"role": "assistant", "content": "let me see", "tool_calls": [wanted, wanted]}


def test_parts_with_reasoning() -> None:
    parts = [{"type": "reasoning", "value": "想"}, {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}]
    messages = normalise({"messages": [USER, {"role": "assistant", "content": parts}]}, None)["messages"]
    assert messages[1]["reasoning_content"] == "想"
    assert messages[1]["tool_calls"][0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], "no assistant turn"),
        ([], "no assistant turn"),
        ([ANSWER], "assistant after the start"),
        ([USER, USER, ANSWER], "user after user"),
        ([USER, ANSWER, ANSWER], "assistant after assistant"),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "system after assistant"),
        ([USER, {"role": "assistant", "content": "  "}], "empty completion"),
        ([{"role": "user", "content": ""}, ANSWER], "empty prompt"),
        ([USER, {"role": "robot", "content": "x"}], "unknown role 'robot'"),
        ([USER, {"content": "x"}], "has no role"),
        ([USER, {"role": "assistant"}], "has no content"),
        ([USER, "text"], "not an object"),
        ([USER, {"role": "assistant", "content": "a\0b"}], "NUL"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}], "'image_url'"),
        ("no list", "not a list"),
        ({"a": 1}, "not a list"),
    ],
)
def test_unusable_rows(messages: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        normalise({"messages": messages}, None)
    assert reason in str(caught.value)


def test_orders_that_are_accepted() -> None:
    tool = {"role": "tool", "content": "1"}
    system = {"role": "system", "content": "s"}
    for messages in (
        [system, USER, ANSWER],
        [USER, ANSWER, tool, tool, ANSWER],
        [USER, ANSWER, USER],
        [system, system, USER, ANSWER],
    ):
        assert normalise({"messages": messages}, None)["messages"] == messages


def test_message_keys(tmp_path: Path) -> None:
    row = {"log": [{"who": "Q", "says": "问"}, {"who": "A", "says": "答"}]}
    keys = {"list": "log", "role": "who", "content": "says", "roles": {"Q": "user", "A": "assistant"}}
    assert messages_of(row, tmp_path, message_keys=keys) == [USER, ANSWER]
    turns = {"messages": [{"message": "问"}, {"message": "答", "attrs": []}]}
    assert messages_of(turns, tmp_path, message_keys={"list": "messages", "content": "message"}) == [USER, ANSWER]
    with pytest.raises(DataError, match="message 1 has no role"):
        messages_of(turns, tmp_path)
    with pytest.raises(Unusable, match="has no role"):
        normalise(turns, MessageKeys(role="who", content="message"))


def test_bad_rows_are_rejected_one_by_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": ""},
        {"prompt": "a"},
        {"prompt": 1, "completion": "<|endoftext|>"},
    ]
    batches = read_all(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), INSTRUCTION)
    assert [one[-1]["content"] for one in records(batches, "messages")] == ["b", "<|endoftext|>"]
    assert [(line, reason) for line, _, reason in rejects(batches)] == [
        (2, "empty completion"),
        (3, "column 'completion' is missing"),
    ]


def test_columns_choose_the_alternative(tmp_path: Path) -> None:
    row = {"messages": [USER], "q": "问", "a": "答", "instruction": "other", "output": "other"}
    assert messages_of(row, tmp_path, columns={"prompt": "q", "completion": "a"}) == [USER, ANSWER]
    with pytest.raises(DataError, match="messages or instruction \\+ output or prompt \\+ completion"):
        messages_of({"x": 1, "y": 2}, tmp_path)
