"""From generated token ids to text: where a completion ends, why, and how many tokens it took.

Stop strings are looked for in the decoded text, so that it does not matter how they are split into tokens, and in the
text with special tokens too, so that `<|im_end|>` can be one. The text ends before the stop string.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

FinishReason = Literal["stop", "length", "stop_string"]
_CONTEXT_TOKENS = 4
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Ending:
    """`completion_tokens` counts what the model produced, an end-of-sequence token included; padding never counts."""

    text: str
    finish_reason: FinishReason
    completion_tokens: int


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = False) -> str:
    """Text of the ids as they are: no cleaning up of spaces."""
    text = tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add after `prompt`. Tokenizers that mark words by a leading space drop it at the start of a
    text, so the end of the prompt is decoded along and taken away again."""
    context = list(prompt[-_CONTEXT_TOKENS:])
    before, both = decode(tokenizer, context), decode(tokenizer, [*context, *ids])
    if before and both.startswith(before):
        return both[len(before) :]
    return decode(tokenizer, ids)


def find_ending(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    eos_ids: Collection[int],
    stop_strings: Sequence[str],
) -> Ending:
    """Where the completion `ids` (with whatever padding follows its end) ends."""
    end = next((place for place, token in enumerate(ids) if token in eos_ids or token < 0), len(ids))
    kept = list(ids[:end])
    if stop_strings:
        for special in (False, True):
            if _stop_place(decode(tokenizer, kept, special=special), stop_strings) is not None:
                return _cut_at_stop(tokenizer, prompt, kept, stop_strings, special)
    text = continuation(tokenizer, prompt, kept)
    if end < len(ids) and ids[end] >= 0:
        return Ending(text, "stop", end + 1)
    return Ending(text, "length", end)


def _stop_place(text: str, stop_strings: Sequence[str]) -> int | None:
    places = [place for place in (text.find(stop) for stop in stop_strings) if place >= 0]
    return min(places) if places else None


def _cut_at_stop(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    stop_strings: Sequence[str],
    special: bool,
) -> Ending:
    """The text before the first stop string, and the tokens up to the one that completed it."""
    used = next(
        count
        for count in range(1, len(ids) + 1)
        if _stop_place(decode(tokenizer, ids[:count], special=special), stop_strings) is not None
    )
    if not special:
        text = continuation(tokenizer, prompt, ids[:used])
        place = _stop_place(text, stop_strings)
        return Ending(text[:place], "stop_string", used)
    whole = decode(tokenizer, ids[:used], special=True)
    place = _stop_place(whole, stop_strings)
    assert place is not None
    before = next(count for count in range(used + 1) if len(decode(tokenizer, ids[:count], special=True)) >= place)
    text = continuation(tokenizer, prompt, ids[:before])
    excess = len(decode(tokenizer, ids[:before], special=True)) - place
    return Ending(text[: len(text) - excess] if excess else text, "stop_string", used)


class StopStrings(StoppingCriteria):
    """Ends a row of `generate` once its completion holds a stop string. Stateless, so that it works for beams too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str], prompt_length: int):
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        self.prompt_length = prompt_length
        # a token is at least a byte of text, so a stop string that ends in the newest token lies within these
        self.window = max(len(text.encode()) for text in stop_strings) + _CONTEXT_TOKENS

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.BoolTensor:
        hits = [self.hit(ids) for ids in input_ids[:, self.prompt_length :][:, -self.window :].tolist()]
        return torch.tensor(hits, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def hit(self, ids: Sequence[int]) -> bool:
        """Whether a completion holds a stop string that its newest token may have ended."""
        newest = ids[-self.window :]
        texts = (decode(self.tokenizer, newest, special=special) for special in (False, True))
        return any(_stop_place(text, self.stop_strings) is not None for text in texts)
