"""The same function in one kernel: activations that transformers writes out as a chain of operations.

GPT-2's `gelu_new` takes eight passes over the widest tensor of a layer; torch's `gelu(approximate="tanh")` is the same
formula (Hendrycks and Gimpel, arXiv:1606.08415) in one, equal to rounding, and keeps one tensor for the backward pass.
"""

from __future__ import annotations

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation


def fuse_activations(model: nn.Module) -> None:
    """Replaces them in `model`. They hold no weights, and the config keeps their name."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (NewGELUActivation, FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
