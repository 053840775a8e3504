"""A made corpus of English and Chinese words, the same on every machine, and what KenLM itself made of it.

lmplz takes the plain count where the adjusted one is due for the last n-gram of each lower order, in its suffix order,
when it counts counts for the discounts (the flush at the end of AdjustCounts::Run). The last sentence ends with a word
that occurs once, so that the two are the same and the formulas alone decide.
"""

from __future__ import annotations

UNKNOWN, START, END, FIRST = 0, 1, 2, 3


def draw_sentences(count: int, seed: int) -> list[list[int]]:
    """Numbers of words, drawn with a linear congruential generator: frequent words and repeated pairs."""
    state, made = seed, []

    def draw(limit: int) -> int:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % limit

    for _ in range(count):
        row = [draw(400)]
        for _ in range(1 + draw(9)):
            row.append(min(draw(400) for _ in range(4)) if draw(3) else (row[-1] * 5 + 1) % 400)
        made.append(row)
    return made


_TRAINING = [*draw_sentences(400, 1), [5, 17, 400]]
SEEN = sorted({word for row in _TRAINING for word in row})
VOCABULARY = ["<unk>", "<s>", "</s>", *(chr(0x4E00 + word) if word % 2 else f"word{word}" for word in SEEN)]


def _encode(rows: list[list[int]]) -> list[list[int]]:
    number = {word: FIRST + i for i, word in enumerate(SEEN)}
    return [[START, *(number.get(word, UNKNOWN) for word in row), END] for row in rows]


TRAINING = _encode(_TRAINING)
SCORED = [*_encode(draw_sentences(40, 2)), [START, UNKNOWN, UNKNOWN, END]]
