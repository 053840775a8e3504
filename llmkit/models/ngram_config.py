"""Config of `ngram`, apart from the model, because AutoConfig needs it while transformers' modelling code may not be
importable yet."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class NgramConfig(PreTrainedConfig):
    """A modified Kneser-Ney model of `order` tokens.

    prune: n-grams of order n that occur no more often than its n-th number are left out; the last number holds for the
    orders above; it begins with 0 and does not fall ([0, 0, 1]: no trigram, 4-gram, ... that occurs once).
    arpa: write model.arpa.gz beside the weights. num_ngrams: n-grams an order, of a model that was counted.
    """

    model_type = "ngram"

    vocab_size: int = 32000
    order: int = 5
    prune: list[int] | None = None
    arpa: bool = False
    num_ngrams: list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_order(self) -> None:
        """Raises ValueError for an order below 1 and for limits that would drop a part of what they keep."""
        if self.order < 1:
            raise ValueError(f"order must be at least 1, got {self.order}")
        limits = self.prune or [0]
        if limits[0] != 0 or sorted(limits) != limits or len(limits) > self.order:
            raise ValueError(f"prune must begin with 0, not fall and have at most {self.order} numbers, got {limits}")
