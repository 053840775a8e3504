"""Encoders: what a stored row holds, overflow, and what the data fingerprint depends on. No torch in them."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from llmkit.data.records import RecordBatch
from llmkit.errors import DataError, ModelError
from llmkit.tasks.encoders import CausalLMEncoder, InstructionEncoder
from llmkit.tasks.templates import resolve_template
from tests.fakes import byte_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def batch(**columns) -> RecordBatch:
    size = len(next(iter(columns.values())))
    return RecordBatch(0, "x.jsonl", columns, list(range(1, size + 1)), [0] * size)


def rows(ragged):
    return np.split(ragged.values, np.cumsum(ragged.lengths)[:-1])


def pair(prompt: str, completion: str):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def instruction(directory, max_length=64, overflow="truncate", train_on="completion", template="plain"):
    return InstructionEncoder(directory, resolve_template(template, None), train_on, max_length, overflow)


def test_documents_stand_between_prefix_and_end(directory):
    encoder = pickle.loads(pickle.dumps(CausalLMEncoder(directory)))
    encoded = encoder.encode(batch(text=["ab", "你好", "<|endoftext|>"]))
    eos = encoder.stop_ids[0]
    documents = rows(encoded.streams["input_ids"])
    assert encoded.rows.tolist() == [0, 1, 2]
    assert [len(document) for document in documents] == [4, 8, 15], "text that spells a special token stays text"
    assert all(document[0] == document[-1] == eos for document in documents)
    assert encoder.encode_prompt("ab") == documents[0][:-1].tolist()


def test_masks_are_streams_beside_the_tokens(directory):
    encoder = pickle.loads(pickle.dumps(instruction(directory)))
    encoded = encoder.encode(batch(messages=[pair("ab", "c"), pair("d", "efg")], tools=[None, None]))
    ids, masks = rows(encoded.streams["input_ids"]), rows(encoded.streams["loss_mask"])
    assert [mask.tolist() for mask in masks] == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert all(row[-1] == encoder.chat.eos_id for row in ids)
    every = instruction(directory, train_on="all").encode(batch(messages=[pair("ab", "c")]))
    assert every.streams["loss_mask"].values.tolist() == [0, 1, 1, 1, 1, 1]


def test_truncation_drops_from_the_end_and_counts(directory):
    long, hopeless = pair("ab", "c" * 50), pair("a" * 50, "b")
    data = batch(messages=[pair("a", "b"), long, hopeless])
    encoded = instruction(directory, 10).encode(data)
    assert encoded.rows.tolist() == [0, 1]
    assert encoded.truncated == 1
    assert encoded.streams["input_ids"].lengths.tolist() == [5, 10]
    assert encoded.streams["loss_mask"].values[5:].tolist() == [0, 0, 0, 0] + [1] * 6
    [(row, reason)] = encoded.rejected
    assert row == 2
    assert reason == "54 tokens, more than max_length 10, and truncated no supervised token is left"


def test_other_overflow_policies(directory):
    data = batch(messages=[pair("a", "b"), pair("a", "b" * 50)])
    dropped = instruction(directory, 10, "drop").encode(data)
    assert dropped.rows.tolist() == [0]
    assert dropped.truncated == 0
    assert dropped.rejected == [(1, "54 tokens, more than max_length 10")]
    with pytest.raises(DataError, match=r"^x\.jsonl:2: 54 tokens, more than max_length 10; set data\.overflow"):
        instruction(directory, 10, "error").encode(data)


def test_refused_conversations_are_rejected_with_the_reason(directory):
    encoded = instruction(directory).encode(batch(messages=[[{"role": "user", "content": "x"}], pair("a", "b")]))
    assert encoded.rejected == [(0, "no assistant turn")]
    assert encoded.rows.tolist() == [1]
    empty = instruction(directory).encode(batch(messages=[[{"role": "user", "content": "x"}]]))
    assert len(empty.streams["input_ids"].values) == len(empty.streams["loss_mask"].lengths) == 0


def test_identity_names_what_the_result_depends_on(directory):
    base = instruction(directory).identity()
    for other in (
        instruction(directory, max_length=65),
        instruction(directory, overflow="drop"),
        instruction(directory, train_on="all"),
        instruction(directory, template="alpaca"),
    ):
        assert other.identity() != base
    assert instruction(directory).identity() == base
    assert "max_length" not in CausalLMEncoder(directory).identity()


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    bare = byte_tokenizer(tmp_path, pad_token="<|endoftext|>")
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        CausalLMEncoder(bare)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        instruction(bare)


def test_encoders_need_no_torch(directory):
    code = (
        "import sys, pathlib\n"
        "import llmkit.tasks\n"
        "from llmkit.tasks.encoders import CausalLMEncoder, InstructionEncoder\n"
        "from llmkit.tasks.templates import resolve_template\n"
        "from llmkit.data.records import RecordBatch\n"
        f"place = pathlib.Path({str(directory)!r})\n"
        "CausalLMEncoder(place).encode(RecordBatch(0, 'f', {'text': ['a']}, [1], [0]))\n"
        "turns = [[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]]\n"
        "encoder = InstructionEncoder(place, resolve_template('plain', None), 'completion', 9, 'drop')\n"
        "encoder.encode(RecordBatch(0, 'f', {'messages': turns}, [1], [0]))\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
