"""Views of long work: a training run as a live panel or as plain lines, and a progress bar.

All take the dicts that go to metrics.jsonl; keys that are absent are left out of the view.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from llmkit.report.text import duration, escape, number, size, sparkline

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

    from llmkit.report.console import Advance

Event = dict[str, Any]
"""A line of metrics.jsonl: step, split, loss, learning_rate, grad_norm, tokens, tokens_per_second, the task's metrics;
for the view also `mfu` (0 to 1: share of the machine's matrix rate) and `memory_bytes`, where known."""

NOT_METRICS = frozenset(
    {
        "step",
        "split",
        "epoch",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "mfu",
        "memory_bytes",
        "seconds",
        "time",
        "samples",
    }
)

FACTS_A_ROW = 4
"""Metrics of the last validation on one line of the panel; more would be cut at 100 columns."""


class TrainingView(Protocol):
    def log(self, event: Event) -> None:
        """Shows one event of metrics.jsonl."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        """Something about the run that people should act on; it stays in sight."""

    def saved(self, path: object) -> None:
        """A checkpoint has been published at `path`."""

    def phase(self, text: str) -> None:
        """What is being done now: training, validation, saving."""


class SilentView:
    """For processes that do not speak."""

    def log(self, event: Event) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def saved(self, path: object) -> None: ...

    def phase(self, text: str) -> None: ...


class Clock:
    """Time left, from the pace since the view began: a resumed run's earlier steps do not count."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self.start = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.step = 0

    def take(self, step: int) -> None:
        self.step = step
        if self.first is None:
            self.first = (step, time.monotonic())

    def left(self) -> float | None:
        """Seconds, or None before there is a pace."""
        if self.first is None or self.step <= self.first[0]:
            return None
        pace = (time.monotonic() - self.first[1]) / (self.step - self.first[0])
        return pace * max(self.total_steps - self.step, 0)


def facts(event: Event) -> list[tuple[str, str]]:
    """(name, value) of an event in reading order."""
    found = [(name, number(value)) for name, value in event.items() if name not in NOT_METRICS and _is_number(value)]
    if _is_number(event.get("learning_rate")):
        found.append(("lr", f"{event['learning_rate']:.2e}"))
    if _is_number(event.get("grad_norm")):
        found.append(("grad", f"{event['grad_norm']:.3g}"))
    if _is_number(event.get("tokens_per_second")):
        found.append(("tokens/s", f"{event['tokens_per_second']:,.0f}"))
    if _is_number(event.get("mfu")):
        found.append(("of matrix rate", f"{100 * event['mfu']:.0f}%"))
    if _is_number(event.get("memory_bytes")):
        found.append(("memory", size(event["memory_bytes"])))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class PlainView:
    """A line an event, for log files."""

    def __init__(self, write: Callable[[str], None], total_steps: int, header: dict[str, str]):
        self.write = write
        self.clock = Clock(total_steps)
        for name, value in header.items():
            write(f"{name}: {value}")

    def log(self, event: Event) -> None:
        words = "  ".join(f"{name} {value}" for name, value in facts(event))
        step = int(event.get("step", 0))
        if event.get("split", "train") != "train":
            self.write(f"{event['split']} at step {step}/{self.clock.total_steps}  {words}")
            return
        self.clock.take(step)
        left = self.clock.left()
        eta = f"  {duration(left)} left" if left is not None else ""
        self.write(f"step {step}/{self.clock.total_steps}  {words}{eta}")

    def note(self, text: str) -> None:
        self.write(text)

    def warn(self, text: str) -> None:
        self.write(f"warning: {text}")

    def saved(self, path: object) -> None:
        self.write(f"saved {path}")

    def phase(self, text: str) -> None:
        """Log files need no word for every change of phase."""


class LiveView:
    """A panel that redraws itself: progress, loss with its trend, rates, the last validation, where it saves."""

    def __init__(self, console: RichConsole, total_steps: int, header: dict[str, str]):
        self.console = console
        self.header = header
        self.clock = Clock(total_steps)
        self.losses: list[float] = []
        self.train: Event = {}
        self.validation: Event = {}
        self.last_saved = ""
        self.warning = ""
        self.doing = "starting"

    @contextmanager
    def shown(self) -> Iterator[LiveView]:
        from rich.live import Live

        with Live(get_renderable=self.render, console=self.console, refresh_per_second=4, vertical_overflow="crop"):
            try:
                yield self
            except BaseException:
                self.doing = "stopped"
                raise
            self.doing = "done"

    def log(self, event: Event) -> None:
        if event.get("split", "train") == "train":
            self.train = event
            self.clock.take(int(event.get("step", 0)))
            if _is_number(event.get("loss")):
                self.losses.append(float(event["loss"]))
            self.doing = "training"
        else:
            self.validation = event

    def note(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(escape(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.warning = text
        self.note(f"warning: {text}")

    def saved(self, path: object) -> None:
        self.last_saved = f"{path} ({time.strftime('%H:%M:%S')})"

    def phase(self, text: str) -> None:
        self.doing = text

    def render(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        columns = max(min(self.console.width, 100) - 4, 20)
        step, total = self.clock.step, self.clock.total_steps
        left = self.clock.left()
        elapsed = duration(time.monotonic() - self.clock.start)
        top = Table.grid(padding=(0, 2), expand=True)
        top.add_column(ratio=1)
        top.add_column(justify="right", no_wrap=True)
        eta = f"{duration(left)} left" if left is not None else "time left: measuring"
        words = f"{step:,} / {total:,}  {elapsed}, {eta}"
        top.add_row(ProgressBar(total=max(total, 1), completed=step, complete_style="cyan"), words)
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True, min_width=10)
        rows.add_column(overflow="ellipsis", no_wrap=True)
        if self.losses:
            trend = sparkline(self.losses, max(columns - 34, 8))
            rows.add_row("loss", Text.assemble((number(self.losses[-1]), "bold"), "  ", (trend, "cyan")))
        rest = [(name, value) for name, value in facts(self.train) if name != "loss"]
        if rest:
            rows.add_row("now", Text("   ".join(f"{name} {value}" for name, value in rest)))
        if self.validation:
            told = [f"{name} {value}" for name, value in facts(self.validation)]
            told.append(f"at step {self.validation.get('step', 0):,}")
            for first in range(0, len(told), FACTS_A_ROW):
                rows.add_row("" if first else "validation", Text("   ".join(told[first : first + FACTS_A_ROW])))
        if self.warning:
            rows.add_row("warning", Text(escape(self.warning), style="yellow", overflow="fold", no_wrap=False))
        if self.last_saved:
            rows.add_row("saved", Text(escape(self.last_saved)))
        for name, value in self.header.items():
            rows.add_row(name, Text(escape(value)))
        return Panel(
            Group(top, rows),
            title=Text(f" {escape(self.doing)} "),
            title_align="left",
            box=box.ROUNDED,
            width=columns + 4,
        )


@contextmanager
def bar(console: RichConsole, label: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A progress bar on a terminal; what stays behind is its last state."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    counted = "{task.completed:,}/{task.total:,}" if total is not None else "{task.completed:,}"
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn(f"{counted} {unit}", markup=False),
        TimeElapsedColumn(),
        *([TimeRemainingColumn(compact=True)] if total is not None else []),
        TextColumn("{task.fields[text]}", markup=False, style="dim"),
        console=console,
    )
    with progress:
        task = progress.add_task(label, total=total, text="")

        def advance(n: int = 1, text: str = "") -> None:
            if text:
                progress.update(task, advance=n, text=escape(text))
            else:
                progress.advance(task, n)

        yield advance
