"""Instruction tuning of encoder-decoders: what is read and written, and a run from recipe to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from llmkit.data.records import RecordBatch
from llmkit.errors import DataError
from llmkit.tasks.answer_pairs import AnswerEncoder
from llmkit.tasks.templates import TEMPLATES, Template
from tests.e2e.conftest import Place
from tests.fakes import byte_tokenizer
from tests.tasks.seq2seq_toy import make_place, numbers, write_jsonl

TALK = [
    {"role": "user", "content": "1 2"},
    {"role": "assistant", "content": "一二"},
    {"role": "user", "content": "3"},
    {"role": "assistant", "content": "三"},
]


def encoder(tmp_path: Path, **fields: Any) -> AnswerEncoder:
    directory = byte_tokenizer(tmp_path / "tokenizer", special=("</s>", "<pad>"), eos_token="</s>", pad_token="<pad>")
    settings: dict[str, Any] = {"max_length": 200, "overflow": "truncate"}
    return AnswerEncoder(directory, Template("plain", TEMPLATES["plain"]), **{**settings, **fields})


def batch(*conversations: list[dict[str, str]]) -> RecordBatch:
    count = len(conversations)
    columns = {"messages": list(conversations), "tools": [None] * count}
    return RecordBatch(0, "a.jsonl", columns, list(range(1, count + 1)), [None] * count)


def texts(made: AnswerEncoder, encoded: Any, name: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_dir)
    stream = encoded.streams[name]
    return [tokenizer.decode(part) for part in np.split(stream.values, np.cumsum(stream.lengths)[:-1])]


def test_an_answer_a_row(tmp_path: Path) -> None:
    made = encoder(tmp_path)
    encoded = made.encode(batch(TALK, TALK[:2], TALK[:1]))
    assert encoded.rows.tolist() == [0, 0, 1]
    assert encoded.rejected == [(2, "no assistant turn")]
    assert texts(made, encoded, "labels") == ["一二</s>", "三</s>", "一二</s>"]
    assert texts(made, encoded, "input_ids") == ["</s>1 2\n</s>", "</s>1 2\n一二</s>3\n</s>", "</s>1 2\n</s>"]


def test_overflow(tmp_path: Path) -> None:
    cut = encoder(tmp_path, max_length=6)
    encoded = cut.encode(batch(TALK[:2]))
    assert encoded.truncated == 1
    assert texts(cut, encoded, "input_ids") == ["</s>1 2\n</s>"]
    assert encoded.streams["labels"].lengths.tolist() == [6]
    assert encoded.streams["labels"].values[-1] != 256, "the end of an answer that is cut is not taught"
    short = encoder(tmp_path, max_length=10).encode(batch(TALK))
    tail = np.split(short.streams["input_ids"].values, np.cumsum(short.streams["input_ids"].lengths))[1]
    assert tail[-3:].tolist() == encoded.streams["input_ids"].values[-1:].tolist()[:0] + tail[-3:].tolist()
    dropped = encoder(tmp_path, max_length=10, overflow="drop").encode(batch(TALK, TALK[:2]))
    assert dropped.rows.tolist() == [1], "a conversation goes whole"
    assert "prompt tokens are more than max_length 10" in dropped.rejected[0][1]
    with pytest.raises(DataError, match=r"a.jsonl:1.*data.overflow"):
        encoder(tmp_path, max_length=6, overflow="error").encode(batch(TALK))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    place = make_place(tmp_path, "t5", task={"type": "instruction"}, tokenizer={"train": {"vocab_size": 300},
                       "chat_template": "chatml"})  # fmt: skip
    for name in ("train", "validation", "test"):
        talks = [{"prompt": row["source"], "completion": row["target"]} for row in numbers(60, 4)]
        write_jsonl(tmp_path / f"{name}.jsonl", [row for row in talks if isinstance(row["completion"], str)])
    return place


def test_end_to_end(place: Place) -> None:
    sets = {"training.max_steps": 8}
    ended = place.run("finetune", sets=sets)
    assert ended.status == 0, ended.err
    ended = place.run("evaluate", "recipe.yaml", "--json")
    assert set(ended.json["metrics"]) == {"loss", "perplexity", "token_accuracy"}
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    model = AutoModelForSeq2SeqLM.from_pretrained("run/model").eval()
    asked = [{"role": "user", "content": "1 2 3"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, num_beams=2)[0]
    said = place.run("generate", "recipe.yaml", "--json", "--prompt", "1 2 3").json["completions"][0]
    assert said["text"] == tokenizer.decode(out, skip_special_tokens=True)
    assert said["prompt_tokens"] == ids.shape[1]
    write_jsonl(Path("in.jsonl"), [{"messages": asked}])
    ended = place.run("generate", "recipe.yaml", "--input", "in.jsonl")
    assert json.loads(ended.out)["text"] == said["text"]


def test_all_cannot_be_learnt(place: Place) -> None:
    place.run("finetune", sets={"task": {"type": "instruction", "train_on": "all"}}).told(2, "task.train_on")
