"""Sources: recipe entries to the files that they name, and the hash that stands for the content of these."""

from __future__ import annotations

import codecs
import difflib
import hashlib
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath

from blake3 import blake3

from llmkit.data.readers.base import SourceFile
from llmkit.data.readers.find import find_files
from llmkit.data.readers.hub import revision_of
from llmkit.data.readers.streams import open_file
from llmkit.data.rolespecs import RoleSpec
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.sections import ParallelPath, SourceSection

__all__ = ["ResolvedSource", "SourceFile", "content_hash", "resolve_sources"]

PIECE = 16 * 2**20

PATH = "path"
"""As the column of `label`, where the rows have no column of that name: the name of the directory that holds the file.
"""

_ROWS = {"jsonl", "json", "parquet", "arrow", "hub"}
_TEXTUAL = {"jsonl", "json", "csv", "tsv", "txt", "conll", "squad", "parallel", "html"}
USED_BY: dict[str, set[str]] = {
    "name": {"hub", "stdlib"},
    "split": {"hub"},
    "revision": {"hub"},
    "header": {"csv", "tsv"},
    "delimiter": {"csv", "tsv", "conll"},
    "quoting": {"csv", "tsv"},
    "encoding": _TEXTUAL,
    "field": {"json", "squad"},
    "explode": _ROWS,
    "sample_by": {"txt"},
    "document_start": {"txt"},
}
"""Formats that use a key of an entry; set for others it would be ignored, so it is refused."""


@dataclass(frozen=True)
class ResolvedSource:
    """One entry with the files found for it. `index` is its place in the list, `id` its name in reports."""

    index: int
    id: str
    files: tuple[SourceFile, ...]
    section: SourceSection


def resolve_sources(entries: list[SourceSection], roles: RoleSpec, *, split: str) -> list[ResolvedSource]:
    """Finds the files of every entry of `data.<split>`. Reads no more than the first bytes of each.

    Raises DataError for paths that do not exist (with the nearest that does), RecipeError for keys that do not fit.
    """
    resolved: list[ResolvedSource] = []
    taken: set[str] = set()
    for index, section in enumerate(entries):
        key = f"data.{split}.{index}"
        _check_entry(section, roles, key)
        files = tuple(_found(section, roles, split, key))
        _check_used(section, files, key)
        name = section.id or _name_of(section)
        if section.id is not None and section.id in taken:
            raise RecipeError(f"two sources have the id {section.id!r}", key=f"{key}.id")
        while name in taken:
            name = f"{name}#{index}"
        taken.add(name)
        resolved.append(ResolvedSource(index, name, files, section))
    return resolved


def _found(section: SourceSection, roles: RoleSpec, split: str, key: str) -> list[SourceFile]:
    try:
        return find_files(section, text_role=roles.documents, split=split)
    except DataError as error:
        if error.file is None:  # what has to be mended is the recipe, not a file
            raise DataError(error.message, key=f"{key}.path") from error
        raise


def _name_of(section: SourceSection) -> str:
    if isinstance(section.path, ParallelPath):
        return section.path.source
    path = section.path if isinstance(section.path, str) else section.path[0]
    return path if section.name is None else f"{path}:{section.name}"


def _check_entry(section: SourceSection, roles: RoleSpec, key: str) -> None:
    """What the entry alone shows to be wrong. Raises RecipeError."""
    known = roles.roles()
    for role in section.columns or {}:
        if role not in known:
            near = difflib.get_close_matches(role, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            roles_are = f"the task's roles are {', '.join(known)}"
            raise RecipeError(f"unknown role; {roles_are}{hint}", key=f"{key}.columns.{role}")
    if section.message_keys is not None and roles.converse is None:
        raise RecipeError("only tasks on messages use it", key=f"{key}.message_keys")
    try:
        codecs.lookup(section.encoding)
        "".encode(section.encoding)
    except (LookupError, UnicodeError) as error:
        raise RecipeError(f"unknown text encoding {section.encoding!r}", key=f"{key}.encoding") from error
    if section.document_start is not None:
        try:
            re.compile(section.document_start)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error}", key=f"{key}.document_start") from error
        if section.sample_by in ("line", "paragraph"):
            raise RecipeError(f"contradicts sample_by: {section.sample_by}", key=f"{key}.document_start")
    if section.delimiter is not None and len(section.delimiter) != 1:
        raise RecipeError(f"one character is expected, got {section.delimiter!r}", key=f"{key}.delimiter")
    if isinstance(section.path, ParallelPath) != (section.format == "parallel") and section.format is not None:
        raise RecipeError("format parallel and path: {source: ..., target: ...} go together", key=f"{key}.format")


def _check_used(section: SourceSection, files: tuple[SourceFile, ...], key: str) -> None:
    """A key that none of the formats uses would be ignored. Raises RecipeError."""
    formats = {file.format for file in files}
    for name, users in USED_BY.items():
        default = SourceSection.model_fields[name].default
        if getattr(section, name) != default and not formats & users:
            found = ", ".join(sorted(formats))
            message = f"would be ignored: it is for {', '.join(sorted(users))}, and the files are {found}"
            raise RecipeError(message, key=f"{key}.{name}")
    if formats == {"stdlib"} and section.name not in (None, "functions"):
        raise RecipeError("builtin:python-stdlib has `functions` alone", key=f"{key}.name")


def directory_of(file: SourceFile) -> str:
    return PurePath(file.member or os.path.abspath(file.path)).parent.name


def content_hash(source: ResolvedSource) -> str:
    """A hash of the bytes of the source's files in order, wherever they lie (with the names of their directories
    where these are labels); for a Hub data set its commit, configuration and split; for the builtin corpus the Python
    version and its files."""
    digest = hashlib.sha256()
    hashed: dict[str, str] = {}
    for file in source.files:
        if file.format == "hub":
            commit = revision_of(file.path, source.section)
            digest.update(f"hub {file.path} {commit} {source.section.name} {file.member}\n".encode())
            continue
        if file.format == "stdlib" and not hashed:
            digest.update(f"python {platform.python_version()}\n".encode())
        for one in (file, file.target):
            if one is None:
                continue
            if (source.section.columns or {}).get("label") == PATH:
                digest.update(f"in {directory_of(one)}\n".encode())
            if one.path not in hashed:
                hashed[one.path] = _hash_in_pieces(one.path)
            elif one.member is not None:
                continue  # the whole archive is in the hash already
            digest.update(f"{hashed[one.path]}\n".encode())
    return digest.hexdigest()


def _hash_in_pieces(path: str) -> str:
    """BLAKE3 over the BLAKE3 of every PIECE bytes of a file: each core hashes pieces of its own, four times as fast as
    sha256."""

    def digest(place: int) -> bytes:
        with open_file(path) as opened:
            opened.seek(place)
            found, left = blake3(), PIECE
            while data := opened.read(min(left, 1 << 20)):
                found.update(data)
                left -= len(data)
        return found.digest()

    with open_file(path) as opened:
        size = os.fstat(opened.fileno()).st_size
    if size <= PIECE:
        return blake3(digest(0)).hexdigest()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return blake3(b"".join(pool.map(digest, range(0, size, PIECE)))).hexdigest()
