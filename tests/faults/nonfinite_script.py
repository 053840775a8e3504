"""One rank of many short toy runs, each with one number gone wrong on one rank. Started by test_nonfinite.py."""

import json
import sys
from itertools import pairwise, product
from pathlib import Path

import torch
from accelerate import Accelerator

from llmkit.errors import Diverged
from llmkit.recipe.sections import TrainingSection
from llmkit.train import optim
from llmkit.train.loop import fit
from tests.train.toy import ToyModule, make_run

TRAINING = TrainingSection(optim="adamw", learning_rate=0.05, weight_decay=0.1)
VALUES = ("nan", "inf", "-inf")
PLACES = ("loss", "gradient")
BAD_STEPS = (0, 2, 3, 4, 5)
STEPS = 6
LIMIT = 2


class Sick(ToyModule):
    """`value` is added to the loss, or to one parameter's gradient, while `sick`."""

    value = 0.0
    place = "loss"
    sick = False

    def __init__(self) -> None:
        super().__init__()
        self.out.bias.register_hook(lambda g: g + self.value if self.sick and self.place == "gradient" else g)

    def forward(self, batch):
        losses = super().forward(batch)
        wrong = self.value if self.sick and self.place == "loss" else 0.0
        return {name: loss + wrong for name, loss in losses.items()}


def state_of(run):
    tensors = {**run.module.state_dict(), **optim.state_tensors(run.module, run.optimizers)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def case(accelerator, value, place, sick_rank, bad_step):
    """Trains with the number gone wrong in one step, the optimiser's state taken before and after every step."""
    module = Sick().double()
    module.value, module.place = float(value), place
    states = []

    def before(state):
        states.append(state_of(run))
        module.sick = state.step == bad_step and accelerator.process_index == sick_rank
        return False

    run, state, events = make_run(TRAINING, accelerator=accelerator, micro_batch=2, steps=STEPS, save_is_due=before)
    run = type(run)(**{**vars(run), "module": module, "wrapped": module})
    run.optimizers[:] = optim.build_optimizers(module, TRAINING)
    fit(run, state)
    states.append(state_of(run))
    untouched = [same(a, b) for a, b in pairwise(states)]
    line = next(e for e in events if e["step"] == bad_step + 1)
    return {
        "untouched": untouched == [step == bad_step for step in range(STEPS)],
        "counted": (state.nonfinite_steps, state.nonfinite_streak) == (1, int(bad_step == STEPS - 1)),
        "logged": line.get("skipped") is True and line["nonfinite_steps"] == 1,
        "finite": all(tensor.isfinite().all().item() for tensor in states[-1].values()),
    }


def diverges(accelerator):
    """Sick for good: every rank stops at the limit."""
    module = Sick().double()
    module.value, module.sick = float("nan"), accelerator.process_index == 1
    changes = {"module": module, "wrapped": module, "optimizers": optim.build_optimizers(module, TRAINING)}
    run, state, _ = make_run(TRAINING, accelerator=accelerator, max_nonfinite_steps=LIMIT, **changes)
    try:
        fit(run, state)
    except Diverged as error:
        return (error.status, state.step) == (7, LIMIT - 1)
    return False


def main(target):
    accelerator = Accelerator(cpu=True)
    cases = product(VALUES, PLACES, (0, 1), BAD_STEPS)
    told = [case(accelerator, *which) for which in cases]
    Path(f"{target}.{accelerator.process_index}").write_text(json.dumps([*told, {"diverges": diverges(accelerator)}]))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
