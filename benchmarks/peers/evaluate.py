"""transformers' `Trainer.evaluate` with its default settings, on a causal language model or a classifier.

The language model's texts are tokenised, joined and cut into blocks of the context's length, as run_clm does it; the
classifier's are padded by the batch, as run_classification does it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.runs import CONTEXT

Rows = list[dict[str, Any]]


def blocks(rows: Rows, tokenizer: Any) -> Rows:
    ids = list(chain.from_iterable(tokenizer([row["text"] for row in rows])["input_ids"]))
    cut = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    return [{"input_ids": block, "labels": block} for block in cut]


def labelled(rows: Rows, tokenizer: Any, max_length: int) -> Rows:
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": int(row["label"])}
        for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True)
    ]


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("causal_lm", "classification"))
    parser.add_argument("model")
    parser.add_argument("jsonl", type=Path)
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    rows = [json.loads(line) for line in options.jsonl.read_text(encoding="utf-8").splitlines()]
    if options.task == "causal_lm":
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model)
        encoded, more = blocks(rows, tokenizer), {}
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(options.model)
        more = {"data_collator": DataCollatorWithPadding(tokenizer), "compute_metrics": accuracy}
        encoded = labelled(rows, tokenizer, 128)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(out, report_to=[], disable_tqdm=True, use_cpu=True)
        found = Trainer(model, arguments, eval_dataset=encoded, **more).evaluate()  # type: ignore[arg-type]
    figures = {"seconds": found["eval_runtime"], "perplexity": math.exp(found["eval_loss"])}
    if "eval_accuracy" in found:
        figures = {"seconds": found["eval_runtime"], "accuracy": found["eval_accuracy"]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
