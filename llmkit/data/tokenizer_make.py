"""The tokenizer of a preparation: its identity before it exists, and making it once, in `<partial>/tokenizer`.

Training sees a bounded sample of data.train, drawn by content hash so that it is the same wherever the data lies,
cleaned
as the data will be, without what is held out for validation.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from llmkit.data.clean.steps import build_cleaners
from llmkit.data.process import KEPT, clean_batch
from llmkit.data.reading import read
from llmkit.data.rolespecs import RoleSpec
from llmkit.data.sources import ResolvedSource
from llmkit.data.text import document_hash, in_validation, record_bytes, record_text
from llmkit.data.tokenizer import choose_engine
from llmkit.data.tokenizer_core import byte_of, read_core, read_vocabulary
from llmkit.data.tokenizer_files import import_tokenizer, section_identity, source_identity, tokenizer_source
from llmkit.data.tokenizer_train import END, train_tokenizer
from llmkit.errors import ModelError
from llmkit.files import environment_errors, read_object, sync
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import CHATS
from llmkit.report.console import Console

VERSION = 3
"""Counted up when training gives another tokenizer from the same sample."""
SAMPLE_BYTES = {
    "bpe": 64 * 2**20,
    "wordpiece": 64 * 2**20,
    "word": 64 * 2**20,
    "char": 64 * 2**20,
    "unigram": 4 * 2**20,
}
JIEBA_BYTES = 4 * 2**20
"""jieba cuts about 0.3 MB a second."""
PROOF_TEXTS, PROOF_BYTES = 200, 50_000
"""Of each source: what gigatoken is proven on."""


def tokenizer_identity(recipe: Recipe) -> tuple[dict[str, Any], Path | None]:
    """What stands for the tokenizer in the fingerprint, and the directory it is loaded from (None: trained)."""
    source = tokenizer_source(recipe)
    if source is not None:
        return source_identity(source, recipe.tokenizer), source.directory()
    spec = recipe.tokenizer.train
    assert spec is not None
    trained = {**spec.model_dump(mode="json"), "version": VERSION, "sample_bytes": _sample_bytes(recipe)}
    return {"train": trained, **section_identity(recipe.tokenizer)}, None


def _sample_bytes(recipe: Recipe) -> int:
    spec = recipe.tokenizer.train
    assert spec is not None
    return JIEBA_BYTES if spec.pre_tokenizer == "jieba" else SAMPLE_BYTES[spec.algorithm]


def write_stand_in(directory: Path, template_source: Path | None, recipe: Recipe) -> None:
    """A tokenizer that only has the task's special tokens and the chat template of `template_source`: enough to ask an
    encoder what it depends on beside the vocabulary."""
    from llmkit.tasks import added_tokens

    tokenizer = Tokenizer(models.WordLevel({END: 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([END])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    if template_source is not None:
        jinja = template_source / "chat_template.jinja"
        if jinja.exists():
            shutil.copyfile(jinja, directory / "chat_template.jinja")
        own = template_source / "tokenizer_config.json"
        template = read_object(own, ModelError).get("chat_template") if own.exists() else None
        if template is not None:
            config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer.add_special_tokens(added_tokens(recipe, lambda name: tokenizer.token_to_id(name) is not None, directory))
    tokenizer.save(str(directory / "tokenizer.json"))


def make_tokenizer(
    recipe: Recipe, groups: dict[str, list[ResolvedSource]], roles: RoleSpec, partial: Path, console: Console
) -> None:
    """Makes `<partial>/tokenizer` whole, or leaves nothing of that name. Raises ModelError, DataError, RecipeError."""
    from llmkit.tasks import named_tokens

    target = partial / "tokenizer"
    if target.exists():
        return
    unfinished = partial / ".tokenizer"
    shutil.rmtree(unfinished, ignore_errors=True)
    source = tokenizer_source(recipe)
    if source is not None:
        import_tokenizer(source, recipe.tokenizer, unfinished)
    else:
        spec = recipe.tokenizer.train
        assert spec is not None
        console.note(f"training a {spec.algorithm} tokenizer, at most {spec.vocab_size:,} tokens")
        texts = list(_training_sample(recipe, groups["train"], roles))
        asked = recipe.tokenizer.special_tokens
        additional = dict.fromkeys([*(asked.additional if asked else ()), *named_tokens(recipe).values()])
        train_tokenizer(lambda: texts, spec, unfinished, additional=tuple(additional))
    _complete(recipe, unfinished)
    sample = [text for sources in groups.values() for s in sources for text in proof_sample(s, roles)]
    engine = choose_engine(unfinished, sample)
    console.note(f"tokenizing with {engine.name}: {engine.reason}")
    with environment_errors(target):
        sync([*unfinished.iterdir(), unfinished])
        os.replace(unfinished, target)


def _complete(recipe: Recipe, directory: Path) -> None:
    """What the task needs beside: special tokens, a chat template. transformers is imported only where something is."""
    from llmkit.tasks import added_tokens, complete_tokenizer, named_tokens

    core = read_core(directory)
    needed = bool(named_tokens(recipe)) or recipe.task.type in CHATS
    if needed or added_tokens(recipe, lambda name: core.token_to_id(name) is not None, directory):
        complete_tokenizer(recipe, directory)


def proof_sample(source: ResolvedSource, roles: RoleSpec) -> list[str]:
    """The first texts of a source, without those that are no Unicode text."""
    texts: list[str] = []
    size = 0
    for batch in read(source, roles, batch_bytes=PROOF_BYTES):
        for i in range(len(batch)):
            text = record_text(batch.columns, i, roles.content_roles())[:PROOF_BYTES]
            if len(texts) >= PROOF_TEXTS or size >= PROOF_BYTES:
                return texts
            if _is_unicode(text):
                texts.append(text)
                size += len(text)
    return texts


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _training_sample(recipe: Recipe, sources: list[ResolvedSource], roles: RoleSpec) -> Iterator[str]:
    """Documents of data.train until the budget is reached, each kept by its hash with the share that fits the
    budget."""
    cleaners = build_cleaners(recipe.data.clean)
    budget = _sample_bytes(recipe)
    sizes = {source.index: sum(file.size for file in source.files) for source in sources}
    share = budget / max(1, sum(sizes.values()))
    for source in sources:
        room = budget if share >= 1 else int(share * sizes[source.index]) + 1
        for batch in read(source, roles):
            done = clean_batch(batch, cleaners, roles.content_roles())
            for i in np.flatnonzero(done.dropped == KEPT).tolist():
                text = record_text(batch.columns, i, roles.content_roles())
                if not _is_unicode(text):
                    continue
                digest = document_hash(record_bytes(batch.columns, i))
                held = recipe.data.validation_fraction
                if held is not None and in_validation(digest, held):
                    continue
                if share < 1 and int.from_bytes(digest[:8], "big") >= share * 2**64:
                    continue
                room -= len(text.encode())
                yield text
            if room <= 0:
                break


def single_byte_ids(directory: Path, size: int) -> np.ndarray:
    """(size,) bool: ids that stand for a part of a character, so that text made of them fell into single bytes."""
    core = read_core(directory)
    vocab = read_vocabulary(directory)
    parts = np.zeros(size, bool)
    if not any(part is not None and b"ByteLevel" in part.__getstate__() for part in (core.pre_tokenizer, core.decoder)):
        fallback = (f"<0x{byte:02X}>" for byte in range(0x80, 0x100))
        parts[[vocab[token] for token in fallback if token in vocab]] = True
        return parts
    # all at once: byte 0 separates the tokens, and stands in none of them as itself
    table = np.full(0x10000, ord("?"), np.uint8)
    table[:256] = np.arange(256)
    table[[ord(character) for character in byte_of()]] = [byte or 1 for byte in byte_of().values()]
    tokens = table[np.frombuffer("\0".join(vocab).encode("utf-16-le"), "<u2")].tobytes().split(b"\0")
    parts[[i for data, i in zip(tokens, vocab.values(), strict=True) if not data.isascii() and not _is_text(data)]] = (
        True
    )
    return parts


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
