"""What a command says: results on stdout, everything else on stderr. Plain lines off a terminal, a live view on one.

Off a terminal nothing is wrapped or coloured, and no line is ever taken back. rich is imported only on a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from llmkit.report.live import LiveView, PlainView, SilentView, TrainingView, bar
from llmkit.report.text import duration, escape

__all__ = ["Advance", "Console", "TrainingView"]

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

LINE_SECONDS = 10.0
"""Off a terminal a progress line comes this often."""


class Advance(Protocol):
    """Counts work done, and says what is being worked on."""

    def __call__(self, n: int = 1, text: str = "") -> None: ...


class Console:
    """One a process. `quiet` (ranks above 0) says nothing but failures."""

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        terminal: bool | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ):
        self.json = json
        self.quiet = quiet
        self._stdout = stdout
        self._stderr = stderr
        self.terminal = self._is_terminal(self.stderr) if terminal is None else terminal
        self._rich: RichConsole | None = None

    @property
    def stdout(self) -> TextIO:
        return self._stdout if self._stdout is not None else sys.stdout

    @property
    def stderr(self) -> TextIO:
        return self._stderr if self._stderr is not None else sys.stderr

    @staticmethod
    def _is_terminal(stream: TextIO) -> bool:
        return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def rich(self) -> RichConsole:
        """rich's console on stderr, one for all views, so that notes appear above a live view."""
        if self._rich is None:
            from rich.console import Console as RichConsole

            # terminal=True in a test gives a stream that is no terminal: force what was asked for
            self._rich = RichConsole(
                file=self.stderr, force_terminal=True, highlight=False, markup=False, emoji=False, soft_wrap=True
            )
        return self._rich

    def note(self, text: str) -> None:
        """One message for people."""
        if not self.quiet:
            self._line(text)

    def phase(self, text: str) -> None:
        """What is being done now, where there is nothing to count."""
        self.note(f"{text} ...")

    def silence(self) -> None:
        """From here this process says nothing but failures: another one speaks for all."""
        self.quiet = True

    def warn(self, text: str) -> None:
        """Something the user may want to change."""
        if not self.quiet:
            self._line(f"warning: {text}", "yellow")

    def fail(self, error: BaseException | str) -> None:
        """The message a command ends with."""
        self._line(str(error), "red")

    def result(self, value: Any) -> None:
        """To stdout: text as it is, anything else as JSON. Escaped only where a terminal would act on it."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        if self.stdout.isatty():
            text = escape(text)
        self.stdout.write(text + "\n")
        self.stdout.flush()

    def write(self, text: str) -> None:
        """A piece of a result (a streamed completion), without a line end."""
        self.stdout.write(escape(text) if self.stdout.isatty() else text)
        self.stdout.flush()

    def _line(self, text: str, style: str | None = None) -> None:
        text = escape(text)
        if self._rich is not None:
            from rich.text import Text

            self._rich.print(Text(text, style=style or ""), soft_wrap=True)
            return
        if style and self.terminal and "NO_COLOR" not in os.environ:
            text = f"\033[{ {'red': 31, 'yellow': 33}[style] }m{text}\033[0m"
        self.stderr.write(text + "\n")
        self.stderr.flush()

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Progress over `total` units (None: unknown): a bar on a terminal, else a line every ten seconds."""
        if self.quiet:
            yield _ignore
        elif self.terminal:
            with bar(self.rich(), label, total, unit) as advance:
                yield advance
        else:
            lines = _ProgressLines(label, total, unit, self.note)
            yield lines.advance
            lines.end()

    @contextmanager
    def training(self, total_steps: int, header: dict[str, str]) -> Iterator[TrainingView]:
        """The view of a training run; `header` is what stays the same: model, data, device, where it saves."""
        if self.quiet:
            yield SilentView()
        elif self.terminal:
            with LiveView(self.rich(), total_steps, header).shown() as view:
                yield view
        else:
            yield PlainView(self.note, total_steps, header)


def _ignore(n: int = 1, text: str = "") -> None:
    return None


class _ProgressLines:
    """Progress where there is no terminal."""

    def __init__(self, label: str, total: int | None, unit: str, note: Callable[[str], None]):
        self.label, self.total, self.unit, self.note = label, total, unit, note
        self.start = self.last = time.monotonic()
        self.done = 0
        self.text = ""

    def advance(self, n: int = 1, text: str = "") -> None:
        self.done += n
        self.text = text or self.text
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            self.note(self.line(now))

    def line(self, now: float) -> str:
        seconds = max(now - self.start, 1e-9)
        rate = self.done / seconds
        if self.total:
            left = f", {duration((self.total - self.done) / rate)} left" if 0 < self.done < self.total else ""
            counted = f"{self.done:,} of {self.total:,} {self.unit} ({100 * self.done / self.total:.0f}%){left}"
        else:
            counted = f"{self.done:,} {self.unit} in {duration(seconds)}"
        return f"{self.label}: {counted}{f'  {self.text}' if self.text else ''}"

    def end(self) -> None:
        if self.done:
            seconds = time.monotonic() - self.start
            self.note(f"{self.label}: {self.done:,} {self.unit} in {duration(seconds)}")
