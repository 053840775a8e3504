"""data.augment in a run: another text each epoch, none in evaluation, exact on resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.tasks import build_task
from tests.e2e.conftest import Place
from tests.e2e.test_classification import fill

STEPS = [{"step": "word_dropout", "p": 0.3}, {"step": "swap", "p": 0.2}, {"step": "span_cutoff"}]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


@pytest.mark.parametrize("kind", ["single_label", "pairs"])
def test_rows_are_changed_in_training_alone(place: Place, kind: str):
    from llmkit.data.prepare import prepare
    from llmkit.report.console import Console

    fill(place, kind)
    recipe = resolve(load_recipe(place.directory / "recipe.yaml", [f"data.augment={STEPS}"]))
    prepared = prepare(recipe, Console(quiet=True))
    task = build_task(recipe, prepared.tokenizer_dir)
    split = prepared.splits["train"]
    task.prepare(split, None)

    def shown(plan, epoch: int) -> dict[int, bytes]:
        samples = plan.samples(epoch, np.arange(plan.num_samples(epoch)))
        for sample in samples:
            assert len(sample.arrays["input_ids"]) == len(sample.arrays["attention_mask"])
            assert len(sample.arrays["input_ids"]) == len(sample.arrays["token_type_ids"])
        return {int(sample.rows[0]): np.asarray(sample.arrays["input_ids"]).tobytes() for sample in samples}

    stored = {row: np.asarray(split.row(row)).tobytes() for row in range(split.num_rows)}
    assert shown(task.eval_plan(split), 0) == stored
    first, second = (shown(task.train_plan(split, 3), epoch) for epoch in (0, 1))
    changed = sum(first[row] != stored[row] for row in stored)
    assert changed > 0.6 * len(stored) and first != second
    assert shown(task.train_plan(split, 3), 1) == second
    plain = {row: task.train_plan(split, 3).samples(0, np.array([row]))[0] for row in range(3)}
    first_ids, last_ids = ({int(split.row(row)[place]) for row in stored} for place in (0, -1))
    for sample in plain.values():
        ids = sample.arrays["input_ids"]
        assert int(ids[0]) in first_ids and int(ids[-1]) in last_ids, "framed as the tokenizer does"


def test_a_resumed_run_is_the_same(place: Place):
    fill(place, "single_label")
    sets = {"data.augment": STEPS, "training.max_steps": 4, "training.lr_scheduler_type": "constant"}
    sets |= {"training.num_train_epochs": None}
    assert place.run("finetune", sets={**sets, "output_dir": "whole"}).status == 0
    assert place.run("finetune", sets={**sets, "output_dir": "again", "training.max_steps": 2}).status == 0
    ended = place.run("finetune", sets={**sets, "output_dir": "again"})
    assert ended.status == 0, ended.err
    whole, again = (load_file(place.directory / name / "model" / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
