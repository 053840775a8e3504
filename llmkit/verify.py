"""`llmkit verify DIR`: re-proves a run, a checkpoint, a model or a prepared dataset from what is on the disk now.

Looks only, locks nothing, imports no torch. A run is everything in it: run.json, the recipe, the metrics, each
checkpoint, the model, the prepared data, the evaluation. The first file that is not what its manifest says is named;
exit 3 for prepared data, else 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.errors import CheckpointError, DataError, RecipeError
from llmkit.files import parse_json, read_json
from llmkit.manifest import MANIFEST, hash_file, read_manifest, unseal, verify_files
from llmkit.report.console import Console
from llmkit.train import checkpoint
from llmkit.train.rundir import CHECKPOINTS, EVALUATION, METRICS, MODEL, PREPARED, RECIPE, RESULTS, RUN

PREDICTIONS = "predictions.jsonl"
FINGERPRINT = re.compile("[0-9a-f]{64}")
PREPARED_SIGNS = ("report.json", "rejected.jsonl", "tokenizer", "train")
"""What a prepared dataset has beside its manifest; two of them tell it from a model where the manifest is gone."""


@dataclass
class Proof:
    """What has been proven so far: (kind, path) of each thing, and the files and bytes in them."""

    console: Console
    things: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def add(self, kind: str, path: Path, files: int, size: int) -> None:
        self.things.append({"kind": kind, "path": str(path), "files": files, "bytes": size})
        self.files += files
        self.bytes += size


def verify(path: Path, console: Console) -> dict[str, Any]:
    """Proves `path` and returns `{path, kind, files, bytes, checked: [{kind, path, files, bytes}]}`.

    Raises DataError for prepared data, CheckpointError for anything else, naming the bad file; RecipeError where there
    is nothing that llmkit made.
    """
    if not path.is_dir():
        raise RecipeError(f"{path} is {'not a directory' if path.exists() else 'not there'}", key="DIR")
    proof = Proof(console)
    kind = _kind(path)
    {
        "run": _run,
        "checkpoint": _sealed,
        "model": _sealed,
        "prepared dataset": _prepared,
        "checkpoints": _checkpoints,
        "prepared datasets": _all_prepared,
    }[kind](path, proof)
    result = {"path": str(path), "kind": kind, "files": proof.files, "bytes": proof.bytes, "checked": proof.things}
    if not console.json:
        for thing in proof.things:
            console.note(f"{thing['kind']} {thing['path']}: {thing['files']:,} files, {thing['bytes']:,} bytes")
        verb = "are" if kind.endswith("s") else "is"
        console.result(f"{path}: the {kind} {verb} whole ({proof.files:,} files, {proof.bytes:,} bytes)")
    return result


def _kind(path: Path) -> str:
    if (path / RUN).is_file() or ((path / CHECKPOINTS).is_dir() and (path / RECIPE).is_file()):
        return "run"
    if checkpoint.PUBLISHED.fullmatch(path.name):
        return "checkpoint"
    if checkpoint.published(path):
        return "checkpoints"
    signs = sum((path / name).exists() for name in PREPARED_SIGNS)
    if _names_fingerprint(path) or signs >= 2:
        return "prepared dataset"
    if (path / MANIFEST).is_file() or (path / "config.json").is_file():
        return "model"
    if any(_names_fingerprint(child) for child in path.iterdir() if child.is_dir()):
        return "prepared datasets"
    raise RecipeError(f"{path} holds no run, checkpoint, model or prepared dataset of llmkit", key="DIR")


def _names_fingerprint(path: Path) -> bool:
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "fingerprint" in manifest


def _run(path: Path, proof: Proof) -> None:
    record = _unsealed(path / RUN)
    files: dict[str, Any] = record.get("files", {})
    size = 0
    for name, entry in {RECIPE: None, **files}.items():
        found = _hash(path / name)
        if (entry or found) != found or (name == RECIPE and found["sha256"] != record.get("recipe_sha256")):
            raise CheckpointError(f"{path / name} is not what the run wrote: its sha256 is not the one in {RUN}")
        size += found["bytes"]
    for name in (METRICS, RESULTS):
        _check_json(path / name)
    proof.add("run", path, 1 + len({RECIPE, *files}), size)
    if record.get("status") == "completed" and not (path / MODEL).is_dir():
        raise CheckpointError(f"{path / MODEL} is missing, though {RUN} says that the run is completed")
    _checkpoints(path / CHECKPOINTS, proof)
    if (path / MODEL).is_dir():
        _sealed(path / MODEL, proof)
    if (path / PREPARED).is_dir():
        _all_prepared(path / PREPARED, proof)
    if (path / EVALUATION / RESULTS).is_file():
        _evaluation(path / EVALUATION, proof)


def _evaluation(path: Path, proof: Proof) -> None:
    wanted = _unsealed(path / RESULTS).get("predictions_sha256")
    found = _hash(path / PREDICTIONS)
    if found["sha256"] != wanted:
        raise CheckpointError(f"{path / PREDICTIONS} is not what {RESULTS} beside it was computed from; evaluate again")
    proof.add("evaluation", path, 2, found["bytes"] + (path / RESULTS).stat().st_size)


def _unsealed(path: Path) -> dict[str, Any]:
    """A JSON object that proves itself. Raises CheckpointError."""
    try:
        return unseal(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} is missing or cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _hash(path: Path) -> dict[str, Any]:
    try:
        return hash_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} is missing or cannot be read: {error.strerror}") from None


def _check_json(path: Path) -> None:
    """Each line of a .jsonl, or the whole of a .json, is JSON; a last line without its end is one being written."""
    if not path.is_file():
        return
    data = path.read_bytes()
    parts = data.split(b"\n")[:-1] if path.suffix == ".jsonl" else [data]
    for number, part in enumerate(parts, 1):
        try:
            parse_json(part)
        except ValueError as error:
            raise CheckpointError(f"it is damaged: {error}", file=str(path), line=number) from None


def _checkpoints(path: Path, proof: Proof) -> None:
    for directory in checkpoint.published(path):
        try:
            _sealed(directory, proof)
        except CheckpointError:
            if directory.exists():  # else the run beside us has just deleted it
                raise


def _sealed(path: Path, proof: Proof) -> None:
    """A checkpoint or a model: a directory with a manifest that proves itself."""
    manifest = read_manifest(path)
    is_checkpoint = manifest["format"] == checkpoint.FORMAT
    if is_checkpoint:
        checkpoint.check_name(path, manifest)
    kind = "checkpoint" if is_checkpoint else "model"
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    with proof.console.progress(f"verifying {path}", total, "bytes") as advance:
        for name, entry in verify_files(path, manifest):
            advance(entry["bytes"], name)
    proof.add(kind, path, len(manifest["files"]) + 1, total)


def _all_prepared(path: Path, proof: Proof) -> None:
    """Whatever has a fingerprint for its name, so that one whose manifest is gone is missed; not what is being made."""
    for directory in sorted(path.iterdir()):
        if directory.is_dir() and (FINGERPRINT.fullmatch(directory.name) or (directory / MANIFEST).is_file()):
            _prepared(directory, proof)


def _prepared(path: Path, proof: Proof) -> None:
    from llmkit.data.prepare import verify_prepared

    if not (path / MANIFEST).is_file():
        raise DataError(f"{path / MANIFEST} is missing: the dataset was never finished; run preprocess again")
    verify_prepared(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    proof.add("prepared dataset", path, len(files), sum(file.stat().st_size for file in files))
