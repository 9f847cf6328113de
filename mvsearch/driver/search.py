"""The loop: ask Optuna for a layout, check it, have it timed and trained, tell the result.

The ledger is the truth; the Optuna study is the sampler's memory. Whatever the ledger holds is never measured again,
and a trial that a crash left unfinished is told FAIL and its layout asked for again.

With rungs a trial is one layout on one rung: at its end it is told PRUNED and its checkpoint waits on the disk; when
`halving` lets the layout go on, that is a new trial of the same parameters. The hand-made layouts climb all rungs in
one trial. Only a trial that has trained to the last rung is told COMPLETE.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import optuna

from mambavision.layout import HybridLayout
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.asking import LayoutAsker
from mvsearch.driver.crew import Crew, JobEnd
from mvsearch.driver.estimate import Effort, Estimate, LaunchTime
from mvsearch.driver.kept_files import KeptFiles
from mvsearch.driver.observed import ObservedLayouts
from mvsearch.driver.status import StatusWriter
from mvsearch.driver.stop import Interrupted, stop_signals
from mvsearch.driver.trials import OpenStudy, StoredTrials, open_optuna_study
from mvsearch.driver.view import LaunchState, View
from mvsearch.driver.warm_start import WarmStart
from mvsearch.pool.job import Job
from mvsearch.pool.pool import Pool, PoolFailed
from mvsearch.samplers.registry import make_sampler
from mvsearch.space.design import design_layouts
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder
from mvsearch.study.ledger import Ledger
from mvsearch.study.record import COMPLETE, FAIL, FAILED, PARTIAL, SEARCH, TIME, TRAIN, Evaluation, TrialRecord
from mvsearch.study.timings import RecordedTiming

# Share of a trial that an ask may take before the next trial is asked for while the workers are busy.
SLOW_ASK = 0.005
USED_UP = "the space holds no further layout within the budgets: every one was tried"


class SearchFailed(RuntimeError):
    """Every trial failed; the message carries the first reason."""


@dataclass
class Active:
    """A trial under way: its layout, and the rung it is trained on (from 0)."""

    trial: optuna.Trial
    layout: HybridLayout
    baseline: str | None
    cost: dict[str, int]
    rung: int


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        complete: layouts trained in full, all launches of the study.
        failed: layouts that failed.
        exhausted: True if the space has no further layout within the budgets.
        stopped: why it ended: the rule of `search` that was met, or that nothing is left to try.
        estimate: what this launch was to take, as estimated after its first trainings; None if it was too short for it.
        device_hours: hours of work of this launch, all workers together.
        waiting: layouts that were stopped at a rung.
        utilisation: busy share of the workers' time in this launch, 0 to 1; None if nothing ran.
        seconds: from the first job to the last result of this launch.
    """

    complete: int
    failed: int
    exhausted: bool
    utilisation: float | None
    seconds: float
    stopped: str
    device_hours: float
    estimate: Estimate | None = None
    waiting: int = 0


class Search:
    """One study being searched by this process, which holds its lock.

    Args:
        config: the resolved configuration.
        space: made from it.
        folder: of the study.
        pool: where jobs run.
        view: what a person sees.
        timings: recorded timings by layout key; a layout that is not there is measured.
        study: where the sampler's memory is kept; None: the journal in the folder.
        warm_start: layouts that are asked for before the sampler is, beside the hand-made ones.
    """

    def __init__(
        self,
        config: StudyConfig,
        space: SearchSpace,
        folder: StudyFolder,
        pool: Pool,
        *,
        view: View | None = None,
        timings: dict[str, RecordedTiming] | None = None,
        study: OpenStudy | None = None,
        warm_start: WarmStart | None = None,
    ) -> None:
        self.config = config
        self.space = space
        self.folder = folder
        self.pool = pool
        self.view = view or View()
        self.timings = timings or {}
        self.measure = config.objectives.quality
        self.rungs = config.rung_epochs
        self.seeds = config.training_seeds
        warm_start = warm_start or WarmStart()
        self._starting = {starting.layout.key: starting for starting in warm_start.layouts}
        # What another study trained comes on top: `search.trials` is how much to train here.
        self.wanted = config.search.trials + warm_start.trained
        self.ledger = Ledger(folder.ledger)
        trials = StoredTrials(
            study or open_optuna_study(folder), [f"quality ({self.measure})", "log2 throughput ratio"]
        )
        self.study = trials.study
        self._status = StatusWriter(folder.status)
        self.exhausted = False
        self._baselines = space.baselines() if config.search.baselines else {}
        self._design = design_layouts(space)
        self._active: dict[int, Active] = {}
        self._crew = Crew(pool, self.view, begin=self._begin_work, on_progress=lambda: self.view.update(self.state()))
        self._files = KeptFiles(folder.checkpoints, folder.weights, seeds=self.seeds, stops=self.rungs)
        self.observed = ObservedLayouts(config, space, self.timings, len(self._baselines))
        self._records = self.observed.records
        self.study.sampler = make_sampler(
            config, space, config.search.seed, self.observed.observations, self.observed.standing.reference
        )
        for key in dict.fromkeys(line.key for line in self.ledger.evaluations if line.purpose == SEARCH):
            self.observed.refresh(self.ledger.of(key))
        planned = len(self._design) or config.search.trials
        self._effort = Effort(config, planned, len(self._design or self._baselines), pool.workers)
        for line in self.ledger.evaluations:
            self._effort.add(line)
        self._time = LaunchTime(config.search, self._effort, pool.now)
        self._ask_seconds = 0.0
        self._files.sweep_checkpoints(
            key for key, record in self._records.items() if record.state in (COMPLETE, FAILED)
        )
        self._asker = LayoutAsker(space, trials, config.search.seed)
        lines = (line for line in self.ledger.evaluations if line.purpose == SEARCH)
        trials_used = 1 + max((line.trial for line in lines), default=-1)
        self._asker.recover(self._to_begin_with(), self.records(), trials_used)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Search until enough layouts are trained, the time is over, or there is nothing left to try.

        Raises:
            Interrupted: by SIGINT or SIGTERM; in-flight trials are released, everything measured is kept.
            SearchFailed: if every trial failed.
            PoolFailed: if no worker is left.
            OSError: if the ledger or the weights cannot be written.
        """
        self._time.begin()
        try:
            with stop_signals(at_once=self.pool.in_process) as stop:
                while True:
                    self._crew.fill()
                    if not self._active:
                        break
                    for end in self._crew.ended(stop):
                        self._on_done(end) if end.ok else self._on_failed(end)
                    self._ask_ahead()
                    state = self.state()
                    self.view.update(state)
                    self._status.write(state)
        except (Interrupted, PoolFailed):
            self._asker.release_running()
            raise
        finally:
            self._crew.doing.clear()
            self._status.write(self.state(), ended=True)
        complete, failed, waiting = self.observed.counts()
        enough = self._asker.ended >= self.wanted
        # Ended for want of layouts: what waits is too far below the hand-made ones, whatever is asked for later.
        if self.exhausted and self._time.stopping is None and not enough:
            self._files.drop_all_checkpoints()
        if failed and not complete and not waiting:
            reason = next(record.reason for record in self.records() if record.state == FAILED)
            raise SearchFailed(
                f"all {failed} trials failed; the first: {reason}. Failures stay in the study: once the cause is "
                "mended, start anew with --set name=…"
            )
        seconds, utilisation = self._crew.in_all()
        return Outcome(
            complete=complete,
            failed=failed,
            exhausted=self.exhausted,
            utilisation=utilisation,
            seconds=seconds,
            stopped=self._time.stopping
            or (f"search.trials = {self.config.search.trials} are done" if enough else USED_UP),
            device_hours=self._time.device_hours,
            estimate=self._time.estimate,
            waiting=waiting,
        )

    def records(self) -> list[TrialRecord]:
        """All layouts measured so far, in the order of their trials."""
        return sorted(self._records.values(), key=lambda record: record.number)

    def state(self) -> LaunchState:
        """For a view."""
        complete, failed, waiting = self.observed.counts()
        elapsed, utilisation = self._crew.until_now()
        left, estimate = self._time.left(), self._time.estimate
        return LaunchState(
            finished=complete,
            failed=failed,
            wanted=self.wanted,
            running=dict(sorted(self._crew.doing.items())),
            front=self.observed.standing.front,
            hypervolume=self.observed.standing.hypervolume,
            utilisation=utilisation,
            elapsed=elapsed,
            remaining=left.seconds if left else None,
            waiting=waiting,
            device_hours=self._effort.device_seconds / 3600,
            estimated=(estimate.seconds, estimate.device_hours) if estimate else None,
            stopping=self._time.stopping or (USED_UP if self.exhausted and not self._active else None),
        )

    # -- filling the workers ----------------------------------------------------------------------------------------

    def _why_stop(self) -> str | None:
        return self._time.why_stop(self.observed.standing.gain)

    def _begin_work(self) -> bool:
        """Begin one more trial, unless the search is to stop; whether one was begun."""
        return not self._why_stop() and self._begin_trial()

    def _ask_ahead(self) -> None:
        """While all workers are busy, begin the trial that the next free one gets, if an ask would keep it waiting.

        The sampler then knows one result less. So this is done only where an ask takes a noticeable share of a trial,
        and not where jobs run in this process, which works on one thing at a time.
        """
        slow = self._ask_seconds > SLOW_ASK * self._effort.trial_seconds
        if slow and not self.pool.in_process and not self.pool.idle() and not self._crew.ready:
            self._begin_work()

    def wants_more(self) -> bool:
        """Whether trials that have ended, and those under way that will end as COMPLETE, are fewer than wanted."""
        last = len(self.rungs) - 1
        # The hand-made ones climb all rungs in one trial.
        full = sum(active.rung == last or active.baseline is not None for active in self._active.values())
        return self._asker.ended + full < self.wanted

    def _begin_trial(self) -> bool:
        """Begin one more trial if one is wanted: one that was cut short, else a layout that waits, else a new one.

        Returns:
            True if there was one.
        """
        if not self.wants_more():
            return False
        if not self._asker.next_is_fixed:
            if self._design:
                return False  # a design asks for nothing beside its layouts
            if not self._promote() and self.exhausted:
                return False
        began = time.perf_counter()
        asked = self._asker.ask()
        self._ask_seconds = time.perf_counter() - began
        if asked is None:
            self.exhausted = True
            return self._begin_trial()  # what waits may go on now
        trial, layout = asked
        cost = self.space.cost(layout)
        active = Active(
            trial=trial,
            layout=layout,
            baseline=trial.user_attrs.get("baseline"),
            cost={name: getattr(cost, name) for name in ("params", "macs", "macs_attention", "macs_scan", "memory")},
            rung=trial.user_attrs.get("rung", 0),
        )
        self._active[trial.number] = active
        self.observed.begin(layout)
        self._advance(active)
        return True

    def _promote(self) -> bool:
        """Have a layout that waits asked for once more, to go on, if one may; whether there was one."""
        if len(self.rungs) == 1:
            return False
        chosen = self.observed.promotion(relaxed=self.exhausted)
        if chosen is None:
            return False
        self._asker.promote(self._records[chosen.key], rung=len(chosen.qualities))
        return True

    # -- one trial --------------------------------------------------------------------------------------------------

    def _advance(self, active: Active) -> None:
        """Hand in what the ledger does not hold of a trial yet; when nothing is missing, tell it."""
        key = active.layout.key
        if (starting := self._starting.get(key)) is not None:
            for line in starting.lines(trial=active.trial.number, baseline=active.baseline, cost=active.cost):
                self._append(line)
        lines = self.ledger.of(key)
        failure = next((line for line in lines if line.what == FAIL), None)
        if failure is not None:  # written before a crash, but not told
            self._fail(active, failure)
            return
        if not any(line.what == TIME for line in lines):
            recorded = self.timings.get(key)
            if recorded is None:
                self._crew.hand_in(self._job(active, what=TIME))
                return
            taken = {"values": recorded.values, "conditions": recorded.conditions, "device": recorded.device}
            self._append(self._job(active, what=TIME).evaluation(**taken, ended=time.time()))
        last = len(self.rungs) - 1
        if self._records[key].state == COMPLETE:  # the ledger outlived the journal
            active.rung = last
        while True:
            to_epoch = self.rungs[active.rung]
            missing = [seed for seed in self.seeds if max(self._trained_to(key, seed)) < to_epoch]
            if missing or active.baseline is None or active.rung == last:
                break
            active.rung += 1
        for seed in missing:
            self._train(active, seed, to_epoch)
        if not missing and active.rung == last:
            self._complete(active)
        elif not missing:
            self._leave_at_rung(active)

    def _trained_to(self, key: str, seed: int) -> set[int]:
        """Epochs after which the ledger holds a training of a layout; 0 always."""
        return {0} | {line.to_epoch for line in self.ledger.of(key) if line.what == TRAIN and line.seed == seed}

    def _train(self, active: Active, seed: int, to_epoch: int) -> None:
        """Hand in a training from the last checkpoint there is to the end of a rung."""
        key = active.layout.key
        trained = sorted(self._trained_to(key, seed), reverse=True)
        from_epoch, checkpoint = self._files.checkpoint(key, seed, trained[:-1])
        if from_epoch < trained[0]:
            self.view.notice(
                f"Trial {active.trial.number}: the checkpoint after epoch {trained[0]} of {key} is missing; it is "
                f"trained again from {f'epoch {from_epoch}' if from_epoch else 'the start'}."
            )
        job = self._job(
            active,
            what=TRAIN,
            seed=seed,
            from_epoch=from_epoch,
            to_epoch=to_epoch,
            checkpoint=checkpoint,
            keep_checkpoint=to_epoch < self.rungs[-1],
        )
        self._crew.hand_in(job)

    def _job(self, active: Active, **what: Any) -> Job:
        starting, minutes = self._starting.get(active.layout.key), self.config.search.job_minutes
        return Job(
            id=self._crew.next_id(),
            layout=active.layout,
            trial=active.trial.number,
            baseline=active.baseline,
            warm_start=starting.label if starting else None,
            cost=active.cost,
            limit_s=60 * minutes if minutes else None,
            **what,
        )

    def _on_done(self, end: JobEnd) -> None:
        active, job = self._active[end.job.trial], end.job
        self._files.keep(end)
        self._append(end.evaluation)
        if job.what == TRAIN:
            self._files.drop_checkpoints(job.layout.key, seed=job.seed, before=job.to_epoch)
        if not self._crew.works_on(job.trial):
            self._advance(active)

    def _on_failed(self, end: JobEnd) -> None:
        self._fail(self._active[end.job.trial], end.evaluation)

    def _leave_at_rung(self, active: Active) -> None:
        """A trial has reached the end of its rung: its layout waits there."""
        self._asker.leave_at_rung(active.trial, active.rung, self.rungs[active.rung])
        self._end(active)
        self.view.trial_ended(self._records[active.layout.key], self.state())

    def _complete(self, active: Active) -> None:
        record = self._records[active.layout.key]
        quality, throughput = record.quality(self.measure), record.log2_ratio
        assert quality is not None
        assert throughput is not None
        names = ("params", "macs", "nll", "top1", "images_per_second", "ratio")
        attributes = {name: getattr(record, name) for name in names}
        self._asker.complete(active.trial.number, [quality, throughput], **attributes)
        self._end(active)
        self._drop_weights()
        self._files.drop_checkpoints(active.layout.key)
        self.view.trial_ended(record, self.state())

    def _fail(self, active: Active, evaluation: Evaluation) -> None:
        self._crew.cancel(active.trial.number)
        self._append(evaluation)
        self._asker.fail(active.trial.number, evaluation.reason)
        self._end(active)
        self._files.drop(active.layout.key)
        self.view.trial_ended(self._records[active.layout.key], self.state())

    def _end(self, active: Active) -> None:
        """A trial is no longer under way."""
        del self._active[active.trial.number]
        self.observed.end(active.layout.key)

    # -- what is kept -----------------------------------------------------------------------------------------------

    def _append(self, evaluation: Evaluation) -> None:
        self.ledger.append(evaluation)
        self.observed.refresh(self.ledger.of(evaluation.key))
        self._effort.add(evaluation)
        if (estimate := self._time.estimate_now(self._crew.first_job)) is not None:
            self.view.estimated(estimate.seconds, estimate.device_hours)

    def _drop_weights(self) -> None:
        """Keep the weights of the front, the hand-made baselines and what is under way; delete the rest."""
        keep = {record.key for record in self.observed.standing.front}
        # Those that came with a warm start and are not told yet.
        keep |= self._starting.keys() - self._records.keys()

        def wanted(key: str) -> bool:
            record = self._records.get(key)
            # What is under way, or was when an earlier launch ended, stays: its first seed is not trained again.
            return key in keep or (record is not None and (bool(record.baseline) or record.state == PARTIAL))

        self._files.drop_weights(wanted)

    def _to_begin_with(self) -> dict[str, tuple[HybridLayout, dict[str, str]]]:
        """The layouts that are asked for before the sampler is, by key, with what their trials say of them.

        Those that need no training come first, then the hand-made ones, the rest of a warm start, and a design.
        """
        layouts = {key: starting.layout for key, starting in self._starting.items() if starting.taken}
        layouts |= {layout.key: layout for layout in self._baselines.values()}
        layouts |= {key: starting.layout for key, starting in self._starting.items()}
        layouts |= {layout.key: layout for layout in self._design}
        names = {layout.key: {"baseline": name} for name, layout in self._baselines.items()}
        labels = {key: {"warm_start": starting.label} for key, starting in self._starting.items()}
        return {key: (layout, names.get(key, {}) | labels.get(key, {})) for key, layout in layouts.items()}
