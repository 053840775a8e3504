"""The batch that a run diverged on, kept for study in `<output_dir>/diverged/`: tensors, and which rows they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llmkit.data.shards import Split
from llmkit.files import dump_json, write_atomic
from llmkit.recipe.sections import SourceSection
from llmkit.train import tensorfile
from llmkit.train.feed import Feed
from llmkit.train.rundir import DIVERGED


def keep_batch(output_dir: Path, feed: Feed, split: Split, sources: list[SourceSection], step: int) -> Path:
    """Writes the whole global batch of the step after `step` completed ones, and returns its JSON file.

    step-N.safetensors: arrays `{sample}/{name}` as the task reads them. step-N.json: per sample its rows of the
    prepared data, each with source, file, line and offset. Raises EnvironmentFailure.
    """
    epoch, indices = feed.indices(step)
    samples = feed.plan.samples(epoch, indices)
    tensors = {
        f"{number}/{name}": torch.from_numpy(np.array(array))
        for number, sample in enumerate(samples)
        for name, array in sample.arrays.items()
    }
    told = []
    for number, sample in enumerate(samples):
        rows = np.asarray(sample.rows, dtype=np.int64)
        origins = [{**place, "source": _name(sources, place["source"])} for place in split.origins(rows)]
        told.append({"sample": number, "rows": rows.tolist(), "origins": origins})
    place = output_dir / DIVERGED / f"step-{step + 1:08d}"
    place.parent.mkdir(exist_ok=True)
    write_atomic(place.with_suffix(".safetensors"), b"".join(bytes(c) for c in tensorfile.chunks_of(tensors)))
    content = {"step": step + 1, "epoch": epoch + 1, "samples": told}
    write_atomic(place.with_suffix(".json"), dump_json(content))
    return place.with_suffix(".json")


def _name(sources: list[SourceSection], index: int) -> str:
    """What a source of `data.train` is called in reports."""
    return sources[index].id or f"data.train.{index}"
