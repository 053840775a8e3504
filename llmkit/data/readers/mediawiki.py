"""MediaWiki XML dumps (pages-articles): articles, without redirects and other namespaces, as plain text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any
from xml.parsers import expat

from llmkit.data.readers.base import MAX_RECORD_BYTES, Chunk, Reading

_FIELDS = frozenset(("title", "ns", "id", "text"))
_BLOCK = 1 << 20


def read_mediawiki(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are {"text", "title", "id", "wikitext"}; line and offset are those of the page. State: pages given."""
    pages = _Pages()
    stream = reading.open()
    skip = state["pages"] if state else 0
    given = size = 0
    chunk = Chunk([], [], [], [], {})
    while True:
        data = stream.read(_BLOCK)
        try:
            pages.parser.Parse(data, not data)
        except expat.ExpatError as error:
            where = f"(byte {pages.parser.ErrorByteIndex})"
            raise reading.fail(f"not valid XML: {error} {where}", line=error.lineno) from error
        except _Forbidden as error:
            raise reading.fail(str(error), line=pages.parser.CurrentLineNumber) from error
        for line, offset, row in pages.take():
            given += 1
            if given <= skip:
                continue
            if isinstance(row, str):
                chunk.bad.append((line, offset, row))
                continue
            size += len(row["text"])
            chunk.rows.append({**row, "wikitext": row["text"], "text": plain_text(row["text"])})
            chunk.lines.append(line)
            chunk.offsets.append(offset)
            if size >= reading.batch_bytes:
                chunk.state = {"pages": given}
                yield chunk
                chunk, size = Chunk([], [], [], [], {}), 0
        if not data:
            break
    chunk.state = {"done": True}
    yield chunk


class _Forbidden(Exception):
    pass


class _Pages:
    """expat's events as finished pages. Entities may not be declared: no dump does, and bombs are made of them."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.EntityDeclHandler = self._entity
        self.parser.buffer_text = True
        self._done: list[tuple[int, int, dict[str, Any] | str]] = []
        self._page: dict[str, str] | None = None
        self._field: str | None = None
        self._parts: list[str] = []
        self._size = 0
        self._redirect = False
        self._place = (1, 0)

    def take(self) -> list[tuple[int, int, dict[str, Any] | str]]:
        done, self._done = self._done, []
        return done

    def _entity(self, *_: Any) -> None:
        raise _Forbidden("the XML declares entities, which a MediaWiki dump does not")

    def _start(self, name: str, _: dict[str, str]) -> None:
        if name == "page":
            self._page, self._redirect, self._size = {}, False, 0
            self._place = (self.parser.CurrentLineNumber, self.parser.CurrentByteIndex)
        elif self._page is not None:
            self._redirect = self._redirect or name == "redirect"
            self._field = name if name in _FIELDS and (name == "text" or name not in self._page) else None
            self._parts = []

    def _characters(self, data: str) -> None:
        if self._field is not None:
            self._size += len(data)
            if self._size <= MAX_RECORD_BYTES:
                self._parts.append(data)

    def _end(self, name: str) -> None:
        if self._page is None:
            return
        if name == self._field:
            self._page[name] = "".join(self._parts)
            self._field = None
        elif name == "page":
            if self._size > MAX_RECORD_BYTES:
                self._done.append((*self._place, f"a page longer than {MAX_RECORD_BYTES} characters"))
            elif not self._redirect and self._page.get("ns", "0") == "0" and self._page.get("text", "").strip():
                page = self._page
                row = {"text": page["text"], "title": page.get("title", ""), "id": page.get("id", "")}
                self._done.append((*self._place, row))
            self._page = None


_CONTENT_TAG = re.compile(
    r"<(/?)(ref|gallery|math|timeline|score|syntaxhighlight|source|imagemap)\b[^<>]*?(/?)>", re.IGNORECASE
)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_NESTED = re.compile(r"\{\{|\}\}|^[ :*]*\{\||\n\|\}", re.MULTILINE)
_LINK = re.compile(r"\[\[([^\[\]|]*)(?:\|([^\[\]]*))?\]\]")
_FILE = re.compile(r"^\s*:?(file|image|category|media|文件|檔案|档案|图像|圖像|分类|分類)\s*:", re.IGNORECASE)
_LANGUAGE_LINK = re.compile(r"^\s*[a-z]{2,3}(-[a-z-]+)?:\S")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\[\]]+[ \t]*([^\[\]\n]*)\]")
_QUOTES = re.compile(r"'{2,}")
_LIST = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_MAGIC = re.compile(r"__[A-Z]+__")
_BLANKS = re.compile(r"\n{3,}")


def plain_text(wikitext: str) -> str:
    """Wikitext without templates, tables, references and markup; link texts and headings stay."""
    text = _without_content_tags(_without_comments(wikitext))
    text = _without_nested(text)
    for _ in range(4):  # captions of images hold links themselves
        text, count = _LINK.subn(_link_text, text)
        if not count:
            break
    text = _EXTERNAL.sub(r"\1", text)
    text = _LIST.sub("", _MAGIC.sub("", _QUOTES.sub("", _TAG.sub("", text))))
    text = html.unescape(text).replace("\u00a0", " ")
    return _BLANKS.sub("\n\n", "\n".join(map(_without_heading_marks, text.split("\n")))).strip()


def _without_heading_marks(line: str) -> str:
    line = line.rstrip()
    return line.strip("= ") if len(line) > 2 and line[0] == line[-1] == "=" else line


def _without_comments(text: str) -> str:
    kept: list[str] = []
    at = 0
    while (start := text.find("<!--", at)) >= 0:
        kept.append(text[at:start])
        end = text.find("-->", start)
        if end < 0:
            return "".join(kept)
        at = end + 3
    return "".join([*kept, text[at:]])


def _without_content_tags(text: str) -> str:
    """Cuts <ref>...</ref> and its like out with what is inside, in one pass; a tag left open loses itself alone."""
    tags = list(_CONTENT_TAG.finditer(text))
    closing: dict[str, int] = {}
    ends: list[int] = []
    for tag in reversed(tags):
        name = tag.group(2).lower()
        ends.append(tag.end() if tag.group(1) or tag.group(3) else closing.get(name, tag.end()))
        if tag.group(1):
            closing[name] = tag.end()
    kept: list[str] = []
    at = 0
    for tag, end in zip(tags, reversed(ends), strict=True):
        if tag.start() >= at:
            kept.append(text[at : tag.start()])
            at = end
    return "".join([*kept, text[at:]])


def _without_nested(text: str) -> str:
    """Cuts {{templates}} and {| tables |} out, nested ones with them, in one pass."""
    kept: list[str] = []
    opened: list[str] = []
    waiting = {"}}": 0, "|}": 0}
    at = unclosed = 0
    for match in _NESTED.finditer(text):
        mark = match.group().strip(" :*\n")
        if mark in ("{{", "{|"):
            if not opened:
                kept.append(text[at : match.start()])
                unclosed = match.end()
            opened.append("}}" if mark == "{{" else "|}")
            waiting[opened[-1]] += 1
        elif waiting[mark]:
            closed = ""
            while closed != mark:
                closed = opened.pop()
                waiting[closed] -= 1
            at = match.end()
    kept.append(text[unclosed if opened else at :])
    return "".join(kept)


def _link_text(match: re.Match[str]) -> str:
    target, label = match.group(1), match.group(2)
    if _FILE.match(target) or (label is None and _LANGUAGE_LINK.match(target)):
        return ""
    return str(label.rpartition("|")[2] if label is not None else target.lstrip(":"))
