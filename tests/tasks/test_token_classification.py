"""Tagging: alignment against transformers, loss against transformers, scores against seqeval, and the whole way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from seqeval.metrics import f1_score, precision_score, recall_score
from transformers import AutoModelForTokenClassification, AutoTokenizer

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer import load_tokenizer
from llmkit.errors import DataError, RecipeError
from llmkit.tasks import space_words
from llmkit.tasks.token_encoder import FIRST, TokenEncoder
from tests.e2e.conftest import Place
from tests.fakes import byte_tokenizer, wordpiece_tokenizer

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "roberta": BERT,
    "modernbert": BERT,
    "rnn_encoder": {"cell": "gru", "hidden_size": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}
WORDS = [["ann", "lives", "in", "newtown"], ["\u0007", "bob", "\u200b", "sat"], ["北", "京", "mat"]]
TAGS = [["B-PER", "O", "O", "B-LOC"], ["O", "B-PER", "O", "O"], ["B-LOC", "I-LOC", "O"]]


def batch(tokens: list[Any], labels: list[Any]) -> RecordBatch:
    places: list[int | None] = list(range(1, len(tokens) + 1))
    return RecordBatch(0, "x.conll", {"tokens": tokens, "labels": labels}, places, places)


def row(ragged: Ragged, i: int) -> list[int]:
    end = int(np.cumsum(ragged.lengths)[i])
    found: list[int] = ragged.values[end - int(ragged.lengths[i]) : end].astype(int).tolist()
    return found


def expected_first(word_ids: list[int | None], count: int) -> list[int]:
    return [word_ids.index(word) if word in word_ids else -1 for word in range(count)]


class TestEncoder:
    def encode(self, directory: Path, *, overflow: Any = "split", max_length: int = 64, **columns: Any) -> Encoded:
        encoder = TokenEncoder(directory, max_length, overflow)
        return encoder.encode(batch(columns.get("tokens", WORDS), columns.get("labels", TAGS)))

    def test_equals_transformers(self, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(wordpiece_tokenizer(tmp_path))
        found = self.encode(tmp_path)
        for i, words in enumerate(WORDS):
            theirs = tokenizer(words, is_split_into_words=True)
            assert row(found.streams["input_ids"], i) == theirs["input_ids"]
            assert row(found.streams[FIRST], i) == expected_first(theirs.word_ids(), len(words))
        assert row(found.streams[FIRST], 1)[::2] == [-1, -1]  # dropped characters have no place and shift nothing

    @pytest.mark.parametrize("kind", ["gpt2", "roberta"])
    def test_byte_level(self, tmp_path: Path, kind: str) -> None:
        byte_tokenizer(tmp_path)
        if kind == "roberta":
            config = json.loads((tmp_path / "tokenizer_config.json").read_text())
            config |= {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
            (tmp_path / "merges.txt").write_text("#version: 0.2\n")
            vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
            (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        tokenizer = load_tokenizer(tmp_path)
        assert space_words(tokenizer)
        tokenizer.save_pretrained(str(tmp_path))
        again = load_tokenizer(tmp_path)
        assert not space_words(again)
        found = self.encode(tmp_path)
        for i, words in enumerate(WORDS):
            theirs = again(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
            ours = row(found.streams["input_ids"], i)
            assert [one for one in ours if one in theirs] == theirs
            assert again.decode(theirs) == "".join(f" {word}" for word in words)

    def test_windows_are_cut_between_words(self, tmp_path: Path) -> None:
        wordpiece_tokenizer(tmp_path)
        words = ["ann", "newtown", "sat", "\u0007", "xyzxyzxyz", "mat"]  # 1, 5, 1, 0, 9 and 1 pieces
        labels = [f"B-{i}" for i in range(6)]
        found = self.encode(tmp_path, max_length=8, tokens=[words, ["mat"]], labels=[labels, ["O"]])
        assert found.fields["tokens"] == [["ann", "newtown"], ["sat", "\u0007"], ["xyzxyzxyz"], ["mat"], ["mat"]]
        assert found.fields["window"] == [0, 1, 2, 3, 0]
        assert found.rows.tolist() == [0, 0, 0, 0, 1]
        assert found.streams["input_ids"].lengths.tolist() == [8, 3, 8, 3, 3]
        assert [row(found.streams[FIRST], i) for i in range(4)] == [[1, 2], [1, -1], [1], [1]]

    def test_truncate_keeps_the_words(self, tmp_path: Path) -> None:
        wordpiece_tokenizer(tmp_path)
        found = self.encode(
            tmp_path, overflow="truncate", max_length=5, tokens=[["ann", "sat", "on", "mat"]], labels=["OOOO"]
        )
        assert found.rejected == [(0, "4 tokens and 1 labels")]
        found = self.encode(
            tmp_path, overflow="truncate", max_length=5, tokens=[["ann", "sat", "on", "mat"]], labels=["O O O B-X"]
        )
        assert found.truncated == 1
        assert row(found.streams[FIRST], 0) == [1, 2, 3, -1]
        assert found.fields["labels"] == [["O", "O", "O", "B-X"]]

    def test_drop_and_error(self, tmp_path: Path) -> None:
        wordpiece_tokenizer(tmp_path)
        columns = {"tokens": [["ann"], ["newtown"] * 3], "labels": [["O"], ["O"] * 3]}
        found = self.encode(tmp_path, overflow="drop", max_length=8, **columns)
        assert found.rejected == [(1, "17 tokens, more than max_length 8")]
        assert found.rows.tolist() == [0]
        with pytest.raises(DataError, match=r"x\.conll:2: 17 tokens"):
            self.encode(tmp_path, overflow="error", max_length=8, **columns)

    @pytest.mark.parametrize(
        ("tokens", "labels", "reason"),
        [
            ([], [], "there are no tokens"),
            (["a", 3], ["O", "O"], "not text"),
            (["a"], [None], "neither text"),
            (["a"], [" "], "a label is empty"),
            ({"a": 1}, ["O"], "tokens is not a list"),
        ],
    )
    def test_rejects(self, tmp_path: Path, tokens: Any, labels: Any, reason: str) -> None:
        wordpiece_tokenizer(tmp_path)
        found = self.encode(tmp_path, tokens=[tokens], labels=[labels])
        assert not len(found.rows)
        assert reason in found.rejected[0][1]

    def test_no_room(self, tmp_path: Path) -> None:
        wordpiece_tokenizer(tmp_path)
        with pytest.raises(RecipeError, match=r"data\.max_length: 2 tokens leave no room"):
            self.encode(tmp_path, max_length=2)

    def test_joined_texts(self, tmp_path: Path) -> None:
        wordpiece_tokenizer(tmp_path)
        found = self.encode(tmp_path, tokens=["北京的", "ann sat"], labels=[["B", "I", "O"], "B O"])
        assert found.fields["tokens"] == [["北", "京", "的"], ["ann", "sat"]]


PEOPLE, PLACES = ["ann", "bob", "王 明"], ["rome", "paris", "new york", "北 京"]


def sentences(count: int, seed: int, scheme: str = "BIO") -> list[tuple[list[str], list[str]]]:
    """People live in places; a person is PER, a place LOC."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        parts = [(draw.choice(PEOPLE), "PER"), ("lives in", ""), (draw.choice(PLACES), "LOC"), (".", "")]
        words, tags = [], []
        for text, kind in parts:
            pieces = text.split()
            words += pieces
            tags += [mark(scheme, i, len(pieces)) + kind if kind else "O" for i in range(len(pieces))]
        made.append((words, tags))
    return made


def mark(scheme: str, i: int, count: int) -> str:
    if scheme == "IO":
        return "I-"
    if scheme == "BIO":
        return "B-" if i == 0 else "I-"
    single, first, middle, last = {"BMES": "SBME", "BILOU": "UBIL"}[scheme]
    return f"{single if count == 1 else first if i == 0 else last if i == count - 1 else middle}-"


def write_conll(path: Path, rows: list[tuple[list[str], list[str]]]) -> None:
    blocks = ["\n".join(f"{word}\t{tag}" for word, tag in zip(*one, strict=True)) for one in rows]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def make_place(directory: Path, scheme: str = "BIO", **changes: Any) -> Place:
    wordpiece_tokenizer(directory / "tokenizer")
    for name, count, seed in (("train", 60, 1), ("dev", 10, 2), ("test", 20, 3)):
        write_conll(directory / f"{name}.conll", sentences(count, seed, scheme))
    content = {
        "version": 1,
        "seed": 3,
        "output_dir": "run",
        "task": {"type": "token_classification"},
        "model": {"config": {"model_type": "bert", **BERT}},
        "tokenizer": {"name_or_path": "tokenizer"},
        "data": {
            "train": [{"path": "train.conll"}],
            "validation": [{"path": "dev.conll"}],
            "test": [{"path": "test.conll"}],
            "max_length": 32,
            "num_workers": 1,
        },
        "training": {"max_steps": 30, "global_batch_size": 16, "learning_rate": 0.003, "torch_compile": False},
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
        metrics = ended.json["metrics"]
        items = predictions(place)
        pair = [item["labels"] for item in items], [item["prediction"] for item in items]
        for name, theirs in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert metrics[name]["value"] == pytest.approx(theirs(*pair), abs=1e-12)
            assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
        assert metrics["f1"]["value"] > 0.9
        assert (len(items), metrics["f1"]["n"]) == (20, 20)
        assert set(ended.json["per_class"]) == {"PER", "LOC"}
        model = AutoModelForTokenClassification.from_pretrained(place / "run" / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
        assert model.config.tagging_scheme == "BIO"
        assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-LOC", 3: "I-PER", 4: "O"}
        for item in items[:5]:
            inputs = tokenizer(item["words"], is_split_into_words=True, return_tensors="pt")
            best = model(**inputs).logits[0].argmax(-1).tolist()
            first = expected_first(inputs.word_ids(0), len(item["words"]))
            assert [model.config.id2label[best[i]] for i in first] == item["prediction"]
        again = made.run(
            "finetune", sets={"output_dir": "more", "model": {"name_or_path": "run/model"}, "training.max_steps": 1}
        )
        assert again.status == 0, again.err

    def test_goes_on(self, place: Path) -> None:
        made = make_place(place)
        sets = {"training.lr_scheduler_type": "constant", "training.warmup_steps": 0}
        for name, steps in (("run", 2), ("run", 4), ("straight", 4)):
            ended = made.run("finetune", sets={**sets, "output_dir": name, "training.max_steps": steps})
            assert ended.status == 0, ended.err
        assert (place / "run/model/model.safetensors").read_bytes() == (
            place / "straight/model/model.safetensors"
        ).read_bytes()

    def test_compared_item_by_item(self, place: Path) -> None:
        made = make_place(place)
        for name, steps in (("few", 1), ("many", 30)):
            sets = {"output_dir": name, "training.max_steps": steps}
            assert made.run("finetune", sets=sets).status == made.run("evaluate", sets=sets).status == 0
        found = made.run("compare", "few", "many", "--json").json["metrics"]["f1"]
        assert found["difference"] == pytest.approx(found["b"] - found["a"])
        assert found["better"] == "b"
        assert found["low"] > 0

    @pytest.mark.parametrize("scheme", ["IO", "BMES", "BILOU"])
    def test_schemes(self, place: Path, scheme: str) -> None:
        made = make_place(place, scheme)
        ended = made.run("finetune", sets={"training.max_steps": 2})
        assert ended.status == 0, ended.err
        assert json.loads((place / "run" / "model" / "config.json").read_text())["tagging_scheme"] == scheme

    def test_windows_are_joined(self, place: Path) -> None:
        made = make_place(place)
        assert made.run("finetune").status == 0
        whole = made.run("evaluate", "recipe.yaml", "--json").json
        ended = made.run("evaluate", "recipe.yaml", "--json", sets={"data.max_length": 6})
        assert ended.status == 0, ended.err
        items = predictions(place)
        assert len(items) == 20
        assert {tuple(item["labels"]) for item in items} == {tuple(tags) for _, tags in sentences(20, 3)}
        assert ended.json["metrics"]["f1"]["n"] == whole["metrics"]["f1"]["n"]
        fewer = made.run("evaluate", "recipe.yaml", "--json", sets={"data.max_length": 6, "evaluation.max_samples": 7})
        assert len(predictions(place)) == 7 == fewer.json["metrics"]["f1"]["n"]
        assert all({"B-PER", "B-LOC"} <= set(item["labels"]) for item in predictions(place))  # whole records

    def test_truncated_words_are_missed(self, place: Path) -> None:
        made = make_place(place)
        sets = {"data.max_length": 5, "data.overflow": "truncate", "training.max_steps": 1}
        assert made.run("finetune", sets=sets).status == 0
        ended = made.run("evaluate", "recipe.yaml", "--json", sets=sets)
        assert "stand beyond max_length: scored as O" in " ".join(ended.json["provenance"]["conventions"])
        assert all(len(item["prediction"]) == len(item["labels"]) for item in predictions(place))
        assert all(item["prediction"][-1] == "O" for item in predictions(place))

    def test_plain_tags(self, place: Path) -> None:
        made = make_place(place)
        for name in ("train", "dev", "test"):
            text = (place / f"{name}.conll").read_text(encoding="utf-8")
            (place / f"{name}.conll").write_text(text.replace("B-", "").replace("I-", ""), encoding="utf-8")
        assert made.run("finetune", sets={"training.max_steps": 3}).status == 0
        ended = made.run("evaluate", "recipe.yaml", "--json")
        from sklearn.metrics import f1_score as plain_f1

        gold, predicted = (
            [tag for item in predictions(place) for tag in item[name]] for name in ("labels", "prediction")
        )
        for name, average in (("f1", "macro"), ("f1_micro", "micro")):
            theirs = plain_f1(gold, predicted, average=average, zero_division=0)
            assert ended.json["metrics"][name]["value"] == pytest.approx(theirs, abs=1e-12)

    def test_numbers_with_names(self, place: Path) -> None:
        made = make_place(place)
        names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
        for name, seed in (("train", 1), ("dev", 2), ("test", 3)):
            rows = [
                {"words": words, "ner_tags": [names.index(tag) for tag in tags]} for words, tags in sentences(20, seed)
            ]
            (place / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        sources = {
            f"data.{split}": [{"path": f"{name}.jsonl", "label_names": names}]
            for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
        }
        ended = made.run("finetune", sets={**sources, "training.max_steps": 1})
        assert ended.status == 0, ended.err
        config = json.loads((place / "run" / "model" / "config.json").read_text())
        assert list(config["id2label"].values()) == names
        assert config["tagging_scheme"] == "BIO"


class TestRefusals:
    @pytest.mark.parametrize(("scheme", "named"), [("BMES", "B-LOC"), ("IO", "B-LOC"), ("BILOU", "B-LOC")])
    def test_contradicted_scheme(self, place: Path, scheme: str, named: str) -> None:
        ended = make_place(place).run("finetune", sets={"task.tagging_scheme": scheme})
        ended.told(3, "task.tagging_scheme: ", f"contradict {scheme}: they have {named} and look like BIO")

    def test_a_label_that_train_never_shows(self, place: Path) -> None:
        made = make_place(place)
        with (place / "test.conll").open("a", encoding="utf-8") as file:
            file.write("\nmat\tB-ANIMAL\n")
        ended = made.run("finetune")
        made.run("finetune", "recipe.yaml", "--dry-run").told(3, "data.test has the label B-ANIMAL")
        ended.told(3, "test.conll:", "data.test has the label B-ANIMAL", "label_names")
        named = ["B-ANIMAL", "B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
        ended = made.run("finetune", sets={"data.train.0.label_names": named, "training.max_steps": 1})
        assert ended.status == 0, ended.err

    def test_mixed_labels(self, place: Path) -> None:
        made = make_place(place)
        with (place / "train.conll").open("a", encoding="utf-8") as file:
            file.write("\nmat\tANIMAL\n")
        made.run("finetune").told(3, "look like BIO, but ANIMAL is not of it", "tagging_scheme: none")

    def test_more_labels_than_the_head(self, place: Path) -> None:
        made = make_place(place)
        assert made.run("finetune", sets={"training.max_steps": 1}).status == 0
        for name in ("train", "dev", "test"):
            text = (place / f"{name}.conll").read_text(encoding="utf-8")
            (place / f"{name}.conll").write_text(text.replace("-LOC", "-GPE"), encoding="utf-8")
        ended = made.run("finetune", sets={"output_dir": "more", "model": {"name_or_path": "run/model"}})
        ended.told(4, "tags 5 labels", "B-GPE")


@pytest.mark.parametrize("kind", list(MODELS))
def test_loss_equals_transformers(place: Path, kind: str) -> None:
    from llmkit.data import prepare
    from llmkit.recipe.load import load_recipe
    from llmkit.recipe.resolve import resolve
    from llmkit.tasks import build_task
    from tests.evaluate.tiny_run import console

    make_place(place, model={"config": {"model_type": kind, **MODELS[kind]}})
    recipe = resolve(load_recipe(place / "recipe.yaml"))
    prepared = prepare.prepare(recipe, console())
    task = build_task(recipe, prepared.tokenizer_dir)
    task.prepare(prepared.splits["train"], None)
    module = task.build_model().double().eval()
    plan = task.train_plan(prepared.splits["train"], 1)
    batch_of = task.collate(plan.samples(0, np.arange(8)), seed=0, step=0)
    inputs = {name: batch_of[name] for name in ("input_ids", "attention_mask", "labels")}
    wider = task.collate(plan.samples(0, np.arange(8)), seed=0, step=0, width=32)
    with torch.no_grad():
        theirs = float(module.model(**inputs).loss)
        ours, padded = float(module(batch_of)["loss"]), float(module(wider)["loss"])
    rounding = 1e-6 if kind == "rnn_encoder" else 1e-12  # its own forward takes the loss in float32
    assert ours / task.counts(batch_of)["loss"] == pytest.approx(theirs, rel=rounding)
    assert padded == pytest.approx(ours, rel=1e-12)
