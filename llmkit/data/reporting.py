"""report.json: what went in, what each step did to it, what came out, and how well the tokenizer fits."""

from __future__ import annotations

from typing import Any

from llmkit.data.tokenizer import SpecialIds


def make_report(
    tally: dict[str, Any],
    splits: dict[str, dict[str, Any]],
    labels: dict[str, dict[str, Any]],
    engine: dict[str, str],
    ids: SpecialIds,
) -> dict[str, Any]:
    """The report from the final counts. Everything in it is JSON.

    records = used + bad + empty + cleaned_away + not_encoded, of the used ones held_out for validation.
    """
    sources = list(tally["sources"].values())

    def total(key: str) -> int:
        return sum(entry.get(key, 0) for entry in sources)

    report: dict[str, Any] = {
        "records": total("records"),
        "used": total("used"),
        "held_out": total("held_out"),
        "bad": total("bad"),
        "empty": total("empty"),
        "cleaned_away": total("cleaned_away"),
        "not_encoded": total("encoder_rejected"),
        "truncated": total("truncated"),
        "sources": sources,
        "clean": list(tally["steps"].values()),
        "splits": {name: {**_sizes(entry), "labels": _labels(labels[name], entry)} for name, entry in splits.items()},
        "rejected": dict(sorted(tally["rejected"].items(), key=lambda item: -item[1])),
        "first_bad": tally["first_bad"],
        "tokenizer": {"vocab_size": ids.size, "engine": engine, "fit": _fit(tally, total)},
        "tally": tally,
    }
    return report


def _sizes(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("rows", "tokens", "bytes", "words")} | {"shards": len(entry["shards"])}


def _labels(audit: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The label audit; `masked`: whether some tokens are shown without being taught."""
    return {**audit, "masked": len(entry["streams"]) > 1}


def _fit(tally: dict[str, Any], total: Any) -> dict[str, Any]:
    """Tokens a character, and how much of the text ends in unknown tokens or single bytes, by script."""
    fit: dict[str, Any] = {}
    for name, counts in tally["scripts"].items():
        tokens, characters = max(1, counts["tokens"]), max(1, counts["characters"])
        fit[name] = {
            "characters": counts["characters"],
            "tokens_per_character": tokens / characters,
            "unknown_rate": counts["unknown_tokens"] / tokens,
            "single_byte_rate": counts["byte_tokens"] / tokens,
        }
    return fit
