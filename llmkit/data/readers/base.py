"""What every reader takes and gives: a file of a source, the options of its recipe entry, chunks of rows with places.

A reader is a generator function `read(reading, state) -> Iterator[Chunk]` in a file of its own and a row in
`reading.READERS`. It knows nothing of roles: it gives rows (dicts, or lists with or without column names), the line and
byte offset of each, and the records it could not read. `state` is what an earlier chunk carried: start after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkit.data.readers.streams import Archives, ByteStream, open_stream
from llmkit.errors import DataError
from llmkit.recipe.sections import SourceSection

if TYPE_CHECKING:
    from llmkit.data.rolespecs import RoleSpec

MAX_RECORD_BYTES = 64 * 2**20
"""A longer line, element or document is rejected without being held in memory."""

MAX_ROWS = 10_000
"""Rows in a chunk."""

Bad = tuple[int | None, int | None, str]
"""Line (from 1), byte offset and reason of a record that could not be read."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, or one member of an archive. `size`: bytes as stored; `position`: the member's place in its archive.

    `target` is the second file of format `parallel`; for a Hub data set `path` is its id and `member` the split.
    """

    path: str
    member: str | None
    size: int
    format: str
    compression: str | None
    position: int = 0
    target: SourceFile | None = None

    @property
    def label(self) -> str:
        """How reports and messages name it; bytes of a name that are not UTF-8 are escaped."""
        name = self.path if self.member is None else f"{self.path}!{self.member}"
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Chunk:
    """Consecutive rows of one file. `names` are the columns of list rows (None: positions only)."""

    rows: list[Any]
    lines: list[int | None]
    offsets: list[int | None]
    bad: list[Bad]
    state: dict[str, Any]
    names: list[str] | None = None


@dataclass(slots=True)
class Reading:
    """One file being read. `wanted` is set once the columns are known, for formats that can leave the others unread."""

    file: SourceFile
    section: SourceSection
    roles: RoleSpec
    batch_bytes: int
    archives: Archives
    wanted: set[str] | None = None
    opened: list[ByteStream] = field(default_factory=list)

    def open(self) -> ByteStream:
        """The file's decompressed bytes; closed by `close`."""
        if self.file.member is not None:
            stream = self.archives.open(self.file.path, self.file.position, self.file.member, self.file.compression)
        else:
            stream = open_stream(self.file.path, self.file.compression)
        self.opened.append(stream)
        return stream

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def fail(self, message: str, line: int | None = None) -> DataError:
        """A problem of the whole file, to be raised."""
        return DataError(message, file=self.file.label, line=line)
