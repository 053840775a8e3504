"""Completions for batches of prompts: by the loop in `decoding` where that applies, else by the model's `generate`.

A completion depends on its own prompt, row and sample alone: prompts are padded on the left and masked, each row draws
its own random numbers, and prompts of different length are never padded together where a processor of transformers
would read the padding. An encoder-decoder reads its prompt in the encoder, padded on the right. (`generate_batch` of
transformers is not used: it ignores stop strings and beams and returns partial results.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from llmkit.errors import DataError
from llmkit.models.seq2seq import decoder_start
from llmkit.models.soft_prompt import prompt_inputs
from llmkit.models.wrapping import base_of, prompt_length
from llmkit.recipe.sections import GenerationSection
from llmkit.writing.cache import roomy_cache
from llmkit.writing.decoding import can_decode, decode
from llmkit.writing.sampling import RowSampler, row_uniforms, warpers
from llmkit.writing.stopping import FinishReason, StopStrings, find_ending

CPU_BATCH_SIZE, DEVICE_BATCH_SIZE = 32, 64


@dataclass(frozen=True)
class Prompt:
    """`ids`: what the model reads, at least one token. `row`: its place in the input, from 0; with the seed it decides
    what is drawn. `name` says where it came from in an error."""

    ids: tuple[int, ...]
    row: int
    name: str


@dataclass(frozen=True)
class Completion:
    row: int
    sample: int
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


class TransformersEngine:
    """Token-level generation with a transformers model. `seed` is used where the section names none;
    `more_stop_ids` end a completion beside the model's own."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        section: GenerationSection,
        *,
        seed: int,
        more_stop_ids: Sequence[int] = (),
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.section = section
        self.seed = seed if section.seed is None else section.seed
        self.eos_ids = list(dict.fromkeys([*stop_ids(model, tokenizer), *more_stop_ids]))
        limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.limit = None if limit is None else limit - prompt_length(model)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.eos_ids), 0)
        self.pad_id = int(pad)
        # `generate` fills what a call leaves open from here: only the recipe's settings may count, beside how the model
        # itself makes a decoder begin
        self.start_id: int | None = None
        if model.config.is_encoder_decoder:
            self.start_id = decoder_start(model, self.eos_ids[0] if self.eos_ids else self.pad_id)
        self.forced_bos_id = getattr(model.generation_config, "forced_bos_token_id", None)
        default = CPU_BATCH_SIZE if model.device.type == "cpu" else DEVICE_BATCH_SIZE
        self.batch_size = section.batch_size or default
        """Sequences at once; fewer after the device's memory did not hold as many."""
        exotic = (section.repetition_penalty, section.no_repeat_ngram_size, section.min_new_tokens)
        self.decodes = (
            model.device.type in ("cpu", "cuda")
            and section.num_beams == 1
            and all(setting is None for setting in exotic)
            and not prompt_length(model)
            and can_decode(base_of(model))
        )
        for part in (model, base_of(model)):  # an adapter's wrapper has its own
            part.generation_config = GenerationConfig(
                eos_token_id=self.eos_ids or None,
                pad_token_id=self.pad_id,
                decoder_start_token_id=self.start_id,
                forced_bos_token_id=self.forced_bos_id,
            )

    def allowance(self, prompt: Prompt) -> int:
        """New tokens that fit after `prompt`: `max_new_tokens`, less where the model's context ends before. Raises
        DataError where nothing fits."""
        if self.limit is None:
            return self.section.max_new_tokens
        apart = self.start_id is not None
        room = self.limit - len(prompt.ids)
        if room < (0 if apart else 1):
            raise DataError(
                f"{prompt.name} has {len(prompt.ids)} tokens, and the model reads at most {self.limit}"
                f"{'' if apart else ', the completion included'}; shorten it"
            )
        return min(self.section.max_new_tokens, self.limit - 1 if apart else room)

    def context(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens that the completion's text follows on; none where the decoder begins anew."""
        return () if self.start_id is not None else prompt.ids

    def generate(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """All completions, prompt by prompt in the order given, `num_return_sequences` each."""
        found: dict[tuple[int, int], Completion] = {}
        for batch, allowance in self._batches(prompts):
            for place, completion in self._fitting(prompts, batch, allowance):
                found[place, completion.sample] = completion
        return [found[i, s] for i in range(len(prompts)) for s in range(self.section.num_return_sequences)]

    def _fitting(
        self, prompts: Sequence[Prompt], batch: list[tuple[int, int]], allowance: int
    ) -> list[tuple[int, Completion]]:
        """One batch; halved, or its sequences at once are, as often as needed where the device's memory does not hold
        it. The longest come first, so that little is lost."""
        try:
            return list(self._generate_batch([prompts[i] for i, _ in batch], batch, allowance))
        except torch.OutOfMemoryError:
            at_once = min(len(batch), self.batch_size)
            if (at_once if self.decodes else len(batch)) == 1:
                raise
        torch.cuda.empty_cache()  # outside `except`: the traceback held the batch's tensors
        if self.decodes:
            self.batch_size = at_once // 2
            return self._fitting(prompts, batch, allowance)
        half = len(batch) // 2
        return self._fitting(prompts, batch[:half], allowance) + self._fitting(prompts, batch[half:], allowance)

    @torch.inference_mode()
    def stream(self, prompt: Prompt, streamer: Any) -> None:
        """One completion, each token given to `streamer.put` as it is made (the first call is the prompt)."""
        self._call([prompt], [0], self.allowance(prompt), streamer)

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[tuple[int, int]], int]]:
        """Yields ([(place in `prompts`, sample)], new tokens): similar lengths together, longest first."""
        section = self.section
        samples = section.num_return_sequences if section.num_beams == 1 else 1
        # the processor would count n-grams of the padding
        exact = section.no_repeat_ngram_size is not None and self.start_id is None
        groups: dict[tuple[int, int], list[int]] = {}
        for i, prompt in enumerate(prompts):
            allowance = self.allowance(prompt)
            groups.setdefault((allowance, len(prompt.ids) if exact else 0), []).append(i)
        # beam sampling draws from torch's stream, which is seeded for a prompt alone
        alone = section.do_sample and section.num_beams > 1
        size = 1 if alone else max(1, self.batch_size // section.num_beams)
        for (allowance, _), places in groups.items():
            places.sort(key=lambda i: (-len(prompts[i].ids), i))
            wanted = [(i, sample) for i in places for sample in range(samples)]
            size = max(len(wanted), 1) if self.decodes else size  # takes them `batch_size` at a time itself
            for start in range(0, len(wanted), size):
                yield wanted[start : start + size], allowance

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: list[Prompt], batch: list[tuple[int, int]], allowance: int
    ) -> Iterator[tuple[int, Completion]]:
        section = self.section
        if section.do_sample and section.num_beams > 1:
            devices = [self.model.device] if self.model.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(int(np.random.SeedSequence([self.seed, prompts[0].row]).generate_state(1)[0]))
                output = self._call(prompts, [0], allowance, None)
        else:
            output = self._call(prompts, [sample for _, sample in batch], allowance, None)
        each = section.num_return_sequences if section.num_beams > 1 else 1
        for line, ids in enumerate(output):
            prompt, (place, sample) = prompts[line // each], batch[line // each]
            ending = find_ending(self.tokenizer, self.context(prompt), ids, self.eos_ids, section.stop_strings)
            yield (
                place,
                Completion(
                    row=prompt.row,
                    sample=sample if each == 1 else line % each,
                    text=ending.text,
                    finish_reason=ending.finish_reason,
                    prompt_tokens=len(prompt.ids),
                    completion_tokens=ending.completion_tokens,
                ),
            )

    def _call(self, prompts: list[Prompt], samples: list[int], allowance: int, streamer: Any) -> list[list[int]]:
        """New ids of each sequence; where `generate` made them, padding at their end included."""
        device, section = self.model.device, self.section
        if self.decodes and streamer is None:
            return self._decode(prompts, samples, allowance)
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, prompt in enumerate(prompts):
            length = len(prompt.ids)
            place = slice(length) if self.start_id is not None else slice(width - length, width)
            ids[line, place] = torch.tensor(prompt.ids)
            mask[line, place] = 1
        model: Any = self.model
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if prompt_length(model) and self.start_id is None:
            model, inputs = base_of(model), prompt_inputs(model, **inputs)
            width = inputs["input_ids"].shape[1]
        begun = width if self.start_id is None else 1
        processors, native = LogitsProcessorList(), section.num_beams > 1
        if section.do_sample and not native:
            uniforms = self._uniforms(prompts, samples, allowance)
            processors = LogitsProcessorList([*warpers(section), RowSampler(uniforms, begun, device)])
        stops = StoppingCriteriaList()
        if section.stop_strings:
            stops.append(StopStrings(self.tokenizer, section.stop_strings, begun))
        if not native and (cache := roomy_cache(model, width + allowance)) is not None:
            inputs["past_key_values"] = cache
        output = model.generate(
            **inputs,
            generation_config=self._config(allowance),
            logits_processor=processors,
            stopping_criteria=stops,
            streamer=streamer,
        )
        new: list[list[int]] = output[:, begun:].tolist()
        return new

    def _decode(self, prompts: list[Prompt], samples: list[int], allowance: int) -> list[list[int]]:
        """The same by the loop of our own."""
        section = self.section
        stop = StopStrings(self.tokenizer, section.stop_strings, 0) if section.stop_strings else None

        def ended(ids: Sequence[int]) -> bool:
            return ids[-1] in self.eos_ids or (stop is not None and stop.hit(ids))

        return decode(
            self.model,
            [prompt.ids for prompt in prompts],
            allowance,
            batch_size=self.batch_size,
            pad_id=self.pad_id,
            warpers=warpers(section) if section.do_sample else LogitsProcessorList(),
            uniforms=torch.from_numpy(self._uniforms(prompts, samples, allowance)) if section.do_sample else None,
            ended=ended,
        )

    def _uniforms(self, prompts: list[Prompt], samples: list[int], allowance: int) -> np.ndarray:
        return np.stack([row_uniforms(self.seed, p.row, s, allowance) for p, s in zip(prompts, samples, strict=True)])

    def _config(self, allowance: int) -> GenerationConfig:
        section = self.section
        config = GenerationConfig(
            max_new_tokens=allowance,
            do_sample=False,
            num_beams=section.num_beams,
            eos_token_id=self.eos_ids or None,
            pad_token_id=self.pad_id,
            decoder_start_token_id=self.start_id,
            forced_bos_token_id=self.forced_bos_id,
        )
        if section.min_new_tokens is not None:
            config.min_new_tokens = min(section.min_new_tokens, allowance)
        if section.repetition_penalty is not None:
            config.repetition_penalty = section.repetition_penalty
        if section.no_repeat_ngram_size is not None:
            config.no_repeat_ngram_size = section.no_repeat_ngram_size
        if section.num_beams > 1:
            config.num_return_sequences = section.num_return_sequences
            config.length_penalty = 1.0 if section.length_penalty is None else section.length_penalty
            config.early_stopping = bool(section.early_stopping)
            config.do_sample = section.do_sample
            if section.do_sample:
                config.temperature = 1.0 if section.temperature is None else section.temperature
                config.top_k = section.top_k or 0
                config.top_p = 1.0 if section.top_p is None else section.top_p
        return config


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a completion: those of the model's generation_config, else the tokenizer's end of sequence."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return []
    return [int(i) for i in configured] if isinstance(configured, list) else [int(configured)]
