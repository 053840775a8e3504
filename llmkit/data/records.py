"""What readers yield: records in columns, each with the place it came from, and the records that could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reject:
    """One record not used. `line` counts from 1; `offset` is in bytes of the decompressed file."""

    source: str
    file: str
    line: int | None
    offset: int | None
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "file": self.file,
            "line": self.line,
            "offset": self.offset,
            "reason": self.reason,
        }


@dataclass(slots=True)
class RecordBatch:
    """Up to a few thousand records of one file, in columns by role.

    `columns[role]` has N values; `lines` and `offsets` have N entries (None where the format has no such place).
    `rejects` are the records of the same stretch that could not be read. `resume` tells the reader where the next batch
    starts; it is opaque JSON that `read(..., resume=...)` takes.
    """

    source: int
    file: str
    columns: dict[str, list[Any]]
    lines: list[int | None]
    offsets: list[int | None]
    rejects: list[Reject] = field(default_factory=list)
    resume: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)
