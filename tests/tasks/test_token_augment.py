"""data.augment of tagged sentences: every word keeps its tag, entities stay whole, evaluation sees rows as they are."""

from __future__ import annotations

import numpy as np

from llmkit.data.augment import entities
from llmkit.data.prepare import prepare
from llmkit.data.tokenizer import load_tokenizer
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.report.console import Console
from llmkit.tasks import build_task
from tests.tasks.test_token_classification import make_place

STEPS = [{"step": "word_dropout", "p": 0.3}, {"step": "swap", "p": 0.3}, {"step": "span_cutoff"}]


def test_tags_stay_on_their_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = make_place(tmp_path)
    recipe = resolve(load_recipe(place.directory / "recipe.yaml", [f"data.augment={STEPS}"]))
    prepared = prepare(recipe, Console(quiet=True))
    task = build_task(recipe, prepared.tokenizer_dir)
    split = prepared.splits["train"]
    task.prepare(split, None)
    names = task.scratch["labels"]
    tokenizer = load_tokenizer(prepared.tokenizer_dir)

    def tagged(arrays) -> list[tuple[str, str]]:
        """(sub-word, tag) of every word's first sub-word, in order."""
        places = np.flatnonzero(arrays["labels"] != -100)
        words = tokenizer.convert_ids_to_tokens(arrays["input_ids"][places].tolist())
        return [(word, names[label]) for word, label in zip(words, arrays["labels"][places].tolist(), strict=True)]

    def shown(plan, epoch: int) -> dict[int, list[tuple[str, str]]]:
        samples = plan.samples(epoch, np.arange(plan.num_samples(epoch)))
        return {int(sample.rows[0]): tagged(sample.arrays) for sample in samples}

    stored = shown(task.eval_plan(split), 0)
    first, second = (shown(task.train_plan(split, 3), epoch) for epoch in (0, 1))
    assert sum(first[row] != stored[row] for row in stored) > len(stored) / 2 and first != second
    assert shown(task.train_plan(split, 3), 1) == second
    for row, pairs in first.items():
        whole = [tuple(unit) for unit in entities(*zip(*stored[row], strict=True))]
        assert {tuple(unit) for unit in entities(*zip(*pairs, strict=True))} <= set(whole)
