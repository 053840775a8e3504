"""Signals: a first one asks the loop to save and stop at the next step boundary, a second interrupt ends at once.

SIGTERM, SIGHUP and SIGUSR1 (what SLURM sends ahead of a time limit) stop; SIGINT does too, and its repetition is the
user's way out of a save that hangs. Outside the loop a handler raises, so that `finally` blocks run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmkit.errors import Stopped

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
UNWINDING_SECONDS = 5.0
"""How long a repeated signal is taken for the same wish as the first, which is being seen to."""


class GivenUp(Exception):
    """An evaluation was left for a signal; it comes again when the run goes on."""


class StopRequest:
    """Set by a signal; the loop reads `signum` at its step boundaries. `deferred` is false outside the loop.

    saved: something of the run is on disk already, so that the same command goes on from there (status 75).
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.saved = False
        self.raised: float | None = None
        """When the command began to end of a signal, by the monotonic clock."""

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            os._exit(128 + signum)
        # SIGHUP counts as SIGTERM, and so does the notice ahead of a time limit
        self.signum = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        unwinding = self.raised is not None and time.monotonic() - self.raised < UNWINDING_SECONDS
        if not self.deferred and not unwinding:
            raise self.stopped()

    def stopped(self) -> Stopped:
        """The error that ends the command with the right status."""
        self.raised = time.monotonic()
        signum = self.signum or signal.SIGTERM  # another rank may have got it first
        name = signal.Signals(signum).name
        if self.saved:
            return Stopped(signum, saved=True, message=f"stopped by {name}; run the same command again to go on")
        return Stopped(signum, saved=False, message=f"stopped by {name} before there was anything to save")

    def ignore(self) -> None:
        """From here on a signal raises nothing: the command is ending already, for a reason that must be told."""
        self.deferred = True

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Within, a signal only sets the request. Raises Stopped where one came before and a library swallowed it."""
        if self.signum is not None:
            raise self.stopped()
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Installs the handlers, and puts the old ones back unless a signal came: then a second one must cut nothing short.

    An error that follows a signal is the signal's doing (a library that was cut short), and told as such.
    """
    request = StopRequest()
    old = {number: signal.signal(number, request.handle) for number in STOPPING}
    try:
        yield request
    except Exception as error:
        if request.raised is not None:
            raise request.stopped() from error
        raise
    finally:
        if request.signum is None:
            for number, handler in old.items():
                signal.signal(number, handler)
