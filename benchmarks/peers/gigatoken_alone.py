"""gigatoken alone: the fields of a file of JSON lines to token ids in memory, nothing checked and nothing written.

What encoding costs at least: the limit of preprocessing. The clock starts when libraries are imported and the tokenizer
is loaded.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import awkward  # noqa: F401  what gigatoken answers in
import gigatoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jsonl", type=Path)
    parser.add_argument("tokenizer", type=Path)
    options = parser.parse_args()
    tokenizer = gigatoken.Tokenizer.from_json((options.tokenizer / "tokenizer.json").read_bytes())
    started = time.perf_counter()
    encoded = tokenizer.encode_files(str(options.jsonl))
    seconds = time.perf_counter() - started
    size = options.jsonl.stat().st_size
    print(json.dumps({"megabytes_per_second": size / seconds / 1e6, "documents": len(encoded)}))


if __name__ == "__main__":
    main()
