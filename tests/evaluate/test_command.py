"""`llmkit evaluate` on a run in miniature: figures, files, gates, and what a user can do wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.errors import CheckpointError, ConditionFailed, DataError, ModelError, RecipeError
from llmkit.evaluate.command import evaluate
from llmkit.evaluate.compare import compare
from tests.evaluate.tiny_run import TinyRun, console, make_run, said, text_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("lm"), "causal_lm")


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("chat"), "instruction")


def plain_loss(run: TinyRun, name: str) -> tuple[float, int]:
    """(sum of nats, tokens) of a file of texts, by transformers alone, a document at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.model), AutoTokenizer.from_pretrained(run.model)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    total, count = 0.0, 0
    for line in (run.directory / name).read_text(encoding="utf-8").splitlines():
        ids = [
            start,
            *tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        for place in range(0, len(ids) - 1, 48):
            window = torch.tensor([ids[place : place + 49]])
            with torch.inference_mode():
                logits = model(window[:, :-1]).logits[0].double()
            total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
            count += window.shape[1] - 1
    return total, count


def test_figures_equal_transformers_a_document_at_a_time(run: TinyRun) -> None:
    out = console()
    document = evaluate(run.recipe(), run.options("evaluate"), out)
    (en, en_tokens), (zh, zh_tokens) = plain_loss(run, "en.jsonl"), plain_loss(run, "zh.jsonl")
    loss = (en + zh) / (en_tokens + zh_tokens)
    assert document["metrics"]["loss"]["value"] == pytest.approx(loss, rel=1e-5)
    assert document["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    size = sum(
        len(json.loads(line)["text"].encode())
        for name in ("en.jsonl", "zh.jsonl")
        for line in (run.directory / name).read_text(encoding="utf-8").splitlines()
    )
    assert document["metrics"]["bits_per_byte"]["value"] == pytest.approx((en + zh) / math.log(2) / size, rel=1e-5)
    assert document["sources"]["en"]["metrics"]["loss"]["value"] == pytest.approx(en / en_tokens, rel=1e-5)
    assert document["sources"]["zh"]["rows"] == 12
    for metric in document["metrics"].values():
        assert metric["low"] < metric["value"] < metric["high"]
        assert metric["n"] == 22
    assert document["baselines"]["unigram"]["perplexity"]["value"] > 1
    stdout, _ = said(out)
    assert "95% interval" in stdout
    assert "window:" in stdout
    assert "unigram model: perplexity" in stdout


def test_files(run: TinyRun) -> None:
    evaluate(run.recipe(), run.options("evaluate"), console(as_json=True))
    directory = run.directory / "run" / "evaluation"
    written = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert set(written["metrics"]) == {"loss", "perplexity", "bits_per_byte"}
    assert set(written["metrics"]["loss"]) == {"value", "low", "high", "n"}
    provenance = written["provenance"]
    assert len(provenance["model_sha256"]) == len(provenance["tokenizer_sha256"]) == 64
    assert provenance["attn_implementation"] == "sdpa"
    assert provenance["split"] == "test"
    items = [json.loads(line) for line in (directory / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(items) == 22
    assert items[0]["file"].endswith("en.jsonl")
    assert items[0]["line"] == 1
    assert sum(item["bytes"] for item in items[:10]) == sum(
        len(row["text"].encode()) for row in text_rows(10, 2, chinese=False)
    )
    total = sum(item["loss"] * item["tokens"] for item in items) / sum(item["tokens"] for item in items)
    assert total == pytest.approx(written["metrics"]["loss"]["value"], rel=1e-9)
    assert (run.directory / "run" / "report.html").is_file()


def test_json_prints_nothing_itself(run: TinyRun) -> None:
    out = console(as_json=True)
    evaluate(run.recipe(), run.options("evaluate", json=True), out)
    assert said(out)[0] == ""


def test_batch_size_and_subset(run: TinyRun) -> None:
    whole = evaluate(run.recipe(), run.options("evaluate"), console())
    small = evaluate(run.recipe("evaluation.per_device_eval_batch_size=1"), run.options("evaluate"), console())
    assert small["metrics"]["loss"]["value"] == pytest.approx(whole["metrics"]["loss"]["value"], rel=1e-6)
    part = evaluate(run.recipe("evaluation.max_samples=9"), run.options("evaluate"), console())
    assert part["metrics"]["loss"]["n"] == 9
    path = run.directory / "run" / "evaluation" / "predictions.jsonl"
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({item["row"] for item in items}) == 9
    assert {item["source"] for item in items} == {0, 1}


def test_conditions_fail_after_the_results_are_written(run: TinyRun) -> None:
    path = run.directory / "run" / "evaluation" / "results.json"
    path.unlink(missing_ok=True)
    recipe = run.recipe('evaluation.fail_if={perplexity: "> 2", loss: "< 0", bits_per_byte: ">= 0.01"}')
    with pytest.raises(ConditionFailed) as caught:
        evaluate(recipe, run.options("evaluate"), console())
    assert caught.value.status == 5
    assert "fails perplexity > 2" in str(caught.value)
    assert "fails bits_per_byte >= 0.01" in str(caught.value)
    assert "loss <" not in str(caught.value)
    assert path.is_file()


def test_unknown_metric_is_refused_before_anything_runs(run: TinyRun) -> None:
    recipe = run.recipe()
    section = recipe.evaluation.model_copy(update={"fail_if": {"perplexty": "> 2"}})
    with pytest.raises(RecipeError, match="did you mean perplexity"):
        evaluate(recipe.model_copy(update={"evaluation": section}), run.options("evaluate"), console())


def test_chosen_metrics_only(run: TinyRun) -> None:
    document = evaluate(run.recipe("evaluation.metrics=[perplexity]"), run.options("evaluate"), console())
    assert list(document["metrics"]) == ["perplexity"]
    assert list(document["sources"]["en"]["metrics"]) == ["perplexity"]


def test_instruction_run_has_token_accuracy(chat_run: TinyRun) -> None:
    document = evaluate(chat_run.recipe(), chat_run.options("evaluate"), console())
    assert set(document["metrics"]) == {"loss", "perplexity", "token_accuracy"}
    assert 0 <= document["metrics"]["token_accuracy"]["value"] <= 1


def test_held_out_rows_are_scored_where_there_is_no_test(tmp_path: Path) -> None:
    run = make_run(tmp_path, "causal_lm")
    held_out = ("data.test=[]", "data.validation_fraction=0.2")
    document = evaluate(run.recipe(*held_out), run.options("evaluate", model=str(run.model)), console())
    assert document["provenance"]["split"] == "validation"
    assert 0 < document["provenance"]["rows"] < 40
    with pytest.raises(DataError, match=r"data\.test, data\.validation or data\.validation_fraction"):
        evaluate(run.recipe("data.test=[]"), run.options("evaluate"), console())


def test_missing_model_says_what_to_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "causal_lm", with_model=False)
    with pytest.raises(ModelError, match=r"run `llmkit pretrain .*recipe\.yaml` first"):
        evaluate(run.recipe(), run.options("evaluate"), console())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"status": "stopped"}', encoding="utf-8")
    with pytest.raises(ModelError, match="is stopped, without a final model"):
        evaluate(run.recipe(), run.options("evaluate"), console())
    with pytest.raises(ModelError, match="no model directory"):
        evaluate(run.recipe(), run.options("evaluate", model=str(tmp_path / "nowhere")), console())


def test_another_model_with_another_tokenizer(run: TinyRun, tmp_path: Path) -> None:
    """--model takes a run directory too; its tokenizer encodes the data anew, and bits a byte can be compared."""
    other = make_run(tmp_path, "causal_lm")
    mine = evaluate(run.recipe(), run.options("evaluate"), console())
    options = run.options("evaluate", model=str(tmp_path / "run"))
    output = f"output_dir={tmp_path / 'other'}"
    theirs = evaluate(run.recipe(output), options, console())
    assert theirs["provenance"]["model"] == str(other.model)
    assert theirs["metrics"]["loss"]["n"] == mine["metrics"]["loss"]["n"]
    outcome = compare(run.directory / "run", tmp_path / "other", console())
    assert outcome["items"] == 22
    assert outcome["metrics"]["bits_per_byte"]["low"] is not None
    assert np.isfinite(outcome["metrics"]["loss"]["difference"])


def test_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, "causal_lm")
    weights = run.model / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        evaluate(run.recipe(), run.options("evaluate"), console())


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, "causal_lm")
    plan = evaluate(run.recipe(), run.options("evaluate", dry_run=True), console())
    assert plan["rows"] == 22
    assert not (tmp_path / "run" / "evaluation").exists()
