"""transformers' Trainer on a pretrained encoder and rows of text and label, as its run_classification example has it.

Rows are padded by the batch; AdamW fused, linear schedule after a short warm-up; accuracy on the held-out rows after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from benchmarks.peers.clock import Clock
from benchmarks.peers.evaluate import accuracy, labelled


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--warmup", type=float, required=True, help="share of the steps")
    parser.add_argument("--warm", type=int, required=True, help="steps left out of the rate")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    transformers.set_seed(42)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    train, test = (labelled(read(path), tokenizer, options.max_length) for path in (options.train, options.test))
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            output_dir=out,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=64,
            learning_rate=options.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=options.warmup,
            bf16=options.bf16,
            optim="adamw_torch_fused",
            logging_steps=1_000_000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=train,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
            compute_metrics=accuracy,
        )
        trainer.train()
        found = trainer.evaluate(test)  # type: ignore[arg-type]
    steady = clock.steady(options.warm)
    figures = {
        "samples_per_second": options.batch * len(steady) / sum(steady),
        "training_seconds": sum(clock.steady(0)),
        "accuracy": found["eval_accuracy"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
