"""A tokenizer directory in use: its special ids, and fast encoding of whole batches, without importing torch.

Two engines give the same ids. gigatoken (byte-level BPE, or BPE with byte fallback) is some hundred times faster and is
used where it is proven equal to `tokenizers` on a sample of the data at the start; which one, and why, stands in
`engine.json` beside the tokenizer, so that worker processes and a resumed run use the same.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import Ragged
from llmkit.data.tokenizer_core import num_ids, read_core, read_fast, read_literal
from llmkit.data.tokenizer_files import check_class, import_tokenizer, tokenizer_source
from llmkit.data.tokenizer_train import train_tokenizer
from llmkit.errors import ModelError
from llmkit.files import dump_json, environment_errors, read_json, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BatchEncoder",
    "Engine",
    "SpecialIds",
    "choose_engine",
    "import_tokenizer",
    "load_tokenizer",
    "read_special_ids",
    "tokenizer_source",
    "train_tokenizer",
    "wrap",
]

ENGINE_FILE = "engine.json"
LONG = 500
"""Tokens a row from which copying row by row is faster than marking every place first."""
TORTURE = (
    "",
    " ",
    "\n\n\n",
    "  two  spaces\tand\ttabs \r\n",
    "I'm, you'll, WE'VE don't 3.14159 1,000,000 x=-1e-5",
    "你好，世界！今天天气很好。　　全角空格，“引号”《书名》123",
    "日本語のテキスト と カタカナ, 한국어 텍스트, العربية, हिन्दी",
    "😀👩‍👩‍👧‍👦 e\u0301 \u00a0\u200b\ufeff naïve Straße",
    "def f(x):\n    return [y ** 2 for y in x]  # note\n\n\n\t\tpass",
    "\x00\x01\x7f end",
)


@dataclass(frozen=True)
class SpecialIds:
    """Special token ids of a tokenizer, None where it has none. size: one more than the largest id."""

    size: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None

    @property
    def prefix(self) -> int | None:
        """What a stored document begins with: bos, or else eos (cls and sep where the tokenizer has neither)."""
        return next((i for i in (self.bos, self.eos, self.cls, self.sep) if i is not None), None)

    @property
    def suffix(self) -> int | None:
        """What a stored document ends with: eos (sep where the tokenizer has none)."""
        return self.eos if self.eos is not None else self.sep


def read_special_ids(directory: Path) -> SpecialIds:
    """Reads tokenizer_config.json and tokenizer.json of a prepared tokenizer. Raises ModelError."""
    tokenizer = read_core(directory)
    path = directory / "tokenizer_config.json"
    config = read_object(path, ModelError) if path.exists() else {}
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        token = config.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.token_to_id(content) if isinstance(content, str) else None
        if found is not None:
            ids[name] = found
    return SpecialIds(size=num_ids(directory), **ids)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The transformers tokenizer of a prepared (or any complete) tokenizer directory. Raises ModelError."""
    from transformers import AutoTokenizer

    if not directory.is_dir():
        raise ModelError(f"no tokenizer at {directory}")
    check_class(directory)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its files may be anybody's, and fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load the tokenizer in {directory}: {reason}") from error
    return tokenizer


@dataclass(frozen=True)
class Engine:
    """Which library encodes, and why."""

    name: str
    reason: str


def _flat(lists: list[list[int]]) -> Ragged:
    lengths = np.fromiter((len(ids) for ids in lists), np.int64, len(lists))
    values = np.fromiter((i for ids in lists for i in ids), np.uint32, int(lengths.sum()))
    return Ragged(values, lengths)


class BatchEncoder:
    """Texts to token ids, a batch at a time. Picklable: the libraries' objects are made on first use.

    No special tokens are added, and text that looks like one (`<|endoftext|>` in a document) stays text, unless
    `parse_special`. The engine is the one that `engine.json` names, else `tokenizers`.
    """

    def __init__(self, directory: Path, engine: str | None = None, parse_special: bool = False):
        self.directory = directory
        self.parse_special = parse_special
        self._engine = engine
        self._slow: Any = None
        self._fast: Any = None
        self._special: list[tuple[int, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "engine": self._engine, "parse_special": self.parse_special}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def engine(self) -> str:
        if self._engine is None:
            path = self.directory / ENGINE_FILE
            self._engine = read_json(path)["engine"] if path.exists() else "tokenizers"
        return self._engine

    def _prepare(self) -> None:
        if self._slow is None:
            core = read_core(self.directory, literal=not self.parse_special)
            self._slow = core if self.parse_special else read_literal(self.directory)
        if self.engine == "gigatoken" and self._fast is None:
            self._fast = read_fast(self.directory)
            if not self.parse_special:
                self._special = _runs(self._ids_of_special())

    def _ids_of_special(self) -> list[int]:
        """The ids that a special token can have, in order: its own, and where a file numbers it otherwise than
        `tokenizers` does the one that gigatoken gives."""
        added = read_core(self.directory).get_added_tokens_decoder()
        special = {number: token.content for number, token in added.items() if token.special}
        alone = [ids for ids in map(self._fast.encode, special.values()) if len(ids) == 1]
        return sorted({*special, *(int(ids[0]) for ids in alone)})

    def encode(self, texts: list[str]) -> Ragged:
        """values (sum of lengths,) uint32 ids, lengths (N,) int64. Lone surrogates raise UnicodeEncodeError."""
        self._prepare()
        if not texts:
            return Ragged(np.empty(0, np.uint32), np.empty(0, np.int64))
        if self._fast is None:
            return self.encode_exactly(texts)
        rows = self._encode_fast(texts)
        # gigatoken always parses special tokens, so documents that spell one take the exact path
        marked = _rows_with(rows, self._special)
        return _replace(rows, self.encode_exactly([texts[i] for i in marked]), marked) if marked else rows

    def _encode_fast(self, texts: list[str]) -> Ragged:
        layout = self._fast.encode_batch(texts).layout
        offsets = np.asarray(layout.offsets.data)
        return Ragged(np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets))

    def encode_exactly(self, texts: list[str]) -> Ragged:
        """`encode` by `tokenizers`, whatever the engine is."""
        self._prepare()
        try:
            encodings = self._slow.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            for text in texts:
                text.encode()
            raise
        return _flat([encoding.ids for encoding in encodings])

    def encode_with_places(self, texts: list[str]) -> tuple[Ragged, list[np.ndarray]]:
        """The same ids as `encode`, and for each text (T, 2) the characters [start, end) that its tokens stand for."""
        self._prepare()
        for text in texts:
            text.encode()
        encodings = self._slow.encode_batch(texts, add_special_tokens=False) if texts else []
        places = [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]
        return _flat([encoding.ids for encoding in encodings]), places


def _runs(ids: list[int]) -> list[tuple[int, int]]:
    """(first, last) of the stretches of consecutive numbers in a sorted list."""
    runs: list[tuple[int, int]] = []
    for number in ids:
        joins = bool(runs) and runs[-1][1] == number - 1
        runs[-1:] = [(runs[-1][0], number)] if joins else [*runs[-1:], (number, number)]
    return runs


def _rows_with(rows: Ragged, runs: list[tuple[int, int]]) -> list[int]:
    """The rows that hold an id of one of the runs. Below a run the difference wraps around."""
    found: list[int] = []
    for first, last in runs:
        places = np.flatnonzero(rows.values - np.uint32(first) <= np.uint32(last - first))
        found += np.searchsorted(np.cumsum(rows.lengths), places, side="right").tolist() if len(places) else []
    return sorted(set(found))


def _replace(rows: Ragged, others: Ragged, places: list[int]) -> Ragged:
    """The rows, with those at `places` replaced by `others`."""
    ends, cuts = np.cumsum(rows.lengths), np.cumsum(others.lengths)
    lengths, pieces, at = rows.lengths.copy(), [], 0
    for k, place in enumerate(places):
        pieces += [
            rows.values[at : ends[place] - rows.lengths[place]],
            others.values[cuts[k] - others.lengths[k] : cuts[k]],
        ]
        lengths[place] = others.lengths[k]
        at = int(ends[place])
    return Ragged(np.concatenate([*pieces, rows.values[at:]]), lengths)


def choose_engine(directory: Path, sample: list[str]) -> Engine:
    """Proves gigatoken equal to `tokenizers` on `sample` and on hard cases; writes the verdict to engine.json."""
    engine = _prove(directory, sample)
    with environment_errors(directory):
        (directory / ENGINE_FILE).write_bytes(dump_json({"engine": engine.name, "reason": engine.reason}))
    return engine


def _prove(directory: Path, sample: list[str]) -> Engine:
    from tokenizers.models import BPE

    model = read_core(directory).model
    if not isinstance(model, BPE):
        return Engine("tokenizers", f"gigatoken encodes BPE only, and this tokenizer is {type(model).__name__}")
    texts = [*TORTURE, *sample]
    encoder = BatchEncoder(directory, "gigatoken")
    with ThreadPoolExecutor(1) as pool:
        try:
            expected = pool.submit(BatchEncoder(directory, "tokenizers").encode, texts)
            fast = encoder.encode(texts)
        except ImportError:
            return Engine("tokenizers", "gigatoken is not installed")
        except Exception as error:  # noqa: BLE001 an unsupported configuration, in the library's own words
            return Engine("tokenizers", f"gigatoken refuses this tokenizer: {str(error).splitlines()[0]}")
        exact = expected.result()
    if not np.array_equal(fast.lengths, exact.lengths) or not np.array_equal(fast.values, exact.values):
        return Engine("tokenizers", f"gigatoken differs from tokenizers on a sample of {len(texts)} texts")
    return Engine("gigatoken", f"equal to tokenizers on a sample of {len(texts)} texts")


def wrap(rows: Ragged, prefix: int | None, suffix: int | None) -> Ragged:
    """Each row as [prefix] + tokens + [suffix], for all rows at once."""
    before, after = int(prefix is not None), int(suffix is not None)
    lengths = rows.lengths + before + after
    ends = np.cumsum(lengths)
    values = np.empty(int(ends[-1]) if len(ends) else 0, rows.values.dtype)
    if prefix is not None:
        values[ends - lengths] = prefix
    if suffix is not None:
        values[ends - 1] = suffix
    if len(values) > LONG * len(lengths):
        own = np.cumsum(rows.lengths)
        for end, stop, size in zip(ends.tolist(), own.tolist(), rows.lengths.tolist(), strict=True):
            values[end - after - size : end - after] = rows.values[stop - size : stop]
        return Ragged(values, lengths)
    keep = np.ones(len(values), bool)
    if prefix is not None:
        keep[ends - lengths] = False
    if suffix is not None:
        keep[ends - 1] = False
    values[keep] = rows.values
    return Ragged(values, lengths)
