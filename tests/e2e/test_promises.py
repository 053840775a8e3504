"""What the commands promise about running again, about changed recipes and data, and about the files they leave."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from llmkit.train import precision
from tests.e2e.conftest import CHARACTERS, WORDS, Place, rows

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
OPT = {
    "model_type": "opt",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 32,
}
WIDE = {"model_type": "gpt2", "n_layer": 1, "n_embd": 128, "n_head": 2}
FINETUNE = """\
output_dir: chat
task: {type: instruction}
model: {name_or_path: run/model}
tokenizer: {chat_template: plain}
data:
  train:
    - path: alpaca.jsonl
    - path: shared.jsonl
  validation_fraction: 0.2
  num_workers: 1
training: {max_steps: 2, global_batch_size: 8, torch_compile: false}
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestTheSameRun:
    @pytest.mark.parametrize(
        ("recipe", "sets"),
        [
            ("recipe.yaml", {}),
            ("recipe.yaml", {"logging.logging_steps": 3, "checkpoint.save_steps": 2, "data.num_workers": 2}),
            ("recipe.yaml", {"evaluation.fail_if": {"loss": "> 0"}, "evaluation.eval_steps": 1}),
            ("recipe.yaml", {"generation.max_new_tokens": None, "peft": None, "task.fim_rate": None}),
            ("extending.yaml", {}),
        ],
    )
    def test_is_finished(self, trained: Place, recipe: str, sets: dict[str, Any]) -> None:
        trained.write("extending.yaml", "extends: recipe.yaml\ntraining: {max_steps: 4}\n")
        ended = trained.run("pretrain", recipe, sets=sets)
        assert (ended.status, ended.out) == (0, "")
        assert "finished" in ended.err

    def test_the_stored_recipe_is_the_same_run(self, trained_directory: Path, trained: Place) -> None:
        stored = yaml.safe_load((trained_directory / "run" / "recipe.yaml").read_text())
        assert stored["data"]["train"][0]["path"] == str(trained_directory / "train.jsonl")
        ended = trained.run("pretrain", str(trained_directory / "run" / "recipe.yaml"))
        assert ended.status == 0
        assert "finished" in ended.err

    def test_data_counts_by_content(self, trained: Place) -> None:
        shutil.copy("train.jsonl", "renamed.jsonl")
        renamed = trained.run("pretrain", sets={"data.train.0.path": "renamed.jsonl"})
        assert renamed.status == 0, renamed.err
        told = trained.run("pretrain", sets={"data.train.0.path": "test.jsonl"}).told(3, "test.jsonl")
        assert told.startswith("recipe.yaml:10: data.train.0: ")
        with Path("train.jsonl").open("a") as file:
            file.write('{"text": "one more"}\n')
        trained.run("pretrain").told(3, "recipe.yaml:10: data.train.0: ", "train.jsonl is not what the run in")

    def test_another_recipe_is_refused_with_both_values(self, trained: Place) -> None:
        ended = trained.run("pretrain", sets={"seed": 7, "training.learning_rate": 1e-4})
        assert ended.status == 2
        assert "seed: the run has 42, the recipe 7" in ended.err
        assert "training.learning_rate: the run has 0.005, the recipe 0.0001" in ended.err

    def test_a_longer_run_goes_on_or_is_refused(self, trained: Place) -> None:
        before = lines(Path("run/metrics.jsonl"))
        ended = trained.run("pretrain", sets={"training.max_steps": 5})
        assert ended.status == 0, ended.err
        assert "going on from step-00000004" in ended.err
        assert lines(Path("run/metrics.jsonl"))[: len(before)] == before
        sets = {"output_dir": "other", "training.lr_scheduler_type": "cosine", "training.max_steps": 2}
        assert trained.run("pretrain", sets=sets).status == 0
        refused = trained.run("pretrain", sets={**sets, "training.max_steps": 3})
        assert refused.status == 2
        assert "name_or_path: " in refused.err

    def test_overwrite_begins_again_and_spares_shared_data(self, trained: Place) -> None:
        sets = {"data.prepared_dir": "shared", "training.max_steps": 2}
        assert trained.run("pretrain", "recipe.yaml", "--overwrite", sets=sets).status == 0
        assert json.loads(Path("run/run.json").read_text())["steps"] == 2
        (dataset,) = Path("shared").glob("*/manifest.json")
        inode = dataset.stat().st_ino
        assert trained.run("pretrain", "recipe.yaml", "--overwrite", sets=sets).status == 0
        assert dataset.stat().st_ino == inode


def test_the_files_of_a_run(trained: Place) -> None:
    run = trained.directory / "run"
    record = json.loads((run / "run.json").read_text())
    assert {"command", "status", "exit_code", "exit_reason", "started_at", "finished_at", "recipe_sha256"} <= set(
        record
    )
    assert {"data_fingerprint", "seed", "steps", "tokens", "resolved", "segments", "versions", "hardware"} <= set(
        record
    )
    assert (record["status"], record["exit_code"], record["steps"]) == ("completed", 0, 4)
    events = lines(run / "metrics.jsonl")
    train = [event for event in events if event["split"] == "train"]
    assert [event["step"] for event in train] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"} <= set(train[0])
    validation = [event for event in events if event["split"] == "validation"]
    assert [event["step"] for event in validation] == [2, 4]
    results = json.loads((run / "results.json").read_text())
    assert results["loss"] == validation[-1]["loss"]
    assert {"perplexity", "bits_per_byte"} <= set(results)
    assert [step.name for step in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000003", "step-00000004"]
    assert "<script src" not in (run / "report.html").read_text()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    ids = tokenizer("the quick 今天", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "the quick 今天"
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert trained.run("verify", "run").status == 0


def test_identical_documents_stay_on_one_side(place: Place) -> None:
    repeated = rows(40, 8) * 5
    place.write("train.jsonl", repeated)
    sets = {"data.validation": [], "data.test": [], "data.validation_fraction": 0.3, "training.max_steps": 1}
    sets["evaluation.eval_steps"] = None
    assert place.run("pretrain", sets=sets).status == 0
    assert place.run("evaluate", sets=sets).status == 0
    scored = {item["line"] % 40 for item in lines(place.directory / "run/evaluation/predictions.jsonl")}
    count = len(lines(place.directory / "run/evaluation/predictions.jsonl"))
    assert 0 < len(scored) < 40
    assert count == 5 * len(scored)  # every copy of a held-out document is held out


class TestEvaluate:
    def test_files_and_conditions(self, trained: Place) -> None:
        ended = trained.run("evaluate", "recipe.yaml", "--json")
        assert ended.status == 0, ended.err
        stored = json.loads(Path("run/evaluation/results.json").read_text())
        assert {"metrics", "suites", "baselines"} <= set(stored)
        for name in ("loss", "perplexity", "bits_per_byte"):
            value = ended.json["metrics"][name]
            assert value["low"] <= value["value"] <= value["high"]
            assert value["n"] == 12
        assert len(lines(Path("run/evaluation/predictions.jsonl"))) == 12
        failed = trained.run("evaluate", sets={"evaluation.fail_if": {"perplexity": "> 1"}})
        assert failed.status == 5
        assert "perplexity is" in failed.err

    def test_changed_data_is_scored_with_the_tokenizer_of_the_model(self, trained: Place) -> None:
        """A tokenizer trained anew on the changed data would make the model's figures meaningless."""
        before = trained.run("evaluate", "recipe.yaml", "--json").json
        trained.write("train.jsonl", rows(150, 77))
        after = trained.run("evaluate", "recipe.yaml", "--json").json
        assert after["metrics"] == before["metrics"]
        assert after["provenance"]["tokenizer_sha256"] == before["provenance"]["tokenizer_sha256"]

    def test_another_model_and_none(self, trained: Place) -> None:
        assert trained.run("evaluate", "recipe.yaml", "--model", "run/model").status == 0
        told = trained.run("evaluate", "recipe.yaml", "--model", "rum").told(4, "did you mean run?")
        assert told.startswith("--model: ")
        trained.run("evaluate", sets={"output_dir": "none"}).told(4, "llmkit pretrain recipe.yaml")


class TestGenerate:
    SETS: ClassVar[dict[str, Any]] = {"generation.max_new_tokens": 4}

    def test_prompts(self, trained: Place) -> None:
        ended = trained.run("generate", "recipe.yaml", "--prompt", "the", "--prompt", "今天", "--json", sets=self.SETS)
        made = ended.json["completions"]
        assert [one["prompt"] for one in made] == ["the", "今天"]
        assert all({"text", "finish_reason", "prompt_tokens", "completion_tokens"} <= set(one) for one in made)

    def test_a_file_goes_on_where_it_was_cut(self, trained: Place) -> None:
        prompts = [{"id": i, "prompt": [WORDS[i], CHARACTERS[i] * 3][i % 2]} for i in range(5)]
        trained.write("in.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in prompts))
        command = ("generate", "recipe.yaml", "--input", "in.jsonl")
        assert trained.run(*command, "--output", "out.jsonl", sets=self.SETS).status == 0
        whole = Path("out.jsonl").read_bytes()
        assert [one["id"] for one in lines(Path("out.jsonl"))] == [0, 1, 2, 3, 4]
        Path("out.jsonl").write_bytes(whole[: len(whole) // 2])
        assert trained.run(*command, "--output", "out.jsonl", sets=self.SETS).status == 0
        assert Path("out.jsonl").read_bytes() == whole
        assert trained.run(*command, sets=self.SETS).out.encode() == whole

    def test_a_bad_line_is_named(self, trained: Place) -> None:
        trained.write("in.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n')
        trained.run("generate", "recipe.yaml", "--input", "in.jsonl", sets=self.SETS).told(3, "in.jsonl:2", "prompt")


@pytest.mark.parametrize(
    "sets",
    [
        *({"training.optim": name} for name in ("adamw_torch_fused", "adafactor", "lion", "muon", "sgd")),
        *({"training.lr_scheduler_type": name} for name in ("inverse_sqrt", "polynomial", "cosine_with_min_lr")),
        {"training.lr_scheduler_type": "warmup_stable_decay", "training.warmup_ratio": 0.5},
        {"training.gradient_checkpointing": True, "model.config": LLAMA, "data.packing": True},
        {"task.fim_rate": 0.5, "data.train.0.weight": 0.5},
        {"data.packing": False, "distributed.mixed_precision": "bf16", "training.per_device_train_batch_size": 2},
        {"checkpoint.save_best": True, "training.early_stopping_patience": 1, "evaluation.eval_steps": 1},
        {"tokenizer.train.algorithm": "unigram"},
        {"tokenizer.train.algorithm": "wordpiece"},
    ],
    ids=str,
)
def test_what_the_recipe_offers_runs(trained: Place, sets: dict[str, Any]) -> None:
    ended = trained.run("pretrain", sets={"output_dir": "x", "data.prepared_dir": "p", "training.max_steps": 3, **sets})
    assert ended.status == 0, ended.err


def test_fp8_trains_what_any_machine_reads(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies fp8 on a CPU as well, if slowly; without that the recipe is refused, and tried at last."""
    sets = {"output_dir": "x", "data.prepared_dir": "p", "model.config": WIDE, "distributed.mixed_precision": "fp8"}
    trained.run("pretrain", sets=sets).told(6, "distributed.mixed_precision", "fp8 needs a GPU")
    with monkeypatch.context() as patch:
        patch.setattr(precision, "multiplies_fp8", lambda device_type: True)
        ended = trained.run("pretrain", sets=sets)
    assert ended.status == 0, ended.err
    assert "fp8, not compiled: slower than bf16" in ended.err
    assert json.loads(Path("x/run.json").read_text())["resolved"]["mixed_precision"] == "fp8"
    losses = [step["loss"] for step in lines(Path("x/metrics.jsonl")) if "loss" in step]
    assert losses[-1] < losses[0] - 0.1
    model = AutoModelForCausalLM.from_pretrained("x/model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert trained.run("evaluate", sets=sets).status == 0


def test_an_architecture_that_leaks_is_padded_or_refused(trained: Place) -> None:
    sets = {"output_dir": "x", "model.config": OPT, "training.max_steps": 1, "data.prepared_dir": "run/prepared"}
    padded = trained.run("pretrain", sets=sets)
    assert padded.status == 0, padded.err
    assert json.loads(Path("x/run.json").read_text())["resolved"]["packing"] is False
    trained.run("pretrain", "recipe.yaml", "--overwrite", sets={**sets, "data.packing": True}).told(4, "data.packing")


@pytest.mark.parametrize(
    ("sets", "status", "expected"),
    [
        ({"training.optim": "adamw_8bit"}, 6, "bitsandbytes"),
        ({"model.attn_implementation": "flex_attention"}, 2, "model.attn_implementation: gpt2"),
        ({"model.config.model_type": "gtp2"}, 2, "did you mean gpt2?"),
        ({"model.config.n_layers": 2}, 2, "did you mean n_layer?"),
        ({"training.adam_beta1": 0.8, "training.optim": "sgd"}, 2, "would ignore it"),
        ({"training.num_train_epochs": 1}, 2, "training.num_train_epochs"),
        ({"training.per_device_train_batch_size": 3}, 2, "training.global_batch_size"),
        ({"data.train.3.path": "x"}, 2, "items are counted from 0 to 0"),
    ],
    ids=str,
)
def test_what_cannot_run_says_why(trained: Place, sets: dict[str, Any], status: int, expected: str) -> None:
    sets = {"output_dir": "x", "data.prepared_dir": "run/prepared", **sets}
    trained.run("pretrain", sets=sets).told(status, expected)


class TestInstruction:
    @pytest.fixture
    def chat(self, trained: Place) -> Place:
        texts = [json.loads(row)["text"] for row in rows(60, 12).splitlines()]
        alpaca = [{"instruction": a, "input": "", "output": b[:20]} for a, b in pairwise(texts)]
        turns = [{"from": ("human", "gpt")[i % 2], "value": texts[i][:9]} for i in range(4)]
        trained.write("alpaca.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in alpaca))
        trained.write("shared.jsonl", json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")
        trained.write("finetune.yaml", FINETUNE)
        sets = {"data.max_length": 256, "training.max_steps": 1}
        assert trained.run("pretrain", "recipe.yaml", "--overwrite", sets=sets).status == 0
        return trained

    def test_full_adapters_and_templates(self, chat: Place) -> None:
        kinds: list[dict[str, Any]] = [
            {"task.train_on": "all", "data.overflow": "drop", "tokenizer.chat_template": "chatml"},
            {"peft": {"type": "lora", "r": 2, "merge": True}},
            {"peft": {"type": "rslora", "r": 2}},
            {"peft": {"type": "dora", "r": 2}},
            {"peft": {"type": "ia3", "merge": True}},
            {"peft": {"type": "prompt_tuning", "num_virtual_tokens": 4}, "data.max_length": 250},
        ]
        for number, kind in enumerate(kinds):
            sets = {"output_dir": f"chat{number}", "data.prepared_dir": f"p{min(number, 1)}", **kind}
            ended = chat.run("finetune", "finetune.yaml", sets=sets)
            assert ended.status == 0, ended.err
            trained_loss = json.loads(Path(f"chat{number}/results.json").read_text())["loss"]
            scored = chat.run("evaluate", "finetune.yaml", "--json", sets=sets)
            assert scored.status == 0, scored.err
            assert scored.json["metrics"]["loss"]["value"] == pytest.approx(trained_loss, rel=1e-5)
        chat.write("in.jsonl", '{"messages": [{"role": "user", "content": "你好"}]}\n')
        sets |= {"generation.max_new_tokens": 3}
        answered = chat.run("generate", "finetune.yaml", "--input", "in.jsonl", sets=sets)
        assert json.loads(answered.out)["completion_tokens"] <= 3

    def test_over_long_rows(self, chat: Place) -> None:
        sets = {"data.max_length": 40, "data.overflow": "error"}
        chat.run("finetune", "finetune.yaml", sets=sets).told(3, "alpaca.jsonl:", "more than max_length 40")
        sets["data.overflow"] = "split"
        chat.run("finetune", "finetune.yaml", sets=sets).told(2, "data.overflow: a row of instruction cannot be split")

    def test_dry_run_shows_what_is_supervised_and_writes_nothing(self, chat: Place) -> None:
        ended = chat.run("finetune", "finetune.yaml", "--dry-run")
        assert ended.status == 0, ended.err
        assert not Path("chat").exists()
        for part in ("supervised", "parameters", "checkpoint", "example 3", "isolated"):
            assert part in ended.out
