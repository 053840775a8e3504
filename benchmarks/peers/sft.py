"""trl's SFTTrainer on alpaca's rows as prompt and completion: with its defaults, or packed as its guide to memory says.

The defaults are bf16, gradient checkpointing and padded batches of 8. `--packing` packs rows best-fit into windows and
leaves checkpointing off, which is faster where memory allows it; so does `--float32` without it, in batches of 16. The
rate counts real tokens, not padding.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

from benchmarks.peers.clock import Clock
from benchmarks.runs import WARM_STEPS


def train(options: argparse.Namespace) -> dict[str, float]:
    from trl import SFTConfig, SFTTrainer

    seen: list[int] = []
    clock = Clock()

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Notes the real tokens of each micro-batch."""

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            seen.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            return super().training_step(model, inputs, *args, **kwargs)

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(options.tokenizer)
    values = {"vocab_size": len(tokenizer), "use_cache": False, **json.loads(options.config)}
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    )
    rows = [json.loads(line) for line in options.jsonl.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": f"{r['instruction']}\n{r['input']}\n", "completion": r["output"]} for r in rows]
    tuned: dict[str, Any] = {}
    if options.packing:
        tuned = {"packing": True, "gradient_checkpointing": False, "bf16": not options.float32}
        tuned |= {"per_device_train_batch_size": options.windows, "gradient_accumulation_steps": options.accumulation}
    elif options.float32:
        tuned = {"gradient_checkpointing": False, "bf16": False, "per_device_train_batch_size": 16}
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            max_steps=options.steps,
            max_length=options.max_length,
            learning_rate=5e-4,
            logging_steps=1000,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **tuned,
        )
        Counting(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    steady = seen[WARM_STEPS * arguments.gradient_accumulation_steps :]
    return {"tokens_per_second": sum(steady) / sum(clock.steady()), "tokens_per_step": sum(seen) / options.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jsonl", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("config", help="the model's configuration, as JSON")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--windows", type=int, default=2, help="of a micro-batch, packed")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches a step, packed")
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print(json.dumps({"skip": "trl is not installed (`make bench` installs it)"}))
        return
    print(json.dumps(train(options)))


if __name__ == "__main__":
    main()
