"""A seeded mutator of bytes and of JSON values, and a bound on the time that one input may take.

The same seed and number give the same input, so a failure is told by its number and becomes a regression test.
"""

from __future__ import annotations

import copy
import json
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SECONDS = 10
"""Of the processor's time, for one input of some kilobytes."""

TOKENS: tuple[bytes, ...] = (
    *(
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\t",
        b"\x1b[2J",
    ),
    *(
        b'"',
        b"\\",
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"-",
        b"#",
        b"&a",
        b"*a",
        b"!!",
        b"|",
        b">",
        b"<",
        b"%",
        b"@",
    ),
    *(
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"1E400",
        b"-0",
        b"0x",
        b"9" * 400,
        b"9" * 5000,
        b"1.",
        b".5e-5",
    ),
    *(
        b"\\ud800",
        b"\\udfff\\ud800",
        b"\\u0000",
        b"\xe2\x80\xae",
        b"\xf4\x8f\xbf\xbf",
        b"\xee\x80\x80",
        b"\xe4\xbd\xa0",
    ),
    *(b"[" * 3000, b'{"a":' * 1500, b"(" * 500, b"<b>" * 500, b"{{" * 300, b"<!--", b"]]>", b"&#x0;", b"<?xml", b"{|"),
    *(b"<|endoftext|>", b"{{ x }}", b"{% for i in range(10**9) %}", b"../../etc/passwd", b"/dev/zero", b"file://"),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        " ",
        "\x00",
        "\ud800",
        "\u202e",
        "x" * 10_000,
        "a\nb",
        "1",
        "nan",
        "你好",
        "<|endoftext|>",
        "\ue000",
        "\U0010ffff",
    ),
    *([], {}, [[]], [None], [{}], [1, "a"], {"": 1}, {"a": {"b": []}}, [[[[]]]], ["a", None], {"text": 1}, [True]),
)


def mutate(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to six of its places changed; pieces may come from `others`."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        at, end = sorted(dice.randrange(len(changed) + 1) for _ in "ab")
        end = min(end, at + dice.choice((1, 4, 40, 400)))
        match dice.randrange(8):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << dice.randrange(8)
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end] * dice.choice((1, 2, 30))
            case 3:
                changed[at:end] = dice.choice(TOKENS)
            case 4:
                changed[at:at] = dice.choice(TOKENS)
            case 5:
                other = dice.choice(others)
                start = dice.randrange(len(other) + 1)
                changed[at:end] = other[start : start + dice.choice((1, 10, 100))]
            case 6:
                changed[at:end] = dice.randbytes(end - at)
            case _:
                del changed[at + dice.randrange(400) :]
    return bytes(changed[:200_000])


def mutate_json(dice: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which one to three of its places hold something else, are gone or are doubled."""
    changed = [copy.deepcopy(value)]
    for _ in range(dice.choice((1, 1, 2, 3))):
        parent, key = dice.choice(list(_places(changed)))
        match dice.randrange(6):
            case 0 if parent is not changed:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[dice.choice(("", "text", "label", "\ud800", "x" * 300, key + "s"))] = parent[key]
            case 2 if isinstance(parent, list) and parent is not changed:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 3:
                parent[key] = [parent[key]] if dice.random() < 0.5 else {"a": parent[key]}
            case _:
                parent[key] = copy.deepcopy(dice.choice(VALUES))
    return changed[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a list or an object, at any depth."""
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, child in pairs:
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def as_json(value: Any) -> bytes:
    """JSON as a careless program writes it: NaN, lone surrogates and all."""
    return json.dumps(value, ensure_ascii=random.Random(repr(value)).random() < 0.5).encode("utf-8", "surrogatepass")


@contextmanager
def bounded(label: str) -> Iterator[None]:
    """Fails where the block takes more than SECONDS of this process's time."""

    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"{label} takes more than {SECONDS} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
