"""llmkit's preprocessing against a peer script, in turn (A B A B ...) on the same machine and minute.

usage: python benchmarks/preprocess.py --peer PEER.py [--rounds 3] [--tokenizer DIR_OR_JSON] [--jsonl TEXT.jsonl]
[--copies 1]

The corpus is the Python standard library's source files as JSON lines, a file a record, unless --jsonl is given. The
peer is run as `python PEER.py TEXT.jsonl TOKENIZER.json` and prints a JSON line with `megabytes_per_second`. Ours is
the
whole of `preprocess` (hashing the sources, importing the tokenizer, cleaning none, encoding, shards with checksums,
fsync, publishing) in a process whose libraries are imported, as the peer's are when its clock starts. Prints one JSON
object: both rates of each round and the median of their ratios.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

EXCLUDED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


def write_stdlib(path: Path, copies: int) -> None:
    """The standard library's source files as JSON lines; further copies differ, so that no cache remembers them
    whole."""
    root = Path(sysconfig.get_paths()["stdlib"])
    with path.open("w", encoding="utf-8") as out:
        for copy in range(copies):
            for source in sorted(root.rglob("*.py")):
                if EXCLUDED & set(source.relative_to(root).parts):
                    continue
                text = source.read_text(encoding="utf-8", errors="replace")
                head = f"# copy {copy}\n" if copy else ""
                out.write(json.dumps({"text": head + text}, ensure_ascii=False) + "\n")


def train_tokenizer(jsonl: Path, target: Path) -> None:
    from llmkit.data.tokenizer import train_tokenizer as train
    from llmkit.recipe.sections import TokenizerTrain

    texts = [json.loads(line)["text"] for line in jsonl.open(encoding="utf-8")]
    train(lambda: texts, TokenizerTrain(vocab_size=16_000), target)


def ours(jsonl: Path, tokenizer: Path, scratch: Path) -> float:
    """MB/s of one whole preparation."""
    from llmkit.data.prepare import prepare
    from llmkit.recipe.resolve import resolve
    from llmkit.recipe.sections import Recipe
    from llmkit.report.console import Console

    recipe: dict[str, Any] = {
        "output_dir": str(scratch / "run"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2"}},
        "tokenizer": {"name_or_path": str(tokenizer)},
        "data": {"train": [{"path": str(jsonl)}], "prepared_dir": str(scratch / "prepared")},
    }
    resolved = resolve(Recipe.model_validate(recipe))
    started = time.perf_counter()
    prepare(resolved, Console(json=True))
    seconds = time.perf_counter() - started
    shutil.rmtree(scratch / "prepared")
    return jsonl.stat().st_size / seconds / 1e6


def peer(script: Path, jsonl: Path, tokenizer: Path) -> float:
    command = [sys.executable, str(script), str(jsonl), str(tokenizer / "tokenizer.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rate: float = json.loads(done.stdout.strip().splitlines()[-1])["megabytes_per_second"]
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--jsonl", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    import transformers  # noqa: F401  imported before the clock starts, as in the peer

    rates: list[tuple[float, float | None]] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        jsonl = options.jsonl or scratch / "stdlib.jsonl"
        if options.jsonl is None:
            write_stdlib(jsonl, options.copies)
        tokenizer = options.tokenizer or scratch / "tokenizer"
        if options.tokenizer is None:
            train_tokenizer(jsonl, tokenizer)
        for _ in range(options.rounds):
            mine = ours(jsonl, tokenizer, scratch)
            rates.append((mine, peer(options.peer, jsonl, tokenizer) if options.peer else None))
        size = jsonl.stat().st_size
    ratios = [mine / theirs for mine, theirs in rates if theirs is not None]
    result = {
        "bytes": size,
        "llmkit_megabytes_per_second": [round(mine, 1) for mine, _ in rates],
        "peer_megabytes_per_second": [round(theirs, 2) for _, theirs in rates if theirs is not None],
        "median_ratio": round(statistics.median(ratios), 1) if ratios else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
