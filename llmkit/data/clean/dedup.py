"""What exact_dedup has seen, on disk: memory stays flat, and a killed run forgets what came after its last shard."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.errors import EnvironmentFailure
from llmkit.files import free_bytes


class Seen:
    """A set of content hashes with the number of the batch that brought each. The first in input order wins."""

    def __init__(self, path: Path, steps: int):
        """`steps`: exact_dedup steps of the recipe, each with a set of its own. Raises EnvironmentFailure."""
        self.path = path
        self._steps = steps
        self._open = False
        with self._writing():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            for step in range(steps):
                self._db.execute(
                    f"CREATE TABLE IF NOT EXISTS seen{step} (hash BLOB PRIMARY KEY, batch INTEGER) WITHOUT ROWID"
                )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            free = free_bytes(self.path)
            raise EnvironmentFailure(f"cannot write {self.path}: {error} ({free:,} bytes free)") from error

    def rewind(self, batch: int) -> None:
        """Forgets what batches from `batch` on brought: they will be read again."""
        with self._writing():
            for step in range(self._steps):
                self._db.execute(f"DELETE FROM seen{step} WHERE batch >= ?", (batch,))

    def add(self, step: int, hashes: list[bytes], batch: int) -> list[bool]:
        """For each hash in order: is it new?"""
        with self._writing():
            if not self._open:
                self._db.execute("BEGIN")
                self._open = True
            insert = f"INSERT OR IGNORE INTO seen{step} VALUES (?, ?)"
            execute = self._db.execute
            return [execute(insert, (digest, batch)).rowcount == 1 for digest in hashes]

    def commit(self) -> None:
        """Called before the progress file names the shard that ends here; a kill in between is undone by `rewind`."""
        with self._writing():
            if self._open:
                self._db.execute("COMMIT")
                self._open = False

    def close(self) -> None:
        self._db.close()
