"""Words for people: safe text, numbers, durations. No terminal here."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Sequence

from llmkit.secrets import redact

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|[\U000e0000-\U000e007f]"
)
BARS = "▁▂▃▄▅▆▇█"


def escape(text: str) -> str:
    """Text that is safe to show: control, bidirectional and invisible characters as visible escapes, secrets hidden;
    newline, tab and all writing stay."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), redact(text))


def width(text: str) -> int:
    """Columns on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text if not unicodedata.combining(c))


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def finite(value: object) -> float | None:
    """What was read from JSON as a number; None where it is no finite one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def number(value: float) -> str:
    """A metric: four or five significant digits, no exponent where people would not write one."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 4 if abs(value) < 10 else 2 if abs(value) < 1000 else 1
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Bytes with a unit: `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sparkline(values: Sequence[float], columns: int) -> str:
    """The finite values as bars, the mean of a stretch a column, newest right."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or columns < 1:
        return ""
    count = min(columns, len(finite))
    edges = [round(i * len(finite) / count) for i in range(count + 1)]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]
    low, high = min(means), max(means)
    if high == low:
        return BARS[3] * len(means)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in means)
