"""Greedy and sampled completions of a decoder-only model, token by token: what `generate` writes, with less work.

- Prompts are read a few at a time, padded on the right: causal attention then needs no mask (half of the products), the
  activations stay in the CPU's cache, and little is padding. Their keys and values are laid into the cache so that all
  texts end at the same place. Only the last position of each goes through the head.
- The line of a text that has ended is given to the next prompt; where none is left, it leaves the batch with its keys
  and values. `generate` carries it along to the end of the longest.
- On a GPU a step is a CUDA graph (`fixed`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from llmkit.writing.cache import RoomyLayer, filling_cache, roomy_cache
from llmkit.writing.fixed import FixedSteps
from llmkit.writing.sampling import draw

PROMPT_TOKENS = {"cpu": 2048, "accelerator": 16384}
"""Tokens of the prompts that are read at once, padding included."""
CHANGE_AT = 8
"""Lines are given away or leave once an eighth of the batch has ended: leaving copies what the others keep, and a
single short prompt makes small matrices."""
LEAVE_AT_FIXED = 2
"""Where steps are fixed they leave once half of the batch has ended: fewer lines need another graph."""

Ended = Callable[[Sequence[int]], bool]
"""Whether a text ends with the newest of its new ids."""


def can_decode(model: Any) -> bool:
    """Whether all that `model` keeps of a text are plain keys and values, and it scores one chosen position of each."""
    cache = roomy_cache(model, 1)
    plain = cache is not None and all(type(layer) is RoomyLayer for layer in cache.layers)
    return plain and bool(model._supports_logits_to_keep()) and _scores_one_place(model)


@torch.inference_mode()
def _scores_one_place(model: PreTrainedModel) -> bool:
    """transformers before 5.21 and code of others take the places (B, 1) for those of every text."""
    places = torch.arange(2, device=model.device)[:, None]
    made: Any = model(input_ids=torch.zeros_like(places).expand(2, 2), logits_to_keep=places, use_cache=False)
    return bool(made.logits.shape[:2] == (2, 1))


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    allowance: int,
    *,
    batch_size: int,
    pad_id: int,
    warpers: LogitsProcessorList,
    uniforms: torch.Tensor | None,
    ended: Ended,
) -> list[list[int]]:
    """At most `allowance` new ids of each prompt, up to the one that ends it, `batch_size` prompts at a time; best
    sorted by length, longest first.

    warpers: of the scores (B, V), in float32, alone. uniforms: (N, allowance) in [0, 1), by which the tokens of the N
    prompts are drawn; None: the likeliest are taken.
    """
    work = _Work(model, prompts, allowance, pad_id, warpers, uniforms, ended)
    while work.waiting < len(prompts):
        batch = _Batch(work, min(batch_size, len(prompts) - work.waiting))
        while batch.going.any():
            batch.step()
            batch.make_use_of_the_ended()
    return work.new


class _Work:
    """What is the same for all batches, and the ids written so far, `new`. `waiting`: the number of the next prompt."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        allowance: int,
        pad_id: int,
        warpers: LogitsProcessorList,
        uniforms: torch.Tensor | None,
        ended: Ended,
    ):
        self.model, self.prompts, self.allowance, self.pad_id = model, prompts, allowance, pad_id
        self.warpers, self.uniforms, self.ended = warpers, uniforms, ended
        self.device = model.device
        self.fixed = steps_are_fixed(self.device)
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.new: list[list[int]] = [[] for _ in prompts]
        self.waiting = 0

    def next(self, count: int) -> list[int]:
        """The numbers of the next prompts, at most `count`."""
        first, self.waiting = self.waiting, min(self.waiting + count, len(self.prompts))
        return list(range(first, self.waiting))

    def choose(self, logits: torch.Tensor, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a token to each of the texts `numbers`, of the scores (B, V): the tokens, and which texts go on (B,)."""
        scores: Any = self.warpers(None, logits.float())  # type: ignore[arg-type]
        if self.uniforms is None:
            tokens = scores.argmax(-1)
        else:
            steps = torch.tensor([len(self.new[number]) for number in numbers])
            tokens = draw(scores, self.uniforms[torch.tensor(numbers), steps].to(self.device))
        tokens, going = tokens.cpu(), []
        for number, token in zip(numbers, tokens.tolist(), strict=True):
            text = self.new[number]
            text.append(token)
            going.append(len(text) < self.allowance and not self.ended(text))
        return tokens, torch.tensor(going)

    def read(self, numbers: Sequence[int], lines: Sequence[int], cache: Any, batch: int, width: int) -> torch.Tensor:
        """Lays keys and values of the prompts into those lines of `cache`, ending at `width`; the scores (B, V) of what
        comes next."""
        found = []
        prompts = [self.prompts[number] for number in numbers]
        at_once = PROMPT_TOKENS["cpu" if self.device.type == "cpu" else "accelerator"]
        for part in _parts([len(prompt) for prompt in prompts], at_once):
            lengths = [len(prompt) for prompt in prompts[part]]
            ids = torch.full((len(lengths), max(lengths)), self.pad_id)
            for line, prompt in enumerate(prompts[part]):
                ids[line, : len(prompt)] = torch.tensor(prompt)
            last = torch.tensor(lengths, device=self.device)[:, None] - 1
            filling = filling_cache(cache, lines[part], lengths, batch=batch, width=width)
            made = self.model(
                input_ids=ids.to(self.device), past_key_values=filling, use_cache=True, logits_to_keep=last
            )
            found.append(made.logits[:, 0])
        return torch.cat(found)


class _Batch:
    """B lines of a cache, each with a text that ends at `width`, but for its newest token (B,), which is not read yet.

    Tensors are on the CPU, the model's own excepted. numbers: the prompt of each line. begins: (B,) the place where its
    text begins. going: (B,) whether it goes on. fixed: the steps, where they are (see FixedSteps).
    """

    def __init__(self, work: _Work, size: int):
        self.work = work
        self.numbers = work.next(size)
        lengths = torch.tensor([len(work.prompts[number]) for number in self.numbers])
        self.width = int(lengths.max())
        more = work.allowance // 2 if work.waiting < len(work.prompts) else 0
        self.room = self.width + work.allowance + more
        self.cache: Any = roomy_cache(work.model, self.room)
        assert self.cache is not None, "see can_decode"
        logits = work.read(self.numbers, range(size), self.cache, size, self.width)
        self.begins = self.width - lengths
        self.tokens, self.going = work.choose(logits, self.numbers)
        self.fixed = self._fixed()

    def _fixed(self) -> FixedSteps | None:
        work = self.work
        if not work.fixed:
            return None
        return FixedSteps(work.model, self.cache, self.room, takes_positions=work.takes_positions)

    def step(self) -> None:
        begins = torch.where(self.going, self.begins, self.width)  # the ended would run out of positions
        logits = self._growing(begins) if self.fixed is None else self.fixed(self.tokens, begins, self.width)
        self.width += 1
        lines = self.going.nonzero().squeeze(1)
        scores = logits[lines.to(logits.device)]
        chosen, going = self.work.choose(scores, [self.numbers[line] for line in lines.tolist()])
        self.tokens[lines], self.going[lines] = chosen, going

    def _growing(self, begins: torch.Tensor) -> torch.Tensor:
        """The scores (B, V) by a step that attends to what is written and to no more."""
        inputs: dict[str, Any] = {"attention_mask": (torch.arange(self.width + 1) >= begins[:, None]).long()}
        if self.work.takes_positions:
            inputs["position_ids"] = (self.width - begins)[:, None]
        ids = self.tokens[:, None]
        made: Any = self.work.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **inputs)
        scores: torch.Tensor = made.logits[:, -1]
        return scores

    def make_use_of_the_ended(self) -> None:
        left, lines = int(self.going.sum()), len(self.going)
        if not left or (lines - left) * CHANGE_AT < lines:
            return
        if self.fixed is not None:
            for layer in self.cache.layers:
                layer.reach(self.width)
        if self.work.waiting == len(self.work.prompts):
            if self.fixed is None or (lines - left) * LEAVE_AT_FIXED >= lines:
                self._leave()
        elif self._makes_room():
            self._refill()

    def _leave(self) -> None:
        kept = self.going.nonzero().squeeze(1)
        self.numbers = [self.numbers[line] for line in kept.tolist()]
        self.begins, self.tokens, self.going = self.begins[kept], self.tokens[kept], self.going[kept]
        for layer in self.cache.layers:
            layer.keep(kept.to(self.work.device))
        self.fixed = self._fixed()

    def _makes_room(self) -> bool:
        """Whether the next prompts' texts can be written to their end, after the places that no text needs any more are
        given up, where those are many or the room is wanted."""
        next_ones = self.work.prompts[self.work.waiting :][: len(self.going) - int(self.going.sum())]
        longest = max(map(len, next_ones))
        unused = min(int(self.begins[self.going].min()), self.width - longest)
        needed = self.width + self.work.allowance - 1
        if unused > 0 and (needed > self.room or unused * CHANGE_AT >= self.width):
            for layer in self.cache.layers:
                layer.give_up(unused)
            self.width, self.begins, needed = self.width - unused, self.begins - unused, needed - unused
        return needed <= self.room and longest <= self.width

    def _refill(self) -> None:
        lines = (~self.going).nonzero().squeeze(1).tolist()
        numbers = self.work.next(len(lines))
        lines = lines[: len(numbers)]
        logits = self.work.read(numbers, lines, self.cache, len(self.going), self.width)
        for line, number in zip(lines, numbers, strict=True):
            self.numbers[line] = number
            self.begins[line] = self.width - len(self.work.prompts[number])
        self.tokens[lines], self.going[lines] = self.work.choose(logits, numbers)


def steps_are_fixed(device: torch.device) -> bool:
    """A CPU has no launches to save, and would read the places that are not written yet."""
    return device.type == "cuda"


def _parts(lengths: Sequence[int], at_once: int) -> Iterator[slice]:
    """Neighbours of at most `at_once` tokens together; a longer prompt alone."""
    start, longest = 0, 0
    for place, length in enumerate(lengths):
        if place > start and max(longest, length) * (place + 1 - start) > at_once:
            yield slice(start, place)
            start, longest = place, 0
        longest = max(longest, length)
    yield slice(start, len(lengths))
