"""A pool of one worker in the driver's own process: deterministic, no start-up, easy to debug."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from mvsearch.pool.job import DeviceBroken, Event, Job, Lost, Started, Worker, WorkerFactory
from mvsearch.pool.pool import PoolFailed


class InlinePool:
    """Runs each job in this process, one after the other, while `events` is read.

    Args:
        make_worker: builds the worker when the first job comes.
        data: handed to the worker.
        device: ``"cpu"`` or ``"cuda:N"``.
        threads: threads of the worker.
    """

    def __init__(self, make_worker: WorkerFactory, data: Any, *, device: str = "cpu", threads: int = 1) -> None:
        self._make_worker = make_worker
        self._data = data
        self._device = device
        self._threads = threads
        self._worker: Worker | None = None
        self._queue: deque[Job] = deque()
        self._current: tuple[int, Iterator[Event]] | None = None

    @property
    def workers(self) -> int:
        """Always one."""
        return 1

    @property
    def in_process(self) -> bool:
        """True."""
        return True

    @property
    def description(self) -> str:
        """For people."""
        return f"this process, {self._device}, {self._threads} thread{'s' if self._threads != 1 else ''}"

    def idle(self) -> int:
        """1 if nothing is handed in, else 0."""
        return 0 if self._queue or self._current else 1

    def submit(self, job: Job) -> None:
        """Hand in a job."""
        self._queue.append(job)

    def events(self, timeout: float) -> Iterator[Event]:
        """Run the next job to its end, giving its events as they happen. `timeout` has no meaning here."""
        if self._current is None:
            if not self._queue:
                return
            if self._worker is None:
                try:
                    self._worker = self._make_worker("inline", self._device, self._threads, self._data)
                except Exception as error:
                    raise PoolFailed(f"worker inline could not start ({type(error).__name__}: {error})") from error
            job = self._queue.popleft()
            self._current = (job.id, iter(self._worker.run(job)))
            yield Started(job.id, "inline")
        while self._current is not None:
            try:
                event = next(self._current[1])
            except StopIteration:
                self._current = None
                return
            except DeviceBroken as error:
                raise PoolFailed(f"{error}; without --workers 1 a new process would take its place") from None
            except Exception as error:
                job_id, self._current, self._worker = self._current[0], None, None
                yield Lost(job_id, f"worker inline: {type(error).__name__}: {error}")
                return
            yield event

    def now(self) -> float:
        """Real time."""
        return time.monotonic()

    def cancel(self, job_id: int) -> None:
        """Forget a job, also between two of its events."""
        self._queue = deque(job for job in self._queue if job.id != job_id)
        if self._current is not None and self._current[0] == job_id:
            self._current = None

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._current = None
        self._worker = None
