"""Samples to padded tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmkit.data.examples import Sample
from llmkit.tasks.base import Batch


def pad(samples: Sequence[Sample], fill: Mapping[str, int], width: int | None = None) -> Batch:
    """Tensors of the arrays named in `fill`, each padded on the right with its value: (B, T) int64.

    T is the longest array of that name in the batch, or `width` where given. Scalars, arrays of shape (), become (B,)
    in their own dtype.
    """
    import torch

    batch: Batch = {}
    for name, value in fill.items():
        arrays = [np.asarray(sample.arrays[name]) for sample in samples]
        if arrays[0].ndim == 0:
            batch[name] = torch.from_numpy(np.stack(arrays))
            continue
        longest = max(len(array) for array in arrays)
        padded = np.full((len(arrays), longest if width is None else width), value, dtype=np.int64)
        assert longest <= padded.shape[1], "a sample is longer than the batch"
        for line, array in enumerate(arrays):
            padded[line, : len(array)] = array
        batch[name] = torch.from_numpy(padded)
    return batch
