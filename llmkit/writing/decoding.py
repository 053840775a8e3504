"""Greedy and sampled completions of a decoder-only model, token by token: what `generate` writes, with less work.

- Prompts are read a few at a time, padded on the right: causal attention then needs no mask (half of the products), the
  activations stay in the CPU's cache, and little is padding. Their keys and values are laid into the cache so that all
  prompts end at the same place. Only the last position of each goes through the head.
- A sequence that has ended leaves the batch with its keys and values; `generate` carries it along to the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from llmkit.writing.cache import RoomyLayer, filling_cache, roomy_cache

PROMPT_TOKENS = 2048
"""Tokens of the prompts that are read at once, padding included."""
LEAVE_AT = 8
"""Sequences leave once an eighth of the batch has ended: each time copies what the others keep."""

Ended = Callable[[torch.Tensor], torch.Tensor]
"""From the ids so far (B, T) to which sequences end with the newest one (B,)."""


def can_decode(model: Any) -> bool:
    """Whether all that `model` keeps of a text are plain keys and values, and it scores chosen positions alone."""
    cache = roomy_cache(model, 1)
    plain = cache is not None and all(type(layer) is RoomyLayer for layer in cache.layers)
    return plain and bool(model._supports_logits_to_keep())


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    allowance: int,
    *,
    pad_id: int,
    processors: LogitsProcessorList,
    ended: Ended,
) -> list[list[int]]:
    """At most `allowance` new ids of each prompt, up to the one that ends it. `processors` get the ids, padded on the
    left, and the scores (B, V) in float32; one that holds something of a sequence's own has `keep(lines)`."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    cache = roomy_cache(model, width + allowance)
    assert cache is not None, "see can_decode"
    logits = _read(model, prompts, width, cache, pad_id)
    ids = torch.full((len(prompts), width), pad_id)
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt) :] = torch.tensor(prompt)
    mask = (torch.arange(width + allowance) >= (width - lengths)[:, None]).long()
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    new: list[list[int]] = [[] for _ in prompts]
    lines, going = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.bool)
    for step in range(allowance):
        if step:
            inputs: dict[str, Any] = {"attention_mask": mask[lines, : width + step]}
            if takes_positions:
                inputs["position_ids"] = (lengths[lines] + step - 1)[:, None]
            logits = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True, **inputs).logits[:, -1]
        scores: Any = processors(ids, logits.float())  # type: ignore[arg-type]
        chosen = scores.argmax(-1)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        for line, token, open_ in zip(lines.tolist(), chosen.tolist(), going.tolist(), strict=True):
            if open_:
                new[line].append(token)
        going &= ~ended(ids)
        left = int(going.sum())
        if not left:
            break
        if (len(going) - left) * LEAVE_AT >= len(going):
            kept = going.nonzero().squeeze(1)
            ids, lines, going = ids[kept], lines[kept], going[kept]
            cache.batch_select_indices(kept)
            for processor in processors:
                if hasattr(processor, "keep"):
                    processor.keep(kept)
    return new


def _read(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], width: int, cache: Any, pad_id: int
) -> torch.Tensor:
    """Lays keys and values of all prompts into `cache`, ending at `width`; the scores (B, V) of what comes next."""
    found = []
    for part in _parts([len(prompt) for prompt in prompts]):
        lengths = [len(prompt) for prompt in prompts[part]]
        ids = torch.full((len(lengths), max(lengths)), pad_id)
        for line, prompt in enumerate(prompts[part]):
            ids[line, : len(prompt)] = torch.tensor(prompt)
        last = torch.tensor(lengths)[:, None] - 1
        filling = filling_cache(cache, part.start, lengths, batch=len(prompts), width=width)
        found.append(model(input_ids=ids, past_key_values=filling, use_cache=True, logits_to_keep=last).logits[:, 0])
    return torch.cat(found)


def _parts(lengths: Sequence[int]) -> Iterator[slice]:
    """Neighbours of at most PROMPT_TOKENS together; a longer prompt alone."""
    start, longest = 0, 0
    for place, length in enumerate(lengths):
        if place > start and max(longest, length) * (place + 1 - start) > PROMPT_TOKENS:
            yield slice(start, place)
            start, longest = place, 0
        longest = max(longest, length)
    yield slice(start, len(lengths))
