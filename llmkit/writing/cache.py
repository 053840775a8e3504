"""A key-value cache with room for what is coming: a step writes its own keys in place.

transformers' default cache grows by `torch.cat`, which copies every key and value of the prompt at every token: half of
a decoding step on a CPU. Its static cache does not, and attends to the whole room at every step instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """`keys` and `values` (B, H, T, D) are the written part of tensors with `room` places along T; where they outgrow
    it, or something else was put in their place (reordered beams), they are laid into new ones."""

    def __init__(self, room: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.stores: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        assert self.keys is not None and self.values is not None
        keys = self._appended(self.stores[0], self.keys, key_states, length)
        values = self._appended(self.stores[1], self.values, value_states, length)
        self.stores = keys, values
        end = length + key_states.shape[-2]
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _appended(
        self, store: torch.Tensor | None, written: torch.Tensor, new: torch.Tensor, length: int
    ) -> torch.Tensor:
        """The store with `new` behind the `length` places that are written."""
        end = length + new.shape[-2]
        shape = (*new.shape[:-2], max(end, self.room), new.shape[-1])
        current = (
            store is not None
            and store.shape == shape
            and (length == 0 or (written.data_ptr() == store.data_ptr() and written.stride() == store.stride()))
        )
        if store is None or not current:
            store = new.new_empty(shape)
            if length:
                store[..., :length, :] = written
        store[..., length:end, :] = new
        return store

    def fill(
        self,
        lines: Sequence[int],
        lengths: Sequence[int],
        new: tuple[torch.Tensor, torch.Tensor],
        batch: int,
        width: int,
    ) -> None:
        """Lays `new` keys and values (b, H, t, D), `lengths` of whose places are a text, into those `lines` of `batch`
        ones, so that each text ends at `width`; what is before it is 0."""
        if not self.is_initialized:
            self.lazy_initialization(*new)
            shape = (batch, new[0].shape[1], max(width, self.room))
            keys, values = (states.new_empty(*shape, states.shape[-1]) for states in new)
            for made in (keys, values):
                made[..., width:, :] = 0  # a masked place must hold a number, where it is read at all
            self.stores = keys, values
            self.reach(width)
        for store, states in zip(self.stores, new, strict=True):
            assert store is not None
            for place, (line, length) in enumerate(zip(lines, lengths, strict=True)):
                store[line, :, : width - length] = 0
                store[line, :, width - length : width] = states[place, :, :length]

    def keep(self, lines: torch.Tensor) -> None:
        """Those lines (b,) of the batch, in that order, with their room."""
        length, (keys, values) = self.get_seq_length(), self.stores
        assert keys is not None and values is not None
        self.stores = keys[lines], values[lines]
        self.reach(length)

    def give_up(self, places: int) -> None:
        """Forgets the first `places`, which no text begins before; the others move to the front."""
        left = self.get_seq_length() - places
        for store in self.stores:
            assert store is not None
            store[..., :left, :] = store[..., places : places + left, :].clone()
        self.reach(left)

    def reach(self, length: int) -> None:
        """As many places are written, be it by others."""
        self.keys, self.values = (store[..., :length, :] for store in self.stores if store is not None)


class FillingLayer(DynamicLayer):
    """Stands in for `target` while some of its lines are read, padded on the right: they attend to themselves alone."""

    def __init__(self, target: RoomyLayer, lines: Sequence[int], lengths: Sequence[int], batch: int, width: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.target, self.lines, self.lengths, self.batch, self.width = target, lines, lengths, batch, width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.target.fill(self.lines, self.lengths, (key_states, value_states), self.batch, self.width)
        return key_states, value_states


def filling_cache(
    cache: DynamicCache, lines: Sequence[int], lengths: Sequence[int], *, batch: int, width: int
) -> DynamicCache:
    """For reading the prompts of `lengths` into those `lines` of `cache`, of `batch` ones: see RoomyLayer.fill."""
    filling = DynamicCache()
    filling.layers = [FillingLayer(layer, lines, lengths, batch, width) for layer in cache.layers]  # type: ignore[arg-type]
    return filling


def roomy_cache(model: PreTrainedModel, room: int) -> DynamicCache | None:
    """transformers' own cache of a decoder-only `model` for `room` positions, its plainly growing layers replaced. None
    where the model keeps something else."""
    growing: Any = model._supports_default_dynamic_cache
    if model.config.is_encoder_decoder or not growing():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not cache.layers:
        return None
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
