"""The passes over the data: read, clean, split, encode, write; every record is accounted for, once.

Reading and encoding run in threads ahead of writing, or in worker processes where cleaning or a slow tokenizer makes
that worthwhile. What is done with a batch happens here, in input order, so results do not depend on either.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.data.examples import Encoded
from llmkit.data.process import INVALID, KEPT, Processed, Processor, select
from llmkit.data.reading import Account, Unread, read, read_batch, read_lazily
from llmkit.data.records import RecordBatch, Reject
from llmkit.data.roles import EMPTY
from llmkit.data.rolespecs import RoleSpec
from llmkit.data.shardfile import MAIN_STREAM, Rows, count_ids
from llmkit.data.sources import ResolvedSource
from llmkit.data.store import Store
from llmkit.data.tally import FIRST_BAD, add, count_examples, count_reason, count_scripts, count_steps
from llmkit.data.text import in_validation
from llmkit.data.workers import ordered_map, prefetch
from llmkit.errors import DataError
from llmkit.recipe.sections import DataSection

POOL_BYTES = 32 * 2**20
"""Less input than this is done here: starting processes costs seconds."""


@dataclass(frozen=True)
class Vocabulary:
    """What the counts need to know of the tokenizer. single_bytes: (size,) whether an id is part of a character."""

    size: int
    unk: int | None
    single_bytes: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Everything a preparation does, beside where it writes."""

    groups: dict[str, list[ResolvedSource]]
    roles: RoleSpec
    data: DataSection
    processor: Processor
    vocabulary: Vocabulary
    workers: int


def run(plan: Plan, store: Store, advance: Callable[[int, str], None]) -> None:
    """Goes on from the store's progress to the end of the data. Raises DataError, EnvironmentFailure."""
    pending = list(_cursors(plan, store))
    if not pending:
        return
    gc.freeze()  # what is there already need not be looked through for every batch
    committer = Committer(plan, store, advance)
    work = Work([*plan.groups.values()], plan.roles, plan.processor)
    notes: deque[Note] = deque()
    stages: list[Iterator[Any]] = [_batches(plan, pending, notes)]
    if plan.workers:
        stages.append(prefetch(stages[-1]))
        stages.append(ordered_map(work, stages[-1], plan.workers))
    else:  # what holds Python's lock shares a thread; encoding lets go of it
        stages.append(prefetch(map(work.measure, stages[-1])))
        stages.append(prefetch(map(plan.processor.encode, stages[-1])))
    try:
        for done in stages[-1]:
            note = _next(notes)
            if note.account is not None:
                note.account.add(done.batch)
            committer.commit(note.group, done)
        while notes:
            notes.popleft().close()
    finally:
        gc.unfreeze()
        for stage in reversed(stages):
            stage.close()
    store.progress |= {"group": len(plan.groups), "source": 0, "resume": None}
    store.checkpoint()


Cursor = tuple[int, ResolvedSource, dict[str, Any] | None]


def _cursors(plan: Plan, store: Store) -> Iterator[Cursor]:
    """Where reading goes on: (group number, source, resume of the last batch that counts)."""
    progress = store.progress
    for number, sources in enumerate(plan.groups.values()):
        for source in sources:
            place = (number, source.index)
            if place < (progress["group"], progress["source"]):
                continue
            here = place == (progress["group"], progress["source"])
            yield number, source, progress["resume"] if here else None


Item = tuple[int, RecordBatch | Unread]
"""Group number, and a batch."""


@dataclass
class Note:
    """What is kept here of a batch under way; `last` follows the batches of a source."""

    group: int
    account: Account | None
    last: bool = False

    def close(self) -> None:
        if self.account is not None:
            self.account.close()


def _next(notes: deque[Note]) -> Note:
    """The note of the next batch, after the sources that ended before it. Raises DataError."""
    while (note := notes.popleft()).last:
        note.close()
    return note


def _batches(plan: Plan, pending: list[Cursor], notes: deque[Note]) -> Iterator[Item]:
    """`limit` needs every record counted before the next is read; without it, lines are parsed where they are used."""
    for group, source, resume in pending:
        lazily = source.section.limit is None
        account = Account(source, resume) if lazily else None
        for batch in (read_lazily if lazily else read)(source, plan.roles, resume=resume):
            notes.append(Note(group, account))
            yield group, batch
        notes.append(Note(group, account, last=True))


@dataclass
class Work:
    """What is done with a batch, here or in a worker process."""

    groups: list[list[ResolvedSource]]
    roles: RoleSpec
    processor: Processor

    def measure(self, item: Item) -> Processed:
        group, batch = item
        if isinstance(batch, Unread):
            batch = read_batch(self.groups[group][batch.source], self.roles, batch)
        return self.processor.measure(batch)

    def __call__(self, item: Item) -> Processed:
        return self.processor.encode(self.measure(item))


class Committer:
    """Takes processed batches in input order: dedup, counts, rejects, shards, checkpoints."""

    def __init__(self, plan: Plan, store: Store, advance: Callable[[int, str], None]):
        self.plan = plan
        self.store = store
        self.advance = advance
        self.names = list(plan.groups)
        self.cleaners = plan.processor.cleaners
        self.dedup = [step for step, cleaner in enumerate(self.cleaners) if cleaner.is_dedup]
        self.ids = {(group, s.index): s.id for group, sources in plan.groups.items() for s in sources}

    def commit(self, number: int, done: Processed) -> None:
        group = self.names[number]
        progress = self.store.progress
        source = self.ids[group, done.batch.source]
        self._drop_seen(group, done)
        count_steps(self.store.tally, group, self.cleaners, done)
        self._rejects(group, source, done)
        self._write(group, source, done)
        # the reader's progress after this batch; a checkpoint may follow
        progress |= {"batch": progress["batch"] + 1, "group": number, "source": done.batch.source}
        progress["resume"] = done.batch.resume
        if self.store.full():
            self.store.checkpoint()
        self.advance(int(done.sizes[0].sum()), f"{self._records():,} records")

    def _records(self) -> int:
        return sum(entry.get("records", 0) for entry in self.store.tally["sources"].values())

    def _drop_seen(self, group: str, done: Processed) -> None:
        for order, step in enumerate(self.dedup):
            reached = np.flatnonzero((done.dropped == KEPT) | (done.dropped > step)).tolist()
            hashes = [done.dedup[step][i] for i in reached]
            new = self.store.seen(group).add(order, [h or b"" for h in hashes], self.store.progress["batch"])
            for i, fresh in zip(reached, new, strict=True):
                if not fresh:
                    done.dropped[i] = step
                    done.reasons[i] = "exact_dedup: the same content was seen before"

    def _rejects(self, group: str, source: str, done: Processed) -> None:
        tally = self.store.tally
        entry = tally["sources"].setdefault(f"{group}/{source}", {"split": group, "id": source})
        add(entry, "records", len(done.batch) + len(done.batch.rejects))
        add(entry, "empty", sum(reject.reason == EMPTY for reject in done.batch.rejects))
        bad = [(reject, reject.reason != EMPTY) for reject in done.batch.rejects]
        for i, reason in sorted({**done.reasons, **dict(done.encoded.rejected)}.items()):
            if i in done.reasons or done.dropped[i] == KEPT:
                bad.append((self._reject(source, done, i, reason), done.dropped[i] == INVALID))
                key = "encoder_rejected" if i not in done.reasons else "cleaned_away"
                if done.dropped[i] != INVALID:
                    add(entry, key, 1)
        for reject, is_bad in bad:
            self.store.reject(reject)
            count_reason(tally, reject.reason)
            if not is_bad:
                continue
            add(entry, "bad", 1)
            if self.plan.data.on_bad_record == "error":
                raise bad_record(reject)
            if len(tally["first_bad"]) < FIRST_BAD:
                tally["first_bad"].append(reject.as_json())

    def _reject(self, source: str, done: Processed, i: int, reason: str) -> Reject:
        return Reject(source, done.batch.file, done.batch.lines[i], done.batch.offsets[i], reason)

    def _write(self, group: str, source: str, done: Processed) -> None:
        encoded = select(done.encoded, done.dropped[done.encoded.rows] == KEPT)
        entry = self.store.tally["sources"][f"{group}/{source}"]
        add(entry, "truncated", done.encoded.truncated)
        if not len(encoded.rows):
            return
        used = np.unique(encoded.rows)
        add(entry, "used", len(used))
        add(entry, "bytes", done.sizes[-1][used].sum())
        add(entry, "characters", done.characters[used].sum())
        add(entry, "words", done.words[used].sum())
        add(entry, "rows", len(encoded.rows))
        add(entry, "tokens", encoded.streams[MAIN_STREAM].lengths.sum())
        done.encoded = encoded
        counts = count_ids(encoded.streams[MAIN_STREAM].values, self.plan.vocabulary.size)
        count_scripts(self.store.tally, done, counts, self.plan.vocabulary.single_bytes, self.plan.vocabulary.unk)
        fraction = self.plan.data.validation_fraction if group == "train" else None
        if fraction is None:
            self._append(group, done, encoded, counts)
            return
        held = np.array([in_validation(done.hashes[i], fraction) for i in encoded.rows.tolist()], bool)
        add(entry, "held_out", len(np.unique(encoded.rows[held])))
        apart = select(encoded, held)
        counts_apart = np.zeros_like(counts)
        if len(apart.rows):
            counts_apart = count_ids(apart.streams[MAIN_STREAM].values, len(counts))
        self._append("train", done, select(encoded, ~held), counts - counts_apart)
        self._append("validation", done, apart, counts_apart)

    def _append(self, split: str, done: Processed, encoded: Encoded, counts: np.ndarray) -> None:
        if not len(encoded.rows):
            return
        rows = encoded.rows
        # bytes and words stand on the first example of a record, so that sums over examples are sums over records
        first = np.zeros(len(rows), bool)
        first[np.unique(rows, return_index=True)[1]] = True
        places = rows.tolist()
        batch = done.batch
        sidecar = Rows(
            source=batch.source,
            file=batch.file,
            lines=[batch.lines[i] for i in places],
            offsets=[batch.offsets[i] for i in places],
            sizes=np.where(first, done.sizes[-1][rows], 0),
            words=np.where(first, done.words[rows], 0),
            hashes=[done.hashes[i] for i in places],
            fields=encoded.fields,
        )
        self.store.append(split, encoded, sidecar, counts)
        count_examples(self.store.tally, split, encoded)


def place_of(reject: dict[str, Any]) -> str:
    line = f":{reject['line']}" if reject["line"] is not None else ""
    return f"{reject['file']}{line}: {reject['reason']}"


def bad_record(reject: Reject) -> DataError:
    return DataError(
        f"{reject.reason} (data.on_bad_record: error; quarantine would set it aside)",
        file=reject.file,
        line=reject.line,
    )


def check_bad(tally: dict[str, Any], max_bad_fraction: float) -> None:
    """Raises DataError where too many records were unreadable, with the first few and their places."""
    records = sum(entry.get("records", 0) for entry in tally["sources"].values())
    bad = sum(entry.get("bad", 0) for entry in tally["sources"].values())
    if bad and bad > max_bad_fraction * records:
        shown = "; ".join(place_of(reject) for reject in tally["first_bad"])
        raise DataError(
            f"{bad:,} of {records:,} records are bad, more than data.max_bad_fraction {max_bad_fraction:g} allows; "
            f"the first: {shown}",
            key="data.max_bad_fraction",
        )
