"""Checkpoints that survive a kill at any byte: `checkpoints/step-00000100/` is whole and proven, or it does not exist.

A save writes `.step-00000100.partial-PID/`: the files, each forced to the disk and hashed from the bytes in memory; the
manifest last; then one rename publishes the directory. `latest` is a hint: the manifests decide what is valid.
Older checkpoints go only after the new one has been read back and proven. Nothing is ever unpickled.

Only the holder of the run's lock calls `save` and `newest_valid`, so any hidden directory found there is a dead one's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError, EnvironmentFailure
from llmkit.files import dump_json, environment_errors, free_bytes, fsync_directory, write_atomic
from llmkit.manifest import (
    MANIFEST,
    VERSION,
    broken,
    read_manifest,
    read_proven,
    seal,
    verify_directory,
    write_synced,
)

if TYPE_CHECKING:
    import torch

FORMAT = "llmkit-checkpoint"
STATE = "state.json"
LATEST = "latest"
SUFFIX = ".safetensors"
PUBLISHED = re.compile(r"step-(\d{8,})")
LEFTOVER = re.compile(r"\.(step-\d{8,})\.(partial|replaced|deleted)-\d+")
SPARE_BYTES = 1 << 20
"""Left free beside a checkpoint: the metrics and run.json are written too."""


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint directory, from its name. Raises CheckpointError where it is none."""
    match = PUBLISHED.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is no checkpoint: its name is not like {name_of(100)}")
    return int(match[1])


def published(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first, proven or not."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if PUBLISHED.fullmatch(path.name) and path.is_dir()), key=step_of)


# --- saving -----------------------------------------------------------------------------------------------------------


def save(
    root: Path,
    step: int,
    tensors: dict[str, dict[str, torch.Tensor]],
    state: dict[str, Any],
    *,
    keep: int | None,
    protect: Iterable[int] = (),
) -> Path:
    """Publishes the checkpoint of `step` under `root` and returns its directory.

    tensors: file stem -> tensors (any shape, any device); a tensor that is the same memory as another is stored once.
    state: JSON (no NaN). keep: how many checkpoints stay, the new one and `protect` (steps, e.g. the best) always among
    them; None keeps all. A save that fails removes what it wrote, leaves the older checkpoints as they were, and raises
    EnvironmentFailure naming the path and the bytes.
    """
    from llmkit.train import tensorfile

    state_bytes = dump_json(state)
    need = sum(tensorfile.size_of(part) for part in tensors.values()) + len(state_bytes) + 4096
    final = root / name_of(step)
    partial = root / f".{final.name}.partial-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _recover(root)
        if free_bytes(root) < need + SPARE_BYTES:
            raise _failure(final, need, "not enough space on the disk")
        partial.mkdir()
        files = {
            stem + SUFFIX: write_synced(partial / (stem + SUFFIX), tensorfile.chunks_of(part))
            for stem, part in tensors.items()
        }
        files[STATE] = write_synced(partial / STATE, [state_bytes])
        body = {"format": FORMAT, "version": VERSION, "step": step, "saved_at": _now(), "files": files}
        write_synced(partial / MANIFEST, [seal(body)])
        fsync_directory(partial)
        _publish(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _failure(final, need, error.strerror or str(error)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    write_atomic(root / LATEST, (final.name + "\n").encode())
    try:
        _retain(root, final, keep, {*protect})
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentFailure(
            f"cannot delete an old checkpoint: {reason}; {final} is saved and valid", file=str(root)
        ) from error
    return final


def _publish(partial: Path, final: Path) -> None:
    """Renames `partial` to `final`. A directory that is there already (one that did not verify) makes room first."""
    old = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    fsync_directory(final.parent)


def _failure(final: Path, need: int, reason: str) -> EnvironmentFailure:
    older = [path.name for path in published(final.parent) if path != final]
    rest = f"older checkpoints are as they were (newest: {older[-1]})" if older else "there is no older checkpoint"
    return EnvironmentFailure(
        f"cannot save the checkpoint {final}: {reason} "
        f"({need:,} bytes needed, {free_bytes(final):,} bytes free); {rest}",
        file=str(final),
    )


def _retain(root: Path, newest: Path, keep: int | None, protect: set[int]) -> None:
    """Deletes the checkpoints beyond `keep`, and later ones that are damaged, once `newest` is proven from the disk."""
    others = [path for path in published(root) if path != newest]
    older = [path for path in others if step_of(path) < step_of(newest)]
    spare = [path for path in older if step_of(path) not in protect]
    surplus = [] if keep is None else spare[: max(0, min(len(spare), len(older) + 1 - keep))]
    # A later step than the one just saved can only be one that resuming has passed over.
    passed_over = [path for path in others if path not in older and not _is_valid(path)]
    try:
        if surplus or passed_over:
            verify(newest)
    except CheckpointError as error:
        raise EnvironmentFailure(
            f"{error}; it was written just now: the disk garbles what it is given; older checkpoints are as they were"
        ) from error
    for path in (*surplus, *passed_over):
        _delete(path)
    _recover(root)


def discard_after(root: Path, step: int) -> None:
    """Deletes the checkpoints later than `step`, the newest first. Raises EnvironmentFailure."""
    with environment_errors(root, "delete a checkpoint in"):
        for path in reversed(published(root)):
            if step_of(path) > step:
                _delete(path)


def _delete(path: Path) -> None:
    """Unpublishes before it deletes: a kill in between must not leave half a checkpoint under a checkpoint's name."""
    doomed = path.with_name(f".{path.name}.deleted-{os.getpid()}")
    path.rename(doomed)
    fsync_directory(path.parent)
    shutil.rmtree(doomed)


def _recover(root: Path) -> None:
    """Clears what a killed process left: puts back a checkpoint whose replacement never came, deletes the rest."""
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        match = LEFTOVER.fullmatch(path.name)
        if match is None:
            if path.name.startswith(f".{LATEST}."):
                path.unlink()
            continue
        if match[2] == "replaced" and not (root / match[1]).exists():
            path.rename(root / match[1])
            fsync_directory(root)
        else:
            shutil.rmtree(path)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- loading ----------------------------------------------------------------------------------------------------------


def verify(path: Path) -> dict[str, Any]:
    """Proves a checkpoint from the disk and returns its manifest. Raises CheckpointError naming the bad file."""
    manifest = verify_directory(path)
    check_name(path, manifest)
    return manifest


def check_name(path: Path, manifest: dict[str, Any]) -> None:
    """The manifest is a checkpoint's, and of the step that the directory is named after. Raises CheckpointError."""
    if manifest.get("format") != FORMAT or manifest.get("step") != step_of(path):
        found = f"{manifest.get('format')} step {manifest.get('step')}"
        raise CheckpointError(f"{path / MANIFEST} is of {found}, not of checkpoint {path.name}")


def _is_valid(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def newest_valid(root: Path, note: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every byte verifies; None where there is none at all.

    A damaged one is passed over with a `note` that names its bad file. Raises CheckpointError where all are damaged,
    EnvironmentFailure where a killed process's leftovers cannot be cleared.
    """
    try:
        _recover(root)
    except OSError as error:
        raise EnvironmentFailure(f"cannot clear leftovers in {root}: {error.strerror or error}") from error
    damage: list[str] = []
    for path in reversed(published(root)):
        try:
            verify(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for message in damage:
            note(f"{message}; going on from {path.name} instead")
        return path
    if damage:
        raise CheckpointError(f"no checkpoint in {root} is valid: {'; '.join(damage)}", file=str(root))
    return None


def load(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """(file stem -> tensors on the CPU, state) of a checkpoint; every byte is proven as it is read.

    Raises CheckpointError naming the file that is damaged or missing.
    """
    from llmkit.train import tensorfile

    manifest = read_manifest(path)
    check_name(path, manifest)
    entries: dict[str, dict[str, Any]] = manifest["files"]
    tensors = {
        name.removesuffix(SUFFIX): tensorfile.read(path / name, entry, broken) for name, entry in _parts(entries)
    }
    state: dict[str, Any] = json.loads(read_proven(path / STATE, entries.get(STATE)))
    return tensors, state


def _parts(entries: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, entry) for name, entry in entries.items() if name.endswith(SUFFIX))
