"""The workers of one driver and their jobs: who does what, what was lost and is tried again, how busy they are."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mvsearch.driver.stop import Stop
from mvsearch.driver.view import View
from mvsearch.pool.job import Done, Event, Job, Lost, Notice, Progress, Started
from mvsearch.pool.pool import Pool
from mvsearch.study.record import FAIL, SEARCH, TIME, Evaluation

POLL_S = 0.25


@dataclass(frozen=True)
class JobEnd:
    """A job that has ended, done or failed.

    Attributes:
        job: the job.
        evaluation: what goes into the ledger; its `what` is ``"fail"`` if the job raised, or was lost too often.
        weights: of a training, safetensors bytes; else None.
        checkpoint: of a training that was asked to keep one; else None.
    """

    job: Job
    evaluation: Evaluation
    weights: bytes | None = field(default=None, repr=False)
    checkpoint: bytes | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether something was measured."""
        return self.evaluation.what != FAIL


class Crew:
    """The workers of a pool, given jobs by one driver.

    Jobs are told apart by their trial: those of one trial can be counted and cancelled together.

    Args:
        pool: where jobs run.
        view: told what the pool says of itself, and which jobs are tried once more.
        begin: called while a worker is idle and no job is ready: hands in jobs, or returns False if there are none.
        on_progress: called when an epoch of a job has ended.
        last_epoch: to which trainings are shown to go; None: each job's own last epoch.

    Attributes:
        over: True once no job is begun any more, not even one that was handed in or lost.
        doing: what each worker that has a job does, for people.
        first_job: when the first job began, by the pool's clock; None before.
    """

    def __init__(
        self,
        pool: Pool,
        view: View,
        *,
        begin: Callable[[], bool],
        on_progress: Callable[[], None],
        last_epoch: int | None = None,
    ) -> None:
        self.over = False
        self.doing: dict[str, str] = {}
        self.first_job: float | None = None
        self._pool = pool
        self._view = view
        self._begin = begin
        self._on_progress = on_progress
        self._last_epoch = last_epoch
        self._ids = itertools.count()
        self._ready: deque[Job] = deque()
        self._submitted: dict[int, Job] = {}
        self._worker_of: dict[int, str] = {}
        self._busy_since: dict[str, float] = {}
        self._busy_seconds = 0.0
        self._last_end: float | None = None
        self._losses: Counter[tuple[str, str, int | None, int, bool]] = Counter()

    # -- jobs -------------------------------------------------------------------------------------------------------

    def next_id(self) -> int:
        """A number for a job."""
        return next(self._ids)

    def hand_in(self, job: Job) -> None:
        """Take a job; it begins when a worker is idle, in the order handed in."""
        self._ready.append(job)

    def fill(self) -> None:
        """Give every idle worker a job, as far as there are any."""
        while not self.over and self._pool.idle() > 0:
            if not self._ready and not self._begin():
                return
            if self._ready:
                job = self._ready.popleft()
                self._submitted[job.id] = job
                self._pool.submit(job)

    @property
    def ready(self) -> bool:
        """Whether a job waits for an idle worker."""
        return bool(self._ready)

    @property
    def at_work(self) -> bool:
        """Whether a job was begun that has not ended."""
        return bool(self._submitted)

    def works_on(self, trial: int) -> bool:
        """Whether a job of a trial has not ended, or not even begun."""
        return any(job.trial == trial for job in itertools.chain(self._submitted.values(), self._ready))

    def cancel(self, trial: int) -> None:
        """Forget the jobs of a trial, those at work too."""
        self._ready = deque(job for job in self._ready if job.trial != trial)
        for job in [job for job in self._submitted.values() if job.trial == trial]:
            self._release(job)
            self._pool.cancel(job.id)

    def ended(self, stop: Stop) -> Iterator[JobEnd]:
        """The jobs that end in one poll of the pool; idle workers are filled after each thing that happens.

        Raises:
            Interrupted: if a signal has come.
            PoolFailed: if no worker is left.
        """
        events = self._pool.events(POLL_S)
        while (event := stop.next(events)) is not None:
            end = self._take(event)
            if end is not None:
                yield end
            self.fill()

    def _take(self, event: Event) -> JobEnd | None:
        """Take note of an event; what has ended by it, if something has."""
        if isinstance(event, Notice):
            self._view.notice(event.text)
            return None
        job = self._submitted.get(event.job)
        if job is None:  # cancelled
            return None
        if isinstance(event, Started):
            now = self._pool.now()
            self.first_job = now if self.first_job is None else self.first_job
            self._busy_since[event.worker] = now
            self._worker_of[job.id] = event.worker
            self.doing[event.worker] = f"{_name(job)}: {'timing' if job.what == TIME else 'training'}"
        elif isinstance(event, Progress):
            last = self._last_epoch or event.epochs
            self.doing[self._worker_of[job.id]] = (
                f"{_name(job)}: epoch {event.epoch} of {last}, training loss {event.train_loss:.3f}"
            )
            self._on_progress()
        elif isinstance(event, Lost):
            self._release(job)
            return self._lost(job, event)
        elif isinstance(event, Done):
            self._release(job)
            self._last_end = self._pool.now()
            return JobEnd(job, event.evaluation, event.weights, event.checkpoint)
        return None

    def _lost(self, job: Job, event: Lost) -> JobEnd | None:
        """Hand in a lost job again, or give it up as failed if that was its last try."""
        stretch = (job.layout.key, job.what, job.seed, job.to_epoch, event.with_node)
        self._losses[stretch] += 1
        if self._losses[stretch] < event.tries:
            self._view.notice(f"Trial {job.trial}: {event.reason}; trying once more.")
            self.hand_in(dataclasses.replace(job, id=self.next_id()))
            return None
        reason = f"{job.what}: {event.reason}, {event.tries} times"
        return JobEnd(job, job.evaluation(what=FAIL, reason=reason, ended=time.time()))

    def _release(self, job: Job) -> None:
        """A job is at work no longer, and neither is its worker."""
        del self._submitted[job.id]
        worker = self._worker_of.pop(job.id, None)
        if worker is not None:
            self.doing.pop(worker, None)
            self._busy_seconds += self._pool.now() - self._busy_since.pop(worker)

    # -- how busy it is ---------------------------------------------------------------------------------------------

    def until_now(self) -> tuple[float, float]:
        """Seconds since the first job began, and the busy share of the workers' time in them; zeros before it."""
        if self.first_job is None:
            return 0.0, 0.0
        now = self._pool.now()
        elapsed = now - self.first_job
        busy = self._busy_seconds + sum(now - since for since in self._busy_since.values())
        return elapsed, busy / (elapsed * self._pool.workers) if elapsed else 0.0

    def in_all(self) -> tuple[float, float | None]:
        """Seconds from the first job to the last result, and the busy share of the workers' time in them.

        Returns:
            0 and None if nothing was done.
        """
        if self.first_job is None or self._last_end is None:
            return 0.0, None
        span = self._last_end - self.first_job
        return span, self._busy_seconds / (span * self._pool.workers) if span > 0 else None


def _name(job: Job) -> str:
    """What a job works on, for people; of trainings for another purpose than the search their seed matters."""
    return f"trial {job.trial}" if job.purpose == SEARCH else f"trial {job.trial}, seed {job.seed}"
