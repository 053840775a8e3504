"""The machine's matrix rate, the limit of training: the median of repeated square products, by precision.

In float32 the faster of torch's own product (MKL, which keeps to AVX2 on other makers' CPUs than Intel's) and oneDNN's.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch

SIZE, REPEATS = 2048, 9
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def rate(dtype: torch.dtype, product: Product = torch.matmul) -> float:
    """Operations a second."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=draw).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        product(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / statistics.median(seconds[2:])


def onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return made


def main() -> None:
    float32 = rate(torch.float32)
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        float32 = max(float32, rate(torch.float32, onednn))
    print(json.dumps({"float32": float32, "bfloat16": rate(torch.bfloat16)}))


if __name__ == "__main__":
    main()
