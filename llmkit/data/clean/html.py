"""HTML to text: scripts, styles and comments dropped, entities decoded, block elements become line breaks.

A small tolerant parser (lxml's HTML parser builds a tree; text is collected from it). Text without any tag or entity is
returned as it is, so that a corpus with only some HTML in it is not reflowed.
"""

from __future__ import annotations

import html
import re

DROPPED = frozenset({"script", "style", "noscript", "template", "head", "svg", "math", "iframe", "object", "textarea"})
PARAGRAPHS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "dd", "details", "dialog", "div", "dl", "dt"),
        *("fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr"),
        *("main", "nav", "ol", "p", "pre", "section", "table", "ul"),
    )
)
LINES = frozenset({"br", "li", "tr", "option", "caption", "summary"})
LOOKS_LIKE_HTML = re.compile(
    r"<(?:[a-zA-Z][a-zA-Z0-9:-]*(?:\s[^<>]*)?/?|/[a-zA-Z][^<>]*|!--|!doctype[^<>]*)>?", re.IGNORECASE
)
ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
BLANKS = re.compile(r"[ \t\r\f\v\u00a0]+")
EDGES = re.compile(r" *\n *")
TAGS = re.compile(r"<!--.*?(?:-->|$)|<(script|style)\b.*?(?:</\1\s*>|$)|<[^<>]*>", re.IGNORECASE | re.DOTALL)
MANY = re.compile(r"\n{3,}")


def strip_html(text: str) -> str:
    """The readable text of a page or fragment, paragraphs apart by an empty line. Never raises."""
    if "<" not in text or not LOOKS_LIKE_HTML.search(text):
        return html.unescape(text) if ENTITY.search(text) else text
    pieces: list[str] = []
    _collect(text, pieces)
    if not any(piece.strip() for piece in pieces):
        # nothing, or nested deeper than the parser goes: tags cut out as they stand
        pieces = [html.unescape(TAGS.sub(" ", text))]
    joined = BLANKS.sub(" ", "".join(pieces))
    return MANY.sub("\n\n", EDGES.sub("\n", joined)).strip()


def _collect(text: str, pieces: list[str]) -> None:
    import lxml.html

    parser = lxml.html.HTMLParser(remove_comments=True, remove_pis=True, recover=True, huge_tree=True, encoding="utf-8")
    try:
        # NUL ends the document for libxml2; surrogates have no UTF-8
        data = text.replace("\x00", "").encode("utf-8", "replace")
        root = lxml.html.document_fromstring(data, parser=parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError):
        return  # nothing but tags and comments
    # an explicit stack: pages nest deeper than Python's
    keep_blanks = 0
    stack: list[tuple[object, bool]] = [(root, False)]
    while stack:
        item, closing = stack.pop()
        tag = item.tag if isinstance(item.tag, str) else ""  # type: ignore[attr-defined]
        if closing:
            keep_blanks -= tag == "pre"
            pieces.append(_break(tag) if tag not in LINES else "")
            pieces.append(_flow(item.tail, keep_blanks))  # type: ignore[attr-defined]
            continue
        if tag in DROPPED or not tag:
            pieces.append(_flow(item.tail, keep_blanks))  # type: ignore[attr-defined]
            continue
        pieces.append(_break(tag))
        keep_blanks += tag == "pre"
        pieces.append(_flow(item.text, keep_blanks))  # type: ignore[attr-defined]
        stack.append((item, True))
        stack.extend((child, False) for child in reversed(list(item)))  # type: ignore[call-overload]


def _break(tag: str) -> str:
    if tag in PARAGRAPHS:
        return "\n\n"
    if tag in LINES:
        return "\n"
    return " " if tag in ("td", "th") else ""


def _flow(text: str | None, keep_blanks: int) -> str:
    """Line breaks of running text are blanks in HTML; those of <pre> are meant."""
    if not text:
        return ""
    return text if keep_blanks else text.replace("\n", " ")
