"""A second, slow implementation of modified Kneser-Ney, with dictionaries, straight from the formulas: Chen and Goodman
1999 as Heafield et al. 2013 state them. It shares no code and no data structure with the model that it judges."""

from __future__ import annotations

from collections import Counter, defaultdict


class KneserNey:
    """sentences: token ids with the start and the end token. prune: a limit an order, the last for those above."""

    def __init__(self, sentences, order, vocabulary, start, end, prune=(0,)):
        self.order, self.start, self.end = order, start, end
        self.uniform = 1.0 / len([word for word in vocabulary if word != start or start == end])
        raw = [Counter() for _ in range(order + 1)]
        for sentence in sentences:
            for n in range(1, order + 1):
                for i in range(len(sentence) - n + 1):
                    if n > 1 or i > 0:  # the first token is never predicted
                        raw[n][tuple(sentence[i : i + n])] += 1
        self.discounts, self.used_fallback = {}, set()
        self.own = {}  # n-gram -> discounted relative frequency
        self.backoff = {}
        for n in range(1, order + 1):
            adjusted = raw[n]
            if n < order:
                before = defaultdict(set)
                for gram in raw[n + 1]:
                    before[gram[1:]].add(gram[0])
                adjusted = {
                    gram: count if n > 1 and gram[0] == start else len(before[gram]) for gram, count in raw[n].items()
                }
            limit = prune[min(n, len(prune)) - 1]
            kept = {gram for gram in adjusted if n == 1 or raw[n][gram] > limit}
            discount = self.discount(n, adjusted)
            followers = defaultdict(list)
            for gram in adjusted:
                followers[gram[:-1]].append(gram)
            for context, grams in followers.items():
                total = sum(adjusted[gram] for gram in grams)
                freed = 0.0
                for gram in grams:
                    if gram in kept:
                        taken = discount[min(adjusted[gram], 3)]
                        self.own[gram] = (adjusted[gram] - taken) / total
                        freed += taken
                    else:
                        freed += adjusted[gram]
                self.backoff[context] = freed / total

    def discount(self, n, adjusted):
        t = Counter(adjusted.values())
        found = None
        if t[1] and t[2] and t[3]:
            y = t[1] / (t[1] + 2 * t[2])
            found = {k: k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)}
            found = found if all(0 < found[k] <= k for k in found) else None
        if found is None:
            self.used_fallback.add(n)
            found = {1: 0.5, 2: 1.0, 3: 1.5}
        self.discounts[n] = found
        return found

    def probability(self, context, word):
        """p(word | context) by recursion over the context, which may be longer than the model looks back."""
        context = tuple(context)[len(context) - min(len(context), self.order - 1) :]
        if not context:
            if word == self.start != self.end:
                return 0.0
            return self.own.get((word,), 0.0) + self.backoff[()] * self.uniform
        lower = self.probability(context[1:], word)
        if context not in self.backoff:
            return lower
        return self.own.get((*context, word), 0.0) + self.backoff[context] * lower
