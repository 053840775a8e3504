"""A preparation end to end: what is published, counted and refused, and that kills leave no trace in the result."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.data import prepare as preparation
from llmkit.data.prepare import fingerprint_of, load, prepare, verify_prepared
from llmkit.data.prepared import Prepared
from llmkit.data.store import Store
from llmkit.data.tokenizer import BatchEncoder, load_tokenizer
from llmkit.errors import DataError, EnvironmentFailure
from llmkit.recipe.resolve import resolve
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console

WORDS = "the quick brown fox jumps over a lazy dog while 春天 来了 花儿 开了 and nobody knows".split()  # noqa: SIM905


def text_of(number: int) -> str:
    draw = np.random.default_rng(number)
    return f"Document {number}. " + " ".join(draw.choice(WORDS, 40))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", [{"text": text_of(i)} for i in range(300)])


def recipe_for(tmp_path: Path, *paths: Path, **data: Any) -> Recipe:
    values = {
        "output_dir": str(tmp_path / "run"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2"}},
        "tokenizer": {"train": {"vocab_size": 400}},
        "data": {"train": [{"path": str(path)} for path in paths], "num_workers": 1, **data},
    }
    return resolve(Recipe.model_validate(values))


def with_gpt(tmp_path: Path, *paths: Path, **data: Any) -> Recipe:
    """The recipe with a tokenizer that is there already."""
    from llmkit.data.tokenizer import train_tokenizer
    from llmkit.recipe.sections import TokenizerSection, TokenizerTrain

    texts = [text_of(i) for i in range(20)]
    train_tokenizer(lambda: texts, TokenizerTrain(vocab_size=300), tmp_path / "tokenizer")
    section = TokenizerSection(name_or_path=str(tmp_path / "tokenizer"))
    return recipe_for(tmp_path, *paths, **data).model_copy(update={"tokenizer": section})


def made(recipe: Recipe, **options: Any) -> Prepared:
    return prepare(recipe, Console(quiet=True, json=True), **options)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def decoded(prepared: Prepared, split: str) -> list[str]:
    tokenizer = load_tokenizer(prepared.tokenizer_dir)
    rows = prepared.splits[split]
    return [tokenizer.decode(rows.row(i).tolist(), skip_special_tokens=True) for i in range(len(rows))]


def test_documents_come_back_with_their_ends(tmp_path: Path, corpus: Path) -> None:
    prepared = made(recipe_for(tmp_path, corpus))
    assert decoded(prepared, "train") == [text_of(i) for i in range(300)]
    row = prepared.splits["train"].row(0)
    assert row[0] == row[-1] == load_tokenizer(prepared.tokenizer_dir).eos_token_id
    assert prepared.splits["train"].origin(7)["line"] == 8
    assert prepared.splits["train"].bytes_of()[3] == len(text_of(3).encode())
    assert prepared.splits["train"].vocab_counts().sum() == prepared.splits["train"].num_tokens
    verify_prepared(prepared.directory)
    assert sorted(p.name for p in prepared.directory.iterdir()) == [
        *("manifest.json", "rejected.jsonl", "report.json", "tokenizer", "train"),
    ]
    assert not [p for p in prepared.directory.parent.iterdir() if p.name.startswith(".")]


def test_a_prompt_is_tokenized_as_documents_begin(tmp_path: Path, corpus: Path) -> None:
    prepared = made(recipe_for(tmp_path, corpus))
    prompt = load_tokenizer(prepared.tokenizer_dir)(text_of(5))["input_ids"]
    assert prompt == prepared.splits["train"].row(5)[:-1].tolist()


def test_published_data_is_used_again(tmp_path: Path, corpus: Path) -> None:
    recipe = recipe_for(tmp_path, corpus)
    assert load(recipe) is None
    first = made(recipe)
    before = (first.directory / "manifest.json").stat().st_mtime_ns
    assert made(recipe).fingerprint == first.fingerprint
    found = load(recipe)
    assert found is not None
    assert found.fingerprint == first.fingerprint
    assert (first.directory / "manifest.json").stat().st_mtime_ns == before


def test_overwrite_makes_its_own_dataset_anew_and_spares_a_shared_one(tmp_path: Path, corpus: Path) -> None:
    for data, spared in (({}, False), ({"prepared_dir": str(tmp_path / "shared")}, True)):
        recipe = recipe_for(tmp_path, corpus, **data)
        directory = prepare(recipe, Console()).directory
        preparation.discard(recipe, Console())
        assert directory.exists() == spared and (load(recipe) is not None) == spared


def test_fingerprint_is_of_content_not_of_place(tmp_path: Path, corpus: Path) -> None:
    moved = tmp_path / "elsewhere" / "b.jsonl"
    moved.parent.mkdir()
    shutil.copy(corpus, moved)
    base = recipe_for(tmp_path, corpus)
    same = [recipe_for(tmp_path / "other", moved), base.model_copy(update={"seed": 7})]
    assert {fingerprint_of(recipe).digest for recipe in [base, *same]} == {fingerprint_of(base).digest}
    other = recipe_for(tmp_path, corpus, clean=[{"step": "normalize"}])
    assert fingerprint_of(other).digest != fingerprint_of(base).digest


def test_a_miss_names_the_key_that_changed(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(recipe_for(tmp_path, corpus, clean=[{"step": "normalize"}]))
    prepare(recipe_for(tmp_path, corpus, clean=[{"step": "fix_unicode"}]), Console())
    assert "data.clean[0].step: 'normalize' -> 'fix_unicode'" in capsys.readouterr().err
    with corpus.open("a") as file:
        file.write('{"text": "one more"}\n')
    prepare(recipe_for(tmp_path, corpus, clean=[{"step": "fix_unicode"}]), Console())
    assert f"data.train[0]: the content of {corpus} has changed" in capsys.readouterr().err


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": text_of(i)} for i in range(200)]
    rows += [{"text": text_of(3)}, {"text": "short"}, "{not json", {"text": "lone \ud800 surrogate " * 5}, {"text": ""}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    clean = [{"step": "length", "min_words": 4}, {"step": "exact_dedup"}]
    prepared = made(recipe_for(tmp_path, path, clean=clean, max_bad_fraction=0.05))
    report = prepared.report
    assert (report["records"], report["used"], report["cleaned_away"], report["bad"]) == (205, 200, 2, 2)
    steps = {step["step"]: step for step in report["clean"]}
    assert steps["length"]["documents_dropped"] == steps["exact_dedup"]["documents_dropped"] == 1
    assert steps["exact_dedup"]["documents_in"] == 201
    assert steps["length"]["bytes_kept"] == steps["exact_dedup"]["bytes_in"]
    rejected = [json.loads(line) for line in (prepared.directory / "rejected.jsonl").read_text().splitlines()]
    assert {r["line"] for r in rejected} == {201, 202, 203, 204, 205}
    assert all(r["file"] == str(path) and r["reason"] for r in rejected)
    by_line = {r["line"]: r["reason"] for r in rejected}
    assert "exact_dedup" in by_line[201]
    assert "1 words, fewer than 4" in by_line[202]
    assert "surrogate" in by_line[204]


def test_too_many_bad_records(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text_of(i)} for i in range(9)] + ["{broken"])
    with pytest.raises(DataError, match=r"1 of 10 records are bad, more than .* 0\.01.*a\.jsonl:10"):
        made(recipe_for(tmp_path, path))
    assert not (tmp_path / "run" / "prepared").exists() or not any((tmp_path / "run" / "prepared").iterdir())
    with pytest.raises(DataError) as error:
        made(recipe_for(tmp_path, path, on_bad_record="error", max_bad_fraction=1.0))
    assert error.value.line == 10
    assert made(recipe_for(tmp_path, path, max_bad_fraction=0.2)).report["used"] == 9


def test_identical_documents_stand_on_one_side(tmp_path: Path) -> None:
    rows = [{"text": text_of(i % 150)} for i in range(300)]
    prepared = made(recipe_for(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.2))
    train, held = set(decoded(prepared, "train")), set(decoded(prepared, "validation"))
    assert not train & held
    assert len(train | held) == 150
    assert len(prepared.splits["train"]) == 2 * len(train)
    assert 10 < len(held) < 60


@pytest.mark.parametrize("kill_after", [1, 2, 3])
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    rows: list[Any] = []
    for i in range(600):
        rows.append({"text": text_of(i % 550)})
        rows += ["{broken"] if i % 100 == 50 else []
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    data = {
        "clean": [{"step": "exact_dedup"}, {"step": "length", "max_characters": 280}],
        "validation_fraction": 0.1,
        "max_bad_fraction": 0.5,
    }
    small_batches(monkeypatch)
    whole = made(recipe_for(tmp_path / "whole", *paths, **data), shard_bytes=4_000)
    assert len(whole.manifest["splits"]["train"]["shards"]) > 4
    recipe = recipe_for(tmp_path / "killed", *paths, **data)
    checkpoint = Store.checkpoint
    taken = 0

    def dying(store: Store) -> None:
        nonlocal taken
        taken += 1
        if taken > kill_after:
            raise EnvironmentFailure("killed")
        checkpoint(store)

    monkeypatch.setattr(Store, "checkpoint", dying)
    with pytest.raises(EnvironmentFailure):
        made(recipe, shard_bytes=4_000)
    monkeypatch.setattr(Store, "checkpoint", checkpoint)
    resumed = made(recipe, shard_bytes=4_000)
    assert contents(resumed.directory) == contents(whole.directory)


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.reading.BATCH_BYTES", 3_000)


@pytest.mark.parametrize("clean", [[], [{"step": "normalize"}, {"step": "exact_dedup"}]])
def test_worker_processes_give_the_same_bytes(
    tmp_path: Path, corpus: Path, clean: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are parsed there too: bad and blank ones, a key that stands twice, a limit, a line of text a record."""
    lines = [*corpus.read_bytes().splitlines()[::7], b"", b"{", b'{"text": "a", "text": "b"}', b'{"text": ""}', b"  "]
    (tmp_path / "odd.jsonl").write_bytes(b"\n".join(lines * 9))
    (tmp_path / "lines.txt").write_text("".join(f"{text_of(i)}\n\n" for i in range(90)), encoding="utf-8")
    small_batches(monkeypatch)
    keys = {"clean": clean, "max_bad_fraction": 0.5, "validation_fraction": 0.1, "num_workers": 1}
    odd = {"path": str(tmp_path / "odd.jsonl")}
    keys["train"] = [{"path": str(corpus)}, odd, {**odd, "limit": 70}]
    keys["train"] += [{"path": str(tmp_path / "lines.txt"), "sample_by": "line"}]
    alone = made(recipe_for(tmp_path / "alone", **keys))
    monkeypatch.setattr(preparation, "_workers", lambda *_: 2)
    together = made(recipe_for(tmp_path / "together", **keys))
    assert contents(alone.directory) == contents(together.directory)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_without_records_is_named_after_the_others_were_read(
    tmp_path: Path, corpus: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "_workers", lambda *_: workers)
    for content, message in (
        (b'{"text": ""}\n', "the first .*b.jsonl:1: text is empty"),
        (b"\n\n", "there are no rows"),
    ):
        (tmp_path / "b.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=f"no usable record in source .*b.jsonl.*{message}"):
            made(with_gpt(tmp_path, corpus, tmp_path / "b.jsonl", max_bad_fraction=1.0))


def _prepare_in_child(recipe: Recipe) -> None:
    made(recipe)


def test_two_processes_prepare_it_once(tmp_path: Path, corpus: Path) -> None:
    recipe = recipe_for(tmp_path, corpus)
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_prepare_in_child, args=(recipe,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(list((tmp_path / "run" / "prepared").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_output(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(EnvironmentFailure):
        made(recipe_for(tmp_path, corpus))


@pytest.mark.parametrize("name", ["train/shard-00000.bin", "train/shard-00000.arrow", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_named(tmp_path: Path, corpus: Path, name: str) -> None:
    prepared = made(recipe_for(tmp_path, corpus))
    path = prepared.directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        verify_prepared(prepared.directory)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=path.name):
        verify_prepared(prepared.directory, tokens=False)
    with pytest.raises(DataError, match=path.name):
        load(recipe_for(tmp_path, corpus))


def test_special_tokens_in_a_document_stay_text(tmp_path: Path) -> None:
    texts = [text_of(i) for i in range(50)] + ["before <|endoftext|> after"]
    prepared = made(recipe_for(tmp_path, write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])))
    row = prepared.splits["train"].row(50)
    end = load_tokenizer(prepared.tokenizer_dir).eos_token_id
    assert (row == end).sum() == 2
    assert load_tokenizer(prepared.tokenizer_dir).decode(row[1:-1].tolist()) == texts[-1]
    assert BatchEncoder(prepared.tokenizer_dir).engine == "gigatoken"


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for copies in (1, 4):
        path = write_jsonl(tmp_path / f"{copies}.jsonl", [{"text": text_of(i) * 60} for i in range(300 * copies)])
        recipe = recipe_for(tmp_path / str(copies), path, clean=[{"step": "exact_dedup"}])
        recipe = recipe.model_copy(update={"tokenizer": recipe.tokenizer})
        tracemalloc.start()
        made(recipe, shard_bytes=500_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0] + 20e6


def test_no_usable_record(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match="no usable records"):
        made(with_gpt(tmp_path, corpus, clean=[{"step": "length", "min_words": 1000}]))


def test_rates_by_script(tmp_path: Path) -> None:
    rows = [{"text": "春天来了，花儿开了。" * 5 + str(i)} for i in range(60)] + [
        {"text": text_of(i)} for i in range(60)
    ]
    started = time.monotonic()
    fit = made(recipe_for(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows))).report["tokenizer"]["fit"]
    assert set(fit) == {"cjk", "other"}
    assert fit["cjk"]["single_byte_rate"] < 0.02
    assert fit["cjk"]["tokens_per_character"] < 1
    assert time.monotonic() - started < 60


def test_unknown_tokens_are_reported_by_script(tmp_path: Path) -> None:
    """A vocabulary of 40 characters knows those of English and few of the 200 Chinese ones. Ends count as tokens."""
    usual = [{"text": "the quick brown fox jumps over a lazy dog. " * 5} for _ in range(20)]
    rare = [{"text": "".join(chr(0x4E00 + 10 * i + j) for j in range(10))} for i in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", usual + rare)
    recipe = recipe_for(tmp_path, path)
    section = recipe.tokenizer.model_validate({"train": {"algorithm": "char", "vocab_size": 40}})
    fit = made(recipe.model_copy(update={"tokenizer": section})).report["tokenizer"]["fit"]
    assert fit["other"]["unknown_rate"] == 0
    assert 0.75 < fit["cjk"]["unknown_rate"] < 10 / 12
