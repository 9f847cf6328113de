"""How a driver is stopped by a signal without losing what was measured."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mvsearch.pool.job import Event


class Interrupted(BaseException):
    """A signal asked the driver to stop; everything measured so far is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; everything measured so far is kept")
        self.signum = signum


class Stop:
    """Turns SIGINT and SIGTERM into `Interrupted`, but only where nothing can be left half-written.

    With `at_once` it is raised inside a job that runs in this process. Ray must not be interrupted like that; its pool
    comes back several times a second, and the signal is acted on then.
    """

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self.signum: int | None = None
        self.waiting = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.signum = signum
        if self.waiting and self.at_once:
            self.waiting = False
            raise Interrupted(signum)

    def next(self, events: Iterator[Event]) -> Event | None:
        """The next event, or None at their end.

        Raises:
            Interrupted: if a signal has come.
        """
        self.waiting = True
        try:
            event = None if self.signum is not None else next(events, None)
        finally:
            self.waiting = False
        if self.signum is not None:
            raise Interrupted(self.signum)
        return event


@contextmanager
def stop_signals(*, at_once: bool) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM so while the block runs; in a thread other than the main one nothing is changed."""
    stop = Stop(at_once)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, stop.handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
