"""Training layouts of a study again: the loop behind `mvsearch calibrate` and `mvsearch confirm`.

Nothing is asked of Optuna here: it is known from the start what to train. Jobs go through the same pools as those of a
search, and what is measured into the same ledger, under a purpose of its own. What the ledger holds is never done
again, so the same command goes on where it was stopped.

A layout that failed is tried again by the next call, whatever it failed for: that a person calls again may mean another
device, a longer limit, or a disk with room. Where nothing has changed, memory or a loss that is no number fails again;
as the checkpoints are kept, that costs one stretch of a training, and it comes after everything else.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mambavision.layout import HybridLayout
from mvsearch.analysis.plans import Plan
from mvsearch.analysis.repeated import failed_layouts
from mvsearch.driver.results import write_results
from mvsearch.driver.settings import study_config
from mvsearch.driver.status import StatusWriter
from mvsearch.driver.stop import stop_signals
from mvsearch.driver.view import LaunchState, View
from mvsearch.evaluate.images import load_study_data, same_data
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.pool.job import Done, Event, Job, Lost, Notice, Progress, Started
from mvsearch.pool.opening import open_pool
from mvsearch.pool.pool import Pool
from mvsearch.space.space import SearchSpace
from mvsearch.study.data import load_study
from mvsearch.study.files import StudyError, driver_lock, repair_tail, write_atomic
from mvsearch.study.folder import StudyFolder
from mvsearch.study.ledger import Ledger
from mvsearch.study.record import CONFIRM, FAIL, TRAIN, Evaluation, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from mvsearch.analysis.findings import Findings
    from mvsearch.pool.opening import Resources
    from mvsearch.study.data import StudyData


POLL_S = 0.25


@dataclass(frozen=True)
class RepeatOutcome:
    """How a run ended.

    Attributes:
        purpose: of the plan.
        done: layouts trained with every seed, all runs together.
        failed: layouts of which a training failed in this run.
        wanted: layouts of the plan.
        utilisation: busy share of the workers' time in this run, 0 to 1; None if nothing ran.
        seconds: from the first job to the last result of this run.
    """

    purpose: str
    done: int
    failed: int
    wanted: int
    utilisation: float | None
    seconds: float

    @property
    def left(self) -> int:
        """Layouts that the time did not suffice for."""
        return self.wanted - self.done - self.failed


@dataclass
class _Training:
    """One layout with one seed, and how often its present job has been tried."""

    record: TrialRecord
    seed: int
    job: Job | None = field(default=None)


class Repeat:
    """Layouts being trained again by this process, which holds the study's lock.

    Args:
        folder: of the study.
        plan: what to train.
        pool: where jobs run.
        view: what a person sees.
        hours: nothing is begun after so many; None: no limit.
        epoch_limit_s: a job that takes longer than so many seconds for each of its epochs has failed; None: no limit.
    """

    def __init__(
        self,
        folder: StudyFolder,
        plan: Plan,
        pool: Pool,
        *,
        view: View | None = None,
        hours: float | None = None,
        epoch_limit_s: float | None = None,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.pool = pool
        self.view = view or View()
        self.hours = hours
        self.epoch_limit_s = epoch_limit_s
        self.ledger = Ledger(folder.ledger)
        self._status = StatusWriter(folder.repeat_status(plan.purpose))
        self._checkpoints = folder.path / f"{plan.purpose}-checkpoints"
        before = failed_layouts(self.ledger.evaluations, plan.purpose)
        order = sorted(plan.records, key=lambda record: record.key in before)
        self._todo = deque(_Training(record, seed) for record in order for seed in plan.seeds)
        self._failures: dict[str, Evaluation] = {}
        self._running: dict[int, _Training] = {}
        self._ids = itertools.count()
        self._losses: Counter[tuple[str, int, int, bool]] = Counter()
        self._since: dict[int, tuple[str, float]] = {}
        self._doing: dict[str, str] = {}
        self._busy = 0.0
        self._epochs_here = 0
        self._first: float | None = None
        self._last: float | None = None
        self._said: set[str] = {record.key for record in plan.records if self._ended(record.key)}

    def run(self) -> RepeatOutcome:
        """Train until all is done or the time is over.

        Raises:
            Interrupted: by SIGINT or SIGTERM; everything measured is kept.
            OSError: if the ledger, weights or a checkpoint cannot be written.
        """
        began = self.pool.now()
        self._tell()
        try:
            with stop_signals(at_once=self.pool.in_process) as stop:
                while True:
                    over = self.hours is not None and self.pool.now() - began > self.hours * 3600
                    self._fill(over)
                    if not self._running:
                        break
                    events = self.pool.events(POLL_S)
                    while (event := stop.next(events)) is not None:
                        self._handle(event)
                        self._fill(over)
                    self._tell()
        finally:
            self._doing.clear()
            self._status.write(self.state(), ended=True)
        done, failed = self._counts()
        if done == len(self.plan.records):
            shutil.rmtree(self._checkpoints, ignore_errors=True)
        span = self._last - self._first if self._first is not None and self._last is not None else 0.0
        utilisation = self._busy / (span * self.pool.workers) if span > 0 else None
        return RepeatOutcome(self.plan.purpose, done, failed, len(self.plan.records), utilisation, span)

    def state(self) -> LaunchState:
        """For a view."""
        done, failed = self._counts()
        now = self.pool.now()
        elapsed = now - self._first if self._first is not None else 0.0
        busy = self._busy + sum(now - since for _, since in self._since.values())
        left = sum(
            self.plan.stops[-1] - self._reached(record.key, seed)
            for record in self.plan.records
            if record.key not in self._failures
            for seed in self.plan.seeds
        )
        return LaunchState(
            finished=done,
            failed=failed,
            wanted=len(self.plan.records),
            running=dict(sorted(self._doing.items())),
            front=[],
            hypervolume=None,
            utilisation=busy / (elapsed * self.pool.workers) if elapsed else 0.0,
            elapsed=elapsed,
            remaining=elapsed / self._epochs_here * left if self._epochs_here else None,
        )

    def _tell(self) -> None:
        state = self.state()
        self.view.update(state)
        self._status.write(state)

    # -- what the ledger holds --------------------------------------------------------------------------------------

    def _reached(self, key: str, seed: int) -> int:
        """The last stop of the plan that a training has reached; 0 if none."""
        lines = self.ledger.of(key, self.plan.purpose)
        ends = {line.to_epoch for line in lines if line.what == TRAIN and line.seed == seed}
        reached = 0
        for stop in self.plan.stops:
            if stop not in ends:
                break
            reached = stop
        return reached

    def _ended(self, key: str) -> bool:
        if key in self._failures:
            return True
        return all(self._reached(key, seed) == self.plan.stops[-1] for seed in self.plan.seeds)

    def _counts(self) -> tuple[int, int]:
        ended = [record.key in self._failures for record in self.plan.records if self._ended(record.key)]
        return ended.count(False), ended.count(True)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _fill(self, over: bool) -> None:
        while self._todo and not over and self.pool.idle() > 0:
            training = self._todo.popleft()
            job = training.job or self._next_job(training)
            if job is not None:
                training.job = job
                self._running[job.id] = training
                self.pool.submit(job)

    def _next_job(self, training: _Training) -> Job | None:
        """The next stretch of a training, from its last checkpoint that is there; None if nothing is missing of it."""
        record, seed = training.record, training.seed
        if record.key in self._failures:
            return None
        reached = self._reached(record.key, seed)
        if reached == self.plan.stops[-1]:
            return None
        checkpoint: bytes | None = None
        if reached:
            try:
                checkpoint = self._checkpoint(record.key, seed, reached).read_bytes()
            except FileNotFoundError:
                self.view.notice(
                    f"Trial {record.number}, seed {seed}: the checkpoint after epoch {reached} is missing; it is "
                    "trained again from the start."
                )
        from_epoch = reached if checkpoint is not None else 0
        to_epoch = next(stop for stop in self.plan.stops if stop > reached)
        return Job(
            id=next(self._ids),
            what=TRAIN,
            layout=HybridLayout.from_dict(record.layout),
            trial=record.number,
            baseline=record.baseline,
            cost=next((line.cost for line in record.evaluations if line.cost), {}),
            seed=seed,
            from_epoch=from_epoch,
            to_epoch=to_epoch,
            checkpoint=checkpoint,
            keep_checkpoint=to_epoch < self.plan.stops[-1],
            purpose=self.plan.purpose,
            limit_s=self.epoch_limit_s * (to_epoch - from_epoch) if self.epoch_limit_s else None,
        )

    def _handle(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.view.notice(event.text)
            return
        training = self._running.get(event.job)
        if training is None or training.job is None:
            return
        job, record = training.job, training.record
        where = f"trial {record.number}, seed {training.seed}"
        if isinstance(event, Started):
            now = self.pool.now()
            self._first = now if self._first is None else self._first
            self._since[event.job] = (event.worker, now)
            self._doing[event.worker] = f"{where}: training"
        elif isinstance(event, Progress):
            worker = self._since[event.job][0]
            self._doing[worker] = (
                f"{where}: epoch {event.epoch} of {self.plan.stops[-1]}, training loss {event.train_loss:.3f}"
            )
            self._tell()
        elif isinstance(event, Lost):
            self._idle(event.job)
            which = (record.key, training.seed, job.to_epoch, event.with_node)
            self._losses[which] += 1
            if self._losses[which] < event.tries:
                self.view.notice(f"Trial {record.number}: {event.reason}; trying once more.")
                training.job = dataclasses.replace(job, id=next(self._ids))
                self._todo.appendleft(training)
            else:
                reason = f"{job.what}: {event.reason}, {event.tries} times"
                self._fail(record, job.evaluation(what=FAIL, reason=reason))
        elif isinstance(event, Done):
            self._idle(event.job)
            self._last = self.pool.now()
            if event.evaluation.what == FAIL:
                self._fail(record, event.evaluation)
                return
            self._keep(job, event)
            self.ledger.append(event.evaluation)
            self._drop_checkpoints(record.key, training.seed, before=job.to_epoch)
            self._epochs_here += job.to_epoch - job.from_epoch
            training.job = None
            self._todo.appendleft(training)  # what is begun is ended first, so that a time limit leaves whole layouts
            self._say(record)

    def _keep(self, job: Job, event: Done) -> None:
        """Before the ledger's line: what that holds is not done again, so these must be there."""
        assert job.seed is not None
        if event.weights is not None and self.plan.purpose == CONFIRM and job.seed == self.plan.seeds[0]:
            self.folder.confirmed_weights.mkdir(exist_ok=True)
            write_atomic(self.folder.confirmed_weights / f"{job.layout.key}.safetensors", event.weights)
        if event.checkpoint is not None:
            self._checkpoints.mkdir(exist_ok=True)
            write_atomic(self._checkpoint(job.layout.key, job.seed, job.to_epoch), event.checkpoint)

    def _fail(self, record: TrialRecord, evaluation: Evaluation) -> None:
        """The rest of a layout that failed is left to the next call: without all its seeds it counts for nothing."""
        self._failures[record.key] = evaluation
        for job_id in [at for at, training in self._running.items() if training.record.key == record.key]:
            self.pool.cancel(job_id)
            self._idle(job_id)
        self._todo = deque(training for training in self._todo if training.record.key != record.key)
        self.ledger.append(evaluation)
        self._say(record)

    def _say(self, record: TrialRecord) -> None:
        if record.key in self._said or not self._ended(record.key):
            return
        self._said.add(record.key)
        failure = self._failures.get(record.key)
        lines = [
            line
            for line in self.ledger.of(record.key, self.plan.purpose)
            if line.what == TRAIN and line.to_epoch == self.plan.stops[-1] and line.seed in self.plan.seeds
        ]
        mean = math.fsum(line.values["nll"] for line in lines) / len(lines) if lines else math.nan
        self.view.repeated(record, mean, failure.reason if failure else None, self.state())

    def _idle(self, job_id: int) -> None:
        self._running.pop(job_id, None)
        worker, since = self._since.pop(job_id, (None, 0.0))
        if worker is not None:
            self._doing.pop(worker, None)
            self._busy += self.pool.now() - since

    def _checkpoint(self, key: str, seed: int, epoch: int) -> Path:
        return self._checkpoints / f"{key}.seed{seed}.epoch{epoch}.pt"

    def _drop_checkpoints(self, key: str, seed: int, *, before: int) -> None:
        for epoch in self.plan.stops[:-1]:
            if epoch < before:
                self._checkpoint(key, seed, epoch).unlink(missing_ok=True)


def repeat(
    folder: StudyFolder,
    make_plan: Callable[[StudyData], Plan],
    *,
    where: Resources,
    hours: float | None = None,
    view: View,
    on_start: Callable[[Plan, Pool, int], None],
) -> tuple[Findings, RepeatOutcome]:
    """Run `calibrate` or `confirm` and write the study's tables and report anew.

    Args:
        folder: of the study.
        make_plan: says what to train from what was measured.
        where: where the work runs.
        hours: nothing is begun after so many; None: no limit.
        view: what a person sees while it runs.
        on_start: called before the first job, with the plan, the pool and how many layouts are done already.

    Raises:
        StudyError, ConfigError, DataError, PoolError: bad input, found before anything is trained.
        Interrupted, OSError: see `Repeat.run`.
    """
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise StudyError(f"hours: {hours:g} is not allowed; a number above 0")
    make_plan(load_study(folder))  # complains before anything is loaded
    config = study_config(folder)
    with driver_lock(folder.path):
        if notice := repair_tail(folder.ledger):
            view.notice(notice)
        study = load_study(folder)
        plan = make_plan(study)
        confirming = plan.purpose == CONFIRM
        data = load_study_data(config, test=confirming)
        same_data(study, data.fingerprint)
        space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
        pool = open_pool(MakeWorker(config.proxy, config.timing, space.reference(), test=confirming), data, where)
        try:
            run = Repeat(folder, plan, pool, view=view, hours=hours, epoch_limit_s=config.epoch_limit_s)
            on_start(plan, pool, run.state().finished)
            outcome = run.run()
        finally:
            pool.close()
        return write_results(folder), outcome
