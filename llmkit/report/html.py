"""`report.html`: how a run went, on one page: curves, tables, samples. Self-contained, no scripts, all text escaped.

It reads what lies in the run's directory and leaves out what does not, so that it can be written at any time.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit.files import parse_json, read_json, write_atomic
from llmkit.report.overfit import OverfitWatch
from llmkit.report.spikes import spike_warning
from llmkit.report.svg import Line, chart
from llmkit.report.text import duration, escape, finite, number

MAX_SAMPLES = 12
MAX_TEXT = 1200
"""Characters of one sample's text on the page."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2530;--soft:#64707d;--line:#dfe4e9;--back:#fff;
--a:#1467c8;--b:#c2510c;--c:#2b8a3e}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#94a1ae;--line:#313a44;--back:#14191f;
--a:#6fb1ff;--b:#ff9d5c;--c:#74d188}}
body{font:15px/1.5 system-ui,"PingFang SC","Noto Sans CJK SC","Microsoft YaHei",sans-serif;color:var(--ink);
background:var(--back);max-width:820px;margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}p.soft,figcaption{color:var(--soft)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .9rem .3rem 0;
border-bottom:1px solid var(--line);vertical-align:top}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}th{font-weight:600}
figure{margin:1rem 0}svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}svg .grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.8}polyline.a{stroke:var(--a)}polyline.b{stroke:var(--b)}polyline.c{stroke:var(--c)}
circle.a{fill:var(--a)}circle.b{fill:var(--b)}circle.c{fill:var(--c)}
span.a{color:var(--a)}span.b{color:var(--b)}span.c{color:var(--c)}figcaption span{margin-right:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:color-mix(in srgb,var(--ink) 6%,transparent);
padding:.7rem .9rem;border-radius:6px;margin:.3rem 0 1rem;
font:13px/1.45 ui-monospace,Menlo,Consolas,"Noto Sans Mono CJK SC",monospace}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_report(output_dir: Path) -> Path:
    """Writes `report.html` from run.json, metrics.jsonl, results.json and evaluation/ beside it. Returns its path."""
    run = _json(output_dir / "run.json")
    name = output_dir.absolute().name
    body = [
        f"<h1>{_text(name)}</h1>",
        f'<p class="soft">{_text(_headline(run))}</p>',
        *_section("Curves", _curves(output_dir / "metrics.jsonl")),
        *_section("Results", _results(_json(output_dir / "results.json"))),
        *_section("Evaluation", _evaluation(_json(output_dir / "evaluation" / "results.json"))),
        *_section("Samples", _samples(output_dir / "evaluation" / "predictions.jsonl")),
        *_section("Run", _run(run)),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(name)}</title><style>{STYLE}</style></head>\n<body>\n{''.join(body)}\n</body></html>\n"
    )
    path = output_dir / "report.html"
    write_atomic(path, page.encode())
    return path


def _text(value: object) -> str:
    """Any value as text that a browser only shows."""
    return html.escape(escape(str(value)))


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{title}</h2>", content] if content else []


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, or {} where there is none that can be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = parse_json(line)
                except ValueError:
                    continue  # the last line of a run that is still writing
                if isinstance(value, dict):
                    yield value
    except OSError:
        return


def _headline(run: dict[str, Any]) -> str:
    words = [f"llmkit {run['command']}" if "command" in run else "", str(run.get("status", ""))]
    if (steps := finite(run.get("steps"))) is not None:
        words.append(f"{steps:,.0f} steps")
    if (tokens := finite(run.get("tokens"))) is not None:
        words.append(f"{tokens:,.0f} tokens")
    if "started_at" in run:
        words.append(f"started {run['started_at']}")
    return " · ".join(word for word in words if word)


def _curves(path: Path) -> str:
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    watch, warnings = OverfitWatch(), []
    for event in _lines(path):
        for warning in (watch.take(event), spike_warning(event)):
            if warning is not None:
                warnings.append(f"<p>{_text(warning)}</p>")
        step = finite(event.get("step"))
        for name in ("loss", "learning_rate", "tokens_per_second"):
            value = finite(event.get(name))
            if step is not None and value is not None:
                points.setdefault((str(event.get("split", "train")), name), []).append((step, value))

    def line(name: str, style: str, split: str, key: str) -> Line:
        return Line(name, style, points.get((split, key), []))

    loss = [line("train", "a", "train", "loss"), line("validation", "b", "validation", "loss")]
    return (
        chart(loss, x_label="step", y_label="Loss (nats a token)")
        + "".join(warnings)
        + chart([line("learning rate", "c", "train", "learning_rate")], x_label="step", y_label="Schedule")
        + chart([line("tokens/s", "a", "train", "tokens_per_second")], x_label="step", y_label="Speed")
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """`rows` hold text already escaped; all but the first column are numbers."""
    body = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>"]
    for first, *rest in rows:
        body.append(f"<tr><td>{first}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in rest) + "</tr>")
    return f"<table>{''.join(body)}</table>" if len(body) > 1 else ""


def _results(results: dict[str, Any]) -> str:
    rows = [(_text(k), _text(number(v))) for k, v in results.items() if finite(v) is not None]
    return _table(("metric", "value"), rows)


def _evaluation(results: dict[str, Any]) -> str:
    metrics = results.get("metrics")
    parts = []
    if isinstance(metrics, dict):
        rows = [(_text(k), *_measured(v)) for k, v in metrics.items() if isinstance(v, dict)]
        parts.append(_table(("metric", "value", "95% interval", "items"), rows))
    notes = results.get("notes")
    parts += [f'<p class="soft">{_text(note)}</p>' for note in notes] if isinstance(notes, list) else []
    for kind in ("suites", "baselines"):
        table = results.get(kind)
        rows_of = _nested(table) if isinstance(table, dict) else []
        parts.append(_table((kind, "metric", "value"), rows_of))
    return "".join([*parts, _classes(results)])


def _classes(results: dict[str, Any]) -> str:
    """Scores of each class, and the confusion matrix, a row a gold class."""
    parts, classes, matrix = [], results.get("per_class"), results.get("confusion_matrix")
    if isinstance(classes, dict):
        scored = {name: scores for name, scores in classes.items() if isinstance(scores, dict)}
        heads = list(dict.fromkeys(head for scores in scored.values() for head in scores))
        rows = [(_text(name), *(_shown(scores.get(head)) for head in heads)) for name, scores in scored.items()]
        parts.append(_table(("label", *heads), rows))
    if isinstance(matrix, dict) and all(isinstance(matrix.get(key), list) for key in ("labels", "counts")):
        counted = zip(matrix["labels"], matrix["counts"], strict=False)
        body = [(_text(name), *map(_shown, counts)) for name, counts in counted if isinstance(counts, list)]
        parts.append(_table(("gold \\ predicted", *matrix["labels"]), body))
    return "".join(parts)


def _shown(value: object) -> str:
    found = finite(value)
    return "" if found is None else number(int(found) if isinstance(value, int) else found)


def _measured(metric: dict[str, Any]) -> tuple[str, str, str]:
    value, low, high = (finite(metric.get(name)) for name in ("value", "low", "high"))
    between = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
    items = finite(metric.get("n"))
    return (number(value) if value is not None else "", between, f"{items:,.0f}" if items is not None else "")


def _nested(table: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name, metrics in table.items():
        for metric, value in metrics.items() if isinstance(metrics, dict) else ():
            found = finite(value.get("value") if isinstance(value, dict) else value)
            if found is not None:
                rows.append((_text(name), _text(metric), number(found)))
    return rows


def _samples(path: Path) -> str:
    parts = []
    for item in islice(_lines(path), MAX_SAMPLES):
        for name, value in item.items():
            if isinstance(value, str) and value.strip():
                shown = value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + " …"
                parts.append(f'<p class="soft">{_text(name)}</p><pre>{_text(shown)}</pre>')
        numbers = [f"{k} {number(v)}" for k, v in item.items() if isinstance(v, float) and finite(v) is not None]
        if numbers:
            parts.append(f'<p class="soft">{_text("   ".join(numbers))}</p>')
    return "".join(parts)


def _run(run: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    for key in ("exit_reason", "started_at", "finished_at", "seed", "data_fingerprint", "recipe_sha256"):
        if run.get(key) not in (None, ""):
            rows.append((_text(key), _text(run[key])))
    if (seconds := finite(run.get("seconds"))) is not None:
        rows.append(("time", duration(seconds)))
    for section in ("resolved", "versions", "hardware"):
        values = run.get(section)
        for key, value in values.items() if isinstance(values, dict) else ():
            rows.append((f"{section}.{_text(key)}", _text(value)))
    return _table(("", ""), rows)
