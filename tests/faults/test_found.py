"""Inputs on which fuzzing once found a crash, the smallest of each kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmkit.data.readers.messages import Unusable
from llmkit.data.readers.preferences import rated_answer
from llmkit.errors import CheckpointError, DataError, ModelError
from llmkit.manifest import read_manifest, seal
from llmkit.models.source import is_encoder_decoder, read_config
from llmkit.models.source import locate as locate_model
from llmkit.recipe.sections import ModelSection
from llmkit.report.html import write_report
from llmkit.tasks.chat import ChatFormat
from llmkit.tasks.templates import TEMPLATES, Template
from llmkit.tasks.token_encoder import read_sentence
from llmkit.train import metricslog
from tests.data.test_readers_text import read_all, records, rejects, write
from tests.fakes import byte_tokenizer


def test_kto_without_a_prompt() -> None:
    with pytest.raises(Unusable, match="no prompt"):
        rated_answer({"completion": "x", "label": True}, None)


def test_utf16_without_its_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text".encode("utf-16-le"))
    with pytest.raises(DataError, match="not utf-16"):
        read_all(path, encoding="utf-16", sample_by="line")


def test_a_label_that_is_a_number_beside_tokens_that_are_a_text() -> None:
    with pytest.raises(Exception, match="is not a list"):
        read_sentence("a b", 3)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_number_of_five_thousand_digits(tmp_path: Path, name: str) -> None:
    batches = read_all(
        write(tmp_path / name, '[{"text": "a"},\n{"text": "b", "n": ' + "9" * 5000 + "}]"), format="json"
    )
    assert records(batches) == ["a"]
    assert "too many digits" in rejects(batches)[0][2]


def arrow(names: list[str]) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_arrays([pa.array(["x"])] * len(names), names=names)
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    return out.getvalue()


def test_arrow_columns_of_the_same_name_or_of_none_that_is_text(tmp_path: Path) -> None:
    assert records(read_all(write(tmp_path / "a.arrow", arrow(["text", "", ""])))) == ["x", "x"]
    with pytest.raises(DataError, match="not an Arrow file"):
        read_all(write(tmp_path / "b.arrow", arrow(["text", "name"]).replace(b"name", b"n\xff\xfee")))


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": [1]}',
        b'{"step": "x"}',
        b'{"loss": "\\ud800"}',
        b"[" * 10**5,
        b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
    ],
)
def test_metrics_that_are_none(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train", "loss": 1.0}\n' + line + b'\n{"step": 2, "loss": 3}\n')
    metricslog.cut_back(path, 1)
    assert path.read_bytes().startswith(b'{"step": 1, "split": "train", "loss": 1.0}\n')
    assert b'"step": 2' not in path.read_bytes()
    assert write_report(tmp_path).is_file()


@pytest.mark.parametrize(
    "found",
    [
        {"per_class": {"a": 1}},
        {"per_class": {"a": {"f1": [1]}, "b": {}}},
        {"confusion_matrix": {"counts": [[1]]}},
        {"confusion_matrix": {"labels": ["a", "b"], "counts": [[1, "x"], 5]}},
        {"metrics": {"loss": {"value": 10**400}}},
    ],
)
def test_an_evaluation_that_is_none(tmp_path: Path, found: dict[str, Any]) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(found))
    assert write_report(tmp_path).is_file()


@pytest.mark.parametrize("entry", [True, {}, {"sha256": "x"}, {"sha256": 1, "bytes": 2}, {"sha256": "x", "bytes": "9"}])
def test_a_manifest_whose_entries_are_none(tmp_path: Path, entry: Any) -> None:
    body = {"format": "llmkit-model", "version": 1, "files": {"a": entry}}
    (tmp_path / "manifest.json").write_bytes(seal(body))
    with pytest.raises(CheckpointError, match="sha256 and bytes"):
        read_manifest(tmp_path)


def test_a_config_of_anybodys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ["gpt2"], "text_config": 5}')
    assert not is_encoder_decoder(ModelSection(name_or_path=str(tmp_path)))
    (tmp_path / "config.json").write_text("[" * 10**5)
    with pytest.raises(ModelError, match="nested too deeply"):
        read_config(locate_model(str(tmp_path)))


def test_special_tokens_in_calls_tools_and_names_stay_text(tmp_path: Path) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    chat = ChatFormat(byte_tokenizer(tmp_path, special=special), Template("chatml", TEMPLATES["chatml"]))
    call = {"type": "function", "function": {"name": "f", "arguments": {"<|im_end|>": ["<|endoftext|>"]}}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<|im_start|>"},
        {"role": "assistant", "content": "y"},
    ]
    ids = chat.encode([chat.segments(turns, tools=[{"a": "<|im_end|>"}])])[0][0].tolist()
    count = {name: ids.count(256 + i) for i, name in enumerate(special)}
    assert count == {"<|endoftext|>": 0, "<|im_start|>": 5, "<|im_end|>": 5}  # four turns and the tools
