"""WARC files of web archives (ISO 28500): the text of the pages that they hold.

Responses and resources of HTML are reduced to their text; plain text and `conversion` records (WET files) are taken as
they are; everything else (requests, images, metadata) is passed over.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import IO, Any

from llmkit.data.readers.base import MAX_RECORD_BYTES, Chunk, Reading
from llmkit.data.readers.html import decode_html, extract
from llmkit.data.readers.streams import RawAdapter, skip

_ROWS = 64
_MAX_HEADER = 1 << 16
Headers = dict[str, str]


def read_warc(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are {"text", "title", "url", "date", "html"}; place: the record's offset. State: the offset of the next."""
    start = state["offset"] if state else 0
    raw = reading.open()
    skip(raw, start)
    stream: IO[bytes] = io.BufferedReader(RawAdapter(raw), 1 << 16)
    chunk = Chunk([], [], [], [], {})
    size, begin = 0, start
    for offset, end, headers, body in _records(reading, stream, start):
        row = _row(headers, body) if body is not None else f"a record longer than {MAX_RECORD_BYTES} bytes"
        if isinstance(row, str):
            chunk.bad.append((None, offset, row))
        elif row is not None:
            chunk.rows.append(row)
            chunk.lines.append(None)
            chunk.offsets.append(offset)
        size = end - begin
        if len(chunk.rows) >= _ROWS or size >= reading.batch_bytes:
            chunk.state = {"offset": end}
            yield chunk
            chunk, begin = Chunk([], [], [], [], {}), end
    chunk.state = {"done": True}
    yield chunk


def _records(reading: Reading, stream: IO[bytes], offset: int) -> Iterator[tuple[int, int, Headers, bytes | None]]:
    """(offset, end, headers, body; None where it is over the limit) of each record."""
    while True:
        version = stream.readline(_MAX_HEADER)
        if not version:
            return
        if not version.strip():
            offset += len(version)
            continue
        if not version.startswith(b"WARC/"):
            raise reading.fail(f"not a WARC record at byte {offset}: begins with {version[:20]!r}")
        headers, header_bytes = _headers(stream)
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise reading.fail(f"the WARC record at byte {offset} has no Content-Length")
        body_at = offset + len(version) + header_bytes
        body: bytes | None = None
        if int(length) <= MAX_RECORD_BYTES:
            body = stream.read(int(length))
            held = len(body)
        else:
            held = 0
            while held < int(length) and (piece := stream.read(min(1 << 20, int(length) - held))):
                held += len(piece)
        if held < int(length):
            raise reading.fail(f"the WARC record at byte {offset} is cut off: {held} of {length} bytes")
        yield offset, body_at + int(length), headers, body
        offset = body_at + int(length)


def _headers(stream: IO[bytes]) -> tuple[Headers, int]:
    headers: Headers = {}
    size = 0
    while size < _MAX_HEADER:
        line = stream.readline(_MAX_HEADER)
        size += len(line)
        if not line.strip():
            break
        name, _, value = line.decode("utf-8", "replace").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers, size


def _row(headers: Headers, body: bytes) -> dict[str, Any] | str | None:
    """The record as a row, the reason why it is bad, or None where it holds no text."""
    kind = headers.get("warc-type", "")
    content_type = headers.get("content-type", "")
    if kind == "response":
        if not content_type.startswith("application/http"):
            return None
        head, _, body = body.partition(b"\r\n\r\n")
        http, _ = _headers(io.BytesIO(head.partition(b"\n")[2]))
        if not 200 <= _status(head) < 300:
            return None
        content_type = http.get("content-type", "")
        unpacked = _unpack(body, http)
        if unpacked is None:
            return "the HTTP body is damaged, longer than the limit or in an unknown coding"
        body = unpacked
    elif kind not in ("resource", "conversion"):
        return None
    mime = content_type.partition(";")[0].strip().lower()
    charset = content_type.lower().partition("charset=")[2].partition(";")[0].strip(" \"'") or None
    if mime not in ("text/html", "application/xhtml+xml", "text/plain"):
        return None
    text = decode_html(body, charset)
    if text is None:
        return "the page is not in the encoding that it states"
    row = {"url": headers.get("warc-target-uri", "").strip("<>"), "date": headers.get("warc-date", "")}
    if mime == "text/plain":
        return {"text": text.replace("\r\n", "\n").strip(), "title": "", "html": "", **row}
    title, main = extract(text)
    return {"text": main, "title": title, "html": text, **row}


def _status(head: bytes) -> int:
    parts = head.split(None, 2)
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _unpack(body: bytes, http: Headers) -> bytes | None:
    """Takes chunked transfer and gzip or deflate content coding off."""
    if "chunked" in http.get("transfer-encoding", "").lower():
        body = _unchunk(body)
    coding = http.get("content-encoding", "identity").lower()
    if coding in ("gzip", "x-gzip", "deflate") and body:
        try:
            codec = zlib.decompressobj(47 if coding != "deflate" or body[:1] == b"\x78" else -15)
            body = codec.decompress(body, MAX_RECORD_BYTES)
        except zlib.error:
            return body if coding != "deflate" and not body.startswith(b"\x1f\x8b") else None
        return body if not codec.unconsumed_tail else None
    return body if coding in ("identity", "") else None


def _unchunk(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at)
        try:
            size = int(body[at:end].split(b";")[0], 16) if end >= 0 else 0
        except ValueError:
            return body if not parts else b"".join(parts)  # some archivers store the body already joined
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
