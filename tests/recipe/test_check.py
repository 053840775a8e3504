"""Rules across sections: each is broken once by a recipe that is right in everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import RecipeError
from llmkit.recipe.check_evaluation import TRACKERS
from llmkit.recipe.load import load_recipe
from llmkit.secrets import secret_kind

PRETRAIN = """\
output_dir: runs/x
task: {type: causal_lm}
model: {config: {model_type: gpt2}}
tokenizer: {train: {vocab_size: 300}}
data: {train: [{path: a.txt}], validation_fraction: 0.1}
"""
FINETUNE = """\
output_dir: runs/y
task: {type: instruction}
model: {name_or_path: runs/x/model}
data: {train: [{path: a.jsonl}], validation_fraction: 0.1}
"""


def problems(directory: Path, text: str, *overrides: str, **options: object) -> str:
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_recipe(path, overrides, **options)  # type: ignore[arg-type]
    except RecipeError as error:
        return str(error)
    return ""


def test_the_bases_are_right(tmp_path: Path) -> None:
    assert problems(tmp_path, PRETRAIN, command="pretrain") == ""
    assert problems(tmp_path, FINETUNE, command="finetune") == ""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["training={max_steps: 5, num_train_epochs: 1}"],
            "training.max_steps: training.num_train_epochs is given too",
        ),
        (
            ["training={warmup_steps: 5, warmup_ratio: 0.1}"],
            "training.warmup_ratio: training.warmup_steps is given too",
        ),
        (["training.warmup_steps=2.5"], "training.warmup_steps: expected a whole number, or a fraction"),
        (["training={max_steps: 5, warmup_steps: 6}"], "training.warmup_steps: more than training.max_steps (5)"),
        (["training={lr_scheduler_type: constant, min_lr_ratio: 0.1}"], "the schedule constant would ignore it"),
        (["training={optim: sgd, adam_beta1: 0.9}"], "training.adam_beta1: the optimiser sgd would ignore it"),
        (["training={global_batch_size: 12, per_device_train_batch_size: 8}"], "12 is no multiple of"),
        (["training.max_memory=20 gigabytes"], 'training.max_memory: expected an amount of memory, e.g. "20GB"'),
        (["training.loss_spike_action=rollback"], "goes back to the last multiple of checkpoint.save_steps"),
        (["model.name_or_path=runs/a/b"], "model.config: model.name_or_path is given too"),
        (["model.config={n_layer: 2}"], "required key model_type is missing"),
        (["model.revision=main"], "model.revision: only a model of the Hub has revisions"),
        (["model.trust_remote_code=true"], "needs the option --trust-remote-code too"),
        (["peft={type: lora}"], "peft: an adapter needs pretrained weights"),
        (
            ["model={config: null, name_or_path: a/b/c}", "tokenizer=null", "peft={type: ia3, r: 4, lora_alpha: 8}"],
            "peft.r: ia3 would ignore it; it belongs to lora, dora, rslora",
        ),
        (["peft={type: prompt_tuning, target_modules: [q]}"], "peft.target_modules: prompt_tuning would ignore it"),
        (["peft={type: lora, num_virtual_tokens: 4}"], "peft.num_virtual_tokens: lora would ignore it"),
        (["peft={type: prompt_tuning, merge: true}"], "peft.merge: a tuned prompt is an input"),
        (
            ["peft={type: prompt_tuning}", "training.layerwise_lr_decay=0.9"],
            "training.layerwise_lr_decay: prompt_tuning trains no layer",
        ),
        (
            ["peft={type: prompt_tuning}", "task.type=masked_lm"],
            "peft.type: prompt_tuning shifts positions, and masked",
        ),
        (["peft={type: lora}", "model.freeze=['*']"], "model.freeze: peft trains nothing but its adapter"),
        (
            ["training.label_smoothing_factor=0.1", "task.type=preference"],
            "training.label_smoothing_factor: the task preference cannot use it; causal_lm,",
        ),
        (
            ["training.neftune_noise_alpha=5", "task.type=replaced_token_detection"],
            "training.neftune_noise_alpha: the task replaced_token_detection cannot use it",
        ),
        (["data.augment=[{step: swap}]"], "data.augment: the task causal_lm cannot use it; sequence_classification,"),
        (
            ["task={type: sequence_classification, problem_type: regression}", "training.label_smoothing_factor=0.1"],
            "training.label_smoothing_factor: regression has no single label to smooth",
        ),
        (["tokenizer.name_or_path=gpt2/x"], "tokenizer.train: tokenizer.name_or_path is given too"),
        (["tokenizer.train=null"], "a model from scratch needs tokenizer.train, or tokenizer.name_or_path"),
        (["tokenizer.tokenizer_class=BertTokenizer"], "goes with tokenizer.name_or_path"),
        (["tokenizer.chat_template=chatml"], "tokenizer.chat_template: the task causal_lm has no chats"),
        (["data.validation=[{path: b.txt}]"], "data.validation_fraction: data.validation is given too"),
        (["data.overflow=truncate"], "data.overflow: texts are cut into windows"),
        (["task.type=instruction", "data.overflow=split"], "data.overflow: a row of instruction cannot be split"),
        (["data.train.0.label_names=[a]"], "data.train.0.label_names: the task causal_lm has no labels"),
        (["data.test=[{path: b.txt, weight: 2}]"], "data.test.0.weight: only data.train is drawn by weight"),
        (["data.train.0.path=[]"], "data.train.0.path: expected a path"),
        (["data.clean=[{step: length}]"], "data.clean.0: expected at least one of min_characters"),
        (
            ["data.clean=[{step: length, min_words: 9, max_words: 2}]"],
            "data.clean.0.min_words: more than max_words (2)",
        ),
        (["data.validation_fraction=null", "checkpoint.save_best=true"], "checkpoint.save_best: data.validation or"),
        (["data.validation_fraction=null", "evaluation.eval_steps=5"], "evaluation.eval_steps: data.validation or"),
        (["data.validation_fraction=null", "training.early_stopping_patience=2"], "training.early_stopping_patience:"),
        (["evaluation.metric_for_best_model=perplexity"], "only checkpoint.save_best and"),
        (["evaluation.metric_for_best_model=perplexty"], "did you mean perplexity?"),
        (["evaluation.metrics=[los]"], "evaluation.metrics.0: unknown metric los; did you mean loss?"),
        (["evaluation.fail_if={accuracy: '< 0.8'}"], "evaluation.fail_if.accuracy: unknown metric of causal_lm"),
        (["evaluation.fail_if={loss: 'above 3'}"], "evaluation.fail_if.loss: 'above 3' is not a condition"),
        (["logging.report_to=[wandbb]"], "logging.report_to.0: unknown tracker wandbb; did you mean wandb?"),
        (["generation.temperature=0.5"], "without generation.do_sample: true it would be ignored"),
        (["generation.length_penalty=0.5"], "without generation.num_beams above 1 it would be ignored"),
        (["generation.num_return_sequences=3"], "several texts a prompt need do_sample: true"),
        (["generation={min_new_tokens: 9, max_new_tokens: 3}"], "more than generation.max_new_tokens (3)"),
        (["seed=9223372036854775808"], "seed: expected a whole number below 2^63"),
        (["output_dir=''"], "output_dir: expected a directory, got an empty text"),
    ],
)
def test_rules(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert expected in problems(tmp_path, PRETRAIN, *overrides)


def test_a_conversation_cannot_be_split(tmp_path: Path) -> None:
    assert "expected one of truncate, drop, error" in problems(tmp_path, FINETUNE, "data.overflow=split")


def test_the_other_command_is_named_with_the_line(tmp_path: Path) -> None:
    told = problems(tmp_path, FINETUNE, command="pretrain")
    assert told == (
        f"{tmp_path}/recipe.yaml:2: task.type: instruction is a task of llmkit finetune, not of llmkit pretrain"
    )
    assert "causal_lm is a task of llmkit pretrain" in problems(tmp_path, PRETRAIN, command="finetune")


def test_what_a_command_needs(tmp_path: Path) -> None:
    text = "output_dir: x\ntask: {type: causal_lm}\n"
    told = problems(tmp_path, text, command="pretrain")
    assert "data.train: required key is missing" in told
    assert "model: one of model.name_or_path (weights) and model.config (from scratch) is required" in told
    assert problems(tmp_path, text, command="generate") == ""


def test_batches_and_processes(tmp_path: Path) -> None:
    told = problems(tmp_path, PRETRAIN, "training.global_batch_size=8", num_processes=3)
    assert "8 is no multiple of the number of processes (3)" in told
    each = "training={global_batch_size: 8, per_device_train_batch_size: 4}"
    assert problems(tmp_path, PRETRAIN, each, num_processes=2) == ""
    assert "8 is no multiple of per_device_train_batch_size (4) x processes (4) = 16" in problems(
        tmp_path, PRETRAIN, each, num_processes=4
    )


def test_remote_code_needs_flag_and_commit(tmp_path: Path) -> None:
    code = ["model={name_or_path: hf://org/name, trust_remote_code: true, revision: main}", "tokenizer=null"]
    assert "40 hexadecimal digits" in problems(tmp_path, PRETRAIN, *code, trust_remote_code=True)
    pinned = [code[0].replace("main", "'" + "0123456789" * 4 + "'"), code[1]]
    assert problems(tmp_path, PRETRAIN, *pinned, trust_remote_code=True) == ""
    assert "--trust-remote-code" in problems(tmp_path, PRETRAIN, *pinned)


def test_trackers_are_those_of_accelerate() -> None:
    from accelerate.utils import LoggerType

    assert set(TRACKERS) == {str(kind.value) for kind in LoggerType} - {"all"}


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "x1" * 15,
        "a sk-" + "Ab1-" * 8,
        "ghp_" + "a1" * 18,
        "AKIA" + "A1B2" * 4,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_secrets(text: str) -> None:
    assert secret_kind(text) is not None


@pytest.mark.parametrize("text", ["hf_models/x", "task-force-" + "a" * 30, "disk-" + "a" * 30, "红楼梦"])
def test_words_that_are_no_secrets(text: str) -> None:
    assert secret_kind(text) is None


def test_what_is_scored_by_writing(tmp_path: Path) -> None:
    pairs = FINETUNE.replace("instruction", "translation")
    assert problems(tmp_path, pairs, "evaluation.predict_with_generate=false", command="finetune") == ""
    said = problems(tmp_path, FINETUNE, "evaluation.predict_with_generate=true", command="finetune")
    assert "instruction is not scored by what a model writes" in said
    off = ("evaluation.predict_with_generate=false", "evaluation.fail_if.ter='> 80'")
    assert "evaluation.fail_if: ter needs predict_with_generate" in problems(tmp_path, pairs, *off, command="finetune")
