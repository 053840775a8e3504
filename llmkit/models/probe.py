"""A logistic regression on what a network's linear head reads, written into that head: an ordinary model afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from llmkit.errors import DataError, ModelError
from llmkit.models.classifier import ClassifierModule

MAX_ITERATIONS = 1000


def head_of(module: ClassifierModule) -> nn.Linear:
    """The only layer with weights outside the body. Raises ModelError where the head is more than one linear layer."""
    inner = module.inner()
    prefix = f"{inner.base_model_prefix}."
    outside = [
        (name, part)
        for name, part in inner.named_modules()
        if name and not f"{name}.".startswith(prefix) and any(True for _ in part.parameters(recurse=False))
    ]
    if len(outside) != 1 or not isinstance(outside[0][1], nn.Linear) or outside[0][1].bias is None:
        names = ", ".join(name for name, _ in outside)
        raise ModelError(
            f"the head of {inner.config.model_type} is more than a linear layer with a bias on one vector a text "
            f"({names}), so a probe cannot be its head; fine-tune it, or probe an encoder such as bert",
            key="model.probe",
        )
    return outside[0][1]


@torch.no_grad()
def features(module: ClassifierModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, H) float64 what the head reads, by the model's own forward."""
    seen: list[torch.Tensor] = []
    hook = head_of(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        module.logits(batch)
    finally:
        hook.remove()
    assert seen[0].ndim == 2, "a head on single tokens has no bias, and is refused"
    return seen[0].double().cpu()


def fit(module: ClassifierModule, inputs: np.ndarray, gold: np.ndarray, *, seed: int) -> int:
    """Fits the head to (N, H) features and (N,) classes, or (N, L) of 0 and 1; the iterations it took.

    Features are standardised for the fit (which then does not depend on their scale), and the head's weights are those
    for the features as they are. L2-regularised with C = 1, as scikit-learn's LogisticRegression. Raises DataError.
    """
    mean, scale = inputs.mean(0), inputs.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    known = (inputs - mean) / scale
    given = module.class_weights
    weights = None if given is None else given.cpu().numpy()
    if gold.ndim == 1:
        fitted = _regression(known, gold, None if weights is None else dict(enumerate(weights.tolist())), seed)
        coefficients, bias = fitted.coef_, fitted.intercept_
        if len(coefficients) == 1:  # two classes: one score, which softmax over -score/2 and score/2 gives too
            coefficients, bias = np.vstack([-coefficients, coefficients]) / 2, np.array([-bias[0], bias[0]]) / 2
        iterations = int(np.max(fitted.n_iter_))
    else:
        each = [
            _regression(known, column, None if weights is None else {0: 1.0, 1: float(weights[i])}, seed)
            for i, column in enumerate(gold.T)
        ]
        coefficients = np.vstack([one.coef_ for one in each])
        bias = np.concatenate([one.intercept_ for one in each])
        iterations = max(int(one.n_iter_[0]) for one in each)
    coefficients = coefficients / scale
    bias = bias - coefficients @ mean
    head = head_of(module)
    if coefficients.shape != tuple(head.weight.shape):
        raise DataError("a label has no training rows, and a probe cannot learn it", key="data.train")
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(coefficients))
        head.bias.copy_(torch.from_numpy(bias))
    return iterations


def _regression(known: np.ndarray, gold: np.ndarray, weights: dict[int, float] | None, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(gold)) < 2:
        raise DataError("a label is on every training row or on none, and a probe cannot learn it", key="data.train")
    model = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight=weights, random_state=seed)
    return model.fit(known, gold)
