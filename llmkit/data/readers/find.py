"""From a recipe entry's `path` to the files it means: file, directory, glob, archive, list, Hub id or builtin.

What looks like a path is never looked up on the network: a path that does not exist is an error with the nearest name.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from pathlib import Path
from typing import Literal

from llmkit.data.readers.base import SourceFile
from llmkit.data.readers.detect import SUFFIXES, format_by_name, format_of, peek_file, peek_member
from llmkit.data.readers.stdlib import NAME as STDLIB
from llmkit.data.readers.stdlib import stdlib_files
from llmkit.data.readers.streams import Archives, hidden, is_archive, list_members
from llmkit.errors import DataError
from llmkit.recipe.sections import ParallelPath, SourceSection

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GLOB = re.compile(r"[*?\[]")

Kind = Literal["hub", "builtin", "local"]


def kind_of(path: str) -> Kind:
    """Whether a path names a Hub data set, a builtin corpus or local files."""
    if path.startswith("hf://"):
        return "hub"
    if path.startswith("builtin:"):
        return "builtin"
    if Path(path).exists() or path.startswith((".", "/", "~")) or _GLOB.search(path):
        return "local"
    first, _, last = path.partition("/")
    if Path(last).suffix or Path(first).is_dir():
        return "local"
    return "hub" if _HUB_ID.fullmatch(path) else "local"


def hub_id(path: str) -> str:
    """org/name of `hf://org/name`, `hf://datasets/org/name` or `org/name`. Raises DataError."""
    name = path.removeprefix("hf://").removeprefix("datasets/").strip("/")
    if not _HUB_ID.fullmatch(name):
        raise DataError(f"{path}: not a Hub id; expected hf://org/name")
    return name


def find_files(section: SourceSection, *, text_role: bool, split: str) -> list[SourceFile]:
    """The files of an entry, in order, each once. `text_role`: a file of unknown kind may be plain text.

    Raises DataError for what is not there or cannot be data.
    """
    if isinstance(section.path, ParallelPath):
        return [_parallel(section.path)]
    paths = [section.path] if isinstance(section.path, str) else list(section.path)
    if not paths:
        raise DataError("an empty list")
    found: dict[tuple[str, str | None, int], SourceFile] = {}
    for path in paths:
        for file in _one(path, section, text_role, split):
            found.setdefault((file.path, file.member, file.position), file)
    return list(found.values())


def _one(path: str, section: SourceSection, text_role: bool, split: str) -> list[SourceFile]:
    kind = kind_of(path)
    if kind == "hub":
        return [SourceFile(hub_id(path), section.split or split, 0, "hub", None)]
    if kind == "builtin":
        if path != STDLIB:
            raise DataError(f"{path}: no such builtin corpus; there is {STDLIB}")
        return [SourceFile(one, None, _size(one), "stdlib", None) for one in stdlib_files()]
    path = os.path.expanduser(path)
    if Path(path).is_dir():
        return _directory(path, section, text_role)
    if Path(path).exists():
        return _file(path, section, text_role)
    if _GLOB.search(path):
        found = glob.glob(path, recursive=True)
        matches = sorted(one for one in found if Path(one).is_file() and not hidden(one))
        if matches:
            return [file for one in matches for file in _file(one, section, text_role)]
        raise DataError(f"{path}: no file matches the pattern{_near(path)}")
    raise DataError(f"{path}: no such file or directory{_near(path)}")


def _size(path: str) -> int:
    return Path(path).stat().st_size


def _near(path: str) -> str:
    """The nearest name that exists, for a message."""
    parent, name = os.path.split(path.rstrip("/"))
    while parent and not Path(parent).is_dir():
        parent, name = os.path.split(parent)
    entries = sorted(entry.name for entry in Path(parent or ".").iterdir())
    close = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
    if not close:
        close = [one for one in entries if one.lower().startswith(name.split(".")[0].lower())][:1]
    if close:
        return f"; did you mean {str(Path(parent, close[0]))!r}?"
    shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    return f"; {parent or 'the current directory'} holds {shown or 'nothing'}"


def _file(path: str, section: SourceSection, text_role: bool) -> list[SourceFile]:
    if not Path(path).is_file():
        raise DataError("not a regular file", file=path)
    head, compression = peek_file(path)
    if is_archive(path, head):
        return _archive(path, section, text_role)
    if _size(path) == 0:
        raise DataError("the file is empty", file=path)
    found = format_of(path, head, section) or _as_text(head, path, text_role)
    return [SourceFile(path, None, _size(path), found, compression)]


def _as_text(head: bytes, name: str, text_role: bool) -> str:
    if text_role and b"\0" not in head:
        return "txt"
    known = ", ".join(sorted(set(SUFFIXES.values()) | {"squad", "parallel"}))
    raise DataError(f"the format is not clear from name or content; set format to one of {known}", file=name)


def _directory(path: str, section: SourceSection, text_role: bool) -> list[SourceFile]:
    """Regular files below, sorted. Links that lead out of the directory are left out."""
    root = Path(path).resolve()
    found: list[str] = []
    outside = 0
    for directory, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "__pycache__")
        for name in sorted(files):
            full = Path(directory, name)
            if hidden(name) or not full.is_file():
                continue
            if not full.resolve().is_relative_to(root):
                outside += 1
                continue
            found.append(str(full))
    chosen = [one for one in found if _size(one)]
    if section.format is None:
        chosen = [one for one in chosen if format_by_name(one)] or chosen
    if not chosen:
        links = f" ({outside} links that lead out of it were left out; name those files)" if outside else ""
        raise DataError(f"the directory holds no data files{links}", file=path)
    return [file for one in chosen for file in _file(one, section, text_role)]


def _archive(path: str, section: SourceSection, text_role: bool) -> list[SourceFile]:
    members = [member for member in list_members(path) if member[2]]
    if section.format is None:
        members = [member for member in members if format_by_name(member[1])] or members
    if not members:
        raise DataError("the archive holds no files", file=path)
    archives = Archives()
    files = []
    try:
        for position, name, size in members:
            head, compression = peek_member(archives, path, position, name)
            if is_archive(name, head):
                raise DataError("an archive inside an archive; unpack the outer one", file=f"{path}!{name}")
            found = format_of(name, head, section) or _as_text(head, f"{path}!{name}", text_role)
            files.append(SourceFile(path, name, size, found, compression, position))
    finally:
        archives.close()
    return files


def _parallel(pair: ParallelPath) -> SourceFile:
    sides = []
    for path in (pair.source, pair.target):
        if not Path(path).exists():
            raise DataError(f"{path}: no such file or directory{_near(path)}")
        if not Path(path).is_file():
            raise DataError("format parallel takes one file a side", file=path)
        _, compression = peek_file(path)
        sides.append(SourceFile(path, None, _size(path), "parallel", compression))
    source, target = sides
    return SourceFile(source.path, None, source.size, "parallel", source.compression, 0, target)
