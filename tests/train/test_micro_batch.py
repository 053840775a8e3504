from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator

from llmkit.errors import EnvironmentFailure
from llmkit.train import micro_batch
from tests.train.toy import ToyModule, ToyPlan, ToyTask


class Small(ToyModule):
    """Memory for so many tokens in one forward."""

    limit = 40

    def forward(self, batch):
        if batch["input_ids"].numel() > self.limit:
            raise torch.OutOfMemoryError("made up")
        return super().forward(batch)


def choose(module, samples):
    return micro_batch.choose(
        module,
        ToyTask(),
        ToyPlan(),
        samples_per_rank=samples,
        seed=0,
        accelerator=Accelerator(cpu=True),
        autocast=nullcontext,
        check_memory=lambda: None,
    )


def test_the_largest_divisor_that_fits_the_longest_batch():
    module = Small()
    before = [p.clone() for p in module.parameters()]
    assert choose(module, 12) == 4  # the longest sample has ten tokens
    assert choose(module, 9) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())


def test_not_even_one_sequence():
    module = Small()
    module.limit = 3
    with pytest.raises(EnvironmentFailure, match="single sequence"):
        choose(module, 8)


def test_the_longest_batch_is_the_longest():
    batch = micro_batch.longest_batch(ToyTask(), ToyPlan(), 5, seed=0, device=torch.device("cpu"))
    lengths = sorted((ToyPlan().lengths(0, range(37))).tolist(), reverse=True)
    assert batch["input_ids"].shape == (5, lengths[0])
