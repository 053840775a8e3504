"""NEFTune (arXiv:2310.05914): uniform noise on the input embeddings while training.

The noise of a text of L real tokens and width d is drawn from (-1, 1) and scaled by alpha / sqrt(L d). It is drawn from
torch's generator, which the loop seeds for each micro-batch; evaluation and the exported model have none of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmkit.data.examples import IGNORE
from llmkit.errors import ModelError


class Noise:
    """Two hooks: one sees the batch of a TaskModule, the other the embeddings that its network makes of it."""

    def __init__(self, alpha: float):
        self.alpha = alpha
        self.lengths: torch.Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.lengths is not None:
            raise ModelError("this network does not look up its input", key="training.neftune_noise_alpha")
        self.lengths = text_lengths(args[0]) if module.training else None

    def after(self, embedding: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Once a forward: the encoder's input, not the decoder's, where both read the same table."""
        lengths, self.lengths = self.lengths, None
        if lengths is None:
            return output
        scale = self.alpha / (lengths * output.shape[-1]).sqrt()
        return output + (torch.rand_like(output) * 2 - 1) * scale.unsqueeze(-1).to(output.dtype)


def text_lengths(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T) or (B, 1) float32: real tokens of the text that each token belongs to.

    Padding is told by the attention mask, else it is what stands after the last supervised position; documents packed
    in a row by their positions, which restart at 0.
    """
    ids = batch["input_ids"]
    if "attention_mask" in batch:
        real = batch["attention_mask"] != 0
    else:
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        last = (places * (batch["labels"] != IGNORE)).amax(1, keepdim=True)
        real = places <= last
    if "position_ids" not in batch:
        return real.sum(1, keepdim=True).clamp(min=1).float()
    document = (batch["position_ids"] == 0).cumsum(1)
    counts = torch.zeros(ids.shape[0], ids.shape[1] + 1, dtype=torch.long, device=ids.device)
    return counts.scatter_add(1, document, real.long()).gather(1, document).clamp(min=1).float()


def install_noise(module: nn.Module, alpha: float) -> None:
    """Puts the hooks on a TaskModule and the embedding of the text its network reads. Raises ModelError."""
    network = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    if network is None:
        raise ModelError("this task has no network of transformers", key="training.neftune_noise_alpha")
    reader: Any = network.get_encoder() if network.config.is_encoder_decoder else network
    embedding = (reader if hasattr(reader, "get_input_embeddings") else network).get_input_embeddings()
    noise = Noise(alpha)
    module.register_forward_pre_hook(noise.before)
    embedding.register_forward_hook(noise.after)
