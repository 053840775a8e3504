"""The merges of byte-level BPE as `tokenizers` would learn them, learned by gigatoken in a fraction of the time.

gigatoken splits texts into words some hundred times faster and breaks ties as `tokenizers` does. Two things it does
otherwise: it knows the letters of a newer Unicode, and it goes on where no pair is left to merge. Samples that show
either are left to `tokenizers`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmkit.data.tokenizer_core import byte_of

SEPARATOR = b"\xff\xfe"
"""Between texts: no UTF-8 holds it."""
PIECE = 1 << 20
"""Characters counted at once."""


def learn(texts: list[str], vocab_size: int, special: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` entries: `special`, then bytes, then what was merged."""
    return _learn_fast(texts, vocab_size, special) or learn_exactly(texts, vocab_size, special)


def learn_exactly(texts: Iterable[str], vocab_size: int, special: list[str]) -> Tokenizer:
    """`learn` by `tokenizers` itself."""
    tokenizer = _around(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _around(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _learn_fast(texts: list[str], vocab_size: int, special: list[str]) -> Tokenizer | None:
    """None where gigatoken is not installed, or where its merges may not be those of `tokenizers`."""
    try:
        import gigatoken
    except ImportError:
        return None
    if not _splits_alike(gigatoken.pretokenizer, np.flatnonzero(count_characters(texts))):
        return None
    data = SEPARATOR.join(text.encode() for text in texts)
    with _silence():
        _, learned = gigatoken.train_bpe(data, vocab_size - len(special), [], "huggingface", SEPARATOR)
    characters = {byte: character for character, byte in byte_of().items()}

    def spelled(part: bytes) -> str:
        return "".join(characters[byte] for byte in part)

    merges = [(spelled(left), spelled(right)) for left, right in learned]
    tokens = [*special, *sorted(characters.values()), *(left + right for left, right in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):  # a token that is made in two ways, or looks like a special one
        return None
    tokenizer = _around(models.BPE(vocab, merges))
    # by count, so if the last pair was there, all were; nothing is merged after it, so then its token is in use
    if merges:
        engine = gigatoken.Tokenizer.from_json(tokenizer.to_str().encode())
        found = engine.encode_batch(gigatoken.BytesSource(data, SEPARATOR)).layout.content.data
        if not np.any(np.asarray(found) == vocab[tokens[-1]]):
            return None
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _splits_alike(split: Callable[[bytes], Iterable[bytes]], codes: np.ndarray) -> bool:
    """Whether both libraries take each character for the same: a letter, a digit, a blank, or none of them."""
    text = "\n".join(f"a{c}a1{c}1!{c}! {c}" for c in map(chr, codes.tolist()))
    exact = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)  # a character a byte
    return [len(piece) for piece, _ in exact] == [len(piece) for piece in split(text.encode())]


def count_characters(texts: Iterable[str]) -> np.ndarray:
    """(0x110000,) int64 how often each code point occurs in the texts that are not ASCII."""
    counts = np.zeros(0x110000, np.int64)

    def add(text: str) -> None:
        for start in range(0, len(text), PIECE):
            codes = np.frombuffer(text[start : start + PIECE].encode("utf-32-le"), "<u4")
            counts[:] += np.bincount(codes, minlength=len(counts))

    waiting: list[str] = []
    size = 0
    for text in texts:
        if text.isascii():
            continue
        waiting.append(text)
        size += len(text)
        if size >= PIECE:
            add("".join(waiting))
            waiting, size = [], 0
    add("".join(waiting))
    return counts


@contextmanager
def _silence() -> Iterator[None]:
    """What a library prints past Python, on the process's own output and error, goes nowhere."""
    kept = {}
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is not None:
            stream.flush()
            kept[descriptor] = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in kept:
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
