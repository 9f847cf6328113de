"""Stopping a training between two updates."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Whether Ctrl-C or SIGTERM asked for the end of a training.

    Attributes:
        signum: the signal that asked; None while nothing did.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    @contextmanager
    def awaited(self, wanted: bool) -> Iterator[None]:
        """Take note of the first Ctrl-C or SIGTERM instead of stopping at once; a second one does not wait.

        Args:
            wanted: False leaves the signals as they are. So they are in any thread but the main one.
        """
        self.signum = None
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum: int, frame: Any) -> None:
            if self.signum is not None:
                raise KeyboardInterrupt
            self.signum = signum

        before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def obey(self) -> None:
        """Raise `SystemExit` after SIGTERM, `KeyboardInterrupt` after Ctrl-C; nothing if nothing was asked."""
        if self.signum == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.signum is not None:
            raise KeyboardInterrupt
