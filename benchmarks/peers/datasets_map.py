"""`datasets.map` with a fast tokenizer, then joined and cut into blocks, as transformers' run_clm example does it.

The clock starts when libraries are imported and the tokenizer is loaded; all cores work.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer

BLOCK = 1024


def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    joined = {key: list(chain.from_iterable(own)) for key, own in rows.items()}
    end = len(joined["input_ids"]) // BLOCK * BLOCK
    out = {key: [own[i : i + BLOCK] for i in range(0, end, BLOCK)] for key, own in joined.items()}
    out["labels"] = out["input_ids"].copy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jsonl", type=Path)
    parser.add_argument("tokenizer")
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.tokenizer)
    tokenizer.model_max_length = 2**31  # texts are cut after they are joined
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        rows: Any = load_dataset("json", data_files=str(options.jsonl), split="train", cache_dir=cache)
        rows = rows.map(
            lambda batch: tokenizer(batch["text"]), batched=True, num_proc=cores, remove_columns=rows.column_names
        )
        rows.map(group, batched=True, num_proc=cores)
        seconds = time.perf_counter() - started
    print(json.dumps({"megabytes_per_second": options.jsonl.stat().st_size / seconds / 1e6}))


if __name__ == "__main__":
    main()
