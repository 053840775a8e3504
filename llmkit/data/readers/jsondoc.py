"""A JSON document that holds rows (format json), and SQuAD's nesting of articles, paragraphs and questions (squad)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.data.readers.base import Chunk, Reading
from llmkit.data.readers.jsoncursor import JsonCursor, Unreadable
from llmkit.data.readers.jsonl import not_an_object

_ROWS = 1000


def read_json(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """The objects of a list, of the list under `field`, or those that an object holds by name. State: rows given."""
    cursor = JsonCursor(reading)
    if cursor.peek() == "":
        return
    if reading.section.field is not None:
        _enter(reading, cursor, reading.section.field)
    yield from _in_chunks(reading, _rows(reading, cursor), state)


def _enter(reading: Reading, cursor: JsonCursor, field: str) -> None:
    """Moves the cursor to the value under a dotted key."""
    parts = field.split(".")
    for depth in range(len(parts)):
        whole = ".".join(parts[depth:])
        if cursor.peek() != "{":
            place = ".".join(parts[:depth]) or "the document"
            raise reading.fail(f"field {field!r}: {place} is not an object", line=cursor.line)
        seen: list[str] = []
        for key in cursor.members():
            cursor.key_value()
            if key == whole:
                return
            if key == parts[depth]:
                break
            seen.append(key)
            cursor.pass_over()
        else:
            raise reading.fail(f"field {field!r}: no key {parts[depth]!r}; the keys are {', '.join(seen[:20])}")


_Item = tuple[int, int, Any]


def _rows(reading: Reading, cursor: JsonCursor) -> Iterator[_Item]:
    """(line, offset, row or Unreadable) of each element."""
    if cursor.peek() == "[":
        for line, offset in cursor.items():
            yield line, offset, _value(cursor)
        if reading.section.field is None and cursor.peek():
            raise cursor.broken("expected the end behind the list")
    elif cursor.peek() == "{":
        keys: list[str] = []
        for key in cursor.members():
            cursor.key_value()
            keys.append(key)
            if cursor.peek() == "{":
                line, offset = cursor.line, cursor.offset
                yield line, offset, _value(cursor)
            elif len(keys) < 20:
                cursor.pass_over()
            else:
                break
        if reading.section.field is None and cursor.peek() == "{":
            raise reading.fail("holds one JSON object after another; set format: jsonl if each is on a line of its own")
    else:
        raise reading.fail("a JSON list of rows is expected, or an object with the list under `field`")


def _value(cursor: JsonCursor) -> Any:
    try:
        return cursor.value()
    except Unreadable as problem:
        return problem


def _in_chunks(reading: Reading, items: Iterator[_Item], state: dict[str, Any] | None) -> Iterator[Chunk]:
    given = 0
    skip = state["rows"] if state else 0
    chunk = Chunk([], [], [], [], {})
    start = 0
    for line, offset, row in items:
        given += 1
        if given <= skip:
            start = offset
            continue
        if isinstance(row, dict):
            chunk.rows.append(row)
            chunk.lines.append(line)
            chunk.offsets.append(offset)
        else:
            reason = str(row) if isinstance(row, Unreadable) else not_an_object(row)
            chunk.bad.append((line, offset, reason))
        if len(chunk.rows) + len(chunk.bad) >= _ROWS or offset - start >= reading.batch_bytes:
            chunk.state = {"rows": given}
            yield chunk
            chunk, start = Chunk([], [], [], [], {}), offset
    if chunk.rows or chunk.bad:
        chunk.state = {"rows": given}
        yield chunk


def read_squad(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """SQuAD 1 and 2: a row a question; its place is that of the article."""
    cursor = JsonCursor(reading)
    if cursor.peek() == "":
        return
    if cursor.peek() == "{":
        _enter(reading, cursor, reading.section.field or "data")
    if cursor.peek() != "[":
        raise reading.fail("SQuAD: a list of articles is expected under `data`", line=cursor.line)
    yield from _in_chunks(reading, _questions(cursor), state)


def _questions(cursor: JsonCursor) -> Iterator[_Item]:
    for line, offset in cursor.items():
        article = _value(cursor)
        if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
            reason = article if isinstance(article, Unreadable) else Unreadable("SQuAD: an article without paragraphs")
            yield line, offset, reason
            continue
        for paragraph in article["paragraphs"]:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or not isinstance(paragraph.get("context"), str):
                yield line, offset, Unreadable("SQuAD: a paragraph without context or qas")
                continue
            for question in questions:
                yield line, offset, _flatten(article.get("title"), paragraph["context"], question)


def _flatten(title: Any, context: str, question: Any) -> Any:
    if not isinstance(question, dict) or not isinstance(question.get("question"), str):
        return Unreadable("SQuAD: an entry of qas without a question")
    answers = question.get("answers")
    if answers is None:
        answers = []
    if not isinstance(answers, list) or not all(isinstance(one, dict) and "text" in one for one in answers):
        return Unreadable("SQuAD: answers without text")
    return {
        "id": question.get("id"),
        "title": title,
        "question": question["question"],
        "context": context,
        "answers": {
            "text": [one["text"] for one in answers],
            "answer_start": [one.get("answer_start") for one in answers],
        },
        "is_impossible": bool(question.get("is_impossible", False)),
    }
