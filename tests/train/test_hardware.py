import functools

import pytest
import torch

from llmkit.train import hardware


@pytest.mark.parametrize(
    ("samples", "length", "expected"),
    [(8, 256, 8), (32, 256, 16), (24, 256, 12), (7, 2048, 1), (6, 1024, 3), (5, 8192, 1), (9, 1000, 3)],
)
def test_micro_batch_divides_and_keeps_to_the_token_budget(samples, length, expected):
    micro = hardware.choose_micro_batch(samples_per_rank=samples, max_length=length)
    assert micro == expected and samples % micro == 0


def test_a_large_vocabulary_trains_fewer_tokens_at_once():
    sizes = [
        hardware.choose_micro_batch(samples_per_rank=16, max_length=256, vocabulary=v) for v in (0, 16_000, 50_257)
    ]
    assert sizes == [16, 16, 4]


def test_a_micro_batch_of_a_small_model_costs_more_tokens():
    small, large = (hardware.micro_batch_cost("cpu", size) for size in (500_000, 10**9))
    assert 2 * large < small and large == hardware.MICRO_BATCH_COST["cpu"][0]
    assert hardware.micro_batch_cost("cuda", 10**8) == hardware.micro_batch_cost("mps", 10**8) > 1024


def test_compilation_is_chosen_by_the_runs_length_alone(monkeypatch):
    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/usr/bin/g++")
    long = hardware.COMPILE_PAYS_AFTER["cpu"] * torch.get_num_threads() * 2
    choose = functools.partial(hardware.choose_compile, packed=True)
    assert choose("auto", operations=long, device_type="cpu")
    assert not choose("auto", operations=long / 4, device_type="cpu")
    assert not choose(None, operations=long, device_type="cpu")
    assert not choose(False, operations=long, device_type="cpu")
    assert choose(True, operations=1.0, device_type="cpu")
    assert not choose("auto", operations=long, device_type="cpu", packed=False)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert not choose("auto", operations=long, device_type="cpu")


def test_matrix_rate_and_peak_memory_are_of_this_machine():
    cpu = torch.device("cpu")
    assert 1e8 < hardware.matrix_rate(cpu, torch.float32) < 1e15
    assert hardware.peak_memory(cpu) > 50_000_000


def test_keeping_freed_memory_changes_no_result():
    a = torch.randn(600, 600, generator=torch.Generator().manual_seed(0))
    before = a @ a
    hardware.keep_freed_memory()
    assert torch.equal(before, a @ a)
