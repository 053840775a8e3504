"""Extractive answers: windows against transformers' own, loss against transformers, and the whole way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from llmkit.data.examples import Ragged
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer import load_tokenizer
from llmkit.models.span_finder import best_spans
from llmkit.tasks.question_encoder import OFFSETS, QuestionEncoder
from tests.e2e.conftest import Place
from tests.fakes import byte_tokenizer, wordpiece_tokenizer

BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
MODELS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "roberta": BERT,
    "modernbert": BERT,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}
PEOPLE, PLACES = ["ann", "bob", "王 明"], ["rome", "paris", "new york", "北京"]
CONTEXT = "Ann lives in Paris. Bob sat on a mat in New  York, the city of cats, and 王明住在上海。"


def batch(**columns: Any) -> RecordBatch:
    count = len(columns["question"])
    places: list[int | None] = list(range(1, count + 1))
    return RecordBatch(0, "x.json", columns, places, places)


def row(ragged: Ragged, i: int) -> list[int]:
    end = int(np.cumsum(ragged.lengths)[i])
    found: list[int] = ragged.values[end - int(ragged.lengths[i]) : end].astype(int).tolist()
    return found


class TestEncoder:
    @pytest.mark.parametrize(("max_length", "doc_stride"), [(24, 5), (40, 10), (200, 64)])
    def test_windows_equal_transformers(self, tmp_path: Path, max_length: int, doc_stride: int) -> None:
        tokenizer = load_tokenizer(wordpiece_tokenizer(tmp_path))
        found = QuestionEncoder(tmp_path, max_length, doc_stride).encode(
            batch(question=["who sat on a mat?"], context=[CONTEXT], answers=[{"text": ["Bob"], "answer_start": [20]}])
        )
        theirs = tokenizer(
            "who sat on a mat?",
            CONTEXT,
            truncation="only_second",
            max_length=max_length,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert [row(found.streams["input_ids"], i) for i in range(len(found.rows))] == theirs["input_ids"]
        for i in range(len(found.rows)):
            offsets = [
                pair for pair, kind in zip(theirs["offset_mapping"][i], theirs.sequence_ids(i), strict=True) if kind
            ]
            assert row(found.streams[OFFSETS], i) == [place for pair in offsets for place in pair]
            start, end = found.fields["start"][i], found.fields["end"][i]
            if end:
                first, last = theirs["offset_mapping"][i][start][0], theirs["offset_mapping"][i][end][1]
                assert CONTEXT[first:last] == "Bob"
        assert any(found.fields["end"])
        assert found.fields["window"] == list(range(len(found.rows)))

    @pytest.mark.parametrize(
        ("answers", "texts"),
        [
            ({"text": ["New York"], "answer_start": [12]}, "New  York"),
            ([{"text": "王明", "answer_start": CONTEXT.index("王")}], "王明"),
            (["上海"], "上海"),
            ("paris", "Paris"),
        ],
    )
    @pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
    def test_spans(self, tmp_path: Path, answers: Any, texts: str, kind: str) -> None:
        (wordpiece_tokenizer if kind == "wordpiece" else byte_tokenizer)(tmp_path)
        found = QuestionEncoder(tmp_path, 300, 20).encode(
            batch(question=["who?"], context=[CONTEXT], answers=[answers])
        )
        (start,), (end,), (head,) = (found.fields[name] for name in ("start", "end", "head"))
        offsets = np.array(row(found.streams[OFFSETS], 0)).reshape(-1, 2)
        assert CONTEXT[offsets[start - head, 0] : offsets[end - head, 1]].strip() == texts

    def test_rejects_and_counts(self, tmp_path: Path) -> None:
        wordpiece_tokenizer(tmp_path)
        found = QuestionEncoder(tmp_path, 24, 4).encode(
            batch(
                question=["who?", "who?", "a cat " * 30, "who?"],
                context=[CONTEXT] * 3 + ["\u0007"],
                answers=[["London"], {"text": ["Bob", "London"], "answer_start": [3, 3]}, [], ["\u0007"]],
                is_impossible=[False, False, True, False],
            )
        )
        assert found.rejected == [
            (0, "the answer is not in the context"),
            (3, "the tokenizer gives no token for the context"),
        ]
        assert set(found.rows.tolist()) == {1, 2}
        sums = {name: sum(found.fields[name]) for name in ("moved", "lost", "cut")}
        assert sums == {"moved": 1, "lost": 1, "cut": 1}
        assert (found.streams["input_ids"].lengths <= 24).all()
        assert found.truncated == 1


def test_best_spans_are_the_best() -> None:
    draw = torch.Generator().manual_seed(0)
    start, end = torch.randn(9, generator=draw), torch.randn(9, generator=draw)
    every = [(i, j, float(start[i] + end[j])) for i in range(9) for j in range(i, min(9, i + 4))]
    best = sorted(every, key=lambda span: -span[2])[:5]
    assert best_spans(start, end, longest=4, count=5) == best
    assert len(best_spans(start[:2], end[:2], longest=30, count=20)) == 2


def questions(count: int, seed: int, impossible: bool) -> list[dict[str, Any]]:
    """Who lives where, of two people; the id tells nothing."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        people, places = draw.sample(PEOPLE, 3), draw.sample(PLACES, 2)
        context = " . ".join(f"{who} lives in {where}" for who, where in zip(people[:2], places, strict=True)) + " ."
        asked = draw.randrange(3 if impossible else 2)
        answer = (
            {"text": places[asked], "answer_start": context.index(f" in {places[asked]}") + 4} if asked < 2 else None
        )
        qa: dict[str, Any] = {
            "id": f"q{number}",
            "question": f"where is {people[asked]} ?",
            "answers": [answer] if answer else [],
        }
        made.append({"context": context, "qas": [qa | ({"is_impossible": answer is None} if impossible else {})]})
    return made


def make_place(directory: Path, *, impossible: bool = False, **changes: Any) -> Place:
    wordpiece_tokenizer(directory / "tokenizer")
    for name, count, seed in (("train", 160, 1), ("test", 24, 3)):
        document = {"version": "1.1", "data": [{"title": "x", "paragraphs": questions(count, seed, impossible)}]}
        (directory / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    content = {
        "version": 1,
        "seed": 3,
        "output_dir": "run",
        "task": {"type": "question_answering", "doc_stride": 4, "max_answer_length": 4},
        "model": {"config": {"model_type": "bert", **BERT}},
        "tokenizer": {"name_or_path": "tokenizer"},
        "data": {
            "train": [{"path": "train.json"}],
            "test": [{"path": "test.json"}],
            "validation_fraction": 0.1,
            "max_length": 32,
            "num_workers": 1,
        },
        "training": {"max_steps": 60, "global_batch_size": 16, "learning_rate": 0.003, "torch_compile": False},
        **changes,
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Place(directory)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predictions(place: Path) -> list[dict[str, Any]]:
    lines = (place / "run" / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class TestTheWholeWay:
    def test_learns_and_loads(self, place: Path) -> None:
        made = make_place(place)
        ended = made.run("finetune")
        assert ended.status == 0, ended.err
        ended = made.run("evaluate", "recipe.yaml", "--json")
        assert ended.status == 0, ended.err
        metrics, items = ended.json["metrics"], predictions(place)
        assert len(items) == 24
        assert [item["id"] for item in items] == [f"q{number}" for number in range(24)]
        for name in ("exact_match", "f1"):
            assert metrics[name]["value"] == pytest.approx(np.mean([item[name] for item in items]))
            assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
        assert metrics["exact_match"]["value"] >= 40  # half of the places by chance, none by an untrained model
        model = AutoModelForQuestionAnswering.from_pretrained(place / "run" / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
        contexts = [one["context"] for one in questions(24, 3, False)]
        for item, context in zip(items[:8], contexts, strict=False):
            inputs = tokenizer(item["question"], context, return_tensors="pt", return_offsets_mapping=True)
            offsets, kinds = inputs.pop("offset_mapping")[0].tolist(), inputs.sequence_ids(0)
            with torch.no_grad():
                output = model(**inputs)
            inside = [i for i, kind in enumerate(kinds) if kind == 1]
            start, end = output.start_logits[0], output.end_logits[0]
            spans = [(i, j) for i in inside for j in inside if i <= j < i + 4]
            i, j = max(spans, key=lambda span: float(start[span[0]] + end[span[1]]))
            assert context[offsets[i][0] : offsets[j][1]] == item["prediction"]

    def test_windows_are_joined(self, place: Path) -> None:
        made = make_place(place)
        sets = {"data.max_length": 14, "training.max_steps": 2}
        assert made.run("finetune", sets=sets).status == 0
        ended = made.run("evaluate", "recipe.yaml", "--json", sets=sets)
        assert ended.status == 0, ended.err
        assert len(predictions(place)) == 24 == ended.json["metrics"]["f1"]["n"]
        assert max(item["windows"] for item in predictions(place)) > 1
        whole = {item["id"]: item["prediction"] for item in predictions(place)}
        ended = made.run("evaluate", "recipe.yaml", "--json", sets={**sets, "evaluation.max_samples": 5})
        assert {item["id"]: item["prediction"] for item in predictions(place)}.items() <= whole.items()
        assert len(predictions(place)) == 5

    def test_no_answer(self, place: Path) -> None:
        made = make_place(place, impossible=True)
        assert made.run("finetune", sets={"training.max_steps": 3}).status == 0
        assert json.loads((place / "run" / "model" / "config.json").read_text())["has_no_answer"] is True
        for threshold, share in ((-1000, 1.0), (1000, 0.0)):
            ended = made.run("evaluate", "recipe.yaml", "--json", sets={"task.null_score_diff_threshold": threshold})
            assert ended.status == 0, ended.err
            assert np.mean([item["prediction"] == "" for item in predictions(place)]) == share
            kinds = ended.json["per_kind"]
            assert kinds["no_answer"]["exact_match"] == 100 * share
            assert kinds["has_answer"]["support"] + kinds["no_answer"]["support"] == 24

    def test_a_tokenizer_of_its_own(self, place: Path) -> None:
        made = make_place(place, tokenizer={"train": {"algorithm": "bpe", "vocab_size": 320}})
        sets = {"data.max_length": 128, "training.max_steps": 1}
        ended = made.run("finetune", sets=sets)
        assert ended.status == 0, ended.err
        tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
        record = questions(1, 9, False)[0]
        theirs = tokenizer(record["qas"][0]["question"], record["context"])
        columns = {"question": [record["qas"][0]["question"]], "context": [record["context"]], "answers": [["lives"]]}
        ours = QuestionEncoder(place / "run" / "model", 128, 4).encode(batch(**columns))
        assert row(ours.streams["input_ids"], 0) == theirs["input_ids"]
        assert tokenizer.convert_ids_to_tokens(theirs["input_ids"])[:: len(theirs["input_ids"]) - 1] == [
            "[CLS]",
            "[SEP]",
        ]
        assert {0, 1} == set(theirs["token_type_ids"])

    def test_flat_rows(self, place: Path) -> None:
        made = make_place(place)
        rows = [
            {
                "question": one["qas"][0]["question"],
                "context": one["context"],
                "answer": one["qas"][0]["answers"][0]["text"],
            }
            for one in questions(20, 5, False)
        ]
        rows[0]["answer"] = "nowhere"
        (place / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        ended = made.run("preprocess", "recipe.yaml", "--json", sets={"data.train.0.path": "train.jsonl"})
        assert ended.status == 0, ended.err
        assert ended.json["not_encoded"] == 1
        assert ended.json["splits"]["train"]["labels"]["counts"]["answers without an offset, found by their text"] >= 15


@pytest.mark.parametrize("kind", list(MODELS))
def test_loss_equals_transformers(place: Path, kind: str) -> None:
    from llmkit.data import prepare
    from llmkit.recipe.load import load_recipe
    from llmkit.recipe.resolve import resolve
    from llmkit.tasks import build_task
    from tests.evaluate.tiny_run import console

    make_place(place, impossible=True, model={"config": {"model_type": kind, **MODELS[kind]}})
    recipe = resolve(load_recipe(place / "recipe.yaml"))
    prepared = prepare.prepare(recipe, console())
    task = build_task(recipe, prepared.tokenizer_dir)
    task.prepare(prepared.splits["train"], None)
    module = task.build_model().double().eval()
    plan = task.train_plan(prepared.splits["train"], 1)
    samples = plan.samples(0, np.arange(40))
    length = len(samples[0].arrays["input_ids"])
    same = [sample for sample in samples if len(sample.arrays["input_ids"]) == length]  # no padding
    batch_of = task.collate(same, seed=0, step=0)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if module.token_types else [])]
    assert module.token_types == (kind in ("bert", "roberta"))  # of RoBERTa's own weights there is one type only
    inputs = {name: batch_of[name] for name in names}
    with torch.no_grad():
        theirs = float(module.model(**inputs, start_positions=batch_of["start"], end_positions=batch_of["end"]).loss)
        losses = module(batch_of)
        padded = module(task.collate(same, seed=0, step=0, width=32))
    counts = task.counts(batch_of)
    ours = sum(float(losses[name]) / counts[name] * weight for name, weight in task.loss_weights.items())
    assert len(same) > 2
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert [float(one) for one in padded.values()] == pytest.approx([float(one) for one in losses.values()], rel=1e-12)
