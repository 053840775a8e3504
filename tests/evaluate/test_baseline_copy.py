"""Copying the source, and its first sentences, scored as a model is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from llmkit.data.prepare import prepare
from llmkit.evaluate.baseline_copy import copy, lead, lead_texts, sentences
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.tasks import build_task
from tests.evaluate.tiny_run import console
from tests.tasks.seq2seq_toy import jsonl, make_place, write_jsonl

STORY = "Dr. Wu came in. He had 3.14 apples! Nobody knew why. The end."
REPORT = "他来了。他带了3.14个苹果！没人知道。完。"


def test_sentences() -> None:
    assert sentences(STORY) == ["Dr. Wu came in.", "He had 3.14 apples!", "Nobody knew why.", "The end."]
    assert sentences(REPORT) == ["他来了。", "他带了3.14个苹果！", "没人知道。", "完。"]
    assert sentences("  ") == []


def test_lead_is_as_long_as_the_references_ask() -> None:
    long = [["He came. Then he went."], ["他来了。他走了。"]]
    assert lead_texts([STORY, REPORT], long) == ["\n".join(sentences(text)[:3]) for text in (STORY, REPORT)]
    assert lead_texts([STORY, REPORT], [["A title"], ["标题"]]) == ["Dr. Wu came in.", "他来了。"]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_they_are_scored_as_the_model_is(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_place(tmp_path, kind)
    recipe = resolve(load_recipe(tmp_path / "recipe.yaml"))
    prepared = prepare(recipe, console())
    task, split, rows = build_task(recipe, prepared.tokenizer_dir), prepared.splits["test"], np.arange(10)
    found = task.finalize(copy(task, None, split, rows), split, bootstrap=True)
    sources = jsonl(Path("test.jsonl"))[:10]
    first = [row["target"] if isinstance(row["target"], str) else row["target"][0] for row in sources]
    second = [None if isinstance(row["target"], str) else row["target"][1] for row in sources]
    expected = BLEU(tokenize="zh").corpus_score([row["source"] for row in sources], [first, second]).score
    assert found.metrics["sacrebleu"].value == pytest.approx(expected)
    assert found.metrics["sacrebleu"].n == 10 and set(found.metrics) == {"sacrebleu", "chrf"}


def test_lead_by_rouge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_place(tmp_path, "t5", task={"type": "summarization"})
    write_jsonl(Path("test.jsonl"), [{"document": STORY, "summary": "Wu came. Nobody knew."}] * 4)
    recipe = resolve(load_recipe(tmp_path / "recipe.yaml"))
    prepared = prepare(recipe, console())
    task, split = build_task(recipe, prepared.tokenizer_dir), prepared.splits["test"]
    found = task.finalize(lead(task, None, split, np.arange(4)), split, bootstrap=True)
    scores = RougeScorer(["rouge1"]).score("Wu came. Nobody knew.", " ".join(sentences(STORY)[:3]))
    assert found.metrics["rouge1"].value == pytest.approx(scores["rouge1"].fmeasure)
