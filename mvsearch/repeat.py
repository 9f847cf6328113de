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
import random
import shutil
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mambavision.layout import HybridLayout
from mvsearch.evaluate.job import Done, Event, Job, Lost, Notice, Progress, Started
from mvsearch.ledger import Ledger, StudyError, driver_lock, repair_tail, write_atomic
from mvsearch.pool import Pool
from mvsearch.record import CALIBRATE, CONFIRM, FAIL, TRAIN, Evaluation, TrialRecord
from mvsearch.status import StatusWriter
from mvsearch.stop import stop_signals
from mvsearch.study import StudyFolder, load_study, write_results
from mvsearch.trust import FACTORS, MAX_SEEDS, MIN_LAYOUTS, choose_layouts, failed_layouts, fresh_seeds, to_confirm
from mvsearch.view import LaunchState, View

if TYPE_CHECKING:
    from collections.abc import Callable

    from mvsearch.launch import Where
    from mvsearch.report.data import StudyData

POLL_S = 0.25


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        purpose: ``"calibrate"`` or ``"confirm"``; goes into the ledger's lines.
        records: the layouts, in the order in which they are begun.
        seeds: of the trainings of each.
        stops: epochs at which each training is measured, rising; between them it can be stopped and gone on with.
    """

    purpose: str
    records: tuple[TrialRecord, ...]
    seeds: tuple[int, ...]
    stops: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.records, "a plan has layouts"

    @property
    def epochs(self) -> int:
        """Epochs of all trainings together."""
        return len(self.records) * len(self.seeds) * self.stops[-1]


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


# -- the two commands ------------------------------------------------------------------------------------------------


def plan_calibrate(study: StudyData, *, layouts: int = 16, factor: int = FACTORS[0], seeds: int = 2) -> Plan:
    """What `calibrate` trains: layouts of all scores and speeds, long.

    A training is measured after each multiple of the proxy's epochs. After the first it is the proxy over again, with
    a seed that the search has not used; so the ceiling costs nothing more, and a kill loses little.

    Raises:
        StudyError: a number that is not allowed, or too few complete layouts.
    """
    _whole("layouts", layouts, MIN_LAYOUTS, why="under 12 a rank correlation says nothing")
    _whole("budget-factor", factor, *FACTORS, why="a long training is 4 to 8 times the proxy")
    _whole("seeds", seeds, 2, MAX_SEEDS)
    if len(study.complete) < MIN_LAYOUTS:
        raise StudyError(
            f"{study.name}: only {len(study.complete)} layouts are trained in full, and calibrate needs {MIN_LAYOUTS}; "
            "go on with the search (--set search.trials=…) first"
        )
    begun = {line.key for line in study.evaluations if line.purpose == CALIBRATE}
    chosen = choose_layouts(study.records, study.measure, layouts, begun=begun)
    # Hand-made ones first, then in no order, so that a time limit leaves a sample of all scores.
    own = [record for record in chosen if not record.baseline]
    random.Random(study.setting("search", "seed", default=0)).shuffle(own)
    own.sort(key=lambda record: record.key not in begun)
    epochs = int(study.setting("proxy", "epochs"))
    return Plan(
        CALIBRATE,
        (*(record for record in chosen if record.baseline), *own),
        tuple(fresh_seeds(CALIBRATE, study.setting("search", "seed", default=0), seeds)),
        tuple(epochs * multiple for multiple in range(1, factor + 1)),
    )


def plan_confirm(study: StudyData, *, layouts: int | None = None, seeds: int = 3) -> Plan:
    """What `confirm` trains: the front and the hand-made layouts, as the search did but with fresh seeds.

    Raises:
        StudyError: a number that is not allowed, or no front.
    """
    if layouts is not None:
        _whole("layouts", layouts, 1)
    _whole("seeds", seeds, 2, MAX_SEEDS)
    if not study.front:
        raise StudyError(f"{study.name}: no layout has been trained in full yet, so there is no front to confirm")
    chosen = to_confirm(study, layouts)
    # Hand-made ones first: without them nothing on the front can be compared.
    chosen.sort(key=lambda record: record.baseline is None)
    search_seed = study.setting("search", "seed", default=0)
    return Plan(
        CONFIRM, tuple(chosen), tuple(fresh_seeds(CONFIRM, search_seed, seeds)), (study.setting("proxy", "epochs"),)
    )


def repeat(
    folder: StudyFolder,
    make_plan: Callable[[StudyData], Plan],
    *,
    where: Where,
    hours: float | None = None,
    view: View,
    on_start: Callable[[Plan, Pool, int], None],
) -> tuple[StudyData, RepeatOutcome]:
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
    from mvsearch.config import load_config
    from mvsearch.evaluate.job import MakeWorker
    from mvsearch.launch import load_study_data, open_pool
    from mvsearch.space import SearchSpace

    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise StudyError(f"hours: {hours:g} is not allowed; a number above 0")
    make_plan(load_study(folder))  # complains before anything is loaded
    config = load_config(folder.config)
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


def same_data(study: StudyData, fingerprint: str) -> None:
    """Refuse data that are not those a study was started with.

    Raises:
        StudyError: naming both fingerprints.
    """
    before = study.environment["data"]["fingerprint"]
    if before != fingerprint:
        raise StudyError(
            f"{study.name}: the data has changed since the study was started (fingerprint {before} then, {fingerprint} "
            "now); what is trained on it now cannot be compared"
        )


def _whole(name: str, value: int, low: int, high: int | None = None, *, why: str | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise StudyError(f"{name}: {value!r} is not allowed; {allowed}{f' ({why})' if why else ''}")
