"""What training on a GPU is held against: transformers' Trainer, and a loop written by hand around the same kernels.

    python benchmarks/gpu/peer.py {trainer,loop} CONFIG.json --batch 32 --length 1024 [--steps 30] [--compile]

CONFIG.json is a causal language model's config. Random tokens, bf16 under autocast, fused AdamW. Prints a JSON line:
the median step's tokens per second, and the parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

WARM_STEPS = 8


def build(path: Path) -> Any:
    values = json.loads(path.read_text())
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.float32
    )


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())


def run_trainer(model: Any, ids: torch.Tensor, given: argparse.Namespace) -> list[float]:
    """Seconds a step."""
    rows = [{"input_ids": row, "labels": row} for row in ids]
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=given.batch,
            max_steps=given.steps,
            bf16=True,
            optim="adamw_torch_fused",
            torch_compile=given.compile,
            logging_steps=10_000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows, callbacks=[clock]).train()  # type: ignore[arg-type]
    return [end - start for start, end in zip(clock.ticks, clock.ticks[1:], strict=False)]


def run_loop(model: Any, ids: torch.Tensor, given: argparse.Namespace) -> list[float]:
    """Seconds a step. Nothing but the work: one graph from tokens to loss, flash attention, fused AdamW, clipping."""
    model = model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        hidden = model.base_model(input_ids=batch, use_cache=False)[0][:, :-1]
        logits = model.get_output_embeddings()(hidden)
        loss: torch.Tensor = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        return loss

    compute: Any = torch.compile(loss_of) if given.compile else loss_of
    seconds = []
    for step in range(given.steps):
        batch = ids[step * given.batch : (step + 1) * given.batch].pin_memory()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compute(batch.cuda(non_blocking=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["trainer", "loop"])
    parser.add_argument("config", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    model = build(given.config)
    ids = torch.randint(0, model.config.vocab_size, (given.batch * (given.steps + 1), given.length))
    seconds = (run_trainer if given.kind == "trainer" else run_loop)(model, ids, given)[WARM_STEPS:]
    print(
        json.dumps(
            {
                "peer": given.kind + (" compiled" if given.compile else ""),
                "tokens_per_second": given.batch * given.length / statistics.median(seconds),
                "parameters": sum(p.numel() for p in model.parameters()),
                "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            }
        )
    )


if __name__ == "__main__":
    main()
