"""Layer-wise learning rates: less for lower layers, which hold what is general (arXiv:1905.05583, section 5.3.4).

The layers are found in the names of the parameters, as transformers' architectures write them.
"""

from __future__ import annotations

import re

from torch import nn

from llmkit.errors import RecipeError

LAYER = re.compile(r"(?P<stack>(?:^|.*?\.)(?:layer|layers|h|block|blocks))\.(?P<number>\d+)\.")
"""`bert.encoder.layer.3.`, `model.layers.3.`, `transformer.h.3.`, `encoder.block.3.`: the outermost that a name has."""

EMBEDDING = re.compile(r"embed(?!_out)|\b(wte|wpe|shared)\b")
"""`shared` is the table of encoder-decoders, `embed_out` GPT-NeoX's head."""


def rate_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """Name of a parameter -> factor of its learning rate, over the whole module.

    The head and all that stands outside the layers has 1; of n layers, layer k (from 0) has decay^(n - k), the
    embeddings decay^(n + 1). Encoder and decoder are counted each for itself; embeddings go with the deeper one.
    Raises RecipeError where no layer is found.
    """
    names = [name for name, _ in module.named_parameters()]
    found = {name: match for name in names if (match := LAYER.match(name))}
    if not found:
        message = "no numbered layers are found in this architecture's parameters; leave it out"
        raise RecipeError(message, key="training.layerwise_lr_decay")
    depths: dict[str, int] = {}
    for match in found.values():
        depths[match["stack"]] = max(depths.get(match["stack"], 0), int(match["number"]) + 1)
    deepest = max(depths.values())

    def scale(name: str) -> float:
        if name in found:
            stack, number = found[name]["stack"], int(found[name]["number"])
            return float(decay ** (depths[stack] - number))
        return float(decay ** (deepest + 1)) if EMBEDDING.search(name) else 1.0

    return {name: scale(name) for name in names}
