"""One rank of a toy run; the first writes the final weights and what it logged. Started by test_processes.py."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from llmkit.recipe.sections import TrainingSection
from llmkit.train.loop import fit
from tests.train.toy import make_run


def main(target: str, stop_rank: str) -> None:
    accelerator = Accelerator(cpu=True)
    training = TrainingSection(optim="adamw", learning_rate=0.05, weight_decay=0.1)
    run, state, events = make_run(training, micro_batch=2, accelerator=accelerator)
    if accelerator.process_index == int(stop_rank):
        run.stop.signum = 15
    complete = fit(run, state)
    if accelerator.is_main_process:
        weights = torch.cat([p.detach().flatten() for p in run.module.parameters()]).tolist()
        told = {"weights": weights, "losses": [e["loss"] for e in events], "complete": complete, "step": state.step}
        Path(target).write_text(json.dumps({**told, "tokens": state.tokens}))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
