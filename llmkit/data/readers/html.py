"""Text of HTML pages: the blocks that read like prose, without navigation, forms, scripts and link lists.

A block is a stretch of text between block-level tags. It is kept when little of it is links and it is long enough, or
stands right beside a kept block (headings, short paragraphs), as boilerplate detection by shallow features does
(Kohlschütter et al. 2010, doi:10.1145/1718487.1718542).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.data.readers.base import MAX_RECORD_BYTES, Chunk, Reading

# fmt: off
_DROPPED = frozenset((
    "script", "style", "noscript", "template", "head", "nav", "footer", "aside", "form", "button", "select",
    "option", "textarea", "iframe", "object", "svg", "canvas", "video", "audio", "figure", "menu", "dialog",
))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time",
    "tt", "u", "var", "wbr", "img", "input", "math",
))
# fmt: on
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\r\f\v\u00a0]+")
_CJK = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff]")
_ENDINGS = '.!?"”。！？'
_MIN_WORDS = 12
_MAX_LINKED = 0.33


@dataclass(slots=True)
class _Block:
    text: str
    linked: int
    heading: bool = False


def read_html(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """One row a file: {"text", "title", "html"}."""
    stream = reading.open()
    data = stream.read(MAX_RECORD_BYTES + 1)
    chunk = Chunk([], [], [], [], {"done": True})
    if len(data) > MAX_RECORD_BYTES:
        chunk.bad.append((1, 0, f"a page longer than {MAX_RECORD_BYTES} bytes"))
    elif data.strip():
        stated = reading.section.encoding if "encoding" in reading.section.model_fields_set else None
        html = decode_html(data, stated)
        if html is None:
            chunk.bad.append((1, 0, "the page is not in the encoding that it states"))
        else:
            title, text = extract(html)
            chunk.rows.append({"text": text, "title": title, "html": html})
            chunk.lines.append(1)
            chunk.offsets.append(0)
    yield chunk


def decode_html(data: bytes, charset: str | None) -> str | None:
    """The page as text, by byte order mark, the charset given (HTTP), its own, or UTF-8; None where it is neither."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        names = ["utf-16"]
    else:
        meta = _CHARSET.search(data[:4096])
        stated = [charset, meta.group(1).decode() if meta else None]
        names = [*(name for name in stated if name), "utf-8-sig", "cp1252"]
    for name in names:
        name = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252"}.get(name.lower(), name)
        try:
            return data.decode("utf-8-sig" if name.lower() in ("utf-8", "utf8") else name)
        except (LookupError, UnicodeDecodeError):
            continue
    return None


def extract(html: str) -> tuple[str, str]:
    """(title, main text): paragraphs separated by line feeds. Empty where nothing reads like text."""
    import lxml.etree
    import lxml.html

    html = html.replace("\0", "")
    if html.lstrip().startswith("<?xml"):
        html = html[html.find("?>") + 2 :]
    try:
        parser = lxml.html.HTMLParser(remove_comments=True, remove_pis=True)
        tree = lxml.html.document_fromstring(html, parser=parser)
    except (lxml.etree.LxmlError, ValueError):
        return "", ""
    heading = tree.find(".//title")
    title = _SPACE.sub(" ", heading.text or "").strip() if heading is not None else ""
    articles = [one for one in tree.iter("article", "main") if len(one.text_content()) > 500]
    root = max(articles, key=lambda one: len(one.text_content())) if articles else tree
    blocks = list(_blocks(root))
    text = _kept(blocks)
    if root is not tree and len(text) < 200:
        text = _kept(list(_blocks(tree)))
    return title, text


def _blocks(root: Any) -> Iterator[_Block]:
    """Walks the tree without recursion; pages can be nested without limit."""
    parts: list[str] = []
    linked = links = 0
    heading = False

    def flush() -> Iterator[_Block]:
        nonlocal linked, heading
        text = _SPACE.sub(" ", "".join(parts)).strip()
        parts.clear()
        if text:
            yield _Block(text, linked, heading)
        linked = 0

    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, closing = stack.pop()
        tag = node.tag if isinstance(node.tag, str) else "script"
        if closing:
            if tag == "a":
                links -= 1
            if tag not in _INLINE:
                yield from flush()
                heading = False
            if node is not root and node.tail:
                parts.append(node.tail)
                linked += len(node.tail.strip()) if links else 0
            continue
        if tag in _DROPPED and node is not root:
            if node.tail:
                parts.append(node.tail)
            continue
        if tag not in _INLINE:
            yield from flush()
            heading = tag in ("h1", "h2", "h3", "h4", "h5", "h6")
        links += tag == "a"
        if node.text:
            parts.append(node.text)
            linked += len(node.text.strip()) if links else 0
        stack.append((node, True))
        stack.extend((child, False) for child in reversed(node))
    yield from flush()


def _words(text: str) -> int:
    return len(text.split()) + len(_CJK.findall(text))


def _kept(blocks: list[_Block]) -> str:
    good = [_words(one.text) >= _MIN_WORDS and one.linked <= _MAX_LINKED * len(one.text) for one in blocks]
    kept = list(good)
    for index, block in enumerate(blocks):
        if good[index] or block.linked > _MAX_LINKED * len(block.text):
            continue
        before = index > 0 and good[index - 1]
        after = index + 1 < len(blocks) and good[index + 1]
        kept[index] = (before and after) or (block.heading and after) or (before and block.text[-1:] in '.!?"”。！？”')
    return "\n".join(block.text for block, keep in zip(blocks, kept, strict=True) if keep)
