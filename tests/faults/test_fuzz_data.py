"""Every data format, mutated: read, cleaned, encoded by the tasks that take it; nothing but our own errors raised."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from llmkit.data import reading, sources
from llmkit.data.process import Processor
from llmkit.data.rolespecs import RoleSpec
from llmkit.data.shardfile import _field_array
from llmkit.errors import LlmkitError
from llmkit.recipe.resolve import resolve
from llmkit.recipe.sections import Recipe, SourceSection
from llmkit.tasks import complete_tokenizer, encoder_for, role_spec
from tests.fakes import byte_tokenizer
from tests.faults.fuzzing import as_json, bounded, mutate, mutate_json
from tests.faults.table import FaultTable

TEXT = [{"text": "The first text of all."}, {"text": "第二个 文本。\nIt has lines."}, {"text": "third"}]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"at": "x"}}}],
            },
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ],
        "tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}],
    },
    {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "你好！"}], "system": "x"},
    {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]]},
    {"prompt": "a", "completion": "b"},
]
LABELLED = [
    {"text": "good film", "label": "pos"},
    {"text": "bad", "label": "neg", "text_pair": "pair"},
    {"text": "坏", "label": 1},
]
TAGGED = [
    {"tokens": ["EU", "rejects", "German"], "labels": ["B-ORG", "O", "B-MISC"]},
    {"tokens": ["北京"], "labels": [3]},
]
QUESTIONS = [
    {"id": "a", "question": "Who?", "context": "Ann went home.", "answers": {"text": ["Ann"], "answer_start": [0]}},
    {
        "id": "b",
        "question": "何时?",
        "context": "他 昨天 来。",
        "answers": [{"text": "昨天", "answer_start": 2}],
        "is_impossible": False,
    },
    {
        "id": "c",
        "question": "Why?",
        "context": "No reason.",
        "answers": {"text": [], "answer_start": []},
        "is_impossible": True,
    },
]
PAIRS = [{"source": "a house", "target": "ein Haus"}, {"source": "两", "target": ["two", "2"]}]
CHOSEN = [
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
    {"chosen": CHAT[0]["messages"], "rejected": [*CHAT[0]["messages"][:2], {"role": "assistant", "content": "3"}]},
]
RATED = [{"prompt": "Hi", "completion": "Hello", "label": True}, {"messages": CHAT[0]["messages"], "label": "false"}]

GPT = {"config": {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}}
BERT = {
    "config": {
        "model_type": "bert",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
    }
}
T5 = {"config": {"model_type": "t5", "num_layers": 1, "num_heads": 1, "d_model": 8, "d_kv": 8, "d_ff": 8}}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any]]] = {
    "causal_lm": ({}, GPT, TEXT),
    "masked_lm": ({"next_sentence_prediction": True}, BERT, TEXT),
    "denoising": ({}, {"config": {"model_type": "bart"}}, TEXT),
    "instruction": ({}, GPT, CHAT),
    "sequence_classification": ({}, BERT, LABELLED),
    "token_classification": ({}, BERT, TAGGED),
    "question_answering": ({}, BERT, QUESTIONS),
    "translation": ({}, T5, PAIRS),
    "preference": ({}, GPT, CHOSEN),
    "preference_kto": ({"loss": "kto"}, GPT, RATED),
}
CLEAN = [
    {"step": "fix_unicode"},
    {"step": "normalize"},
    {"step": "strip_html"},
    {"step": "exact_dedup"},
    {"step": "length", "min_words": 1},
]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def columns(rows: list[Any]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table(
        {
            name: [
                json.dumps(row.get(name)) if isinstance(row.get(name), list | dict) else str(row.get(name))
                for row in rows
            ]
            for name in names
        }
    )


def parquet(rows: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(columns(rows), buffer)
    return buffer.getvalue()


def arrow(rows: list[Any]) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, (table := columns(rows)).schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def delimited(mark: str) -> Callable[[list[Any]], bytes]:
    def make(rows: list[Any]) -> bytes:
        lines = [mark.join(rows[0])]
        lines += [mark.join('"' + str(value).replace('"', '""') + '"' for value in row.values()) for row in rows]
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    return make


def squad(rows: list[Any]) -> bytes:
    paragraphs = []
    for row in rows:
        if isinstance(row, dict):
            answers = row.get("answers")
            if isinstance(answers, dict) and isinstance(answers.get("text"), list):
                answers = [{"text": text, "answer_start": 0} for text in answers["text"]]
            qas = [{**{key: row[key] for key in ("id", "question", "is_impossible") if key in row}, "answers": answers}]
            paragraphs.append({"context": row.get("context"), "qas": qas})
    return as_json({"version": "2", "data": [{"title": "t", "paragraphs": paragraphs}]})


def conll(rows: list[Any]) -> bytes:
    return b"-DOCSTART- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\xe5\x8c\x97 N B-LOC\n\xe4\xba\xac N I-LOC\n\nx y O\n"


def plain(rows: list[Any]) -> bytes:
    return "\n\n".join(str(row) for row in rows).encode("utf-8", "surrogatepass")


def html(rows: list[Any]) -> bytes:
    words = "This is a paragraph of prose that is long enough to be kept as the text of a page. " * 2
    head = "<html><head><title>t</title><meta charset=utf-8></head><body><nav><a href=x>x</a></nav>"
    return f"{head}<p>{words}</p><div>你好<script>x</script></div></body></html>".encode()


def warc(rows: list[Any]) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    page = html(rows)
    body = http + b"%x\r\n" % len(page) + page + b"\r\n0\r\n\r\n"
    plain_text = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
    plain_text += b"Content-Length: 12\r\n\r\nhello, world\r\n\r\n"
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\n"
    head += b"Content-Type: application/http\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body + b"\r\n\r\n" + plain_text


def mediawiki(rows: list[Any]) -> bytes:
    text = "== H ==\n'''Bold''' [[link|label]] {{t|{{u}}}} {| a |}\n"
    text += "&lt;ref&gt;r&lt;/ref&gt; text [http://a b] [[File:x|[[y]]]]"
    page = f"<page><title>T</title><ns>0</ns><id>1</id><revision><id>2</id><text>{text}</text></revision></page>"
    return f"<mediawiki>{page}<page><title>R</title><redirect/></page></mediawiki>".encode()


FORMATS: dict[str, tuple[str, Callable[[list[Any]], bytes], tuple[str, ...], dict[str, Any]]] = {
    "jsonl": ("a.jsonl", jsonl, tuple(ROWS), {}),
    "json": ("a.json", as_json, tuple(ROWS), {}),
    "json_field": (
        "a.json",
        lambda rows: as_json({"n": 1, "data": {"rows": rows}}),
        ("causal_lm",),
        {"field": "data.rows"},
    ),
    "parquet": ("a.parquet", parquet, ("causal_lm", "question_answering"), {}),
    "arrow": ("a.arrow", arrow, ("causal_lm", "sequence_classification"), {}),
    "csv": ("a.csv", delimited(","), ("causal_lm", "sequence_classification", "preference_kto"), {}),
    "tsv": ("a.tsv", delimited("\t"), ("sequence_classification",), {}),
    "csv_plain": (
        "a.csv",
        delimited(";"),
        ("causal_lm",),
        {"header": False, "quoting": False, "delimiter": ";", "columns": {"text": 0}},
    ),
    "txt": ("a.txt", plain, ("causal_lm", "masked_lm"), {}),
    "paragraph": ("a.txt", plain, ("causal_lm",), {"sample_by": "paragraph"}),
    "line": ("a.txt", plain, ("causal_lm",), {"sample_by": "line"}),
    "utf16": (
        "a.txt",
        lambda rows: plain(rows).decode().encode("utf-16"),
        ("causal_lm",),
        {"encoding": "utf-16", "sample_by": "line"},
    ),
    "gb18030": (
        "a.txt",
        lambda rows: plain(rows).decode().encode("gb18030"),
        ("causal_lm",),
        {"encoding": "gb18030", "sample_by": "line"},
    ),
    "document_start": ("a.txt", plain, ("causal_lm",), {"document_start": "third|\\{"}),
    "squad": ("a.json", squad, ("question_answering",), {}),
    "conll": ("a.conll", conll, ("token_classification",), {}),
    "html": ("a.html", html, ("causal_lm",), {}),
    "warc": ("a.warc", warc, ("causal_lm",), {}),
    "mediawiki": ("a.xml", mediawiki, ("causal_lm",), {"format": "mediawiki"}),
}
CASES = [(name, task) for name, (_, _, tasks, _) in FORMATS.items() for task in tasks]


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RoleSpec, Processor]]:
    """The roles and the cleaning and encoding half of a task, made once."""
    made: dict[str, tuple[RoleSpec, Processor]] = {}

    def get(name: str) -> tuple[RoleSpec, Processor]:
        if name not in made:
            keys, model, _ = ROWS[name]
            directory = byte_tokenizer(
                tmp_path_factory.mktemp(name),
                special=("<|endoftext|>", "<pad>", "<cls>", "<sep>", "<mask>", "<unk>"),
                eos_token="<|endoftext|>",
                pad_token="<pad>",
                cls_token="<cls>",
                sep_token="<sep>",
                mask_token="<mask>",
                unk_token="<unk>",
            )
            task = {"type": name.partition("_kto")[0], **keys}
            data = {"train": [{"path": "x"}], "clean": CLEAN, "max_length": 64}
            tokenizer = {"name_or_path": str(directory)}
            values = {"output_dir": "x", "task": task, "model": model, "tokenizer": tokenizer, "data": data}
            recipe = resolve(Recipe.model_validate(values))
            complete_tokenizer(recipe, directory)
            roles = role_spec(recipe.task)
            encoder = encoder_for(recipe, directory)
            made[name] = roles, Processor(recipe.data.clean, encoder, np.dtype(np.uint16), roles.content_roles())
        return made[name]

    return get


def inputs(name: str, task: str, count: int) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of mutated files."""
    make, rows = FORMATS[name][1], ROWS[task][2]
    seeds = [make(rows), *(make([row]) for row in rows)]
    for number in range(count):
        dice = random.Random(f"{name} {task} {number}")
        data = dice.choice(seeds)
        if name in ("jsonl", "json", "json_field", "squad") and dice.random() < 0.6:
            changed = mutate_json(dice, rows)
            data = make(changed if isinstance(changed, list) else [changed])
            if dice.random() < 0.7:
                yield number, data
                continue
        yield number, mutate(dice, data, seeds)


def take(path: Path, name: str, roles: RoleSpec, process: Processor) -> tuple[int, int]:
    """(rows, rejects) of one file, each record cleaned, encoded and put into columns as a shard would hold it."""
    section = SourceSection.model_validate({"path": str(path), **FORMATS[name][3]})
    [source] = sources.resolve_sources([section], roles, split="train")
    rows = rejects = 0
    for batch in reading.read(source, roles, batch_bytes=3000):
        rows, rejects = rows + len(batch), rejects + len(batch.rejects)
        for reject in batch.rejects:
            json.dumps(reject.as_json())
        done = process(batch)
        for values in done.encoded.fields.values():
            _field_array(list(values))
        given = {int(row) for row in done.encoded.rows}
        gone = {row for row, _ in done.encoded.rejected} | set(done.reasons)
        assert given | gone == set(range(len(batch))), "a record is neither encoded nor given up with a reason"
        assert not given & gone
    return rows, rejects


def fuzz(
    name: str, task: str, count: int, place: Path, processors: Callable[[str], tuple[RoleSpec, Processor]]
) -> dict[str, int]:
    roles, process = processors(task)
    path = place / FORMATS[name][0]
    ended = {"read": 0, "refused": 0}
    for number, data in inputs(name, task, count):
        path.write_bytes(data)
        try:
            with bounded(f"{name} {task} {number}"):
                take(path, name, roles, process)
            ended["read"] += 1
        except LlmkitError:
            ended["refused"] += 1
        except Exception as error:
            raise AssertionError(f"input {number} of {name} {task}: {error!r}") from error
    return ended


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_sample(ram: Path, name: str, task: str, processors: Any) -> None:
    ended = fuzz(name, task, 60, ram, processors)
    assert min(ended.values()) > 0 or ended["read"], ended


@pytest.mark.faults
@pytest.mark.parametrize(("name", "task"), CASES)
def test_in_full(ram: Path, name: str, task: str, processors: Any, fault_table: FaultTable) -> None:
    tries = sum(fuzz(name, task, 1700, ram, processors).values())
    fault_table.record("fuzzed data: read, or refused by an error of ours", tries, tries)
