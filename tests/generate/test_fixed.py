"""Steps in tensors that stay where they are: what `generate` writes, and nothing that a graph cannot hold.

The graph itself needs a GPU; all that it records is run here.
"""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList
from transformers.utils import import_utils

from llmkit.writing import decoding, fixed
from llmkit.writing.cache import roomy_cache
from llmkit.writing.decoding import decode
from llmkit.writing.fixed import FixedSteps, agree
from tests.generate.test_decoding import CONFIGS, PROMPTS, VOCABULARY, build, decoded, expected


@pytest.fixture
def fixed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "steps_are_fixed", lambda device: True)


@pytest.mark.usefixtures("fixed_steps")
@pytest.mark.parametrize("span", [16, 1000])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_writes_what_generate_writes(name: str, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "SPAN", span)
    model = build(CONFIGS[name])
    found = decoded(model, PROMPTS, 40, len(PROMPTS))
    assert found == [expected(model, prompt, 40) for prompt in PROMPTS]


@pytest.mark.usefixtures("fixed_steps")
@pytest.mark.parametrize("leave_at", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_lines_are_given_to_waiting_prompts_and_leave(
    name: str, batch_size: int, leave_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LEAVE_AT_FIXED", leave_at)
    monkeypatch.setattr(fixed, "SPAN", 32)
    model, dice = build(CONFIGS[name]), random.Random(batch_size)
    prompts = [dice.choices(range(3, VOCABULARY), k=dice.randint(1, 90)) for _ in range(26)]
    assert decoded(model, prompts, 38, batch_size) == [expected(model, prompt, 38) for prompt in prompts]


@pytest.mark.usefixtures("fixed_steps")
def test_drawn_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONFIGS["llama"])
    keys: dict[str, Any] = {"pad_id": 0, "warpers": LogitsProcessorList(), "ended": lambda ids: False}
    draws = torch.rand(len(PROMPTS), 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = [decode(model, PROMPTS, 30, batch_size=size, uniforms=draws, **keys) for size in (2, 5)]
        monkeypatch.setattr(decoding, "steps_are_fixed", lambda device: False)
        plain = decode(model, PROMPTS, 30, batch_size=5, uniforms=draws, **keys)
    assert found == [plain, plain]


class Watch(TorchDispatchMode):
    """Notes operators whose result decides on the CPU what comes next, or whose shape depends on values: a stream that
    is being recorded refuses them."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen += [name] if any(part in name for part in self.FORBIDDEN) else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_holds_nothing_that_a_graph_cannot(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its inputs and its scores, while transformers believes that it is recorded."""
    model = build(CONFIGS[name])
    cache = roomy_cache(model, 20)
    assert cache is not None
    with torch.inference_mode():
        with Watch() as watch:
            bool(torch.ones(1).all())
        assert watch.seen
        model(torch.ones(3, 4, dtype=torch.long), past_key_values=cache, use_cache=True)
        steps = FixedSteps(model, cache, 20, takes_positions=name != "bloom")
        steps(torch.ones(3, dtype=torch.long), torch.zeros(3, dtype=torch.long), 4)
        (step,) = steps.steps.values()
        places = [tensor.data_ptr() for layer in step.cache.layers for tensor in layer.stores]  # type: ignore[attr-defined]
        monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
        with Watch() as watch:
            step.forward()
    assert watch.seen == []
    assert places == [store.data_ptr() for layer in cache.layers for store in layer.stores]  # type: ignore[attr-defined]


def test_scores_agree_where_they_differ_as_kernels_do() -> None:
    scores = torch.randn(4, 50)
    assert agree(scores.bfloat16(), scores)
    assert not agree(scores.flip(0), scores)
    assert not agree(torch.full_like(scores, float("nan")), scores)


class Recorder:
    """In the place of torch.cuda's graphs: notes what happens; `spoilt` is what a replay leaves in the scores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoilt: float | None = None):
        self.events: list[str] = []
        self.spoilt, self.scores = spoilt, torch.zeros(2, 3)
        for name in ("Stream", "CUDAGraph"):
            monkeypatch.setattr(torch.cuda, name, lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: nullcontext())

    def wait_stream(self, other: object) -> None:
        self.events.append("wait")

    def replay(self) -> None:
        self.events.append("replay")
        if self.spoilt is not None:
            self.scores.fill_(self.spoilt)

    def forward(self) -> torch.Tensor:
        self.events.append("forward")
        return self.scores.copy_(torch.arange(6.0).view(2, 3))


def test_a_graph_that_gives_the_same_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    run = fixed.as_graph(recorder.forward)
    assert recorder.events == ["wait", "forward", "wait", "forward", "replay"]
    assert run is not recorder.forward and run() is recorder.scores and recorder.events[-1] == "replay"


@pytest.mark.parametrize("spoilt", [0.0, 9.0, float("nan")])
def test_a_graph_that_gives_something_else_is_not_used(spoilt: float, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, spoilt)
    assert fixed.as_graph(recorder.forward) == recorder.forward


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, False), (torch.OutOfMemoryError, True)])
def test_what_cannot_be_recorded_runs_as_it_is(
    error: type[RuntimeError], raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)

    def refuse(graph: object, capture_error_mode: str) -> None:
        raise error("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(error) if raised else nullcontext():
        assert fixed.as_graph(recorder.forward) == recorder.forward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_graph_plays_the_same_tokens(name: str) -> None:
    model: Any = build(CONFIGS[name]).to("cuda")
    found = decoded(model, PROMPTS, 40, len(PROMPTS))
    model.to("cpu")
    assert found == [expected(model, prompt, 40) for prompt in PROMPTS]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_waits_for_its_scores_is_no_graph() -> None:
    scores = torch.randn(2, 3, device="cuda")

    def waits() -> torch.Tensor:
        return scores if float(scores.sum()) else scores + 1

    assert fixed.as_graph(waits) is waits
    assert fixed.as_graph(lambda: scores * 1)() is not scores  # the GPU still works
