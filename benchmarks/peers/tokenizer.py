"""Byte-level BPE by the trainer of `tokenizers`, with GPT-2's splitting rule, on the texts of a file of JSON lines."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jsonl", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocabulary", type=int, required=True)
    options = parser.parse_args()
    started = time.perf_counter()
    with options.jsonl.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.save(str(options.output))
    seconds = time.perf_counter() - started
    print(json.dumps({"megabytes_per_second": options.jsonl.stat().st_size / seconds / 1e6, "seconds": seconds}))


if __name__ == "__main__":
    main()
