"""What a run does when a step goes wrong and it can go on: less memory, or back to before a loss spike.

Both happen on all ranks together, since the loop decides them from sums over the ranks.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from llmkit.errors import Diverged
from llmkit.recipe.sections import Recipe
from llmkit.train import checkpoint, memory, micro_batch
from llmkit.train.loop import TrainState
from llmkit.train.rundir import CHECKPOINTS
from llmkit.train.spikes import MAX_ROLLBACKS, rollback_step

if TYPE_CHECKING:
    from llmkit.train.session import Session


def halve(session: Session, state: TrainState) -> None:
    """Out of memory on some rank: all go on with half the micro-batch, and the run keeps it. Raises EnvironmentFailure
    where a single sequence is too much."""
    if not session.parts.feed.halve(state.step):
        raise micro_batch.too_small()
    session.settle()  # its thread writes run.json too
    memory.free(session.accelerator.device)
    layout = session.parts.feed.layout
    tokens = None if layout.budget is None else layout.budget.tokens
    choices = replace(session.parts.choices, per_device_train_batch_size=layout.micro_batch, micro_batch_tokens=tokens)
    session.parts = replace(session.parts, choices=choices)
    if session.directory is not None:
        session.warn(
            f"step {state.step + 1}: out of memory; from here micro-batches of {choices.micro_batch}, the same global "
            "batch"
        )
        session.directory.update(resolved=choices.as_json())
    session.open_segment(state.step)


def needed(recipe: Recipe, state: TrainState) -> set[int]:
    """Steps whose checkpoints must stay, for a spike in the next step to go back to."""
    every = recipe.checkpoint.save_steps
    if recipe.training.loss_spike_action != "rollback" or every is None:
        return set()
    return {rollback_step(state.step, every)}


def roll_back(session: Session, state: TrainState) -> bool:
    """`state`, weights and optimiser as they were at the last multiple of `save_steps`; the data since then is passed
    over. False where the run has not come so far. Raises Diverged where it was there too often.

    A kill in between repeats it all: what is later goes first, and only then the old checkpoint is replaced.
    """
    (step,) = needed(session.recipe, state)
    if step == 0:
        return False
    every = session.recipe.checkpoint.save_steps
    assert every is not None
    if [rollback_step(past, every) for past in state.rollbacks].count(step) >= MAX_ROLLBACKS:
        raise Diverged(
            f"training diverged: after going back to step {step} for the {MAX_ROLLBACKS}rd time the loss spiked again; "
            "lower training.learning_rate"
        )
    session.settle()
    spiked, root = state.step, session.output_dir / CHECKPOINTS
    loaded = session.load(root / checkpoint.name_of(step))
    loaded.passed_over += spiked - step + 1
    loaded.rollbacks = [*loaded.rollbacks, spiked]
    for field in fields(TrainState):
        setattr(state, field.name, getattr(loaded, field.name))
    session.parts.feed.pass_over(state.passed_over)
    session.accelerator.wait_for_everyone()  # all have read what is replaced now
    if session.directory is not None:
        assert session.log_file is not None
        session.warn(f"step {spiked + 1}: loss spike; back to step {step}, past the data since then")
        session.log_file.cut_back(step)
        checkpoint.discard_after(root, step)
    session.save(state)
    session.settle()  # a later one must not be what is found first
    return True
