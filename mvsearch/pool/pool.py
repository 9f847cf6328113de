"""Where work runs: in this process (`InlinePool`), on Ray (`RayPool`), or nowhere (`ReplayPool`). All behave alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mvsearch.pool.job import Event, Job


class PoolError(ValueError):
    """The pool cannot give what was asked of it; the message says what there is."""


class PoolFailed(RuntimeError):
    """No worker is left that could do anything; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}. Everything measured so far is kept; once this is mended, the same command goes on")


class Pool(Protocol):
    """Runs jobs on workers, one job a worker at a time.

    A job's events come in order: `Started`, any number of `Progress`, then exactly one `Done` or `Lost`.
    """

    @property
    def workers(self) -> int:
        """Number of workers."""
        ...

    @property
    def in_process(self) -> bool:
        """True if jobs run in the caller's own process, where a signal may end them."""
        ...

    @property
    def description(self) -> str:
        """What the workers are, for people."""
        ...

    def idle(self) -> int:
        """How many more jobs would start at once."""
        ...

    def submit(self, job: Job) -> None:
        """Hand in a job; it starts when a worker is free, in the order handed in."""
        ...

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened since the last call; waits at most `timeout` seconds for something to happen.

        Raises:
            PoolFailed: if no worker is left, and none can be started.
        """
        ...

    def now(self) -> float:
        """The pool's clock in seconds, from any beginning: real time, or that of a replay."""
        ...

    def cancel(self, job_id: int) -> None:
        """Forget a job: no further event of it is given."""
        ...

    def close(self) -> None:
        """End all workers. Jobs still running are lost without an event."""
        ...
