"""Training layouts of a study again: the loop behind `mvsearch calibrate` and `mvsearch confirm`.

Nothing is asked of Optuna here: it is known from the start what to train. Jobs go through the same pools as those of a
search, and what is measured into the same ledger, under a purpose of its own. What the ledger holds is never done
again, so the same command goes on where it was stopped.

A layout that failed is tried again by the next call, whatever it failed for: that a person calls again may mean another
device, a longer limit, or a disk with room. Where nothing has changed, memory or a loss that is no number fails again;
as the checkpoints are kept, that costs one stretch of a training, and it comes after everything else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mambavision.layout import HybridLayout
from mvsearch.analysis.plans import Plan
from mvsearch.analysis.repeated import failed_layouts
from mvsearch.driver.crew import Crew, JobEnd
from mvsearch.driver.kept_files import KeptFiles
from mvsearch.driver.results import write_results
from mvsearch.driver.settings import study_config
from mvsearch.driver.status import StatusWriter
from mvsearch.driver.stop import stop_signals
from mvsearch.driver.view import LaunchState, View
from mvsearch.evaluate.images import load_study_data
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.pool.job import Job
from mvsearch.pool.opening import open_pool
from mvsearch.pool.pool import Pool
from mvsearch.space.space import SearchSpace
from mvsearch.study.data import load_study
from mvsearch.study.files import StudyError, driver_lock, repair_tail
from mvsearch.study.folder import StudyFolder, same_data
from mvsearch.study.ledger import Ledger
from mvsearch.study.record import CONFIRM, TRAIN, Evaluation, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from mvsearch.analysis.findings import Findings
    from mvsearch.pool.opening import Resources
    from mvsearch.study.data import StudyData


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
        self._crew = Crew(pool, self.view, begin=self._begin_next, on_progress=self._show, last_epoch=plan.stops[-1])
        self._files = KeptFiles(
            folder.path / f"{plan.purpose}-checkpoints",
            folder.confirmed_weights if plan.purpose == CONFIRM else None,
            seeds=plan.seeds,
            stops=plan.stops,
        )
        before = failed_layouts(self.ledger.evaluations, plan.purpose)
        order = sorted(plan.records, key=lambda record: record.key in before)
        self._records = {record.number: record for record in plan.records}
        self._todo = deque((record, seed) for record in order for seed in plan.seeds)
        self._failures: dict[str, Evaluation] = {}
        self._epochs_here = 0
        self._shown: set[str] = {record.key for record in plan.records if self._ended(record.key)}

    def run(self) -> RepeatOutcome:
        """Train until all is done or the time is over.

        Raises:
            Interrupted: by SIGINT or SIGTERM; everything measured is kept.
            OSError: if the ledger, weights or a checkpoint cannot be written.
        """
        began = self.pool.now()
        self._show()
        try:
            with stop_signals(at_once=self.pool.in_process) as stop:
                while True:
                    self._crew.over = self.hours is not None and self.pool.now() - began > self.hours * 3600
                    self._crew.fill()
                    if not self._crew.at_work:
                        break
                    for end in self._crew.ended(stop):
                        self._on_done(end) if end.ok else self._on_failed(end)
                    self._show()
        finally:
            self._crew.doing.clear()
            self._status.write(self.state(), ended=True)
        done, failed = self._counts()
        if done == len(self.plan.records):
            self._files.drop_all_checkpoints()
        seconds, utilisation = self._crew.in_all()
        return RepeatOutcome(self.plan.purpose, done, failed, len(self.plan.records), utilisation, seconds)

    def state(self) -> LaunchState:
        """For a view."""
        done, failed = self._counts()
        elapsed, utilisation = self._crew.until_now()
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
            running=dict(sorted(self._crew.doing.items())),
            front=[],
            hypervolume=None,
            utilisation=utilisation,
            elapsed=elapsed,
            remaining=elapsed / self._epochs_here * left if self._epochs_here else None,
        )

    def _show(self) -> None:
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

    def _begin_next(self) -> bool:
        """Hand in the next stretch of the next training, if anything is missing of it; False if there is none."""
        if not self._todo:
            return False
        job = self._next_job(*self._todo.popleft())
        if job is not None:
            self._crew.hand_in(job)
        return True

    def _next_job(self, record: TrialRecord, seed: int) -> Job | None:
        """The next stretch of a training, from its last checkpoint that is there; None if nothing is missing of it."""
        if record.key in self._failures:
            return None
        reached = self._reached(record.key, seed)
        if reached == self.plan.stops[-1]:
            return None
        from_epoch, checkpoint = self._files.checkpoint(record.key, seed, [reached] if reached else [])
        if reached and checkpoint is None:
            self.view.notice(
                f"Trial {record.number}, seed {seed}: the checkpoint after epoch {reached} is missing; it is "
                "trained again from the start."
            )
        to_epoch = next(stop for stop in self.plan.stops if stop > reached)
        return Job(
            id=self._crew.next_id(),
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

    def _on_done(self, end: JobEnd) -> None:
        job, record = end.job, self._records[end.job.trial]
        assert job.seed is not None
        self._files.keep(end)
        self.ledger.append(end.evaluation)
        self._files.drop_checkpoints(record.key, seed=job.seed, before=job.to_epoch)
        self._epochs_here += job.to_epoch - job.from_epoch
        # What is begun is ended first, so that a time limit leaves whole layouts.
        self._todo.appendleft((record, job.seed))
        self._show_end(record)

    def _on_failed(self, end: JobEnd) -> None:
        """The rest of a layout that failed is left to the next call: without all its seeds it counts for nothing."""
        record = self._records[end.job.trial]
        self._failures[record.key] = end.evaluation
        self._crew.cancel(record.number)
        self._todo = deque((other, seed) for other, seed in self._todo if other.key != record.key)
        self.ledger.append(end.evaluation)
        self._show_end(record)

    def _show_end(self, record: TrialRecord) -> None:
        """Show that a layout is done or has failed, once."""
        if record.key in self._shown or not self._ended(record.key):
            return
        self._shown.add(record.key)
        failure = self._failures.get(record.key)
        lines = [
            line
            for line in self.ledger.of(record.key, self.plan.purpose)
            if line.what == TRAIN and line.to_epoch == self.plan.stops[-1] and line.seed in self.plan.seeds
        ]
        mean = math.fsum(line.values["nll"] for line in lines) / len(lines) if lines else math.nan
        self.view.repeated(record, mean, failure.reason if failure else None, self.state())


def repeat(
    folder: StudyFolder,
    make_plan: Callable[[StudyData], Plan],
    *,
    resources: Resources,
    hours: float | None = None,
    view: View,
    on_start: Callable[[Plan, Pool, int], None],
) -> tuple[Findings, RepeatOutcome]:
    """Run `calibrate` or `confirm` and write the study's tables and report anew.

    Args:
        folder: of the study.
        make_plan: says what to train from what was measured.
        resources: where the work runs.
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
        same_data(study.name, study.fingerprint, data.fingerprint)
        space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
        pool = open_pool(MakeWorker(config.proxy, config.timing, space.reference(), test=confirming), data, resources)
        try:
            run = Repeat(folder, plan, pool, view=view, hours=hours, epoch_limit_s=config.epoch_limit_s)
            on_start(plan, pool, run.state().finished)
            outcome = run.run()
        finally:
            pool.close()
        return write_results(folder), outcome
