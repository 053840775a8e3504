"""What stands behind wrappers: the TaskModule behind the compiler, the network behind an adapter."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def unwrap(module: nn.Module, kind: type[M]) -> M:
    """The module of `kind` inside."""
    while not isinstance(module, kind):
        inner = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
        assert isinstance(inner, nn.Module), f"not a wrapped {kind.__name__}"
        module = inner
    return module


def base_of(model: Any) -> Any:
    """The transformers model itself, adapters inside it included."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model


def prompt_length(model: Any) -> int:
    """Vectors that a tuned prompt puts before every text; 0 where there is none. Such a model must be called itself:
    the base model inside it knows nothing of its prompt."""
    if not hasattr(model, "get_base_model"):
        return 0
    config = model.active_peft_config
    return int(config.num_virtual_tokens) if config.is_prompt_learning else 0
