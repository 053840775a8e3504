"""Bytes of a file, decompressed on the way, and members of archives read in place: nothing is ever extracted to disk.

Decompression is ours rather than gzip.open and its kin because a break in the data must be found (zstandard's stream
reader ends silently on a truncated frame) and named with its place. Members of a tar are read in one sequential pass.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, Protocol

from llmkit.errors import DataError, EnvironmentFailure

MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
COMPRESSION_SUFFIXES = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst")
_FEED = {"gz": 1 << 16, "zst": 1 << 12, "bz2": 1 << 16, "xz": 1 << 16}
"""Bytes given to a decompressor at once: small enough that what comes out of a bomb stays bounded."""
_PIECE = 1 << 20


class ByteStream(Protocol):
    """`read(size)` gives exactly `size` bytes, fewer only at the end."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


def compression_of(head: bytes) -> str | None:
    """The compression that the first bytes of a file show."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    return None


def open_file(path: str) -> io.BufferedReader:
    """`open` whose failures are messages: DataError for a path, EnvironmentFailure for permission and devices."""
    try:
        return open(path, "rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"cannot read: {error.strerror}", file=path) from error
    except OSError as error:
        raise EnvironmentFailure(f"cannot read: {error.strerror or error}", file=path) from error


def open_stream(path: str, compression: str | None) -> ByteStream:
    raw = open_file(path)
    return raw if compression is None else Decompressed(raw, compression, path)


def skip(stream: ByteStream, count: int) -> None:
    """Moves `count` bytes on; by seeking where the stream is a plain file."""
    if isinstance(stream, io.BufferedReader) and stream.seekable():
        stream.seek(count, io.SEEK_CUR)
        return
    while count > 0:
        data = stream.read(min(count, _PIECE))
        if not data:
            return
        count -= len(data)


class Decompressed:
    """A decompressed view of `raw`, several members or frames one after the other. Raises DataError at a break."""

    def __init__(self, raw: ByteStream, compression: str, label: str):
        self._raw = raw
        self._kind = compression
        self._label = label
        self._codec: Any = None
        self._input = b""
        self._taken = 0
        self._given = 0
        self._rest = b""
        self._at = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        parts = [self._rest[self._at : self._at + size]]
        have = len(parts[0])
        self._at += have
        while have < size and not self._ended:
            self._rest = self._piece()
            self._at = min(size - have, len(self._rest))
            parts.append(self._rest[: self._at])
            have += self._at
        self._given += have
        return b"".join(parts)

    def close(self) -> None:
        self._raw.close()

    def _feed(self) -> bytes:
        if not self._input:
            self._input = self._raw.read(_FEED[self._kind])
            self._taken += len(self._input)
        data, self._input = self._input, b""
        return data

    def _piece(self) -> bytes:
        """The next bytes; empty (and `_ended`) at the end of the last member."""
        if self._codec is None:
            data = self._feed()
            if self._taken > len(data):
                data = data.lstrip(b"\0")  # padding between members, as tape tools and xz write it
            if not data:
                self._input = self._feed()
                self._ended = not self._input
                return b""
            self._codec = _new_codec(self._kind)
        else:
            data = self._feed() if getattr(self._codec, "needs_input", True) else b""
        try:
            piece: bytes = self._decompress(data)
        except (zlib.error, OSError, lzma.LZMAError, EOFError, _zstd_error()) as error:
            raise self._broken(f"is damaged: {error}") from error
        if not data and not piece and not self._codec.eof:
            raise self._broken("ends in the middle: the file is truncated")
        if self._codec.eof:
            self._input = self._codec.unused_data
            self._codec = None
        elif self._kind == "gz":
            self._input = self._codec.unconsumed_tail
        return piece

    def _decompress(self, data: bytes) -> bytes:
        if self._kind == "zst":  # has no bound on what comes out, hence the small feed
            return self._codec.decompress(data)  # type: ignore[no-any-return]
        return self._codec.decompress(data, _PIECE)  # type: ignore[no-any-return]

    def _broken(self, what: str) -> DataError:
        return DataError(
            f"{self._kind} data {what} (near byte {self._taken} of the compressed file, after "
            f"{self._given} decompressed bytes)",
            file=self._label,
        )


def _new_codec(kind: str) -> Any:
    if kind == "gz":
        return zlib.decompressobj(31)
    if kind == "bz2":
        return bz2.BZ2Decompressor()
    if kind == "xz":
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=1 << 30)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


class Archives:
    """The archive that is open now. Members of a tar asked for in their order cost one pass over it."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._handle: Any = None
        self._raw: IO[bytes] | None = None
        self._members: Iterator[tuple[int, Any]] = iter(())

    def open(self, path: str, position: int, member: str, compression: str | None) -> ByteStream:
        """The decompressed bytes of one member. It must be used up before the next one is opened."""
        label = f"{path}!{member}"
        raw = self._member(path, position)
        guarded = _Guarded(raw, label)
        return guarded if compression is None else Decompressed(guarded, compression, label)

    def _member(self, path: str, position: int) -> IO[bytes]:
        for _ in range(2):
            if self._path != path:
                self.close()
                self._handle, self._raw = _open_archive(path)
                self._path = path
                self._members = _regular_members(self._handle, path)
            for index, info in self._members:
                if index == position:
                    opened: IO[bytes]
                    try:
                        if isinstance(self._handle, zipfile.ZipFile):
                            opened = self._handle.open(info)
                        else:
                            opened = self._handle.extractfile(info)
                    except (RuntimeError, zipfile.BadZipFile, tarfile.TarError, OSError) as error:
                        name = getattr(info, "filename", None) or info.name
                        raise DataError(f"cannot read the member: {error}", file=f"{path}!{name}") from error
                    return opened
                if index > position:
                    break
            self.close()  # asked for one that went by: start over
        raise DataError(f"the archive has changed: member {position} is gone", file=path)

    def close(self) -> None:
        for opened in (self._handle, self._raw):
            if opened is not None:
                opened.close()
        self._handle, self._raw, self._path = None, None, None


class _Guarded:
    """A member whose damage is reported as ours; reads exactly what is asked for."""

    def __init__(self, raw: IO[bytes], label: str):
        self._raw = raw
        self._label = label
        self._given = 0

    def read(self, size: int, /) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            try:
                data = self._raw.read(size)
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError, EOFError, OSError) as error:
                where = f"after {self._given} bytes of the member"
                raise DataError(f"the archive is damaged {where}: {error}", file=self._label) from error
            if not data:
                break
            parts.append(data)
            size -= len(data)
            self._given += len(data)
        return b"".join(parts)

    def close(self) -> None:
        self._raw.close()


def is_archive(name: str, head: bytes) -> bool:
    """Whether a file is a zip or tar: by its name, or by its first (decompressed) bytes."""
    lower = name.lower()
    for suffix in COMPRESSION_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(ARCHIVE_SUFFIXES) or head.startswith(b"PK\x03\x04") or head[257:262] == b"ustar"


def list_members(path: str) -> list[tuple[int, str, int]]:
    """(position, name, bytes) of every regular file in an archive, in its order. Raises DataError."""
    handle, raw = _open_archive(path)
    try:
        return [
            (index, info.filename, info.file_size)
            if isinstance(info, zipfile.ZipInfo)
            else (index, info.name, info.size)
            for index, info in _regular_members(handle, path)
        ]
    finally:
        handle.close()
        raw.close()


def _open_archive(path: str) -> tuple[Any, IO[bytes]]:
    """The open zip or tar, and the file under it (which neither closes)."""
    raw = open_file(path)
    head = raw.read(6)
    raw.seek(0)
    try:
        if head.startswith(b"PK"):
            return zipfile.ZipFile(raw), raw
        compression = compression_of(head)
        stream: Any = raw if compression is None else Decompressed(raw, compression, path)
        return tarfile.open(fileobj=stream, mode="r|"), raw
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, RuntimeError, struct.error) as error:
        raw.close()
        raise DataError(f"not a zip or tar archive that can be read: {error}", file=path) from error


def _regular_members(handle: Any, path: str) -> Iterator[tuple[int, Any]]:
    """Directories, links, devices and hidden files are passed over."""
    try:
        if isinstance(handle, zipfile.ZipFile):
            for index, info in enumerate(handle.infolist()):
                is_link = (info.external_attr >> 28) == 0xA
                if not info.is_dir() and not is_link and not hidden(info.filename):
                    yield index, info
            return
        for index, member in enumerate(handle):
            if member.isreg() and not hidden(member.name):
                yield index, member
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"the archive is damaged or truncated: {error}", file=path) from error


def hidden(name: str) -> bool:
    """Files that archives and directories carry along: dot files, macOS resource forks."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return not parts or parts[-1].startswith(".") or "__MACOSX" in parts or "__pycache__" in parts


class RawAdapter(io.RawIOBase):
    """Our stream as Python's, for `io.BufferedReader` and its `readline`."""

    def __init__(self, stream: ByteStream):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
