"""An n-gram model as an ARPA file, the text format that KenLM, SRILM and speech and translation decoders read."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmkit.data.tokenizer import read_special_ids
from llmkit.files import environment_errors
from llmkit.models.ngram_smoothing import Table

if TYPE_CHECKING:
    from llmkit.models.ngram import NgramForCausalLM

LOG_10 = math.log(10)
CHUNK = 2**16
START, END, UNKNOWN = "<s>", "</s>", "<unk>"


def escape(token: str) -> str:
    r"""A token as one word of an ARPA file: whitespace, control characters, backslashes and what is no character as
    \uXXXX, the empty token as \e, and a token that only looks like one of the format's own words with its first
    character so written."""
    if not token:
        return r"\e"
    if token in (START, END, UNKNOWN):
        return f"\\u{ord(token[0]):04x}{token[1:]}"
    return "".join(f"\\u{ord(c):04x}" if c.isspace() or c == "\\" or not c.isprintable() else c for c in token)


def vocabulary(tokens: list[str], start: int, end: int, unknown: int | None) -> list[str]:
    """The word of each id. What begins, ends and is unknown has ARPA's own names; where one token does both of the
    first two, it is `</s>` here, and `<s>` where a context begins with it."""
    words = [escape(token) for token in tokens]
    for number, name in ((unknown, UNKNOWN), (start, START), (end, END)):
        if number is not None:
            words[number] = name
    return words


def write_arpa(path: Path, tables: Callable[[int], Table], order: int, words: list[str], start: int, end: int) -> None:
    """Writes the orders that `tables(n)` gives, gzipped; the same model gives the same bytes.

    start, end: ids of the tokens that begin and end a document. Raises EnvironmentFailure.
    """
    with (
        environment_errors(path),
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        sizes = [len(tables(n).keys) for n in range(1, order + 1)]
        sizes[0] += start == end  # one token, two words
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={size}\n" for n, size in enumerate(sizes, 1))
        below: list[np.ndarray] = []
        for n in range(1, order + 1):
            table = tables(n)
            file.write(f"\n\\{n}-grams:\n")
            if n == 1 and start == end:
                file.write(f"-99\t{START}\t{_number(table.backoffs[start])}\n")
            file.writelines(_lines(table, n, order, below, words, start, end))
            below.append(table.keys)
        file.write("\n\\end\\\n")


def export_arpa(model: NgramForCausalLM, tokenizer_dir: Path, path: Path) -> None:
    """Writes the model with the tokens of its tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    ids = read_special_ids(tokenizer_dir)
    assert ids.prefix is not None and ids.suffix is not None, "the encoder refuses a tokenizer without them"
    # an id without a token is a gap in the vocabulary; no text has it
    tokens = [tokenizer.id_to_token(i) or f"gap {i}" for i in range(model.config.vocab_size)]
    words = vocabulary(tokens, ids.prefix, ids.suffix, ids.unk)
    write_arpa(path, model.table, model.config.order, words, ids.prefix, ids.suffix)


def _lines(
    table: Table, n: int, order: int, below: list[np.ndarray], words: list[str], start: int, end: int
) -> Iterator[str]:
    begin = START if start == end else words[start]
    for at in range(0, len(table.keys), CHUNK):
        part = slice(at, at + CHUNK)
        ids = token_ids(table.keys[part], n, below, len(words)).tolist()
        for row, log_p, backoff in zip(ids, table.log_probs[part].tolist(), table.backoffs[part].tolist(), strict=True):
            names = [words[i] for i in row]
            if n > 1 and row[0] == start:
                names[0] = begin
            line = f"{_number(log_p)}\t{' '.join(names)}"
            # what ends a document is no context; as `<s>` it has a line of its own
            ends = row[-1] == end and (n > 1 or start == end)
            yield f"{line}\n" if n == order or ends else f"{line}\t{_number(backoff)}\n"


def token_ids(keys: np.ndarray, n: int, below: list[np.ndarray], vocab_size: int) -> np.ndarray:
    """(C, n) tokens of n-grams; below: the keys of the orders 1 to n - 1."""
    ids = np.empty((len(keys), n), np.int64)
    for place in range(n - 1, 0, -1):
        numbers, ids[:, place] = np.divmod(keys, vocab_size)
        keys = below[place - 1][numbers] if place > 1 else numbers
    ids[:, 0] = keys
    return ids


def _number(log_p: float) -> str:
    """A natural logarithm in base 10, with the digits that tell float32 numbers apart."""
    return f"{log_p / LOG_10:.9g}"
