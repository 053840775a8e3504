"""A tuned prompt: vectors before every text (arXiv:2104.08691), where they fit, and generating after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmkit.errors import ModelError, RecipeError
from llmkit.models.heads import Head
from llmkit.models.wrapping import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_prompt(config: PreTrainedConfig, length: int, head: Head, max_length: int | None) -> None:
    """Raises RecipeError, ModelError where a prompt before the text does not fit or would be misread."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if head.peft_type == "SEQ_CLS" and not encoder:
        message = (
            f"{config.model_type} classifies by a text's last token, which it finds by the ids of tokens, and a tuned "
            "prompt has none; use lora or ia3, or an encoder"
        )
        raise ModelError(message, key="peft.type")
    if head.peft_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS"):
        raise ModelError("prompt_tuning shifts the positions that this task reads; use lora or ia3", key="peft.type")
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_length is not None and max_length + length > limit:
        message = (
            f"{length} vectors and data.max_length {max_length} are more than the model's {limit} positions; "
            f"set data.max_length to {limit - length} or less"
        )
        raise RecipeError(message, key="peft.num_virtual_tokens")


def prompt_inputs(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `generate` of the base model takes instead of ids (B, T) padded on the left: a row is padding, the tuned
    prompt, the text. (peft's own puts the prompt before the padding and drops positions, so that a text's neighbours
    would show.) input_ids has the text's first token in the prompt's places, for whoever counts tokens."""
    prompt = model.get_prompt(batch_size=1)[0]
    size, rows = len(prompt), []
    table = base_of(model).get_input_embeddings()
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        start = int((mask == 0).sum())
        vectors = torch.cat([table(ids[:start]), prompt.to(table.weight.dtype), table(ids[start:])])
        whole = torch.cat([ids[:start], ids[start : start + 1].expand(size), ids[start:]])
        rows.append((whole, torch.cat([mask[:start], mask.new_ones(size), mask[start:]]), vectors))
    names = ("input_ids", "attention_mask", "inputs_embeds")
    return {name: torch.stack(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}
