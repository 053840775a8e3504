"""`llmkit compare A B`: two evaluated runs on the same items, with paired statistics.

The items are joined by what they are (content hash, else source and place), never by their number alone. Differences
are B - A with a 95% interval from a paired bootstrap over items, and an exact sign test of how many items each side
wins: for outcomes of 0 and 1 that is McNemar's exact test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.errors import DataError
from llmkit.evaluate import results
from llmkit.evaluate.paired import Item, sums_of
from llmkit.metrics.bootstrap import Floats, paired_interval, sign_test
from llmkit.metrics.table import METRICS
from llmkit.report.console import Console


def compare(a: Path, b: Path, console: Console) -> dict[str, Any]:
    """Compares two evaluated runs; returns {metrics: {name: {a, b, difference, low, high, p, better}}, items}.

    Raises DataError where one is not evaluated, or where they were evaluated on different data, naming what differs."""
    (first, first_items), (second, second_items) = results.read(a), results.read(b)
    pairs = join(first_items, second_items, a, b)
    names = [name for name in first["metrics"] if name in second["metrics"]]
    if not names:
        raise DataError(f"{a} and {b} share no metric ({', '.join(first['metrics'])}; {', '.join(second['metrics'])})")
    same_tokenizer = first["provenance"]["tokenizer_sha256"] == second["provenance"]["tokenizer_sha256"]
    compared = {name: _compare(name, first, second, pairs, same_tokenizer) for name in names}
    warnings = [] if same_tokenizer else ["the tokenizers differ: figures a token are not comparable, bits_per_byte is"]
    warnings += _differences(first, second)
    outcome = {"a": str(a), "b": str(b), "items": len(pairs), "metrics": compared, "warnings": warnings}
    if not console.json:
        for line in table(outcome):
            console.result(line)
    for warning in warnings:
        console.warn(warning)
    return outcome


def join(first: list[Item], second: list[Item], a: Path, b: Path) -> list[tuple[Item, Item]]:
    """Pairs of the same item. Raises DataError unless both sides hold the same items."""
    left, right = _keyed(first), _keyed(second)
    missing, extra = [key for key in left if key not in right], [key for key in right if key not in left]
    if missing or extra:
        example = left[missing[0]] if missing else right[extra[0]]
        where = ":".join(str(example[key]) for key in ("file", "line") if example.get(key) is not None)
        raise DataError(
            f"{a} and {b} were evaluated on different data: {len(missing):,} of {len(left):,} items are only in the "
            f"first and {len(extra):,} of {len(right):,} only in the second (such as {where or example.get('row')}); "
            "evaluate both on the same data.test"
        )
    if not left:
        raise DataError(f"{a} and {b} hold no items")
    return [(left[key], right[key]) for key in left]


def _keyed(items: list[Item]) -> dict[tuple[Any, ...], Item]:
    """Items by content hash and how many of that hash came before (identical documents), else by source and place."""
    seen: dict[Any, int] = {}
    keyed = {}
    for item in items:
        what = item.get("hash") or (item.get("source"), item.get("file"), item.get("line"), item.get("row"))
        seen[what] = seen.get(what, -1) + 1
        keyed[what, seen[what]] = item
    return keyed


def _compare(
    name: str, first: dict[str, Any], second: dict[str, Any], pairs: list[tuple[Item, Item]], same_tokenizer: bool
) -> dict[str, Any]:
    values = [part["metrics"][name]["value"] for part in (first, second)]
    found: dict[str, Any] = {"a": values[0], "b": values[1], "difference": None, "low": None, "high": None, "p": None}
    if None not in values:
        found["difference"] = values[1] - values[0]
    parts = sums_of(name, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    if parts is not None:
        found["difference"], found["low"], found["high"] = paired_interval(*parts.columns, parts.statistic)
        found["p"] = None if parts.values is None else _sign_p(*parts.values)
    found["better"] = _better(name, found)
    if not same_tokenizer and name in ("loss", "perplexity", "token_accuracy"):
        found["better"] = None
    return found


def _sign_p(first: Floats, second: Floats) -> float:
    """Two-sided sign test on the items' own values; ties and items without one do not count."""
    change = second - first
    return sign_test(int((change > 0).sum()), int((change < 0).sum()))


def _better(name: str, found: dict[str, Any]) -> str | None:
    """ "a" or "b" where the interval leaves no doubt; None where it holds zero or there is none."""
    low, high = found["low"], found["high"]
    if low is None or high is None or low <= 0 <= high or name not in METRICS:
        return None
    return "b" if (low > 0) == (METRICS[name].better == "higher") else "a"


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What else was not the same, and may explain a difference."""
    one, other = first["provenance"], second["provenance"]
    return [
        f"{key} differs: {one.get(key)} and {other.get(key)}"
        for key in ("precision", "attn_implementation", "conventions")
        if one.get(key) != other.get(key)
    ]


def table(outcome: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [f"a: {outcome['a']}", f"b: {outcome['b']}", f"{outcome['items']:,} items, paired; differences are b - a"]
    for name, found in outcome["metrics"].items():
        digits = METRICS[name].digits if name in METRICS else 4
        shown = [("-" if found[key] is None else f"{found[key]:,.{digits}f}") for key in ("a", "b")]
        line = f"{name}: {shown[0]} -> {shown[1]}"
        if found["difference"] is not None:
            line += f", difference {found['difference']:+,.{digits}f}"
        if found["low"] is not None:
            line += f" (95% {found['low']:+,.{digits}f} to {found['high']:+,.{digits}f})"
            line += "" if found["p"] is None else f", sign test p = {found['p']:.3g}"
            line += f"; {found['better']} is better" if found["better"] else "; no clear difference"
        lines.append(line)
    return lines
