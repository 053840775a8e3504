"""Which tokens are hidden from a model that restores them (arXiv:1810.04805, appendix A.1), drawn anew for each sample.

Torch-free, and a pure function of the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NO_WORD = -1
"""Number of a token that is never hidden: [CLS], [SEP]."""

KEPT_SHARE = RANDOM_SHARE = 0.1
"""Of the hidden tokens: left as they are, replaced by a random one; the others become [MASK]."""


@dataclass(frozen=True)
class Masker:
    """probability: share of tokens to predict. vocabulary: ids that a random replacement is drawn from.

    always_mask: every hidden token becomes [MASK], as a generator's input has it (ELECTRA).
    """

    probability: float
    mask_id: int
    vocabulary: np.ndarray
    always_mask: bool = False

    def choose(self, words: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """(T,) bool: tokens to predict; `words` (T,) numbers each token's word, NO_WORD for none, ascending.

        As many as the share says, rounded, at least one; whole words in random order, those left out that would go
        beyond it. The first is taken whatever its length, so that no sample teaches nothing.
        """
        chosen = np.zeros(len(words), dtype=bool)
        numbers, sizes = np.unique(words[words != NO_WORD], return_counts=True)
        if not len(numbers):
            return chosen
        budget = max(1, round(self.probability * int(sizes.sum())))
        order = draw.permutation(len(numbers))
        if int(sizes.max()) == 1:
            picked = order[:budget]
        else:
            picked, room = [], budget
            for place in order.tolist():
                if sizes[place] <= room or not picked:
                    picked.append(place)
                    room -= int(sizes[place])
                if room <= 0:
                    break
        chosen[np.isin(words, numbers[picked])] = True
        return chosen

    def hide(self, tokens: np.ndarray, chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """(T,) the tokens with the chosen ones as the model sees them: 80% [MASK], 10% random, 10% as they are."""
        hidden = tokens.copy()
        places = np.flatnonzero(chosen)
        if self.always_mask:
            hidden[places] = self.mask_id
            return hidden
        fate = draw.random(len(places))
        random = draw.choice(self.vocabulary, size=len(places))
        masked = fate < 1 - KEPT_SHARE - RANDOM_SHARE
        hidden[places[masked]] = self.mask_id
        replaced = fate >= 1 - RANDOM_SHARE
        hidden[places[replaced]] = random[replaced]
        return hidden
