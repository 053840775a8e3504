"""Sequence classification: the losses of transformers, the tokenizer's own frames, and labels that do not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.data import prepare
from llmkit.data.records import RecordBatch
from llmkit.data.shards import Split
from llmkit.errors import DataError, LlmkitError, ModelError, RecipeError
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.recipe.sections import Recipe
from llmkit.tasks import build_task
from llmkit.tasks.label_encoder import LabelEncoder
from llmkit.tasks.labels import decide
from tests.evaluate.tiny_run import console, write_rows

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": {**SMALL, "max_position_embeddings": 32},
    "deberta-v2": SMALL,
    "modernbert": SMALL,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": SMALL,
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
    "bart": {
        **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
           (("layers", 1), ("attention_heads", 2), ("ffn_dim", 48))},
        "d_model": 32,
    },
}  # fmt: skip
WORDS = ["good", "bad", "fine", "awful", "nice", "很好", "很差", "不错", "糟糕", "the", "film", "food", "hotel", "was"]
TOKENIZERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
KINDS: dict[str, list[Any]] = {
    "single_label": ["pos", "neg", "neutral"],
    "multi_label": [["a"], ["a", "b"], [], ["c", "b"]],
    "regression": [0.5, 2, -1.25, 3.0],
}


def rows(labels: list[Any], count: int = 24, seed: int = 0, *, pairs: bool = False) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(draw.choice(WORDS, draw.integers(2, 12)))

    made = [{"text": text(), "label": labels[i % len(labels)]} for i in range(count)]
    return [{**row, "text_pair": text()} for row in made] if pairs else made


def recipe(directory: Path, kind: str = "bert", train: list[dict[str, Any]] | None = None, **sections: Any) -> Recipe:
    """A resolved recipe of a network from scratch on the rows given."""
    train = rows(KINDS["single_label"]) if train is None else train
    tokenizer: dict[str, Any] = {"algorithm": "wordpiece", "vocab_size": 120}
    if kind in ("gpt2", "llama", "qwen2"):
        tokenizer = {"algorithm": "bpe", "vocab_size": 300}
    content: dict[str, Any] = {
        "output_dir": str(directory / "run"),
        "task": {"type": "sequence_classification"},
        "model": {"config": {"model_type": kind, **MODELS[kind]}},
        "tokenizer": {"train": tokenizer},
        "data": {"train": [{"path": str(write_rows(directory / "train.jsonl", train))}], "max_length": 24},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section} if name != "model" else section
    path = directory / "recipe.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return resolve(load_recipe(path))


def ready(chosen: Recipe) -> tuple[Any, dict[str, Split]]:
    """The task after `prepare`, and its splits."""
    prepared = prepare.prepare(chosen, console())
    task = build_task(chosen, prepared.tokenizer_dir)
    task.prepare(prepared.splits["train"], prepared.splits.get("validation"))
    return task, prepared.splits


def first_batch(task: Any, split: Split, count: int = 6) -> tuple[Any, dict[str, torch.Tensor]]:
    samples = task.eval_plan(split).samples(0, np.arange(count))
    return samples, task.collate(samples, seed=0, step=0)


def batch_of(task: Any, split: Split, row: int) -> dict[str, torch.Tensor]:
    """One row alone, without padding."""
    batch: dict[str, torch.Tensor] = task.collate(task.eval_plan(split).samples(0, np.array([row])), seed=0, step=0)
    return batch


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("model", ["bert", "roberta", "modernbert", "gpt2"])
def test_losses_are_those_of_transformers(model: str, kind: str, tmp_path: Path) -> None:
    task, splits = ready(recipe(tmp_path, model, rows(KINDS[kind], pairs=True)))
    module = task.build_model().double().eval()
    samples, batch = first_batch(task, splits["train"])
    labels = batch["labels"].double() if kind != "single_label" else batch["labels"]
    assert module.reads_types is (model in ("bert", "roberta"))
    types = {"token_type_ids": batch["token_type_ids"]} if module.reads_types else {}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **types}
    expected = module.inner()(**inputs, labels=labels).loss.item()
    assert (
        module.inner().config.problem_type
        == {
            "single_label": "single_label_classification",
            "multi_label": "multi_label_classification",
            "regression": "regression",
        }[kind]
    )
    count = task.counts(batch)["loss"]
    assert count == (18 if kind == "multi_label" else 6)
    assert module(batch)["loss"].item() / count == pytest.approx(expected, abs=1e-12)
    with torch.no_grad():
        predictions = task.predict(module, batch, samples)
    assert sum(p.values["loss"] for p in predictions) / count == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ("bert", "roberta", "modernbert", "gpt2")])
def test_every_architecture_is_the_same_in_any_batch(model: str, tmp_path: Path) -> None:
    """Padding and pooling: a row alone, a row among longer ones, and the exported model agree."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    sections: dict[str, Any] = {}
    if model in ("t5", "bart"):  # they read the sentence's end, which every row must have
        from tests.fakes import byte_tokenizer

        place = byte_tokenizer(tmp_path / "tokenizer", special=("</s>", "<pad>"), eos_token="</s>", pad_token="<pad>")
        with_ends(place)
        sections = {"tokenizer": {"train": None, "name_or_path": str(place)}}
    task, splits = ready(recipe(tmp_path, model, **sections))
    module = task.build_model().eval()
    _, batch = first_batch(task, splits["train"])
    with torch.no_grad():
        together = module.logits(batch)
        for i in range(6):
            alone = batch_of(task, splits["train"], i)
            assert torch.allclose(module.logits(alone)[0], together[i], atol=1e-5)
        task.export(module, tmp_path / "out")
        loaded = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "out"), local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"), local_files_only=True)
        texts = ["\n".join(parts) for parts in splits["train"].field("text").to_pylist()[:6]]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        assert torch.allclose(loaded(**inputs).logits, together, atol=1e-5)
    assert loaded.config.id2label == {0: "neg", 1: "neutral", 2: "pos"}


@pytest.mark.parametrize("model", ["t5", "bart"])
def test_texts_and_pairs_in_one_batch(model: str, tmp_path: Path) -> None:
    """transformers' heads of encoder-decoders refuse rows that end more than once beside rows that do not."""
    texts = rows(KINDS["single_label"], pairs=True)
    mixed = [row if i % 3 else {**row, "text_pair": None} for i, row in enumerate(texts)]
    task, splits = ready(recipe(tmp_path, model, mixed))
    module = task.build_model().eval()
    _, batch = first_batch(task, splits["train"])
    with torch.no_grad():
        together = module.logits(batch)
        for i in range(6):
            alone = batch_of(task, splits["train"], i)
            inputs = {name: alone[name] for name in ("input_ids", "attention_mask")}
            assert torch.allclose(module.inner()(**inputs).logits[0], together[i], atol=1e-5)


def with_ends(place: Path) -> None:
    from tokenizers import Tokenizer, processors

    core = Tokenizer.from_file(str(place / "tokenizer.json"))
    end = core.token_to_id("</s>")
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    core.save(str(place / "tokenizer.json"))


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese", "t5-like-multilingual"])
def test_frames_are_those_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = TOKENIZERS / name
    if not (directory / "tokenizer.json").exists():
        pytest.skip(f"needs ../shared/data/tokenizers/{name} with a tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    tokenizer.save_pretrained(str(tmp_path))
    made = rows(KINDS["single_label"], pairs=True)
    columns = {role: [row[role] for row in made] for role in made[0]}
    columns["text_pair"][3] = None
    places: list[int | None] = list(range(len(made)))
    encoded = LabelEncoder(tmp_path, 16, "truncate", None).encode(RecordBatch(0, "x", columns, places, places))
    ends = np.cumsum(encoded.streams["input_ids"].lengths)
    for i, end in enumerate(ends.tolist()):
        pair = columns["text_pair"][i]
        expected = tokenizer(columns["text"][i], pair, truncation="longest_first", max_length=16)
        start = end - len(expected["input_ids"])
        assert encoded.streams["input_ids"].values[start:end].tolist() == expected["input_ids"]
        if "token_type_ids" in expected:
            assert encoded.streams["token_type_ids"].values[start:end].tolist() == expected["token_type_ids"]
    assert encoded.truncated > 0
    again = pickle.loads(pickle.dumps(LabelEncoder(tmp_path, 16, "truncate", None)))
    ids = again.encode(RecordBatch(0, "x", columns, places, places)).streams["input_ids"].values
    assert np.array_equal(ids, encoded.streams["input_ids"].values)


@pytest.mark.parametrize("weights", ["balanced", {"pos": 3.0, "neg": 0.5}])
def test_class_weights_are_those_of_torch(weights: Any, tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["pos", "neg", "neutral", "neg", "neg"]
    task, splits = ready(
        recipe(tmp_path, "bert", rows(labels), task={"type": "sequence_classification", "class_weights": weights})
    )
    module = task.build_model().double().eval()
    _, batch = first_batch(task, splits["train"])
    gold = task.labels.ids(splits["train"], "train")
    expected = (
        compute_class_weight("balanced", classes=np.arange(3), y=gold)
        if weights == "balanced"
        else np.array([0.5, 1.0, 3.0])
    )
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(expected))(module.logits(batch), batch["labels"])
    assert module(batch)["loss"].item() / task.counts(batch)["loss"] == pytest.approx(loss.item(), abs=1e-12)
    halves = [first_batch(task, splits["train"])[1], batch]
    assert task.counts(halves[0])["loss"] == pytest.approx(expected[batch["labels"]].sum())


def test_smoothing_is_for_training_alone(tmp_path: Path) -> None:
    from dataclasses import replace

    task, splits = ready(recipe(tmp_path))
    module = replace(task, network=replace(task.network, label_smoothing=0.2)).build_model().double()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    _, batch = first_batch(task, splits["train"])
    smooth = torch.nn.functional.cross_entropy(
        module.train().logits(batch), batch["labels"], label_smoothing=0.2, reduction="sum"
    )
    assert module(batch)["loss"].item() == pytest.approx(smooth.item(), abs=1e-12)
    assert module.eval()(batch)["loss"].item() != pytest.approx(smooth.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (["10", "9", "2"], "single_label", ("2", "9", "10")),
        (["b", "a"], "single_label", ("a", "b")),
        ([["b"], "a"], "multi_label", ("a", "b")),
        (["1", "2.5"], "regression", ("LABEL_0",)),
        (["1.5", "x"], "single_label", ("1.5", "x")),
    ],
)
def test_the_problem_is_read_from_the_labels(values: Any, kind: str, names: tuple[str, ...]) -> None:
    found = decide(values, None, [None])
    assert (found.problem_type, found.names) == (kind, names)


def test_given_names_come_first_in_their_order() -> None:
    assert decide(["b", "z"], None, [("c", "b"), None]).names == ("c", "b", "z")
    with pytest.raises(DataError, match="two labels at least"):
        decide(["a", "a"], None, [None])


def test_a_label_that_training_never_saw(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        path = write_rows(tmp_path / f"{split}.jsonl", [*rows(["pos"], 3), {"text": "good", "label": "odd"}])
        with pytest.raises(DataError, match=rf"label 'odd' of data.{split} was never seen") as caught:
            ready(
                recipe(
                    tmp_path, data={"train": [{"path": str(tmp_path / "train.jsonl")}], split: [{"path": str(path)}]}
                )
            )
        assert (caught.value.line, "label_names" in str(caught.value)) == (4, True)


def test_labels_that_are_not_of_the_problem_are_set_aside(tmp_path: Path) -> None:
    made = rows(["pos", "neg"])
    made[5]["label"] = ["pos"]
    chosen = recipe(
        tmp_path,
        train=made,
        task={"type": "sequence_classification", "problem_type": "single_label"},
        data={"train": [{"path": str(tmp_path / "train.jsonl")}], "max_bad_fraction": 0.1},
    )
    prepared = prepare.prepare(chosen, console())
    rejected = (prepared.directory / "rejected.jsonl").read_text(encoding="utf-8")
    assert json.loads(rejected)["reason"] == "label is a list, and task.problem_type is single_label"


def test_overflow(tmp_path: Path) -> None:
    made = rows(["pos", "neg"])
    made[2]["text"] = "good " * 60
    for overflow, count in (("truncate", 24), ("drop", 23)):
        chosen = recipe(tmp_path, train=made, data={
            "train": [{"path": str(tmp_path / "train.jsonl")}], "overflow": overflow, "max_length": 24})  # fmt: skip
        assert prepare.prepare(chosen, console()).splits["train"].num_rows == count
    chosen = recipe(tmp_path, train=made, data={
        "train": [{"path": str(tmp_path / "train.jsonl")}], "overflow": "error", "max_length": 24})  # fmt: skip
    with pytest.raises(DataError, match="more than max_length 24") as caught:
        prepare.prepare(chosen, console())
    assert caught.value.line == 3


class TestAGivenClassifier:
    """Weights that have a head already."""

    @pytest.fixture
    def trained(self, tmp_path: Path) -> Path:
        (tmp_path / "first").mkdir()
        task, _ = ready(recipe(tmp_path / "first"))
        task.export(task.build_model(), tmp_path / "model")
        return tmp_path / "model"

    def chosen(self, place: Path, model: Path, labels: list[Any]) -> Recipe:
        return recipe(place, train=rows(labels), model={"name_or_path": str(model)}, tokenizer={"train": None})

    def test_goes_on_with_labels_that_it_knows(self, trained: Path, tmp_path: Path) -> None:
        task, _ = ready(self.chosen(tmp_path, trained, ["pos", "neg"]))
        assert task.labels.names == ("neg", "neutral", "pos")

    def test_has_other_labels(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"3 labels \(neg, neutral, pos\).*4 \(a, b, c, d\).*give the encoder"):
            ready(self.chosen(tmp_path, trained, ["a", "b", "c", "d"]))
        with pytest.raises(ModelError, match="the data is regression"):
            ready(self.chosen(tmp_path, trained, [0.5, 1.5]))

    def test_is_evaluated_with_its_own_labels(self, trained: Path, tmp_path: Path) -> None:
        chosen = self.chosen(tmp_path, trained, ["neg", "pos"])
        prepared = prepare.prepare(chosen, console())
        task: Any = build_task(chosen, prepared.tokenizer_dir, trained=True)
        task.prepare(prepared.splits["train"], None)
        assert task.labels.names == ("neg", "neutral", "pos")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": {"class_weights": {"posi": 2.0}}}, "task.class_weights.posi: no such label; did you mean pos?"),
        ({"evaluation": {"metrics": ["pearson"]}}, "the problem is single_label, which has no pearson"),
        ({"evaluation": {"fail_if": {"mse": "> 1"}}}, "evaluation.fail_if.mse"),
        ({"data": {"packing": True}}, "stands alone"),
        ({"evaluation": {"baselines": ["lead"]}}, "lead does not apply to sequence_classification; those that do"),
    ],
)
def test_wishes_that_do_not_fit(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    sections = {name: {**section, **({"type": "sequence_classification"} if name == "task" else {})}
                for name, section in sections.items()}  # fmt: skip
    with pytest.raises(LlmkitError) as caught:
        ready(recipe(tmp_path, **sections))
    assert isinstance(caught.value, RecipeError)
    assert message in str(caught.value) or message in f"{caught.value.key}: {caught.value.message}"
