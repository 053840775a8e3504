"""Pretraining with a vocabulary of 50,257: what benchmarks/pretrain.py measures, for a head that outweighs the body."""

from __future__ import annotations

from functools import partial

from benchmarks.common import Target, main
from benchmarks.pretrain import PEERS, add_options, prepare

TARGETS = [
    *(Target("peak_memory_bytes", over=name, at_most=0.4) for name in PEERS),
    *(Target("tokens_per_second", over=name, at_least=1.3) for name in PEERS),
    Target("share_of_float32_rate"),
    Target("share_of_own_rate"),
]

if __name__ == "__main__":
    main("pretrain_large_vocabulary", str(__doc__), prepare, TARGETS, partial(add_options, vocabulary=50_257, steps=10))
