"""The TaskModule behind the wrappers of DDP and the compiler."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def unwrap(module: nn.Module, kind: type[M]) -> M:
    """The module of `kind` inside."""
    while not isinstance(module, kind):
        inner = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
        assert isinstance(inner, nn.Module), f"not a wrapped {kind.__name__}"
        module = inner
    return module
