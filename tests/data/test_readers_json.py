"""JSON lines, JSON documents, SQuAD, tables: what is accepted, what is rejected where and why."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.data.readers.jsonl import _count
from llmkit.data.roles import EMPTY
from llmkit.data.rolespecs import INSTRUCTION, TEXT, RoleSpec
from llmkit.errors import DataError
from tests.data.test_readers_text import assert_resumes, places, read_all, records, rejects, write

QUESTIONS = RoleSpec(required=(("question", "context", "answers"),), optional=("id", "is_impossible"), synonyms={})


def test_jsonl_bad_lines_have_exact_places_and_reasons(tmp_path: Path) -> None:
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    lines = [
        (b'{"text": "\xe4\xbd\xa0\xe5\xa5\xbd"}', None),
        (b'{"text": "bad \xff utf8"}', "invalid UTF-8 at byte 14"),
        (b'{"text": "nul \\u0000"}', "NUL"),
        (b'{"text": "raw \x00"}', "NUL"),
        (b'{"text": "half \\ud83d"}', "lone surrogate"),
        (b'{"text": "pair \\ud83d\\ude00"}', None),
        (b"[1, 2]", "found a list"),
        (b'"string"', "found a string"),
        (b"null", "found null"),
        (b"3", "found a number"),
        (b'{"text": "cut', "not valid JSON"),
        (b'{"other": 1}', "'text' is missing"),
        (b'{"text": null}', "'text' is null"),
        (b'{"text": 5}', "not text"),
        (b'{"text": "  "}', EMPTY),
        (deep, "nested deeper"),
        (b'{"text": "twice", "text": "again"}', "text"),
        (b'{"text": "nan", "score": NaN}', None),
        (b'{"text": "big", "n": 123456789012345678901234567890}', None),
        (b'{"text": "carriage"}\r', None),
        (b"", None),
        (b"   ", None),
        (b'{"text": "no newline at the end"}', None),
    ]
    data = b"\n".join(line for line, _ in lines)
    batches = read_all(write(tmp_path / "a.jsonl", data))
    good = ["你好", "pair 😀", "nan", "big", "carriage", "no newline at the end"]
    assert records(batches) == good
    expected, offset = [], 0
    for number, (line, reason) in enumerate(lines, 1):
        if reason is not None:
            expected.append((number, offset, reason))
        offset += len(line) + 1
    assert [one[:2] for one in rejects(batches)] == [one[:2] for one in expected]
    for (_, _, found), (_, _, reason) in zip(rejects(batches), expected, strict=True):
        assert reason in found


def test_nested_columns_and_joins(tmp_path: Path) -> None:
    row = {"article": {"title": "标题", "body": ["一", "二"]}, "turns": [{"t": "a"}, {"t": "b"}], "a.b": "dotted"}
    path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    for column, value in [
        ("article.title", "标题"),
        ("article.body", "一\n二"),
        ("article.body.-1", "二"),
        ("turns.t", "a\nb"),
        ("turns.0.t", "a"),
        ("a.b", "dotted"),
        (["article.title", "turns.1.t"], "标题\nb"),
        ({"columns": ["article.title", "article.body"], "join": " "}, "标题 一 二"),
    ]:
        assert records(read_all(path, columns={"text": column})) == [value], column
    with pytest.raises(DataError, match=r"did you mean 'article'"):
        read_all(path, columns={"text": "articel"})


def test_columns_are_found_by_common_names_and_any_case(tmp_path: Path) -> None:
    for name in ("text", "content", "sentence", "document", "Text", "articleBody"):
        assert records(read_all(write(tmp_path / "a.jsonl", json.dumps({"id": 1, name: "x"})))) == ["x"]
    with pytest.raises(DataError, match="the columns are id, txt; did you mean 'txt'"):
        read_all(write(tmp_path / "a.jsonl", '{"id": 1, "txt": "x"}\n'))


def test_json_document_forms(tmp_path: Path) -> None:
    rows = [{"text": "一"}, {"text": "two"}]
    for name, value, keys in [
        ("list.json", rows, {}),
        ("field.json", {"meta": {"n": [1, {}]}, "data": {"rows": rows}}, {"field": "data.rows"}),
        ("dotted.json", {"data.rows": rows}, {"field": "data.rows"}),
        ("named.json", {"x": rows[0], "y": rows[1]}, {}),
    ]:
        for indent in (None, 2):
            path = write(tmp_path / name, json.dumps(value, ensure_ascii=indent is None, indent=indent))
            if name == "named.json" and indent is None:
                keys = {"format": "json", "columns": {"text": "text"}}
                continue  # one object on one line reads as a row
            assert records(read_all(path, **keys)) == ["一", "two"], (name, indent)
    lines = write(tmp_path / "lines.json", "\n".join(map(json.dumps, rows)))
    assert records(read_all(lines)) == ["一", "two"]
    with pytest.raises(DataError, match="no key 'rows'; the keys are data"):
        read_all(write(tmp_path / "a.json", '{"data": 1}'), field="rows")


def test_json_document_bad_elements(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    items = ['{"text": "a"}', "7", f'{{"text": {deep}}}', '{"text": "半\\ud800"}', '{"text": "@"}', '{"text": "好"}']
    text = "[\n" + ",\n".join(items) + "\n]\n"
    batches = read_all(write(tmp_path / "a.json", text.encode().replace(b"@", b"\xff")))
    assert records(batches) == ["a", "好"]
    assert [line for line, _, _ in rejects(batches)] == [3, 4, 5, 6]
    for (_, _, found), reason in zip(
        rejects(batches), ["a number", "nested too deeply", "lone surrogate", "invalid UTF-8"], strict=True
    ):
        assert reason in found
    assert places(batches)[0] == (2, 2)


def test_json_document_that_breaks_off(tmp_path: Path) -> None:
    for text in ['[{"text": "a"},', '[{"text": "a"} {"text": "b"}]', '[{"text": "a"}, {"te', '[{"text": "a"}', "[{]"]:
        with pytest.raises(DataError, match="not valid JSON"):
            read_all(write(tmp_path / "a.json", text))


def test_json_document_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.readers.jsoncursor._BLOCK", 37)
    monkeypatch.setattr("llmkit.data.readers.jsoncursor.MAX_RECORD_BYTES", 2000)
    rows = [{"text": f'第{i}\\"行"{{[', "n": i * 1000} for i in range(50)]
    rows[20]["text"] = 'x"\\' * 2000
    path = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False))
    batches = read_all(path)
    assert records(batches) == [row["text"] for i, row in enumerate(rows) if i != 20]
    assert "limit" in rejects(batches)[0][2]
    data = path.read_bytes()
    for (_, offset), text in zip(places(batches), records(batches), strict=True):
        assert offset is not None
        assert json.loads(data[offset:].decode().partition("}")[0] + "}")["text"].startswith(text[:3])
    skipped = write(tmp_path / "b.json", json.dumps({"skip": ['x\\"]' * 100, {}], "rows": [{"text": "end"}]}))
    assert records(read_all(skipped, field="rows")) == ["end"]


def test_json_document_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.readers.jsondoc._ROWS", 7)
    rows: list[Any] = [{"text": f"行{i}"} for i in range(30)]
    rows[11] = None
    assert_resumes(write(tmp_path / "a.json", json.dumps(rows)), batch_bytes=10**6)


def test_explode(tmp_path: Path) -> None:
    row = {"instruction": "q", "instances": [{"input": "", "output": "a"}, {"input": "i", "output": "b"}]}
    path = write(tmp_path / "a.jsonl", json.dumps(row) + '\n{"instruction": "q", "instances": 3}\n')
    batches = read_all(path, INSTRUCTION, explode="instances")
    assert [one[-1]["content"] for one in records(batches, "messages")] == ["a", "b"]
    assert places(batches) == [(1, 0), (1, 0)]
    assert "not a list" in rejects(batches)[0][2]


def test_squad(tmp_path: Path) -> None:
    answers = [{"text": "好", "answer_start": 1}]
    paragraphs = [
        {
            "context": "你好吗",
            "qas": [
                {"id": "1", "question": "怎样?", "answers": answers},
                {"id": "2", "question": "谁?", "answers": [], "is_impossible": True},
                {"id": "3"},
            ],
        },
        {"context": 3},
    ]
    path = write(tmp_path / "a.json", json.dumps({"version": "2", "data": [{"paragraphs": paragraphs}, {}]}, indent=1))
    batches = read_all(path, QUESTIONS)
    assert records(batches, "id") == ["1", "2"]
    assert records(batches, "answers")[0] == {"text": ["好"], "answer_start": [1]}
    assert records(batches, "is_impossible") == [False, True]
    assert len(rejects(batches)) == 3
    assert records(read_all(path, QUESTIONS, limit=1), "id") == ["1"]


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.readers.tables._FIRST", 3)
    rows = [{"text": f"文{i}" * (1 + i % 9), "n": i, "nested": {"body": f"b{i}"}} for i in range(500)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    batches = read_all(path, batch_bytes=1000)
    assert records(batches) == [row["text"] for row in rows]
    assert places(batches) == [(i + 1, None) for i in range(500)]
    assert records(read_all(path, columns={"text": "nested.body"})) == [f"b{i}" for i in range(500)]
    assert_resumes(path, batch_bytes=1000)
    with pytest.raises(DataError, match="the columns are text, n, nested"):
        read_all(path, INSTRUCTION)
    with pytest.raises(DataError, match="not a parquet file"):
        read_all(write(tmp_path / "b.parquet", path.read_bytes()[:-100]))


def test_arrow_file_and_stream(tmp_path: Path) -> None:
    table = pa.table({"text": [f"文{i}" * (1 + i % 9) for i in range(300)], "n": range(300)})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    for name in ("a.arrow", "b.arrow"):
        assert records(read_all(tmp_path / name, batch_bytes=500)) == table["text"].to_pylist()
        assert_resumes(tmp_path / name, batch_bytes=500)


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe"))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": bad}), path)
    batches = read_all(path)
    assert records(batches) == ["ok"]
    assert rejects(batches) == [(2, None, "invalid UTF-8 in column 'text'")]


def test_reading_does_not_import_heavy_libraries() -> None:
    code = (
        "import sys, llmkit.data.sources; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_rows_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        read_all(write(tmp_path / "a.jsonl", ""))
    with pytest.raises(DataError, match="there are no rows"):
        read_all(write(tmp_path / "b.jsonl", "\n\n"))
    with pytest.raises(DataError, match=r"2 were rejected, the first .*c.jsonl:1: expected a JSON object"):
        read_all(write(tmp_path / "c.jsonl", "[]\n[]\n"), TEXT)


def test_names_are_counted_as_bytes_count_them() -> None:
    dice = random.Random(3)
    for size in (10, 999, 1000, 1001, 5000):
        data = bytes(dice.choices(b'"a: bte', k=size))
        for name in (b'"a"', b'"te"', b'""', b'"be at"'):
            places = sum(data.startswith(name, i) for i in range(size))  # two may share a quote
            assert _count(data, name) == (places if size >= 1000 else data.count(name))
