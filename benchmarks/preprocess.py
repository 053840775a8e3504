"""llmkit's preprocessing against a peer script, in turn (A B A B ...) on the same machine and minute.

usage: python benchmarks/preprocess.py --peer PEER.py [--rounds 5] [--tokenizer DIR] [--jsonl TEXT.jsonl] [--copies 1]

The corpus is the Python standard library's source files as JSON lines, a file a record, unless --jsonl is given. The
peer is run as `python PEER.py TEXT.jsonl TOKENIZER.json` and prints a JSON line with `megabytes_per_second`; its clock
starts when its libraries are imported and the tokenizer is loaded. Ours is a new process a round as well, with the
libraries imported before the clock starts; inside it lies the whole of `preprocess`: hashing the sources, loading the
tokenizer, proving the fast engine equal to the exact one on a sample, encoding, shards with checksums, fsync, and
publishing. `wall` is the time of the whole process instead, the start of Python and all imports with it, for both
sides. Prints one JSON object: the rates of each round, the medians of the paired ratios, and the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
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
    """MB/s of one whole preparation in this process."""
    import awkward  # noqa: F401  what gigatoken answers in
    import gigatoken  # noqa: F401  as everything else, imported before the clock starts
    import numpy.ma  # noqa: F401  what awkward imports on its first use
    import pyarrow
    import pyarrow.compute  # noqa: F401
    import tokenizers  # noqa: F401

    import llmkit.tasks  # noqa: F401
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
    return jsonl.stat().st_size / (time.perf_counter() - started) / 1e6


def timed(command: list[str], size: int) -> tuple[float, float]:
    """(MB/s by the program's own clock, MB/s of the whole process)."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    wall = size / (time.perf_counter() - started) / 1e6
    return json.loads(done.stdout.strip().splitlines()[-1])["megabytes_per_second"], wall


def compare(peer: Path | None, jsonl: Path, tokenizer: Path, rounds: int) -> dict[str, Any]:
    size = jsonl.stat().st_size
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        commands = {"llmkit": [__file__, "--ours", "--jsonl", str(jsonl), "--tokenizer", str(tokenizer)]}
        if peer is not None:
            commands["peer"] = [str(peer), str(jsonl), str(tokenizer / "tokenizer.json")]
        for name, command in commands.items():
            for kind, rate in zip(("", "_wall"), timed(command, size), strict=True):
                rates.setdefault(name + kind, []).append(rate)
    result: dict[str, Any] = {"bytes": size, "load": round(os.getloadavg()[0], 1)}
    result |= {f"{name}_megabytes_per_second": [round(rate, 2) for rate in found] for name, found in rates.items()}
    for kind in ("", "_wall") if peer is not None else ():
        pairs = zip(rates["llmkit" + kind], rates["peer" + kind], strict=True)
        result["median_ratio" + kind] = round(statistics.median(mine / theirs for mine, theirs in pairs), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--jsonl", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if options.ours:
            print(json.dumps({"megabytes_per_second": ours(options.jsonl, options.tokenizer, scratch)}))
            return
        jsonl = options.jsonl or scratch / "stdlib.jsonl"
        if options.jsonl is None:
            write_stdlib(jsonl, options.copies)
        tokenizer = options.tokenizer or scratch / "tokenizer"
        if options.tokenizer is None:
            train_tokenizer(jsonl, tokenizer)
        print(json.dumps(compare(options.peer, jsonl, tokenizer, options.rounds)))


if __name__ == "__main__":
    main()
