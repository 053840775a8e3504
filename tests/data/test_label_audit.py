"""What preprocess says of instruction data: every record is in one count, and what is supervised is as it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.data.command import preprocess
from llmkit.data.prepare import load
from llmkit.data.tokenizer import load_tokenizer, train_tokenizer
from llmkit.options import Options
from llmkit.recipe.resolve import resolve
from llmkit.recipe.sections import Recipe, TokenizerTrain
from llmkit.report.console import Console

GOOD = 120


def rows() -> list[Any]:
    found: list[Any] = [
        {"instruction": f"Say {i} 次", "input": "" if i % 2 else f"the number {i}", "output": f"数字 {i} is {i * i}."}
        for i in range(GOOD)
    ]
    found += [dict(found[3]), {"instruction": "empty", "output": ""}, {"instruction": "no answer"}, "{broken"]
    found.append({"instruction": "long", "output": "word " * 1000})  # truncated
    found.append({"instruction": "word " * 1000, "output": "never reached"})  # nothing left to teach
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "a.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_tokenizer(lambda: lines, TokenizerTrain(vocab_size=400), tmp_path / "tokenizer")
    return resolve(
        Recipe.model_validate(
            {
                "output_dir": str(tmp_path / "run"),
                "task": {"type": "instruction"},
                "model": {"config": {"model_type": "gpt2"}},
                "tokenizer": {"name_or_path": str(tmp_path / "tokenizer")},
                "data": {
                    "train": [{"path": str(path)}],
                    "clean": [{"step": "exact_dedup"}],
                    "validation_fraction": 0.2,
                    "max_bad_fraction": 0.5,
                    "max_length": 300,
                },
            }
        )
    )


def options(**keys: Any) -> Options:
    return Options("preprocess", Path("recipe.yaml"), (), **keys)


def test_records_add_up_and_labels_are_what_was_made(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    result = preprocess(recipe, options(), Console(quiet=True))
    shown = capsys.readouterr().out
    prepared = load(recipe)
    assert prepared is not None
    held = {name: split.num_rows for name, split in prepared.splits.items()}
    rejected = (prepared.directory / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert result["records"] == len(rows()) == held["train"] + held["validation"] + len(rejected)
    assert result["used"] == GOOD + 1 == held["train"] + held["validation"]
    assert len(rejected) == result["bad"] + result["cleaned_away"] + result["not_encoded"]
    assert (result["bad"], result["cleaned_away"], result["not_encoded"], result["truncated"]) == (3, 1, 1, 1)
    assert sum(result["rejected"].values()) == len(rejected)
    assert {json.loads(line)["line"] for line in rejected} == set(range(GOOD + 1, GOOD + 7)) - {GOOD + 5}

    tokenizer = load_tokenizer(prepared.tokenizer_dir)
    answers = {row["output"] for row in rows()[:GOOD]}
    supervised = ended = 0
    for split in prepared.splits.values():
        for i in range(split.num_rows):
            ids, mask = split.row(i), split.row(i, "loss_mask")
            taught = tokenizer.decode(ids[mask == 1].tolist(), skip_special_tokens=True)
            assert taught.strip() in answers or taught.strip().startswith("word word")
            supervised += int(mask.sum())
            assert len(np.flatnonzero(np.diff(mask.astype(np.int8)) == 1)) == 1  # one answer a row
    audits = [split["labels"] for split in result["splits"].values()]
    assert sum(audit["supervised_tokens"] for audit in audits) == supervised
    assert sum(audit["zero_label_rows"] for audit in audits) == 0
    ended = sum(audit["ends_supervised_share"] * audit["rows"] for audit in audits)
    assert ended == pytest.approx(GOOD)  # all but the one that was truncated
    for part in ("% supervised", "do not end in a stop token", "1 cleaned away", "not used: 1 x"):
        assert part in shown


def test_a_dry_run_shows_what_is_supervised_and_writes_nothing(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = preprocess(recipe, options(dry_run=True), Console(quiet=True))
    shown = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert len(result["examples"]) == 3
    for example in result["examples"]:
        taught = [span["text"] for span in example["spans"] if span["supervised"]]
        assert len(taught) == 1
        assert "数字" in taught[0]
        assert repr(taught[0]) in shown
    assert json.loads(json.dumps(result))["exact"] is False
    preprocess(recipe, options(), Console(quiet=True))
    assert preprocess(recipe, options(dry_run=True), Console(quiet=True))["exact"] is True
