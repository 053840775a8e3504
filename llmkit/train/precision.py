"""What numbers a run computes in, and the kernels that follow from it.

Weights and moments are float32 always; this is what the products read. The choice is a function of the recipe and the
machine, and `run.json` keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from llmkit.errors import EnvironmentFailure, RecipeError
from llmkit.models.cpu_attention import install_cpu_attention
from llmkit.models.float8 import NARROWEST, float8_linears
from llmkit.models.lm import CausalLMModule
from llmkit.models.varlen import install_varlen
from llmkit.train.hardware import is_recurrent

Precision = Literal["no", "bf16", "fp16", "fp8"]
KEY = "distributed.mixed_precision"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""What autocast computes in; fp8 is the linear layers' alone."""

CPU_BF16_FROM_PARAMETERS = 10_000_000
"""From this size on bf16 trains 2 to 3 times as fast as float32 on a CPU that multiplies it (AVX512_BF16 or AMX, and
slower than float32 on others). A smaller model gains little, trains in minutes, and keeps float32's digits."""


def choose_precision(asked: str | None, device_type: str, module: nn.Module | None = None) -> Precision:
    """`auto`: bf16 on GPUs that have it, and on CPUs that multiply it, to train a large enough `module` whose matrices
    are large, which those of one recurrent time step are not. None: not to train; float32 on any CPU, and what was
    trained in fp8 is read as with `auto`."""
    if asked == "fp8" and module is not None:
        if not multiplies_fp8(device_type):
            raise EnvironmentFailure("fp8 needs a GPU of compute capability 8.9 or more; use auto", key=KEY)
        return "fp8"
    if asked in ("no", "bf16", "fp16"):
        return asked  # type: ignore[return-value]
    if device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    if device_type != "cpu" or module is None or not cpu_multiplies_bf16() or is_recurrent(module):
        return "no"
    return "bf16" if sum(p.numel() for p in module.parameters()) >= CPU_BF16_FROM_PARAMETERS else "no"


def cpu_multiplies_bf16() -> bool:
    """False where torch cannot tell: the calls are not public and may go."""
    calls = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(call is not None and call() for call in calls)


def multiplies_fp8(device_type: str) -> bool:
    return device_type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 9)


def autocast_of(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if precision not in AUTOCAST:
        return nullcontext
    return partial(torch.autocast, device.type, dtype=AUTOCAST[precision])


def install_kernels(module: nn.Module, precision: str, *, packing: bool) -> str | None:
    """Gives the model the fastest kernels that compute what `precision` says; the name of its attention's. Raises
    RecipeError where no layer could be computed so."""
    device = next(module.parameters()).device
    if precision == "fp8" and not float8_linears(module):
        message = f"no linear layer of this model is {NARROWEST} or more wide and a multiple of 16; use bf16"
        raise RecipeError(message, key=KEY)
    if device.type == "cpu" and precision == "bf16" and cpu_multiplies_bf16():
        install_cpu_attention(module)
    if isinstance(module, CausalLMModule) and packing and precision in AUTOCAST:
        install_varlen(module, autocast_of(precision, device))
    models = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    kernel: str | None = next((model.config._attn_implementation for model in models), None)
    return kernel
