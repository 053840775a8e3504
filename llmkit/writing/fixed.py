"""A decoding step whose tensors never change their shape or place, which a GPU plays back as one CUDA graph.

A step of a small batch is hundreds of short kernels, and launching them takes longer than they run. A graph is
launched once. It asks for inputs at fixed addresses and for fixed shapes: a step attends to the first `span` places of
the cache, masks those that are not written yet, and writes to the place that a tensor names. `span` grows with the
texts, so that a step is never much more work than it must be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from llmkit.writing.cache import RoomyLayer

SPAN = 256
"""Places by which the span grows, each time with a graph of its own: two steps' time for as many steps."""
AGREEMENT = 0.05
"""How far a graph's scores may be from the plain step's, as a part of the largest: kernels round, errors are large."""


class FixedLayer(DynamicLayer):
    """Stands in for `target`: a token's keys and values (B, H, 1, D) go to `place` (1,), the first `span` are read."""

    def __init__(self, target: RoomyLayer, place: torch.Tensor, span: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.stores = [store[..., :span, :] for store in target.stores if store is not None]
        self.place, self.span = place, span

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for store, new in zip(self.stores, (key_states, value_states), strict=True):
            store.index_copy_(2, self.place, new)
        return self.stores[0], self.stores[1]

    def get_seq_length(self) -> int:
        return self.span - 1  # all of it may be attended to; the mask says what is


class FixedSteps:
    """The steps of a batch of B lines, a graph a span. `room`: places of each line of `cache`."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, room: int, *, takes_positions: bool):
        self.model, self.cache, self.room, self.takes_positions = model, cache, room, takes_positions
        self.steps: dict[int, _Step] = {}

    def __call__(self, tokens: torch.Tensor, begins: torch.Tensor, width: int) -> torch.Tensor:
        """The scores (B, V) of what follows `tokens` (B,), which stand at `width` in texts that begin at `begins` (B,).
        Good until the next call."""
        span = min(-(-(width + 1) // SPAN) * SPAN, self.room)
        if span not in self.steps:
            self.steps.clear()  # texts seldom become shorter, and a graph holds memory
            self.steps[span] = _Step(self.model, self.cache, len(tokens), span, self.takes_positions)
        return self.steps[span](tokens, begins, width)


class _Step:
    def __init__(self, model: PreTrainedModel, cache: DynamicCache, lines: int, span: int, takes_positions: bool):
        self.model, self.takes_positions = model, takes_positions
        self.ids = torch.zeros(lines, 1, dtype=torch.long, device=model.device)
        self.begins, self.place = torch.zeros_like(self.ids), torch.zeros_like(self.ids[0])
        self.places = torch.arange(span, device=model.device)
        self.cache = DynamicCache()
        self.cache.layers = [FixedLayer(layer, self.place, span) for layer in cache.layers]  # type: ignore[arg-type]
        self.run: Callable[[], torch.Tensor] | None = None

    def __call__(self, tokens: torch.Tensor, begins: torch.Tensor, width: int) -> torch.Tensor:
        self.ids.copy_(tokens[:, None])
        self.begins.copy_(begins[:, None])
        self.place.fill_(width)
        if self.run is None:
            self.run = as_graph(self.forward) if self.ids.device.type == "cuda" else self.forward
        return self.run()

    def forward(self) -> torch.Tensor:
        written = (self.places >= self.begins) & (self.places <= self.place)
        inputs: dict[str, Any] = {"attention_mask": written.long()}
        if self.takes_positions:
            inputs["position_ids"] = self.place - self.begins
        made: Any = self.model(input_ids=self.ids, past_key_values=self.cache, use_cache=True, **inputs)
        scores: torch.Tensor = made.logits[:, -1]
        return scores


def as_graph(forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`forward` as a graph to be played back, or itself where the model has parts that no graph can hold (experts
    that are chosen on the CPU) or the graph's result is another."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what libraries set up at their first call must not be recorded
        expected = forward().clone()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        # outside of it, for a recording that fails leaves its own stream the current one
        own = torch.cuda.stream(torch.cuda.current_stream())
        with own, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            scores = forward()
        graph.replay()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return forward
    if not agree(scores, expected):
        return forward

    def replay() -> torch.Tensor:
        graph.replay()
        return scores

    return replay


def agree(scores: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether they differ by no more than kernels do."""
    difference = (scores.float() - expected.float()).abs().max()
    return bool(difference <= AGREEMENT * expected.float().abs().max())
