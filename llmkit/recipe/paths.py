"""Which names in a recipe are places on this machine, and which are ids of the Hugging Face Hub."""

from __future__ import annotations

import os
import re

BUILTIN = "builtin:"
HUB = "hf://"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
_GLOB = re.compile(r"[*?\[]")


def is_builtin(name: str) -> bool:
    return name.startswith(BUILTIN)


def is_local(name: str, *, data: bool = False) -> bool:
    """A file, directory or glob of this machine, whether or not it is there yet.

    `org/name` is of the Hub unless it exists or a directory `org` does; `hf://org/name` always is. data: a name with a
    suffix (`corpus/train.jsonl`) is a file; models have dots in their names.
    """
    if name.startswith((HUB, BUILTIN)):
        return False
    if os.path.exists(os.path.expanduser(name)) or name.startswith((".", "/", "~")) or _GLOB.search(name):
        return True
    first, _, last = name.partition("/")
    if os.path.isdir(first) or (data and os.path.splitext(last)[1]):
        return True
    return not _HUB_ID.match(name)


def is_hub_id(name: str, *, data: bool = False) -> bool:
    return not is_builtin(name) and not is_local(name, data=data)


def absolute(name: str, *, data: bool = False) -> str:
    """The absolute path of a local name; other names as they are."""
    return os.path.abspath(os.path.expanduser(name)) if is_local(name, data=data) else name
