import sys

import pytest
import torch

from llmkit.recipe.sections import TrainingSection
from llmkit.train import hardware, memory
from llmkit.train.loop import fit
from tests.train.toy import ToyModule, make_run

TRAINING = TrainingSection(optim="adamw", learning_rate=0.05, weight_decay=0.1)
CPU = torch.device("cpu")


class Small(ToyModule):
    """Memory for so many rows; the lack of it shows after a part of the step."""

    error: BaseException

    def forward(self, batch):
        losses = super().forward(batch)
        if len(batch["input_ids"]) > 2:
            raise self.error
        return losses


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("made up"), RuntimeError("DefaultCPUAllocator: no"), MemoryError()]
)
def test_a_step_that_does_not_fit_is_made_again_with_half_the_micro_batch(error):
    plain, state, _ = make_run(TRAINING, micro_batch=8)
    fit(plain, state)
    Small.error, halved = error, []

    def halve(state):
        assert run.feed.halve(state.step)
        halved.append((state.step, run.feed.layout.micro_batch))

    run, state, _ = make_run(TRAINING, micro_batch=8, halve=halve)
    run.module.__class__ = Small
    fit(run, state)
    assert halved == [(0, 4), (0, 2)]
    ours, theirs = (torch.cat([p.detach().flatten() for p in r.module.parameters()]) for r in (run, plain))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    Small.error = RuntimeError("something else")
    run, state, _ = make_run(TRAINING, micro_batch=8)
    run.module.__class__ = Small
    with pytest.raises(RuntimeError, match="something else"):
        fit(run, state)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_limit_is_on_what_the_process_uses():
    hardware.keep_freed_memory()
    memory.free(CPU)
    used = memory.used_bytes()
    check = memory.limited(used + (100 << 20), CPU)
    check()
    held = torch.ones(150 << 20, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError, match="max_memory"):
        check()
    del held
    memory.free(CPU)
    check()
    assert memory.used_bytes() < used + (50 << 20)
    memory.limited(None, CPU)()
