"""The masked objectives through the command line on made documents, English and Chinese."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.conftest import CHARACTERS, RECIPE, WORDS, Place

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
CASES: dict[str, dict[str, Any]] = {
    "pairs": {
        "task": {"type": "masked_lm", "next_sentence_prediction": True},
        "model.config": {"model_type": "bert", **SIZES},
        "tokenizer.train": {"algorithm": "wordpiece", "vocab_size": 300},
    },
    "words": {
        "task": {"type": "masked_lm", "whole_word_mask": True},
        "model.config": {"model_type": "roberta", **SIZES},
    },
    "electra": {
        "task": {"type": "replaced_token_detection"},
        "model.config": {"model_type": "electra", "embedding_size": 16, **SIZES},
        "tokenizer.train": {"algorithm": "unigram", "vocab_size": 400},
    },
}
METRICS = {
    "pairs": {"loss", "mlm_loss", "perplexity", "mlm_accuracy", "nsp_loss", "nsp_accuracy"},
    "words": {"loss", "mlm_loss", "perplexity", "mlm_accuracy"},
    "electra": {"loss", "generator_loss", "detection_loss", "detection_f1"},
}


def document(draw: random.Random, chinese: bool) -> str:
    blank, stop = ("", "。") if chinese else (" ", ". ")
    words = CHARACTERS if chinese else WORDS
    return "".join(blank.join(draw.choices(words, k=draw.randint(3, 12))) + stop for _ in range(draw.randint(2, 9)))


@pytest.fixture
def documents(place: Place) -> Place:
    draw = random.Random(4)
    for name, count in (("train", 60), ("validation", 8), ("test", 8)):
        rows = [{"text": document(draw, bool(i % 2))} for i in range(count)]
        place.write(f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    place.write("recipe.yaml", RECIPE.replace("  dropout: 0.0\n", ""))
    return place


def trained_on(place: Place, sets: dict[str, Any], steps: int) -> None:
    ended = place.run("pretrain", sets={**sets, "training.max_steps": steps})
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("case", list(CASES))
def test_from_recipe_to_model(case: str, documents: Place) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

    sets = CASES[case]
    trained_on(documents, sets, 4)
    trained_on(documents, {**sets, "output_dir": "resumed", "data.prepared_dir": "run/prepared"}, 2)
    trained_on(documents, {**sets, "output_dir": "resumed", "data.prepared_dir": "run/prepared"}, 4)
    assert Path("run/model/model.safetensors").read_bytes() == Path("resumed/model/model.safetensors").read_bytes()
    last = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()][-1]
    assert METRICS[case] <= set(last) and all(math.isfinite(last[name]) for name in METRICS[case])

    ended = documents.run("evaluate", "recipe.yaml", "--json", sets={**sets, "training.max_steps": 4})
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert set(found["metrics"]) == METRICS[case]
    assert found["metrics"]["loss"]["low"] <= found["metrics"]["loss"]["value"] <= found["metrics"]["loss"]["high"]

    kind = AutoModelForMaskedLM if case == "words" else AutoModelForPreTraining
    model = kind.from_pretrained("run/model", local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained("run/model", local_files_only=True)
    encoded = tokenizer(["the fox", "今天"], ["a dog", "好。"], padding=True, return_tensors="pt")
    assert (encoded["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    with torch.no_grad():
        assert torch.isfinite(model(**encoded)[0]).all()
    if case == "electra":
        AutoModelForMaskedLM.from_pretrained("run/model/generator", local_files_only=True)


def test_prepared_rows_are_documents_with_marks(documents: Place) -> None:
    ended = documents.run("preprocess", "recipe.yaml", "--dry-run", "--json", sets=CASES["pairs"])
    assert ended.status == 0, ended.err
    spans = json.loads(ended.out)["examples"][0]["spans"]
    assert {span["supervised"] for span in spans} == {True, False}


def test_a_corpus_of_single_sentences_has_no_pairs(place: Place) -> None:
    place.write("recipe.yaml", RECIPE.replace("  dropout: 0.0\n", ""))
    place.run("pretrain", sets=CASES["pairs"]).told(3, "two documents of two sentences", "sample_by: document")


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_pairs_need_a_head_that_tells_them(kind: str, documents: Place) -> None:
    sets = {**CASES["pairs"], "model.config": {"model_type": kind}}
    documents.run("pretrain", sets=sets).told(4, f"{kind} has no next-sentence head", "next_sentence_prediction: false")
    assert not Path("run/prepared").exists()
