"""tokenizer.json as the two libraries that encode have it, parsed once for the same bytes.

Parsing a vocabulary takes as long as preparing some megabytes of text, and one preparation asks for it again and again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.errors import ModelError

MAX_KEPT = 6
UNSPELLED = "\U0010ffff"
"""A noncharacter, which no text holds."""

_digests: dict[tuple[int, ...], str] = {}
_kept: dict[tuple[str, str], Any] = {}


def read_core(directory: Path, *, literal: bool = True) -> Any:
    """The `tokenizers.Tokenizer` of a directory, without the truncation and padding that some files carry. Shared.

    `literal`: special tokens in a text are not looked for. Raises ModelError.
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"

    def read() -> Any:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for any defect of the file
            raise ModelError(f"cannot read {path}: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = literal
        return tokenizer

    return _keep("literal" if literal else "parsing", path, read)


def read_literal(directory: Path) -> Any:
    """What encodes documents: special tokens that a text spells stay text. Its ids are right, its own names may not be.

    A Unigram vocabulary lists its special tokens as pieces, and the model would find them in a text like any other.
    """
    from tokenizers.models import Unigram

    core = read_core(directory)
    if not isinstance(core.model, Unigram):
        return core
    return _keep("unspelled", directory / "tokenizer.json", lambda: unspelled(core)) or core


def unspelled(core: Any) -> Any:
    """The tokenizer with a vocabulary in which nobody can spell a special token; None where none could anyway."""
    from tokenizers.models import Unigram

    added = core.get_added_tokens_decoder().values()
    if not isinstance(core.model, Unigram) or not all(token.special for token in added):
        return None
    state = json.loads(core.to_str())
    special = {token.content for token in added}
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = [[UNSPELLED + piece if piece in special else piece, score] for piece, score in vocab]
    return type(core).from_str(json.dumps({**state, "added_tokens": [], "post_processor": None}))


def read_fast(directory: Path) -> Any:
    """The same as gigatoken has it. Raises what gigatoken raises, ImportError where it is not installed."""
    import gigatoken

    path = directory / "tokenizer.json"
    return _keep("gigatoken", path, lambda: gigatoken.Tokenizer.from_json(path.read_bytes()))


def read_vocabulary(directory: Path) -> dict[str, int]:
    """The model's own tokens and their ids, without those added to them."""
    core = read_core(directory)
    vocabulary: dict[str, int] = _keep("vocabulary", directory / "tokenizer.json", lambda: core.get_vocab(False))
    return vocabulary


def num_ids(directory: Path) -> int:
    """One more than the largest id, added tokens included."""
    added: dict[int, Any] = read_core(directory).get_added_tokens_decoder()
    return max([*read_vocabulary(directory).values(), *added]) + 1


def _keep(kind: str, path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, made once for the bytes of this file."""
    try:
        status = path.stat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if state not in _digests:
            _digests[state] = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    key = (kind, _digests[state])
    if key not in _kept:
        made = make()
        while len(_kept) >= MAX_KEPT:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = made
    return _kept[key]


def byte_of() -> dict[str, int]:
    """GPT-2's table from the characters of its vocabulary to bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
