"""Amounts of memory as recipes write them: `20GB`, `512 MiB`, or a number of bytes."""

from __future__ import annotations

import re

_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", re.IGNORECASE)


def bytes_of(amount: str | int | None) -> int | None:
    """KB to TB are powers of 1000, KiB to TiB of 1024. ValueError saying what was expected."""
    if amount is None or isinstance(amount, int):
        return amount
    match = _AMOUNT.fullmatch(amount)
    count = 0
    if match is not None:
        power = " KMGT".index(match[2].upper() or " ")
        count = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if count < 1:
        raise ValueError(f'expected an amount of memory, e.g. "20GB" or "512MiB", got "{amount}"')
    return count
