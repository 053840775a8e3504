"""`llmkit generate` on a run in miniature: what goes to stdout, what is refused, and that it equals transformers."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.errors import DataError, ModelError, RecipeError
from llmkit.generate.command import generate
from tests.evaluate.tiny_run import TinyRun, console, make_run, said, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("lm"), "causal_lm")


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("chat"), "instruction")


def prompt(
    run: TinyRun, *texts: str, overrides: tuple[str, ...] = (), **options: Any
) -> tuple[dict[str, Any], str, str]:
    """(result, stdout, stderr)."""
    out = console(as_json=bool(options.get("json")))
    result = generate(run.recipe(*overrides), run.options("generate", prompts=texts, **options), out)
    return (result, *said(out))


def transformers_says(run: TinyRun, messages: list[dict[str, str]] | str) -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.model), AutoTokenizer.from_pretrained(run.model)
    if isinstance(messages, str):
        ids = tokenizer(messages, return_tensors="pt")["input_ids"]
    else:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("text", ["the quick brown", "今天天气"])
def test_one_prompt_prints_the_completion_alone(run: TinyRun, text: str) -> None:
    result, stdout, stderr = prompt(run, text)
    assert stdout == result["completions"][0]["text"] + "\n"
    assert result["completions"][0]["text"] == transformers_says(run, text)
    assert "tokens/s" in stderr


def test_instruction_prompt_equals_the_chat_template(chat_run: TinyRun) -> None:
    result, _, _ = prompt(chat_run, "今天")
    assert result["completions"][0]["text"] == transformers_says(chat_run, [{"role": "user", "content": "今天"}])


def test_several_results_are_told_apart(run: TinyRun) -> None:
    overrides = ("generation.do_sample=true", "generation.num_return_sequences=2")
    result, stdout, _ = prompt(run, "a", "b", overrides=overrides)
    assert [line for line in stdout.splitlines() if line.startswith("===")] == [
        f"=== prompt {p}, sample {s} ===" for p in (1, 2) for s in (1, 2)
    ]
    assert [row["sample"] for row in result["completions"]] == [0, 1, 0, 1]
    assert prompt(run, "a", "b", overrides=overrides)[0] == result
    assert prompt(run, "a", "b", overrides=(*overrides, "seed=6"))[0] != result


def test_json_has_the_objects_and_stdout_is_left_to_the_caller(run: TinyRun) -> None:
    result, stdout, _ = prompt(run, "the", json=True)
    assert stdout == ""
    assert set(result["completions"][0]) == {"prompt", "text", "finish_reason", "prompt_tokens", "completion_tokens"}


def test_empty_prompt(run: TinyRun) -> None:
    assert prompt(run, "")[0]["completions"][0]["prompt_tokens"] == 1


def test_input_file_to_output_file_and_again(run: TinyRun, tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl", [{"id": i, "prompt": text} for i, text in enumerate(["the", "今天", "a"])]
    )
    output = tmp_path / "out.jsonl"
    options = run.options("generate", input=str(source), output=output)
    out = console()
    first = generate(run.recipe(), options, out)
    assert said(out)[0] == ""
    assert first == {"output": str(output), "completions": 3, "kept": 0}
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [transformers_says(run, text) for text in ("the", "今天", "a")]
    assert generate(run.recipe(), options, console())["kept"] == 3
    with pytest.raises(RecipeError, match="max_new_tokens: 8 there, 9 now"):
        generate(run.recipe("generation.max_new_tokens=9"), options, console())
    again = run.options("generate", input=str(source), output=output, overwrite=True)
    assert generate(run.recipe("generation.max_new_tokens=9"), again, console())["kept"] == 0


def test_input_without_output_prints_lines(chat_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "system", "content": "短"}, {"role": "user", "content": "the"}]
    source = write_rows(tmp_path / "in.jsonl", [{"messages": messages}])
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    generate(chat_run.recipe(), chat_run.options("generate", input=str(source)), console())
    line = json.loads(stream.buffer.getvalue())  # type: ignore[attr-defined]
    assert line["messages"] == messages
    assert line["text"] == transformers_says(chat_run, messages)
    listed = generate(
        chat_run.recipe(), chat_run.options("generate", input=str(source), json=True), console(as_json=True)
    )
    assert listed == {"completions": [line]}


def test_bad_line_ends_before_any_work(run: TinyRun, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": 3}\n', encoding="utf-8")
    output = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"in\.jsonl:2: prompt: expected a text"):
        generate(run.recipe(), run.options("generate", input=str(source), output=output), console())
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of --prompt TEXT, --input"),
        ({"prompts": ("a",), "interactive": True}, "not --prompt and --interactive together"),
        ({"prompts": ("a",), "output": Path("out.jsonl")}, "--output goes with --input"),
        ({"interactive": True, "json": True}, "no --json"),
        ({"prompts": ("a",), "num_processes": 2}, "one process"),
    ],
)
def test_options_that_contradict(run: TinyRun, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        generate(run.recipe(), run.options("generate", **options), console())


def test_no_model_and_no_input_are_told_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, "instruction", with_model=False)
    with pytest.raises(ModelError, match="run `llmkit finetune"):
        generate(run.recipe(), run.options("generate", prompts=("a",)), console())
    with pytest.raises(DataError, match="no such file"):
        generate(run.recipe(), run.options("generate", input=str(tmp_path / "none.jsonl")), console())


def test_interactive_writes_answers_to_stdout(chat_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("今天\n/reset\nthe\n"))
    out = console()
    assert generate(chat_run.recipe(), chat_run.options("generate", interactive=True), out) == {"answers": 2}
    stdout, stderr = said(out)
    expected = [transformers_says(chat_run, [{"role": "user", "content": text}]) for text in ("今天", "the")]
    assert stdout == "".join(text + "\n" for text in expected)
    assert "/exit ends" in stderr
