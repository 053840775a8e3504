"""The machine's matrix rate, the limit of training: the median of repeated square products, by precision."""

from __future__ import annotations

import json
import statistics
import time

import torch

SIZE, REPEATS = 2048, 9


def rate(dtype: torch.dtype) -> float:
    """Operations a second."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=draw).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / statistics.median(seconds[2:])


def main() -> None:
    print(json.dumps({"float32": rate(torch.float32), "bfloat16": rate(torch.bfloat16)}))


if __name__ == "__main__":
    main()
