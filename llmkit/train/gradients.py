"""Gradients summed over the processes of a run, once a step, after its last backward.

Not DistributedDataParallel, whose collectives run inside backward: a rank that runs out of memory there leaves the
others waiting for ever, while here all of them first agree that every part of the step was computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

BUCKET_BYTES = 32 << 20
"""Small gradients travel together, as one message of about this size."""


def sum_over_ranks(parameters: Sequence[nn.Parameter], touched: Sequence[bool]) -> None:
    """Replaces every gradient by its sum over all ranks.

    touched: of each parameter, whether any rank has a gradient, the same on every rank. One that no rank touched keeps
    None, so that the optimiser passes over it as it does in one process.
    """
    waiting = []
    for bucket in _buckets([p for p, used in zip(parameters, touched, strict=True) if used]):
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        flat = torch.cat([part.reshape(-1) for part in parts])
        for parameter in bucket:
            parameter.grad = None  # what is in flight replaces it: no second copy of all gradients
        waiting.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in waiting:
        work.wait()
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type, up to the size of a message."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        full = size + parameter.nbytes > BUCKET_BYTES
        if bucket and (full or (parameter.dtype, parameter.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket
