"""A pool that runs nothing: recorded or made-up values, on pretended devices, in virtual time.

A search of days takes seconds, with the same asks, promotions and results as if the work had been done: for tests,
benchmarks and dry runs. `ReplayPool` owns the clock and takes its values from any worker that answers at once;
`ReplayWorker` answers from the ledgers of earlier studies, or with the made-up values of `Synthetic`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mvsearch.pool.job import Done, Event, Job, Lost, Progress, Started, Worker, WorkerFactory
from mvsearch.study.record import FAIL, TIME, TRAIN, Evaluation


class ReplayPool:
    """Answers jobs in virtual time: a job takes as long as its evaluation says (`ended` − `started`).

    The evaluations that come out begin and end by the virtual clock, which starts at 0 and never waits.

    Args:
        make_worker: builds the worker of each device; its `run` must answer at once.
        data: handed to the workers.
        devices: how many devices to pretend, 1 or more.

    Raises:
        ValueError: for fewer than one device.
    """

    def __init__(self, make_worker: WorkerFactory, data: Any = None, *, devices: int = 1) -> None:
        if devices < 1:
            raise ValueError(f"devices: {devices!r} is not allowed; 1 or more")
        self._make_worker = make_worker
        self._data = data
        self._names = [f"replay-{number}" for number in range(devices)]
        self._workers: dict[str, Worker] = {}
        self._busy: dict[str, int] = {}
        self._queue: deque[Job] = deque()
        self._order = itertools.count()
        # What will happen: when, in which order among equal times, on which device, and what.
        self._coming: list[tuple[float, int, str, Event]] = []
        self._now = 0.0

    @property
    def workers(self) -> int:
        """Number of pretended devices."""
        return len(self._names)

    @property
    def in_process(self) -> bool:
        """True."""
        return True

    @property
    def description(self) -> str:
        """For people."""
        return f"{self.workers} pretended device{'s' if self.workers != 1 else ''}, nothing is trained"

    def idle(self) -> int:
        """How many more jobs would start at once."""
        return max(0, self.workers - len(self._busy) - len(self._queue))

    def submit(self, job: Job) -> None:
        """Hand in a job."""
        self._queue.append(job)

    def events(self, timeout: float) -> Iterator[Event]:
        """The jobs that start now, else all that happens at the next moment; nothing is waited for."""
        started = False
        while self._assign():
            started = True
            yield from self._due()
        if started or not self._coming:
            return
        self._now = self._coming[0][0]
        yield from self._due()

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def cancel(self, job_id: int) -> None:
        """Forget a job; its device is free at once."""
        self._queue = deque(job for job in self._queue if job.id != job_id)
        self._busy = {name: job for name, job in self._busy.items() if job != job_id}
        self._coming = [entry for entry in self._coming if entry[3].job != job_id]
        heapq.heapify(self._coming)

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._busy.clear()
        self._coming.clear()
        self._workers.clear()

    def _due(self) -> Iterator[Event]:
        while self._coming and self._coming[0][0] <= self._now:
            _, _, name, event = heapq.heappop(self._coming)
            if isinstance(event, Done | Lost):
                del self._busy[name]
            yield event

    def _assign(self) -> bool:
        """Start the next job that waits on a device that is free; False if there is none."""
        free = [name for name in self._names if name not in self._busy]
        if not self._queue or not free:
            return False
        job, name = self._queue.popleft(), free[0]
        self._busy[name] = job.id
        self._at(self._now, name, Started(job.id, name))
        if name not in self._workers:
            self._workers[name] = self._make_worker(name, name, 1, self._data)
        events = list(self._workers[name].run(job))
        done = events[-1] if events else None
        if not isinstance(done, Done):
            self._at(self._now, name, Lost(job.id, f"worker {name} ended the job without a result"))
            return True
        seconds = max(0.0, done.evaluation.ended - done.evaluation.started)
        for number, event in enumerate(events[:-1], start=1):
            self._at(self._now + seconds * number / len(events), name, event)
        evaluation = dataclasses.replace(done.evaluation, started=self._now, ended=self._now + seconds, worker=name)
        self._at(self._now + seconds, name, dataclasses.replace(done, evaluation=evaluation))
        return True

    def _at(self, when: float, name: str, event: Event) -> None:
        heapq.heappush(self._coming, (when, next(self._order), name, event))


def _share(*parts: object) -> float:
    """A number from 0 to 1 that depends on its arguments alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:13], 16) / 16**13


@dataclass(frozen=True)
class Synthetic:
    """Made-up values with the shape of real ones: they say how a search goes, and nothing about layouts.

    Larger layouts are better and slower, each with a draw of its own; the NLL falls from a uniform guess towards its
    end exponentially, at a pace that is the layout's own, so that early rungs rank roughly and not exactly. A pass
    takes its multiply-accumulates over `rate`, a training step three times as long.

    Attributes:
        classes: of the data set, 2 or more.
        reference_cost: `cost` of the reference layout, with ``params`` and ``macs``.
        epochs: of a full training; the pace of the curves follows it.
        train_images: images an epoch.
        timing_seconds: how long a timing takes.
        rate: multiply-accumulates a second of a pretended device.
    """

    classes: int
    reference_cost: dict[str, int]
    epochs: int
    train_images: int = 10_000
    timing_seconds: float = 5.0
    rate: float = 1e10

    def timing(self, job: Job) -> dict[str, Any]:
        """`Evaluation.values` of a timing."""
        size = job.cost["macs"] / self.reference_cost["macs"]
        ratio = size**-0.8 * 2 ** (0.6 * (_share("speed", job.layout.key) - 0.5))
        speed = ratio * self.rate / self.reference_cost["macs"]
        return {"images_per_second": speed, "ratio": ratio, "iqr": 0.0, "windows": [speed], "reference_windows": []}

    def training(self, job: Job) -> dict[str, Any]:
        """`Evaluation.values` of a training."""
        key, guess = job.layout.key, math.log(self.classes)
        size = job.cost["params"] / self.reference_cost["params"]
        end = guess * min(0.8, 0.4 * size**-0.2 * (0.8 + 0.4 * _share("end", key)))
        pace = self.epochs * (0.15 + 0.15 * _share("pace", key))
        nll = end + (guess - end) * math.exp(-job.to_epoch / pace)
        nll *= 1 + 0.02 * (_share("seed", key, job.seed, job.to_epoch) - 0.5)
        images = (job.to_epoch - job.from_epoch) * self.train_images
        seconds = 3 * images * job.cost["macs"] / self.rate
        return {"nll": nll, "top1": math.exp(-nll), "images_seen": images, "train_seconds": seconds}


class ReplayWorker:
    """Answers jobs at once, from ledgers where they hold the layout and with made-up values where they do not.

    A recorded training to the same epoch with the same seed is the answer whatever epoch it began from, as trainings
    are nested; its seconds are those of the part asked for.

    Args:
        recorded: lines of earlier ledgers.
        synthetic: for layouts of which no line is recorded; None: such a job fails with that reason.
    """

    def __init__(self, recorded: Iterable[Evaluation] = (), synthetic: Synthetic | None = None) -> None:
        self._lines: dict[tuple[str, str, int | None, int], Evaluation] = {}
        self._keys: set[str] = set()
        for line in recorded:
            self._lines.setdefault((line.what, line.key, line.seed, line.to_epoch), line)
            self._keys.add(line.key)
        self._synthetic = synthetic

    def run(self, job: Job) -> Iterator[Progress | Done]:
        """Answer a job; see `Worker`. There are no weights; a checkpoint says only what it is the checkpoint of.

        Raises:
            ValueError: for a training that goes on without its own checkpoint.
        """
        if job.from_epoch and job.checkpoint != self._mark(job, job.from_epoch):
            raise ValueError(f"{job.layout.key}: a training from epoch {job.from_epoch} without its own checkpoint")
        line = self._lines.get((job.what, job.layout.key, job.seed, job.to_epoch))
        if line is not None:
            yield self._done(job, line.values, self._seconds(job, line), line.conditions)
        elif job.layout.key in self._keys or self._synthetic is None:
            failure = next((at for at in self._lines.values() if (at.what, at.key) == (FAIL, job.layout.key)), None)
            reason = failure.reason if failure else f"{job.what}: not recorded"
            yield Done(job.id, job.evaluation(what=FAIL, reason=reason))
        elif job.what == TIME:
            yield self._done(job, self._synthetic.timing(job), self._synthetic.timing_seconds, {"source": "made up"})
        else:
            values = self._synthetic.training(job)
            yield self._done(job, values, values["train_seconds"], {"source": "made up"})

    def _done(self, job: Job, values: dict[str, Any], seconds: float, conditions: dict[str, Any]) -> Done:
        kept = self._mark(job, job.to_epoch) if job.keep_checkpoint else None
        evaluation = job.evaluation(values=values, conditions=conditions, ended=seconds, device="replay")
        return Done(job.id, evaluation, checkpoint=kept)

    def _seconds(self, job: Job, line: Evaluation) -> float:
        seconds = line.ended - line.started
        if line.what == TRAIN and line.to_epoch > line.from_epoch:
            seconds *= (job.to_epoch - job.from_epoch) / (line.to_epoch - line.from_epoch)
        return max(0.0, seconds)

    def _mark(self, job: Job, epoch: int) -> bytes:
        return f"{job.layout.key} {job.seed} {epoch}".encode()


@dataclass(frozen=True)
class MakeReplayWorker:
    """Builds a `ReplayWorker`.

    Attributes:
        recorded: lines of earlier ledgers.
        synthetic: for layouts of which no line is recorded.
    """

    recorded: tuple[Evaluation, ...] = ()
    synthetic: Synthetic | None = None

    def __call__(self, name: str, device: str, threads: int, data: Any) -> ReplayWorker:
        """Build the worker; see `WorkerFactory`."""
        return ReplayWorker(self.recorded, self.synthetic)
