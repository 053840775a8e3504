"""transformers' Trainer on a causal language model from scratch, as its run_clm example prepares and trains it.

Texts are tokenised, joined and cut into blocks of the context's length; AdamW fused, clipping at 1, no dropout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from benchmarks.peers.clock import Clock
from benchmarks.runs import BATCH, CONTEXT


def blocks(jsonl: Path, tokenizer: Any, number: int) -> list[dict[str, torch.Tensor]]:
    ids: list[int] = []
    with jsonl.open(encoding="utf-8") as lines:
        while len(ids) < number * CONTEXT:
            texts = [json.loads(next(lines))["text"] for _ in range(16)]
            ids += chain.from_iterable(tokenizer(texts)["input_ids"])
    rows = torch.tensor(ids[: number * CONTEXT]).view(number, CONTEXT)
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jsonl", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("config", help="the model's configuration, as JSON")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    values = {"use_cache": False, "vocab_size": len(tokenizer), **json.loads(options.config)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=options.steps,
            learning_rate=5e-4,
            bf16=options.bf16,
            torch_compile=options.compile,
            optim="adamw_torch_fused",
            logging_steps=options.steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        rows: Any = blocks(options.jsonl, tokenizer, BATCH * options.steps)
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[clock])
        trainer.train()
    steady = clock.steady()
    print(
        json.dumps(
            {
                "tokens_per_second": BATCH * CONTEXT * len(steady) / sum(steady),
                "seconds_per_step": statistics.median(steady),
                "mean_loss": trainer.state.log_history[0]["loss"],
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        )
    )


if __name__ == "__main__":
    main()
