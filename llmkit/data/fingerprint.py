"""What a prepared dataset depends on, as a readable nested identity, and its sha256: the dataset's name on disk.

Inside: the content of the sources (not their paths or ids), how they are read, cleaning, what the encoder depends
on, the tokenizer by content, the held-out fraction. Outside: seed, training, weights, packing, workers, where things
are written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.labels import names_of
from llmkit.data.sources import ResolvedSource, content_hash
from llmkit.errors import DataError
from llmkit.files import sha256_json
from llmkit.manifest import MANIFEST, read_manifest
from llmkit.recipe.sections import DataSection, SourceSection

FORMAT = 3
NOT_READING = ("path", "id", "weight")
"""Keys of a source that say where it is, what it is called and how often it is seen: not what its records are."""


_hashes: dict[tuple[object, ...], str] = {}
"""Content hashes of this process, by the files' names, sizes and times: a waiting process asks again and again."""


def source_hash(source: ResolvedSource) -> str:
    """`content_hash`, computed once a process while the files' sizes and times stay as they are."""
    key: list[object] = [source.section.model_dump_json()]
    for file in source.files:
        for path in (file.path, file.target.path if file.target is not None else file.path):
            status = os.stat(path) if os.path.exists(path) else None
            key += [path, file.member, *((status.st_size, status.st_mtime_ns, status.st_ino) if status else ())]
    found = _hashes.get(tuple(key))
    if found is None:
        found = _hashes[tuple(key)] = content_hash(source)
    return found


@dataclass(frozen=True)
class Fingerprint:
    digest: str
    identity: dict[str, Any]


def reading_options(section: SourceSection) -> dict[str, Any]:
    """The keys of a source that change its records, where they differ from their defaults."""
    options = section.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    options = {key: value for key, value in options.items() if key not in NOT_READING}
    if isinstance(section.label_names, str):
        options["label_names"] = list(names_of(section) or ())
    return options


def fingerprint(
    groups: dict[str, list[ResolvedSource]], data: DataSection, encoder: dict[str, Any], tokenizer: dict[str, Any]
) -> Fingerprint:
    """`encoder` and `tokenizer` are their identities. Reads every source's bytes to hash them."""
    identity: dict[str, Any] = {
        "format": FORMAT,
        "data": {
            group: [{"content": source_hash(source), **reading_options(source.section)} for source in sources]
            for group, sources in groups.items()
        },
        "encoder": encoder,
        "tokenizer": tokenizer,
    }
    identity["data"]["clean"] = [step.model_dump(mode="json") for step in data.clean]
    identity["data"]["validation_fraction"] = data.validation_fraction
    return Fingerprint(sha256_json(identity), identity)


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Nested JSON to dotted keys: `data.clean[0].step`."""
    if isinstance(value, dict) and value:
        items = [(f"{key}.{name}" if key else name, inner) for name, inner in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{key}[{i}]", inner) for i, inner in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for inner_key, inner in items for name, leaf in flatten(inner, inner_key).items()}


def differences(old: dict[str, Any], new: dict[str, Any], names: dict[str, str] | None = None) -> list[str]:
    """One line a key that differs, both values in it. `names`: source ids by `data.train[0]`, to name changed
    content."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        left, right = before.get(key, None), after.get(key, None)
        if left == right:
            continue
        if key.endswith(".content") and left is not None and right is not None:
            source = key.removesuffix(".content")
            lines.append(f"{source}: the content of {(names or {}).get(source, 'this source')} has changed")
        else:
            lines.append(f"{key}: {_shown(left)} -> {_shown(right)}")
    return lines


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:18] + "..." + text[-18:]


def explain_miss(prepared_dir: Path, wanted: Fingerprint, groups: dict[str, list[ResolvedSource]]) -> str | None:
    """Why none of the datasets prepared there matches: the nearest one and the keys that differ. None where none is."""
    best: tuple[int, str, list[str]] | None = None
    names = {f"data.{group}[{s.index}]": s.id for group, sources in groups.items() for s in sources}
    for path in sorted(prepared_dir.glob(f"[0-9a-f]*/{MANIFEST}")) if prepared_dir.is_dir() else ():
        try:
            identity = read_manifest(path.parent, DataError)["identity"]
        except (DataError, KeyError):
            continue
        lines = differences(identity, wanted.identity, names)
        if lines and (best is None or len(lines) < best[0]):
            best = (len(lines), str(path.parent), lines)
    if best is None:
        return None
    shown = "; ".join(best[2][:5]) + (f"; and {best[0] - 5} more" if best[0] > 5 else "")
    return f"prepared data of {best[1]} does not match: {shown}"
