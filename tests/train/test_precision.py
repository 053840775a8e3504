import pytest
import torch

from llmkit.errors import EnvironmentFailure, RecipeError
from llmkit.train import precision
from llmkit.train.precision import autocast_of, install_kernels


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(precision, "CPU_BF16_FROM_PARAMETERS", 100)
    return torch.nn.Linear(10, 10)


def test_a_cpu_trains_a_large_model_in_bf16_where_it_multiplies_it(monkeypatch, large):
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)
    choose = precision.choose_precision
    assert choose("auto", "cpu", large) == choose(None, "cpu", large) == "bf16"
    assert choose("auto", "cpu") == "no"  # not to train
    assert choose("auto", "cpu", torch.nn.Linear(9, 9)) == "no"
    assert choose("auto", "cpu", torch.nn.LSTM(10, 10)) == choose("auto", "cpu", torch.nn.GRUCell(10, 10)) == "no"
    assert choose("no", "cpu", large) == "no" and choose("fp16", "cpu", large) == "fp16"
    assert choose("bf16", "cpu", torch.nn.Linear(1, 1)) == "bf16"


def test_a_cpu_without_bf16_instructions_trains_in_float32(monkeypatch, large):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert precision.choose_precision("auto", "cpu", large) == "no"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert precision.choose_precision("auto", "cpu", large) == "bf16"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert precision.choose_precision("auto", "cpu", large) == "no"


def test_autocast_is_nothing_in_float32():
    with autocast_of("no", torch.device("cpu"))():
        assert not torch.is_autocast_enabled("cpu")
    with autocast_of("bf16", torch.device("cpu"))():
        assert torch.is_autocast_enabled("cpu")


def test_fp8_is_for_the_machines_that_have_it(monkeypatch, large):
    with pytest.raises(EnvironmentFailure, match="compute capability") as refused:
        precision.choose_precision("fp8", "cpu", large)
    assert refused.value.key == "distributed.mixed_precision"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, has_it in [((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert precision.multiplies_fp8("cuda") == has_it
    assert precision.choose_precision("fp8", "cuda", large) == "fp8"
    assert not precision.multiplies_fp8("cpu") and not precision.multiplies_fp8("mps")


def test_what_was_trained_in_fp8_is_scored_where_there_is_none():
    assert precision.choose_precision("fp8", "cpu") == "no"


def test_fp8_that_no_layer_could_use_is_refused():
    with pytest.raises(RecipeError, match="no linear layer"):
        install_kernels(torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 1000)), "fp8", packing=False)
