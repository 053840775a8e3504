"""`ngram`: a modified Kneser-Ney language model that transformers loads, scores with and generates from.

The tables are sorted keys (see `ngram_counting`), so that everything is a binary search over whole batches: the numbers
of the n-grams that end at each position, then of the n-grams that go on with each label. A context is looked up as far
back as it was seen; at a document's start it is the token that begins documents, at the start of a window that cuts a
document just the tokens of that window. Sums are made in float64; the tables are float32, as KenLM's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llmkit.data.examples import IGNORE
from llmkit.models.ngram_config import NgramConfig
from llmkit.models.ngram_smoothing import Table

Contexts = list[torch.Tensor]
"""For each order below the model's: number of the n-gram that ends at a position, -1 where it is not in the model."""


class NgramForCausalLM(PreTrainedModel, GenerationMixin):
    """Nothing in it is trained. `unigrams.weight` (V, 1) holds log p of order 1: what stands for the embedding."""

    config_class = NgramConfig
    base_model_prefix = "ngram"
    _keep_in_fp32_modules_strict = ["unigrams", "log_probs", "backoffs"]  # noqa: RUF012

    def __init__(self, config: NgramConfig):
        super().__init__(config)
        sizes = config.num_ngrams or [config.vocab_size] + [0] * (config.order - 1)
        self.unigrams = nn.Embedding(config.vocab_size, 1)
        self.unigrams.weight.requires_grad_(False)
        for n, size in enumerate(sizes, 1):
            if n > 1:
                self.register_buffer(f"keys_{n}", torch.zeros(size, dtype=torch.int64))
                self.register_buffer(f"log_probs_{n}", torch.zeros(size, dtype=torch.float32))
            if n < config.order:
                self.register_buffer(f"backoffs_{n}", torch.zeros(size, dtype=torch.float32))
        self._best: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """A model that was never counted knows nothing: uniform."""
        if isinstance(module, nn.Embedding):
            nn.init.constant_(module.weight, -float(np.log(module.num_embeddings)))

    def set_tables(self, tables: list[Table]) -> None:
        """Takes over the tables of orders 1 to `order`."""
        self.config.num_ngrams = [len(table.keys) for table in tables]
        for n, table in enumerate(tables, 1):
            if n == 1:
                self.unigrams.weight.data = torch.from_numpy(np.array(table.log_probs))[:, None]
            else:
                setattr(self, f"keys_{n}", torch.from_numpy(np.array(table.keys)))
                setattr(self, f"log_probs_{n}", torch.from_numpy(np.array(table.log_probs)))
            if n < self.config.order:
                setattr(self, f"backoffs_{n}", torch.from_numpy(np.array(table.backoffs)))
        self._best = None

    def table(self, n: int) -> Table:
        """Order n as arrays."""
        size = self.config.vocab_size
        keys = torch.arange(size) if n == 1 else self._keys(n)
        log_probs = self.unigrams.weight[:, 0].detach() if n == 1 else getattr(self, f"log_probs_{n}")
        backoffs = self._backoffs(n) if n < self.config.order else torch.zeros(len(keys))
        return Table(keys.cpu().numpy(), log_probs.cpu().numpy(), backoffs.cpu().numpy())

    def get_input_embeddings(self) -> nn.Module:
        return self.unigrams

    def get_output_embeddings(self) -> None:
        return None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a context is a handful of tokens: there is nothing to cache

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        """input_ids, attention_mask, labels (B, T), labels not shifted as everywhere in transformers. Logits are log p,
        (B, T, V), or of the last `logits_to_keep` positions. What the mask leaves out is no context."""
        if logits_to_keep:
            keep = logits_to_keep + max(self.config.order - 2, 0)
            input_ids = input_ids[:, -keep:]
            attention_mask = None if attention_mask is None else attention_mask[:, -keep:]
        contexts = [part[:, -logits_to_keep:] for part in self.contexts(input_ids, attention_mask)]
        batch, width = contexts[0].shape if contexts else input_ids[:, -logits_to_keep:].shape
        logits = self._log_probs([part.flatten() for part in contexts], batch * width).view(batch, width, -1)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        return CausalLMOutput(loss=loss, logits=logits)

    def contexts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Contexts:
        """`order - 1` tensors (B, T)."""
        ids = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, -1)
        found: Contexts = []
        for n in range(1, self.config.order):
            if n == 1:
                found.append(ids)
                continue
            before = F.pad(found[-1][:, :-1], (1, 0), value=-1)
            found.append(self._find(n, before, ids))
        return found

    @torch.no_grad()
    def score_labels(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) -log p of each label (shifted: what follows the position; 0 where IGNORE) in float64, and whether it
        is the most probable token. Without the whole distribution: a binary search an order."""
        given = labels != IGNORE
        words = labels[given]
        best = self._best_tokens()
        log_p = self.unigrams.weight[words, 0].double()
        top = self.unigrams.weight[:, 0].max()
        top_p, top_word = top.double().expand_as(log_p), self.unigrams.weight[:, 0].argmax().expand_as(words)
        for n, context in enumerate(self.contexts(input_ids), 1):
            if len(self._backoffs(n)) == 0:  # pruned away, and all orders above with it
                break
            numbers = context[given]
            known = numbers >= 0
            numbers = numbers.clamp(min=0)
            backoff = torch.where(known, self._backoffs(n)[numbers].double(), 0.0)
            log_p, top_p = log_p + backoff, top_p + backoff
            place = self._find(n + 1, torch.where(known, numbers, -1), words)
            own = getattr(self, f"log_probs_{n + 1}")
            if len(own):
                log_p = torch.where(place >= 0, own[place.clamp(min=0)].double(), log_p)
                best_p, best_word = (part[numbers] for part in best[n - 1])
                better = known & (best_p.double() >= top_p)
                top_p, top_word = torch.where(better, best_p.double(), top_p), torch.where(better, best_word, top_word)
        losses = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
        hits = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
        losses[given], hits[given] = -log_p, top_word == words
        return losses, hits

    def _keys(self, n: int) -> torch.Tensor:
        keys: torch.Tensor = getattr(self, f"keys_{n}")
        return keys

    def _backoffs(self, n: int) -> torch.Tensor:
        backoffs: torch.Tensor = getattr(self, f"backoffs_{n}")
        return backoffs

    def _find(self, n: int, contexts: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Numbers of the n-grams that go on from `contexts` (numbers of order n - 1) with `words`; -1: not there."""
        keys = self._keys(n)
        if len(keys) == 0:
            return torch.full_like(contexts, -1)
        wanted = torch.where((contexts >= 0) & (words >= 0), contexts * self.config.vocab_size + words, -1)
        places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[places] == wanted, places, -1)

    def _log_probs(self, contexts: Contexts, rows: int) -> torch.Tensor:
        """(rows, V) log p of every token after each of the contexts, whose tensors are (rows,)."""
        found = self.unigrams.weight[:, 0].expand(rows, -1).clone()
        for n, numbers in enumerate(contexts, 1):
            known = numbers >= 0
            found[known] += self._backoffs(n)[numbers[known]][:, None]
            owner = torch.nonzero(known)[:, 0]
            low, high = (
                torch.searchsorted(self._keys(n + 1), (numbers[known] + step) * self.config.vocab_size)
                for step in (0, 1)
            )
            sizes = high - low
            places = torch.arange(int(sizes.sum()), device=sizes.device)
            places = places + torch.repeat_interleave(low - (sizes.cumsum(0) - sizes), sizes)
            words = self._keys(n + 1)[places] % self.config.vocab_size
            found[torch.repeat_interleave(owner, sizes), words] = getattr(self, f"log_probs_{n + 1}")[places]
        return found

    def _best_tokens(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each order below the model's: the highest log p among a context's own continuations, and which it is.

        A token that is none is at most as probable as the backoff makes it; one that is has at least that much."""
        if self._best is None:
            self._best = []
            for n in range(1, self.config.order):
                keys, log_probs = self._keys(n + 1), getattr(self, f"log_probs_{n + 1}")
                owner = keys // self.config.vocab_size
                size = len(self._backoffs(n))
                top = torch.full((size,), -torch.inf, device=keys.device)
                top.scatter_reduce_(0, owner, log_probs, "amax")
                is_top = log_probs == top[owner]
                words = torch.full((size,), self.config.vocab_size, device=keys.device)
                words.scatter_reduce_(0, owner[is_top], keys[is_top] % self.config.vocab_size, "amin")
                self._best.append((top, words))
        return self._best


def register() -> None:
    """Makes transformers' Auto classes know `ngram`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoConfig.register("ngram", NgramConfig, exist_ok=True)
    AutoModelForCausalLM.register(NgramConfig, NgramForCausalLM, exist_ok=True)
