"""Instruction rows of every common shape as one: a list of {"role", "content", ...} messages and a list of tools.

Shapes: OpenAI messages, ShareGPT (`from`, `value`), Alpaca (instruction, input, output), prompt and completion as text
or as messages. What comes out is what chat templates of transformers take: roles system, user, assistant and tool;
`tool_calls` as {"type": "function", "function": {"name", "arguments"}}; `reasoning_content` where a row has it.

Order: system messages only at the start; then the user begins. An assistant turn follows a user's or a tool's; a tool's
follows an assistant's or a tool's; a user's follows any but a user's. Two assistant turns in a row are accepted only
where the second is a function call, which then joins the first. A row needs an assistant turn, and none may be empty.
"""

from __future__ import annotations

import json
from typing import Any

from llmkit.recipe.sections import MessageKeys

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text")
_AFTER = {
    None: {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool", "user"},
}


class Unusable(Exception):
    """A row that gives no example; the argument is the reason."""


def normalise(row: dict[str, Any], keys: MessageKeys | None) -> dict[str, Any]:
    """{messages, tools} of a row {role: value}; absent optional roles are None. Raises Unusable."""
    if "messages" in row:
        messages = conversation(row["messages"], keys)
    elif "instruction" in row:
        messages = _alpaca(row)
    else:
        messages = _pair(row["prompt"], row["completion"], keys)
    return {"messages": finished(messages, row.get("system")), "tools": tools_of(row.get("tools"))}


def finished(messages: list[Message], system: Any) -> list[Message]:
    """The conversation with the row's own system message, checked. Raises Unusable."""
    if isinstance(system, str) and system.strip() and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    messages = _joined(messages)
    check(messages)
    return messages


def _alpaca(row: dict[str, Any]) -> list[Message]:
    instruction = _plain(row["instruction"], "instruction")
    given = row.get("input")
    extra = "" if given is None else _plain(given, "input")
    question = "\n".join(part for part in (instruction, extra) if part.strip())
    history = row.get("history")
    messages: list[Message] = []
    for turn in history if isinstance(history, list) else []:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise Unusable("history is not a list of [question, answer] pairs")
        messages.append({"role": "user", "content": _plain(turn[0], "history")})
        messages.append({"role": "assistant", "content": _plain(turn[1], "history")})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _plain(row["output"], "output")})
    return messages


def _pair(prompt: Any, completion: Any, keys: MessageKeys | None) -> list[Message]:
    if isinstance(prompt, list):
        messages = conversation(prompt, keys)
    else:
        messages = [{"role": "user", "content": _plain(prompt, "prompt")}]
    if isinstance(completion, list):
        return messages + conversation(completion, keys)
    return [*messages, {"role": "assistant", "content": _plain(completion, "completion")}]


def _plain(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Unusable(f"{name} is not text")


def conversation(value: Any, keys: MessageKeys | None) -> list[Message]:
    """A list of messages in any of the known key names, or in those of `keys`. Raises Unusable."""
    if isinstance(value, str):
        value = _json_list(value)
    if not isinstance(value, list):
        raise Unusable("messages are not a list")
    names = dict(ROLES)
    if keys is not None and keys.roles is not None:
        names.update({name.lower(): role for name, role in keys.roles.items()})
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise Unusable(f"message {number} is not an object")
        content_key = _key(item, keys.content if keys else None, _CONTENT_KEYS)
        role_key = _key(item, keys.role if keys else None, _ROLE_KEYS)
        if role_key is not None:
            given = item[role_key]
            role = names.get(given.lower()) if isinstance(given, str) else None
            if role is None:
                raise Unusable(f"message {number}: unknown role {str(given)[:40]!r}; message_keys.roles can name it")
        elif keys is not None and keys.content is not None and keys.role is None:
            role = "assistant" if number % 2 == 0 else "user"  # speakers taking turns, as asked for
        else:
            raise Unusable(f"message {number} has no role")
        if content_key is None and not item.get("tool_calls"):
            raise Unusable(f"message {number} has no content")
        messages.append(_message(role, item, item[content_key] if content_key is not None else None, number))
    return messages


def _json_list(text: str) -> Any:
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        raise Unusable("messages are a string, not a list") from None


def _loads(text: str) -> Any:
    """JSON inside a string. Raises ValueError, for lone surrogates too."""
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _key(item: dict[str, Any], named: str | None, known: tuple[str, ...]) -> str | None:
    candidates = (named,) if named is not None else known
    return next((key for key in candidates if key in item), None)


def _message(role: str, item: dict[str, Any], content: Any, number: int) -> Message:
    if role == "call":
        called = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        calls = _calls(called)
        if calls is None:
            return {"role": "assistant", "content": called}
        return {"role": "assistant", "content": "", "tool_calls": calls}
    message: Message = {"role": role, "content": ""}
    calls = []
    if isinstance(content, list):
        message["content"] = _parts(content, message, calls, number)
    elif content is None or isinstance(content, str):
        message["content"] = content or ""
    elif isinstance(content, dict) and role == "tool":
        message["content"] = json.dumps(content, ensure_ascii=False)
    else:
        message["content"] = _plain(content, f"the content of message {number}")
    given = item.get("tool_calls")
    if isinstance(given, list):
        calls += [call for one in given for call in (_calls(one) or [])]
    if calls and role == "assistant":
        message["tool_calls"] = calls
    for name in ("reasoning_content", "name", "tool_call_id"):
        if isinstance(item.get(name), str):
            message[name] = item[name]
    return message


def _parts(parts: list[Any], message: Message, calls: list[Any], number: int) -> str:
    """Content as a list of parts: texts are joined, reasoning and calls go to their own keys."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else None
        value = next((part[key] for key in ("text", "value", "content") if key in part), None) if kind else None
        if not isinstance(value, str):
            raise Unusable(f"message {number} has a part of type {str(kind)[:40]!r} that is not text")
        if kind == "text":
            texts.append(value)
        elif kind in ("reasoning", "thinking"):
            message["reasoning_content"] = message.get("reasoning_content", "") + value
        elif kind in ("tool_call", "function_call"):
            found = _calls(value)
            if found is None:
                raise Unusable(f"message {number}: a tool call that is not JSON with a name")
            calls += found
        else:
            raise Unusable(f"message {number} has a part of type {str(kind)[:40]!r}")
    return "".join(texts)


def _calls(value: Any) -> list[Any] | None:
    """Function calls, given as JSON or as objects, in transformers' form; None where they are not calls."""
    if isinstance(value, str):
        try:
            value = _loads(value)
        except (ValueError, RecursionError):
            return None
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = _loads(arguments)
            except (ValueError, RecursionError):
                pass  # kept as the string it is
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return found or None


def _joined(messages: list[Message]) -> list[Message]:
    """Drops empty system messages; a function call right behind an assistant's message becomes a part of it."""
    joined: list[Message] = []
    for message in messages:
        if message["role"] == "system" and not message["content"].strip():
            continue
        last = joined[-1] if joined else None
        call = message.get("tool_calls") and not message["content"]
        if call and last is not None and last["role"] == message["role"] == "assistant":
            last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
            continue
        joined.append(message)
    return joined


def check(messages: list[Message]) -> None:
    """Raises Unusable for rows without an answer, empty turns and turns out of order."""
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("no assistant turn")
    before: str | None = None
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role == "system" and before is None:
            continue
        if role not in _AFTER[before]:
            raise Unusable(f"message {number}: {role} after {before or 'the start'}")
        before = role
        if role == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise Unusable("empty completion" if len(messages) <= 2 else f"message {number}: empty assistant turn")
        if role == "user" and not message["content"].strip():
            raise Unusable("empty prompt" if len(messages) <= 2 else f"message {number}: empty user turn")
        if "\0" in message["content"]:
            raise Unusable(f"message {number} contains a NUL character")


def tools_of(value: Any) -> list[Any] | None:
    """The tools of a row, a list or its JSON; None for none. Raises Unusable."""
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        try:
            value = _loads(value)
        except (ValueError, RecursionError):
            raise Unusable("tools are not valid JSON") from None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Unusable("tools are not a list of objects")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
    return wrapped or None
