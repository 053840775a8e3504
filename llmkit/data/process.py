"""One batch of records through cleaning, hashing and encoding: pure, so it runs here or in worker processes alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmkit.data.clean.steps import Cleaner, build_cleaners
from llmkit.data.examples import Encoded, Encoder, Ragged
from llmkit.data.records import RecordBatch, Reject
from llmkit.data.shardfile import MAIN_STREAM
from llmkit.data.text import content_hash, count_words, document_hash, map_texts, record_bytes, record_text, texts_of
from llmkit.recipe.sections import CleanStep

KEPT, INVALID = -1, -2


@dataclass
class Processed:
    """N records of one batch after cleaning and encoding; S cleaning steps.

    dropped: (N,) the step that dropped a record, KEPT, or INVALID. sizes: (S + 1, N) UTF-8 bytes before each step and
    at the end. changed: (S, N). dedup: step -> N hashes at that point (None where a record did not get there).
    encoded.rows counts in the N records; its streams have the dtypes they are stored in.
    """

    batch: RecordBatch
    dropped: np.ndarray
    reasons: dict[int, str]
    sizes: np.ndarray
    changed: np.ndarray
    dedup: dict[int, list[bytes | None]]
    hashes: list[bytes]
    words: np.ndarray
    cjk: np.ndarray
    characters: np.ndarray
    encoded: Encoded
    rejects: list[Reject] = field(default_factory=list)


class Processor:
    """Cleaners and encoder, made once a process. `content`: the roles that hold the text (`RoleSpec.content_roles`)."""

    def __init__(self, clean: list[CleanStep], encoder: Encoder, dtype: np.dtype[Any], content: tuple[str, ...]):
        self.clean = clean
        self.content = content
        self.encoder = encoder
        self.dtype = dtype
        self._cleaners: list[Cleaner] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"clean": self.clean, "encoder": self.encoder, "dtype": self.dtype, "content": self.content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def cleaners(self) -> list[Cleaner]:
        if self._cleaners is None:
            self._cleaners = build_cleaners(self.clean)
        return self._cleaners

    def __call__(self, batch: RecordBatch) -> Processed:
        return self.encode(self.measure(batch))

    def measure(self, batch: RecordBatch) -> Processed:
        """Cleaned, counted and hashed, with the texts that are left in `batch.columns`. Mostly Python's own work."""
        done = clean_batch(batch, self.cleaners, self.content)
        self._measure(done, np.flatnonzero(done.dropped == KEPT).tolist())
        return done

    def encode(self, done: Processed) -> Processed:
        """What `measure` gave, with its texts replaced by tokens. Mostly done without Python's lock."""
        batch = done.batch
        done.encoded = self._encode(batch, np.flatnonzero(done.dropped == KEPT))
        # what comes back from a worker is what will be written, not the text
        done.batch = RecordBatch(batch.source, batch.file, {}, batch.lines, batch.offsets, batch.rejects, batch.resume)
        return done

    def _measure(self, done: Processed, alive: list[int]) -> None:
        columns = done.batch.columns
        if set(columns) == set(self.content) == {"text"} and self._measure_texts(done, alive):
            return
        texts: list[str] = []
        for i in alive:
            try:
                text = record_text(columns, i, self.content)
                data = record_bytes(columns, i)
            except UnicodeEncodeError as error:
                done.dropped[i] = INVALID
                code = ord(error.object[error.start])
                done.reasons[i] = f"text holds the lone surrogate U+{code:04X}, which is not a character"
                texts.append("")
                continue
            done.hashes[i] = document_hash(data)
            done.characters[i] = len(text)
            done.sizes[-1, i] = len(data) if "text" in columns else len(text.encode())
            texts.append(text)
        done.words[alive], done.cjk[alive] = count_words(texts)

    def _measure_texts(self, done: Processed, alive: list[int]) -> bool:
        """`_measure` of records that are one text each, all at once; False where one is no Unicode."""
        texts = done.batch.columns["text"]
        if len(alive) < len(texts):
            texts = [texts[i] for i in alive]
        try:
            data = [text.encode() for text in texts]
        except UnicodeEncodeError:
            return False
        for i, digest in zip(alive, map(document_hash, data), strict=True):
            done.hashes[i] = digest
        done.characters[alive] = [len(text) for text in texts]
        done.sizes[-1, alive] = [len(one) for one in data]
        done.words[alive], done.cjk[alive] = count_words(texts, data)
        return True

    def _encode(self, batch: RecordBatch, alive: np.ndarray) -> Encoded:
        if len(alive) < len(batch):
            columns = {role: [values[i] for i in alive.tolist()] for role, values in batch.columns.items()}
            lines, offsets = ([values[i] for i in alive.tolist()] for values in (batch.lines, batch.offsets))
            batch = RecordBatch(batch.source, batch.file, columns, lines, offsets)
        if not len(batch):
            return Encoded(np.empty(0, np.int64), {})
        encoded = self.encoder.encode(batch)
        main = encoded.streams[MAIN_STREAM]
        main.values = main.values.astype(self.dtype, copy=False)
        encoded.rows = alive[encoded.rows]
        encoded.rejected = [(int(alive[row]), reason) for row, reason in encoded.rejected]
        return encoded


def clean_batch(batch: RecordBatch, cleaners: list[Cleaner], content: tuple[str, ...]) -> Processed:
    """Runs the steps over the batch's columns of the roles `content`, in place. exact_dedup only notes hashes: what was
    seen before is not known here."""
    count, steps = len(batch), len(cleaners)
    done = Processed(
        batch=batch,
        dropped=np.full(count, KEPT, np.int16),
        reasons={},
        sizes=np.zeros((steps + 1, count), np.int64),
        changed=np.zeros((steps, count), bool),
        dedup={},
        hashes=[b"\x00" * 16] * count,
        words=np.zeros(count, np.int64),
        cjk=np.zeros(count, np.int64),
        characters=np.zeros(count, np.int64),
        encoded=Encoded(np.empty(0, np.int64), {}),
    )
    for step, cleaner in enumerate(cleaners):
        hashes: list[bytes | None] = [None] * count
        for i in np.flatnonzero(done.dropped == KEPT).tolist():
            text = record_text(batch.columns, i, content)
            done.sizes[step, i] = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            if cleaner.change is not None:
                reason = _change(done, step, i, cleaner, content)
            elif cleaner.reason is not None:
                reason = cleaner.reason(text)
            else:
                reason, hashes[i] = _identify(done, i)
            if reason is not None:
                done.dropped[i] = step
                done.reasons[i] = f"{cleaner.name}: {reason}"
        if cleaner.is_dedup:
            done.dedup[step] = hashes
    return done


def _identify(done: Processed, i: int) -> tuple[None, bytes | None]:
    try:
        return None, content_hash(record_bytes(done.batch.columns, i))
    except UnicodeEncodeError:
        return None, None  # `_measure` rejects it


def _change(done: Processed, step: int, i: int, cleaner: Cleaner, content: tuple[str, ...]) -> str | None:
    """Changes the texts of record i; the reason to drop it where a text that held something ends empty."""
    assert cleaner.change is not None
    emptied = False
    for values in (done.batch.columns[role] for role in content if role in done.batch.columns):
        old = values[i]
        new = map_texts(old, cleaner.change)
        if new != old:
            done.changed[step, i] = True
            emptied |= any(
                before.strip() and not after.strip() for before, after in zip(texts_of(old), texts_of(new), strict=True)
            )
            values[i] = new
    return "nothing is left of the text" if emptied else None


def select(encoded: Encoded, keep: np.ndarray) -> Encoded:
    """The examples where `keep` (E,) is true."""
    if keep.all():
        return encoded
    streams = {}
    for name, rows in encoded.streams.items():
        streams[name] = Ragged(rows.values[np.repeat(keep, rows.lengths)], rows.lengths[keep])
    places = np.flatnonzero(keep).tolist()
    fields = {name: [values[i] for i in places] for name, values in encoded.fields.items()}
    return Encoded(encoded.rows[keep], streams, fields)
