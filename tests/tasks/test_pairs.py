"""Translation and summarisation from recipe to scored predictions, by encoder-decoders and a decoder-only model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from llmkit.recipe.load import load_recipe
from tests.e2e.conftest import Place
from tests.tasks.seq2seq_toy import NETWORKS, jsonl, make_place, numbers, write_jsonl

KINDS = ("t5", "bart", "rnn_seq2seq", "llama")


@pytest.fixture(scope="module", params=KINDS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A trained and evaluated run of each architecture."""
    place = make_place(tmp_path_factory.mktemp(request.param), request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.directory)
        ended = place.run("finetune")
        assert ended.status == 0, ended.err
        sets = {"evaluation.metrics": ["loss", "sacrebleu", "chrf", "ter"], "evaluation.baselines": ["copy"]}
        ended = place.run("evaluate", sets=sets)
        assert ended.status == 0, ended.err
    return place


def sequences(place: Place) -> list[tuple[list[int], list[int]]]:
    """(prompt, target) ids of the test rows as the documentation says they are, by transformers' tokenizer alone."""
    tokenizer = AutoTokenizer.from_pretrained(place.directory / "run/model")
    made = []
    for row in jsonl(place.directory / "test.jsonl"):
        target = row["target"] if isinstance(row["target"], str) else row["target"][0]
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in ("zh: " + row["source"], target)]
        end = tokenizer.eos_token_id
        made.append((ids[0] + [end], ids[1] + [end]))
        if "decoder_start_token_id" in (place.directory / "run/model/generation_config.json").read_text():
            assert tokenizer("zh: " + row["source"]).input_ids == made[-1][0], "the exported tokenizer frames a source"
    return made


def model_of(place: Place):
    directory = place.directory / "run/model"
    kind = json.loads((directory / "config.json").read_text())["model_type"]
    auto = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    return auto.from_pretrained(directory).eval(), kind


@torch.inference_mode()
def test_plain_transformers_says_the_same(done: Place) -> None:
    model, kind = model_of(done)
    tokenizer = AutoTokenizer.from_pretrained(done.directory / "run/model")
    predictions = jsonl(done.directory / "run/evaluation/predictions.jsonl")
    settings = GenerationConfig.from_pretrained(done.directory / "run/model", num_beams=2, max_new_tokens=10)
    total, tokens = 0.0, 0
    for item, (prompt, target) in zip(predictions, sequences(done), strict=True):
        if kind == "llama":
            prompt = [tokenizer.bos_token_id, *prompt]
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()
        else:
            loss = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([target])).loss.item()
        assert item["loss"] == pytest.approx(loss, rel=1e-4)
        assert item["tokens"] == len(target)
        total, tokens = total + loss * len(target), tokens + len(target)
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0]
        text = tokenizer.decode(out[len(prompt) :] if kind == "llama" else out, skip_special_tokens=True)
        assert item["prediction"] == text.strip()
    results = json.loads((done.directory / "run/evaluation/results.json").read_text())
    assert results["metrics"]["loss"]["value"] == pytest.approx(total / tokens, rel=1e-4)


def test_scores_are_sacrebleu_s_over_all_references(done: Place) -> None:
    results = json.loads((done.directory / "run/evaluation/results.json").read_text())
    items = jsonl(done.directory / "run/evaluation/predictions.jsonl")
    assert [len(item["references"]) for item in items] == [2 if i % 3 == 0 else 1 for i in range(15)]
    texts = [item["prediction"] for item in items]
    streams = [[item["references"][0] for item in items], [(item["references"] + [None])[1] for item in items]]
    metrics = results["metrics"]
    assert set(metrics) == {"loss", "sacrebleu", "chrf", "ter"}
    assert metrics["sacrebleu"]["value"] == pytest.approx(BLEU(tokenize="zh").corpus_score(texts, streams).score)
    assert metrics["chrf"]["value"] == pytest.approx(CHRF().corpus_score(texts, streams).score)
    for metric in metrics.values():
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["n"] == 15
    assert set(results["baselines"]["copy"]) == {"sacrebleu", "chrf", "ter"}
    copied = CHRF().corpus_score([row["source"] for row in jsonl(done.directory / "test.jsonl")], streams).score
    assert results["baselines"]["copy"]["chrf"]["value"] == pytest.approx(copied)
    assert any("tok:zh" in note for note in results["provenance"]["conventions"])
    assert {"row", "source", "file", "line", "hash", "loss", "sacrebleu"} <= set(items[0])


def test_it_learns_and_validation_is_scored_too(done: Place) -> None:
    lines = [line for line in jsonl(done.directory / "run/metrics.jsonl") if line["split"] == "validation"]
    assert [line["step"] for line in lines] == [20, 40]
    assert all({"loss", "sacrebleu", "chrf"} <= set(line) and "ter" not in line for line in lines)
    assert lines[-1]["loss"] < 0.7 * jsonl(done.directory / "run/metrics.jsonl")[0]["loss"]


def test_generate_reads_a_source(done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.directory)
    rows = jsonl(Path("test.jsonl"))
    write_jsonl(Path("in.jsonl"), [{"prompt": row["source"], "id": i} for i, row in enumerate(rows)])
    ended = done.run("generate", "recipe.yaml", "--input", "in.jsonl")
    assert ended.status == 0, ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    items = jsonl(Path("run/evaluation/predictions.jsonl"))
    assert [a["text"].strip() for a in answers] == [item["prediction"] for item in items]
    assert all(a["finish_reason"] in ("stop", "length") for a in answers)
    ended = done.run("generate", "recipe.yaml", "--json", "--prompt", rows[0]["source"])
    assert ended.json["completions"][0]["text"] == answers[0]["text"]
    write_jsonl(Path("chat.jsonl"), [{"messages": [{"role": "user", "content": "1"}]}])
    done.run("generate", "recipe.yaml", "--input", "chat.jsonl").told(3, "takes a prompt, not a conversation")


@pytest.mark.parametrize("kind", ["t5", "bart", "rnn_seq2seq"])
def test_the_loss_is_transformers_own(kind: str, tmp_path: Path) -> None:
    """In float64 on one padded batch, and for a batch of one that is not padded."""
    import numpy as np

    from llmkit.data.prepare import prepare
    from llmkit.recipe.resolve import resolve
    from llmkit.tasks import build_task
    from tests.evaluate.tiny_run import console

    place = make_place(tmp_path, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        recipe = resolve(load_recipe(place.directory / "recipe.yaml"))
        prepared = prepare(recipe, console())
    task = build_task(recipe, prepared.tokenizer_dir)
    module = task.build_model().double().eval()
    plan = task.train_plan(prepared.splits["train"], 3)
    samples = plan.samples(0, np.arange(8))
    batch = task.collate(samples, seed=0, step=0)
    assert batch["attention_mask"].sum(1).tolist() == [len(sample.arrays["input_ids"]) for sample in samples]
    own = module(batch)["loss"] / task.counts(batch)["loss"]
    assert own.item() == pytest.approx(module.inner()(**batch).loss.item(), abs=1e-12)
    alone = sum(module(task.collate([sample], seed=0, step=0))["loss"].item() for sample in samples)
    assert module(batch)["loss"].item() == pytest.approx(alone, abs=1e-9)
    assert task.settle(module) == (task, {"packing": False})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return make_place(tmp_path, "t5")


def test_without_generation_only_the_loss(place: Place) -> None:
    sets = {"training.max_steps": 2, "evaluation": {"predict_with_generate": False}}
    assert place.run("finetune", sets=sets).status == 0
    ended = place.run("evaluate", "recipe.yaml", "--json", sets=sets)
    assert set(ended.json["metrics"]) == {"loss"}
    bad = {"evaluation": {"predict_with_generate": False, "metrics": ["chrf"]}}
    place.run("evaluate", sets=bad).told(2, "chrf needs predict_with_generate")


def test_summaries_in_two_languages(place: Place) -> None:
    english = [
        {"article": f"Number {i} is here.\nIt stays. Nobody minds.", "highlights": f"number {i}"} for i in range(40)
    ]
    chinese = [{"article": f"第{i}号来了。它留下。没人介意。", "highlights": f"{i}号"} for i in range(40)]
    write_jsonl(Path("train.jsonl"), english[:30] + chinese[:30])
    write_jsonl(Path("en.jsonl"), english[30:])
    write_jsonl(Path("zh.jsonl"), chinese[30:])
    sets = {
        "task": {"type": "summarization"},
        "training.max_steps": 3,
        "data.test": [{"path": "en.jsonl", "id": "en"}, {"path": "zh.jsonl", "id": "zh"}],
        "data.validation": [],
        "evaluation": {"baselines": ["lead", "copy"]},
    }
    ended = place.run("finetune", sets=sets)
    assert ended.status == 0, ended.err
    ended = place.run("evaluate", "recipe.yaml", "--json", sets=sets)
    assert set(ended.json["metrics"]) == {"loss", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert ended.json["baselines"]["lead"]["rouge1"]["value"] > ended.json["baselines"]["copy"]["rouge1"]["value"]
    assert set(ended.json["sources"]) == {"en", "zh"}
    assert ended.json["sources"]["zh"]["metrics"]["rouge1"]["n"] == 10


def test_bad_pairings(place: Place, tmp_path: Path) -> None:
    from tests.tasks.seq2seq_toy import make_place as another

    bert = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sets = {"model.config": {"model_type": "bert", **bert}}
    told = place.run("finetune", sets=sets).told(4, "bert is an encoder", "an encoder-decoder (t5, bart")
    assert "a decoder-only model (gpt2" in told
    place.run("finetune", sets={"data.packing": True}).told(2, "data.packing")
    write_jsonl(Path("train.jsonl"), [{"text": "a", "label": "b"}])
    place.run("finetune").told(3, "no column for source + target")
    write_jsonl(Path("train.jsonl"), [*numbers(20, 1), {"source": "1", "target": []}, {"source": "2", "target": 3}])
    place.run("preprocess", sets={"data.max_bad_fraction": 1.0})
    rejected = "".join(path.read_text() for path in Path("run/prepared").rglob("rejected.jsonl"))
    assert "target is empty" in rejected and "target is not text" in rejected
    (tmp_path / "other").mkdir()
    instructed = another(tmp_path / "other", "t5", task={"type": "causal_lm"})
    instructed.run("pretrain", str(tmp_path / "other" / "recipe.yaml"), sets={
        "evaluation.predict_with_generate": True}).told(2, "predict_with_generate")  # fmt: skip


def test_a_classifier_does_not_write(place: Place) -> None:
    sets = {"task": {"type": "sequence_classification"}, "generation": {}}
    ended = place.run("generate", "recipe.yaml", "--prompt", "x", sets=sets)
    assert ended.status in (2, 4)
    assert "sequence_classification" in ended.err


def test_networks_are_small() -> None:
    assert set(NETWORKS) == set(KINDS)
