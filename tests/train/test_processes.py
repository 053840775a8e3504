import json
import sys

import pytest
import torch

from llmkit.recipe.sections import TrainingSection
from llmkit.train.launch import launch
from llmkit.train.loop import fit
from tests.train.toy import make_run


def ranks(tmp_path, num_processes, stop_rank=-1):
    target = tmp_path / f"{num_processes}.json"
    program = (sys.executable, "-m", "tests.train.rank_script")
    assert launch([str(target), str(stop_rank)], num_processes, print, program) == 0
    return json.loads(target.read_text())


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_gloo_processes_are_one(tmp_path, num_processes):
    run, state, events = make_run(TrainingSection(optim="adamw", learning_rate=0.05, weight_decay=0.1), micro_batch=2)
    assert fit(run, state)
    several = ranks(tmp_path, num_processes)
    weights = torch.cat([p.detach().flatten() for p in run.module.parameters()])
    assert torch.allclose(weights, torch.tensor(several["weights"], dtype=torch.float64), rtol=0, atol=1e-12)
    assert several["losses"] == pytest.approx([e["loss"] for e in events], abs=1e-12)
    assert several["tokens"] == state.tokens


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    told = ranks(tmp_path, 2, stop_rank=1)
    assert (told["complete"], told["step"]) == (False, 1)
