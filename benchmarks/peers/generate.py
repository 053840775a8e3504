"""transformers' `model.generate` over a file of prompts, in input order, as its guide to batched generation has it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.corpus import write_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(options.model).eval()
    prompts = [json.loads(line)["prompt"] for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    new_tokens, rows = 0, []
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(prompts), options.batch):
            batch = tokenizer(prompts[first : first + options.batch], return_tensors="pt", padding=True)
            out = model.generate(
                **batch, max_new_tokens=options.new, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
            fresh = out[:, batch["input_ids"].shape[1] :]
            ended = (fresh == tokenizer.eos_token_id).int()
            new_tokens += int((ended.cumsum(1) - ended == 0).sum())  # the end of a text counts, what pads it does not
            rows += [{"text": text} for text in tokenizer.batch_decode(fresh, skip_special_tokens=True)]
    seconds = time.perf_counter() - started
    write_jsonl(options.output, rows)
    print(json.dumps({"new_tokens_per_second": new_tokens / seconds, "new_tokens": new_tokens}))


if __name__ == "__main__":
    main()
