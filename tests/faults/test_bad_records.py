"""Bad records: each is set aside with its place and reason, the rest is kept, and all of them add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.data.prepare import prepare
from llmkit.data.prepared import Prepared
from llmkit.recipe.resolve import resolve
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from tests.fakes import byte_tokenizer
from tests.faults.test_fuzz_data import CASES, FORMATS, ROWS

GOOD = [b'{"text": "first"}', '{"text": "第二"}'.encode(), b'{"text": "third", "more": {"text": "x"}}']
DEEP = 100_000
BAD: dict[str, tuple[bytes, str]] = {
    "invalid UTF-8": (b'{"text": "b\xffd"}', "invalid UTF-8 at byte 11"),
    "NUL": (b'{"text": "a\x00b"}', "NUL"),
    "escaped NUL": (rb'{"text": "a\u0000b"}', "NUL"),
    "lone surrogate": (rb'{"text": "\ud800"}', "lone surrogate"),
    "raw surrogate": (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
    "empty text": (b'{"text": " "}', "empty"),
    "no text": (b"{}", "missing"),
    "null": (b'{"text": null}', "null"),
    "number": (b'{"text": 5}', "not text"),
    "list": (b'["text"]', "found a list"),
    "cut": (b'{"text": "x', "not valid JSON"),
    "two objects": (b'{"text": "x"}{"text": "y"}', "not valid JSON"),
    "duplicate keys": (b'{"text": "x", "text": "y"}', "'text' stands twice"),
    "duplicate keys, spaced": (b'{"text" : "x", "a": 1, "text"\t: "x"}', "'text' stands twice"),
    "nesting": (b'{"text": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested"),
    "nesting of objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested"),
    "digits": (b'{"text": ' + b"9" * 5000 + b"}", "digits"),
}


def made(directory: Path, task: str, source: dict[str, Any], **data: Any) -> Prepared:
    keys, model, _ = ROWS[task]
    names = {"eos_token": "<|endoftext|>", "pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"}
    names |= {"mask_token": "<mask>", "unk_token": "<unk>"}
    tokenizer = byte_tokenizer(directory / "tokenizer", special=tuple(names.values()), **names)
    values = {
        "output_dir": str(directory / "run"),
        "task": {"type": task.partition("_kto")[0], **keys},
        "model": model,
        "tokenizer": {"name_or_path": str(tokenizer)},
        "data": {"train": [source], "max_bad_fraction": 1.0, "max_length": 64, "num_workers": 1, **data},
    }
    return prepare(resolve(Recipe.model_validate(values)), Console(quiet=True))


def assert_adds_up(data: Prepared) -> list[dict[str, Any]]:
    """Every record is used, held out or rejected with a reason, once. Returns the rejects."""
    report = data.report
    lines = [json.loads(line) for line in (data.directory / "rejected.jsonl").read_bytes().splitlines()]
    assert report["records"] == report["used"] + len(lines)
    assert len(lines) == report["bad"] + report["empty"] + report["cleaned_away"] + report["not_encoded"]
    assert len(lines) == sum(report["rejected"].values())
    assert all(line["reason"] and line["file"] for line in lines)
    assert report["held_out"] <= report["used"]
    return lines


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_every_kind_of_bad_record(ram: Path, end: str) -> None:
    """With a byte order mark, blank lines between, and no line end after the last."""
    lines, expected = [], []
    for number, (line, reason) in enumerate(BAD.values()):
        lines += [GOOD[number % 3], line, b""]
        expected.append((3 * number + 2, reason))
    lines.append(b'{"text": "last, without a line end"}')
    whole = b"\xef\xbb\xbf" + end.encode().join(lines)
    (ram / "a.jsonl").write_bytes(whole)
    data = made(ram, "causal_lm", {"path": str(ram / "a.jsonl")})
    rejects = assert_adds_up(data)
    assert [reject["line"] for reject in rejects] == [line for line, _ in expected]
    for reject, (line, reason) in zip(rejects, expected, strict=True):
        assert reason in reject["reason"], reject
        assert whole[reject["offset"] :].startswith(lines[line - 1])
        assert reject["file"] == str(ram / "a.jsonl")
    assert data.report["used"] == len(BAD) + 1
    texts = [bytes_of(data, i) for i in range(len(data.splits["train"]))]
    good = [json.loads(line)["text"] for line in [*(GOOD[i % 3] for i in range(len(BAD))), lines[-1]]]
    assert texts == good


def bytes_of(data: Prepared, i: int) -> str:
    from llmkit.data.tokenizer import load_tokenizer

    return str(load_tokenizer(data.tokenizer_dir).decode(data.splits["train"].row(i)[1:-1].tolist()))


def test_bad_records_of_a_json_list(ram: Path) -> None:
    """The same in one document; what breaks the document itself is not among them."""
    kept = {name: case for name, case in BAD.items() if name not in ("cut", "two objects", "NUL")}
    items = [part for number, (line, _) in enumerate(kept.values()) for part in (GOOD[number % 3], line)]
    (ram / "a.json").write_bytes(b"[" + b",\n".join(items) + b"]")
    data = made(ram, "causal_lm", {"path": str(ram / "a.json")})
    rejects = assert_adds_up(data)
    assert [reject["line"] for reject in rejects] == list(range(2, 2 * len(kept) + 1, 2))
    for reject, (_, reason) in zip(rejects, kept.values(), strict=True):
        assert reason.replace(" at byte 11", "") in reject["reason"], reject


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_record_of_every_format_is_accounted_for(ram: Path, name: str, task: str) -> None:
    file, make, _, keys = FORMATS[name]
    rows = [varied(row, number) for number in range(8) for row in ROWS[task][2] if row.get("labels") != [3]]
    if name in ("jsonl", "json", "json_field"):
        rows += [{}, "text", {"text": "", "label": None}, {next(iter(rows[0])): None}]
    (ram / file).write_bytes(make(rows))
    cleaned = {"clean": [{"step": "exact_dedup"}, {"step": "length", "max_characters": 2000}]}
    fraction = None if name in ("txt", "html", "warc", "mediawiki") or task == "token_classification" else 0.3
    data = made(ram, task, {"path": str(ram / file), **keys}, validation_fraction=fraction, **cleaned)
    assert_adds_up(data)
    held, used = data.report["held_out"], data.report["used"]
    origins = {split: rows_of(data, split) for split in data.splits}
    assert len(origins["train"]) == used - held
    assert len(origins.get("validation", ())) == held
    assert not origins["train"] & origins.get("validation", set())


def varied(value: Any, number: int) -> Any:
    """The row with other texts, so that it counts as another."""
    if isinstance(value, list):
        return [varied(item, number) for item in value]
    if isinstance(value, dict):
        plain = ("role", "from", "label", "type", "name", "answers", "context", "tokens", "labels")
        return {key: item if key in plain else varied(item, number) for key, item in value.items()}
    return f"{value} {number}" if isinstance(value, str) else value


def rows_of(data: Prepared, split: str) -> set[tuple[Any, ...]]:
    found = data.splits[split]
    places = found.origins(np.arange(len(found)))
    return {(one["file"], one["line"], one["offset"], one["hash"]) for one in places}


HUGE = """
import resource, sys
from llmkit.data import reading, sources
from llmkit.data.rolespecs import TEXT
from llmkit.recipe.sections import SourceSection
section = SourceSection.model_validate({"path": sys.argv[1], **eval(sys.argv[2])})
[source] = sources.resolve_sources([section], TEXT, split="train")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = list(reading.read(source, TEXT))
print([text for batch in batches for text in batch.columns.get("text", [])])
print([(one.line, one.offset, one.reason) for batch in batches for one in batch.rejects])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def read_huge(path: Path, size: int, keys: str = "{}") -> int:
    """Reads a file with a record of `size` bytes between two others; returns how many kB that took."""
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n' if path.suffix == ".jsonl" else b"before\n")
        file.write(b'{"text": "')
        for _ in range(size >> 20):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n')
        file.write(b'{"text": "after"}\n' if path.suffix == ".jsonl" else b"after\n")
    command = [sys.executable, "-c", HUGE, str(path), keys]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    texts, rejects, kilobytes = done.stdout.splitlines()
    assert texts == "['before', 'after']"
    assert f"record of {(size >> 20 << 20) + 13} bytes is longer than the limit" in rejects
    return int(kilobytes)


BOUND = 400_000
"""kB: the limit of a record (64 MiB) a few times over, however long the line."""


@pytest.mark.parametrize(("name", "keys"), [("a.jsonl", "{}"), ("a.txt", "{'sample_by': 'line'}")])
def test_a_line_of_100_megabytes(tmp_path: Path, name: str, keys: str) -> None:
    assert read_huge(tmp_path / name, 100 << 20, keys) < BOUND


@pytest.mark.faults
@pytest.mark.parametrize(("name", "keys"), [("a.jsonl", "{}"), ("a.txt", "{'sample_by': 'line'}")])
def test_a_line_of_a_gibibyte(tmp_path: Path, name: str, keys: str) -> None:
    assert read_huge(tmp_path / name, 1 << 30, keys) < BOUND
