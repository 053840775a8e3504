"""JSONL in, JSONL out: order, fields, resuming after any cut, and refusal to mix."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.errors import DataError, EnvironmentFailure, RecipeError
from llmkit.generate.batch import Sink, Tally, check_file, file_blocks, open_output, run_batch, stream_blocks
from llmkit.generate.paths import check_paths
from llmkit.generate.prompts import prompt_encoder
from llmkit.report.console import Console
from llmkit.writing.engine import TransformersEngine
from tests.generate.conftest import engine_of

TEXTS = ["the", "def add(a, b):\n    return", "今天天气", "fox jumps over the lazy dog", "a", "lazy", "b", "好"]


@pytest.fixture
def console() -> Console:
    return Console(stdout=io.StringIO(), stderr=io.StringIO(), terminal=False)


@pytest.fixture(scope="module")
def engine(tokenizer: PreTrainedTokenizerBase) -> TransformersEngine:
    from tests.generate.conftest import make_model

    return engine_of(make_model("gpt2", len(tokenizer)), tokenizer, batch_size=3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"x{i}", "prompt": text, "标签": "值"} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(
    engine: TransformersEngine,
    source: Path,
    output: Path,
    console: Console,
    *,
    overwrite: bool = False,
    **settings: Any,
) -> Tally:
    encode = prompt_encoder(engine.tokenizer, None, "causal_lm")
    with open_output(output, {"seed": 1, **settings}, overwrite=overwrite) as sink:
        return run_batch(engine, encode, file_blocks(source, 4), sink, console, None)


def test_output_keeps_order_and_fields(
    engine: TransformersEngine, source: Path, tmp_path: Path, console: Console
) -> None:
    tally = run(engine, source, tmp_path / "out.jsonl", console)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"x{i}" for i in range(8)]
    assert [row["prompt"] for row in rows] == TEXTS
    assert {"text", "finish_reason", "prompt_tokens", "completion_tokens", "标签"} <= set(rows[0])
    assert "sample" not in rows[0]
    assert tally.completions == 8
    assert tally.tokens == sum(row["completion_tokens"] for row in rows)
    assert "值" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_resumes_after_a_cut_at_every_byte_of_interest(
    engine: TransformersEngine, source: Path, tmp_path: Path, console: Console
) -> None:
    output = tmp_path / "out.jsonl"
    run(engine, source, output, console)
    whole = output.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in {0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[3], ends[5] - 7, len(whole) - 1, len(whole)}:
        output.write_bytes(whole[:cut])
        tally = run(engine, source, output, console)
        assert output.read_bytes() == whole
        assert tally.kept == whole[:cut].count(b"\n")


def test_several_samples_resume_by_whole_items(
    tokenizer: PreTrainedTokenizerBase, source: Path, tmp_path: Path, console: Console
) -> None:
    from tests.generate.conftest import make_model

    model = make_model("gpt2", len(tokenizer))
    engine = engine_of(model, tokenizer, do_sample=True, num_return_sequences=3, batch_size=5)
    output = tmp_path / "out.jsonl"
    run(engine, source, output, console)
    whole = output.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"x{i}", s) for i in range(8) for s in range(3)]
    lines = whole.splitlines(keepends=True)
    for kept in (1, 2, 3, 4, 23, 24):
        output.write_bytes(b"".join(lines[:kept]))
        assert run(engine, source, output, console).kept == kept // 3 * 3
        assert output.read_bytes() == whole


def test_other_settings_are_refused_until_overwrite(
    engine: TransformersEngine, source: Path, tmp_path: Path, console: Console
) -> None:
    output = tmp_path / "out.jsonl"
    run(engine, source, output, console, temperature=1.0)
    with pytest.raises(RecipeError, match=r"temperature: 1.0 there, 0.5 now.*--overwrite"):
        run(engine, source, output, console, temperature=0.5)
    assert run(engine, source, output, console, overwrite=True, temperature=0.5).kept == 0
    assert run(engine, source, output, console, temperature=0.5).kept == 8


def test_results_of_another_input_are_refused(
    engine: TransformersEngine, source: Path, tmp_path: Path, console: Console
) -> None:
    output = tmp_path / "out.jsonl"
    run(engine, source, output, console)
    before = output.read_bytes()
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join([*lines[:2], '{"prompt": "changed"}\n', *lines[3:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"out\.jsonl:3: line 3 is not a result of input line 3"):
        run(engine, source, output, console)
    source.write_text("".join(lines[:2]), encoding="utf-8")
    with pytest.raises(DataError, match="holds more results than the input"):
        run(engine, source, output, console)
    assert output.read_bytes() == before


def test_a_longer_input_is_gone_on_with(
    engine: TransformersEngine, source: Path, tmp_path: Path, console: Console
) -> None:
    output = tmp_path / "out.jsonl"
    run(engine, source, output, console)
    with source.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "more"}')
    tally = run(engine, source, output, console)
    assert (tally.kept, tally.completions) == (8, 1)


def test_one_writer_at_a_time(engine: TransformersEngine, source: Path, tmp_path: Path, console: Console) -> None:
    output = tmp_path / "out.jsonl"
    with (
        open_output(output, {}, overwrite=False),
        pytest.raises(EnvironmentFailure, match="another process is writing"),
        open_output(output, {}, overwrite=False),
    ):
        pass


def test_whole_file_is_checked_first(engine: TransformersEngine, source: Path) -> None:
    encode = prompt_encoder(engine.tokenizer, None, "causal_lm")
    assert check_file(source, encode, engine) == 8
    with source.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "dog " * 200}) + "\n")
    with pytest.raises(DataError, match=r"in\.jsonl:9: the prompt has \d+ tokens"):
        check_file(source, encode, engine)


def test_paths(source: Path, tmp_path: Path) -> None:
    check_paths(str(source), tmp_path / "new.jsonl")
    check_paths("-", tmp_path / "new.jsonl")
    with pytest.raises(DataError, match=r"did you mean .*in\.jsonl"):
        check_paths(str(tmp_path / "inn.jsonl"), None)
    with pytest.raises(DataError, match="is a directory"):
        check_paths(str(tmp_path), None)
    with pytest.raises(RecipeError, match="does not exist"):
        check_paths(str(source), tmp_path / "no" / "out.jsonl")
    with pytest.raises(RecipeError, match="is the input file itself"):
        check_paths(str(source), source)
    with pytest.raises(RecipeError, match="is a directory"):
        check_paths(str(source), tmp_path)


def test_a_pipe_is_answered_line_by_line(engine: TransformersEngine, console: Console) -> None:
    """The writer waits for each answer before it asks on."""
    encode = prompt_encoder(engine.tokenizer, None, "causal_lm")
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()

    def work() -> None:
        with os.fdopen(out_writer, "wb") as stream:
            run_batch(engine, encode, stream_blocks(reader, 8), Sink(stream), console, None)

    thread = threading.Thread(target=work)
    thread.start()
    with os.fdopen(out_reader, encoding="utf-8") as answers:
        for text in ("今天", "the"):
            os.write(writer, json.dumps({"prompt": text}).encode() + b"\n")
            assert json.loads(answers.readline())["prompt"] == text
        os.write(writer, b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "no newline"}')
        os.close(writer)
        assert [json.loads(line)["prompt"] for line in answers] == ["a", "b", "no newline"]
    thread.join()
    os.close(reader)


def test_a_pipe_full_of_lines_makes_full_blocks() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"".join(b'{"prompt": "%d"}\n' % i for i in range(10)))
    os.close(writer)
    sizes = [len(block) for block in stream_blocks(reader, 4)]
    os.close(reader)
    assert sizes == [4, 4, 2]


def test_lone_surrogates_in_other_fields_survive(
    engine: TransformersEngine, tmp_path: Path, console: Console, model: PreTrainedModel
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a", "note": "\\ud800"}\n', encoding="utf-8")
    run(engine, source, output, console)
    assert json.loads(output.read_text(encoding="utf-8"))["note"] == "\ud800"
    assert run(engine, source, output, console).kept == 1
