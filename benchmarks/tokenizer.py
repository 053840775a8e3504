"""Training a tokenizer: byte-level BPE of 16,000 entries on the standard library as JSON lines, about 58 MB.

Ours is what `llmkit preprocess` takes longer where the recipe trains a tokenizer than where it is given the one that
came of it: reading the sample with it. The peer is the trainer of `tokenizers`, reading the file with it.
`bytes_per_token` is measured on every tenth file.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

from benchmarks.common import Figures, Side, Target, main, peer
from benchmarks.corpus import stdlib_texts, write_stdlib
from benchmarks.preprocess import ours as preprocess
from benchmarks.preprocess import recipe_of
from benchmarks.runs import prepared_tokenizer

TARGETS = [
    Target("megabytes_per_second", over="tokenizers", at_least=2.5),
    Target("bytes_per_token", over="tokenizers", at_least=0.995),
    Target("peak_memory_bytes", over="tokenizers"),
]


def bytes_per_token(tokenizer: Path) -> float:
    from tokenizers import Tokenizer

    texts = stdlib_texts()[::10]
    encoded = Tokenizer.from_file(str(tokenizer)).encode_batch_fast(texts, add_special_tokens=False)
    return sum(len(text.encode()) for text in texts) / sum(len(one.ids) for one in encoded)


def ours(place: Path, jsonl: Path, vocabulary: int) -> Figures:
    recipe = recipe_of(place, jsonl, {"train": {"algorithm": "bpe", "vocab_size": vocabulary}})
    size = jsonl.stat().st_size
    figures = preprocess(place, recipe, size)
    made = place / "made"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(prepared_tokenizer(place), made)
    given = preprocess(place, recipe_of(place, jsonl, {"name_or_path": str(made)}), size)
    seconds = figures["seconds"] - given["seconds"]
    return {
        **figures,
        "megabytes_per_second": size / seconds / 1e6,
        "seconds": seconds,
        "bytes_per_token": bytes_per_token(made / "tokenizer.json"),
    }


def theirs(place: Path, jsonl: Path, vocabulary: int) -> Figures:
    output = place / "theirs.json"
    figures = peer("tokenizer", jsonl, output, "--vocabulary", vocabulary)
    return {**figures, "bytes_per_token": bytes_per_token(output)}


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    jsonl = write_stdlib(place / "corpus.jsonl", options.copies)
    known = (place, jsonl, options.vocabulary)
    return {"llmkit": partial(ours, *known), "tokenizers": partial(theirs, *known)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copies", type=int, default=5, help="of 11.5 MB; beyond 64 MiB ours trains on a sample")
    parser.add_argument("--vocabulary", type=int, default=16_000)


if __name__ == "__main__":
    main("tokenizer", str(__doc__), prepare, TARGETS, add_options)
