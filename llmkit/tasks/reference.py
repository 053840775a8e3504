"""Scores of a split's rows under the network that training starts from, computed once and kept beside the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.errors import EnvironmentFailure
from llmkit.files import sha256_json, write_atomic
from llmkit.recipe.identity import content_of
from llmkit.recipe.sections import ModelSection

BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
SHA256_BYTES = 32

Score = Callable[[list[int]], np.ndarray]
"""Rows of a batch -> (n, 2) float64."""


def network_identity(section: ModelSection, seed: int) -> dict[str, Any]:
    """What the starting weights are: the content of a directory, the commit of a Hub id, or a config and a seed."""
    if section.name_or_path is None:
        return {"config": section.config, "seed": seed}
    local = Path(section.name_or_path).is_dir()
    return {"weights": content_of(section.name_or_path) if local else [section.name_or_path, section.revision]}


def cached(path: Path, count: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """(count, 2) float64 from `path` where it is whole, else computed and kept there; a place that cannot be written
    costs the same work again next time, nothing else."""
    if path.exists():
        data = path.read_bytes()
        payload = data[:-SHA256_BYTES]
        if len(payload) == 16 * count and hashlib.sha256(payload).digest() == data[-SHA256_BYTES:]:
            return np.frombuffer(payload, "<f8").reshape(count, 2)
    scores = compute()
    payload = np.ascontiguousarray(scores, "<f8").tobytes()
    with suppress(EnvironmentFailure, OSError):
        write_atomic(path, payload + hashlib.sha256(payload).digest())
    return scores


def cache_path(directory: Path, identity: dict[str, Any]) -> Path:
    """Beside the prepared dataset of a split's `directory`, which itself never changes once published."""
    digest = sha256_json({**identity, "data": [directory.parent.name, directory.name]})
    return directory.parent.parent / f"reference-{digest[:32]}.scores"


def score_rows(score: Score, sizes: np.ndarray, device: str) -> np.ndarray:
    """(N, 2) scores of N rows, in batches of similar length, shared out over the processes of a launch."""
    import torch.distributed as dist

    launched = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if launched else (0, 1)
    order = np.argsort(-sizes, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, BATCH_TOKENS.get(device, 8192) // max(1, int(sizes[order[start]])))
        batches.append(order[start : start + size])
        start += size
    found = [(batch, score(batch.tolist())) for batch in batches[rank::world]]
    if launched:
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, found)
        found = [pair for part in parts for pair in part]
    scores = np.zeros((len(sizes), 2))
    for batch, values in found:
        scores[batch] = values
    return scores
