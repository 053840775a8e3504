"""Optimisers: a table of constructors, and their state by parameter name, so that a checkpoint fits any layout.

Weight decay goes to matrices and embeddings, never to norms or biases. Muon
(https://kellerjordan.github.io/posts/muon) takes the hidden
matrices and leaves embeddings, head and vectors to AdamW, which is why a run holds a list of optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.errors import EnvironmentFailure, ModelError
from llmkit.recipe.sections import Optimizer, TrainingSection
from llmkit.train.layers import rate_scales

NamedParameters = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Settings:
    """What the constructors need, resolved."""

    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    fused: bool
    scale: Callable[[str], float]
    """Factor of a parameter's learning rate by its name."""


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum (arXiv:2302.06675, algorithm 2)."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                update = momentum.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)


def _unscaled(name: str) -> float:
    return 1.0


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and embeddings; a norm's weight and every bias is a vector or is named as one (T5's tables of relative
    biases too)."""
    return parameter.ndim >= 2 and not name.removesuffix(".weight").endswith("bias")


def _groups(parameters: NamedParameters, settings: Settings) -> list[dict[str, Any]]:
    """A group for each weight decay and each scale of the learning rate; the loop sets lr to rate x lr_scale."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for name, parameter in parameters:
            if is_decayed(name, parameter) is decayed:
                groups.setdefault((decayed, settings.scale(name)), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "lr": settings.learning_rate * scale,
            "lr_scale": scale,
        }
        for (decayed, scale), members in groups.items()
    ]


def _adamw(parameters: NamedParameters, s: Settings) -> list[torch.optim.Optimizer]:
    groups = _groups(parameters, s)
    if not groups:
        return []
    betas = (s.beta1, s.beta2)
    return [torch.optim.AdamW(groups, lr=s.learning_rate, betas=betas, eps=s.epsilon, fused=s.fused)]


def _adafactor(parameters: NamedParameters, s: Settings) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adafactor(_groups(parameters, s), lr=s.learning_rate)]


def _lion(parameters: NamedParameters, s: Settings) -> list[torch.optim.Optimizer]:
    return [Lion(_groups(parameters, s), lr=s.learning_rate, betas=(s.beta1, s.beta2))]


def _sgd(parameters: NamedParameters, s: Settings) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(_groups(parameters, s), lr=s.learning_rate, momentum=0.9)]


def _muon(parameters: NamedParameters, s: Settings) -> list[torch.optim.Optimizer]:
    if not hasattr(torch.optim, "Muon"):
        raise EnvironmentFailure(f"training.optim: muon needs torch >= 2.9; this is {torch.__version__}")
    outer = ("embed", "wte", "wpe", "lm_head")
    hidden = [(n, p) for n, p in parameters if p.ndim == 2 and not any(part in n for part in outer)]
    rest = [(n, p) for n, p in parameters if not (p.ndim == 2 and not any(part in n for part in outer))]
    if not hidden:
        raise ModelError("training.optim: muon: this model trains no hidden matrix; use adamw")
    muon = torch.optim.Muon(
        _groups(hidden, s),
        lr=s.learning_rate,
        weight_decay=s.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # one learning rate serves both (arXiv:2502.16982)
    )
    return [muon, *_adamw(rest, s)]


def _adamw_8bit(parameters: NamedParameters, s: Settings) -> list[torch.optim.Optimizer]:
    try:
        import bitsandbytes
    except ImportError as error:
        raise EnvironmentFailure(
            "training.optim: adamw_8bit needs the package bitsandbytes: pip install 'llmkit[adamw_8bit]'"
        ) from error
    return [
        bitsandbytes.optim.AdamW8bit(
            _groups(parameters, s), lr=s.learning_rate, betas=(s.beta1, s.beta2), eps=s.epsilon
        )
    ]


OPTIMIZERS: dict[Optimizer, Callable[[NamedParameters, Settings], list[torch.optim.Optimizer]]] = {
    "adamw": _adamw,
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
    "adamw_8bit": _adamw_8bit,
}

MOMENTS_AT_LEAST: dict[Optimizer, int] = {
    "adamw": 2,
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adafactor": 0,
    "lion": 1,
    "muon": 1,
    "sgd": 1,
    "adamw_8bit": 0,
}
"""Tensors as large as the parameter that an optimiser keeps of each parameter: what a checkpoint takes beside it."""


def trainable(module: nn.Module) -> NamedParameters:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def build_optimizers(module: nn.Module, section: TrainingSection) -> list[torch.optim.Optimizer]:
    """The optimisers of `training.optim` over the module's trainable parameters. The section must be resolved."""
    assert section.optim and section.learning_rate is not None
    parameters = trainable(module)
    if not parameters:
        raise ModelError("no parameter is trainable")
    settings = Settings(
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay or 0.0,
        beta1=0.9 if section.adam_beta1 is None else section.adam_beta1,
        beta2=0.999 if section.adam_beta2 is None else section.adam_beta2,
        epsilon=section.adam_epsilon or 1e-8,
        scale=rate_scales(module, section.layerwise_lr_decay).__getitem__
        if section.layerwise_lr_decay is not None
        else _unscaled,
        fused=all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for _, p in parameters),
    )
    return OPTIMIZERS[section.optim](parameters, settings)


def state_tensors(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Optimiser state as `{parameter name}/{key}`, independent of the order of parameters and groups."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in trainable(module)}
    tensors = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"{names[parameter]}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def load_state_tensors(module: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`, on freshly built optimisers of the same kind."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("/")
        by_name.setdefault(name, {})[key] = tensor
    names = {parameter: name for name, parameter in trainable(module)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for key, tensor in by_name.get(names[parameter], {}).items():
                    # step counters stay where the optimiser keeps them; moments live beside their parameter
                    device = parameter.device if tensor.ndim or group.get("fused") else tensor.device
                    optimizer.state[parameter][key] = tensor.to(device)
