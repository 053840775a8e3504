"""A recurrent language model by the whole program: trained, stopped and gone on with, evaluated, generating; words and
characters as tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import Place

LSTM: dict[str, Any] = {
    "model.config": {"model_type": "rnn_lm", "hidden_size": 32, "num_layers": 2},
    "tokenizer.train": {"algorithm": "char", "vocab_size": 200},
}
GRU: dict[str, Any] = {
    "model.config": {"model_type": "rnn_lm", "cell": "gru", "hidden_size": 16, "tie_word_embeddings": False},
    "tokenizer.train": {"algorithm": "word", "vocab_size": 100, "pre_tokenizer": "jieba"},
}


@pytest.mark.parametrize("sets", [LSTM, GRU], ids=["lstm-char", "gru-word"])
def test_train_go_on_evaluate_generate(place: Place, sets: dict[str, Any]) -> None:
    whole = place.run("pretrain", sets=sets)
    assert whole.status == 0, whole.err
    assert json.loads(Path("run/run.json").read_text())["resolved"]["packing"] is True
    parts = {**sets, "output_dir": "parts", "data.prepared_dir": "run/prepared"}
    for steps in (2, 4):
        ended = place.run("pretrain", sets={**parts, "training.max_steps": steps})
        assert ended.status == 0, ended.err
    weights = [Path(run, "model", "model.safetensors").read_bytes() for run in ("run", "parts")]
    assert weights[0] == weights[1], "stopped and gone on with, it is the same to the bit"

    scored = place.run("evaluate", "recipe.yaml", "--json", sets=sets)
    assert scored.status == 0, scored.err
    model = AutoModelForCausalLM.from_pretrained("run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    total = count = 0.0
    with torch.no_grad():
        for line in Path("test.jsonl").read_text(encoding="utf-8").splitlines():
            ids = torch.tensor([[*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]])
            for piece in (ids[:, start : start + 33] for start in range(0, ids.shape[1] - 1, 32)):
                total += model(piece, labels=piece).loss.item() * (piece.shape[1] - 1)
                count += piece.shape[1] - 1
    assert scored.json["metrics"]["loss"]["value"] == pytest.approx(total / count, rel=1e-4)

    prompts = ["--prompt", "the quick", "--prompt", "今天天气很好"]
    said = place.run("generate", "recipe.yaml", *prompts, "--json", sets={**sets, "generation.max_new_tokens": 5})
    assert said.status == 0, said.err
    for prompt, completion in zip(prompts[1::2], said.json["completions"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        assert completion["text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_what_it_cannot_do_is_refused(place: Place) -> None:
    place.run("pretrain", sets={**LSTM, "training.gradient_checkpointing": True}).told(2, "no gradient checkpointing")
    place.run("pretrain", sets={**LSTM, "model.config.cell": "rnn"}).told(2, "cell", "lstm")
    sets = {**LSTM, "model.config": {"model_type": "rnn_seq2seq"}}
    place.run("pretrain", sets=sets).told(4, "rnn_seq2seq is an encoder-decoder")
    place.run("pretrain", sets={**LSTM, "model.attn_implementation": "sdpa"}).told(2, "attn_implementation")
