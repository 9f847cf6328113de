"""The loop: ask Optuna for a layout, check it, have it timed and trained, tell the result.

The ledger is the truth; the Optuna study is the sampler's memory. Whatever the ledger holds is never measured again,
and a trial that a crash left unfinished is told FAIL and its layout asked for again.

With rungs a trial is one layout on one rung: at its end it is told PRUNED and its checkpoint waits on the disk; when
`halving` lets the layout go on, that is a new trial of the same parameters. The hand-made layouts climb all rungs in
one trial. Only a trial that has trained to the last rung is told COMPLETE.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import shutil
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mambavision.layout import HybridLayout
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.estimate import Effort, Estimate
from mvsearch.driver.running_front import RunningFront
from mvsearch.driver.status import StatusWriter
from mvsearch.driver.stop import Interrupted, stop_signals
from mvsearch.driver.trials import OpenStudy, StoredTrials, open_optuna_study
from mvsearch.driver.view import LaunchState, View
from mvsearch.driver.warm_start import WarmStart
from mvsearch.pool.job import Done, Event, Job, Lost, Notice, Progress, Started
from mvsearch.pool.pool import Pool, PoolFailed
from mvsearch.samplers.halving import Halving, Ladder, Run
from mvsearch.samplers.observation import Observation
from mvsearch.samplers.registry import make_sampler, reseed
from mvsearch.space.design import design_layouts
from mvsearch.space.space import SearchSpace
from mvsearch.study.files import write_atomic
from mvsearch.study.folder import StudyFolder
from mvsearch.study.ledger import Ledger
from mvsearch.study.record import (
    COMPLETE,
    FAIL,
    FAILED,
    PARTIAL,
    SEARCH,
    TIME,
    TRAIN,
    WAITING,
    Evaluation,
    TrialRecord,
    trial_records,
)
from mvsearch.study.timings import RecordedTiming

MAX_REFUSALS = 50
POLL_S = 0.25


# Share of a trial that an ask may take before the next trial is asked for while the workers are busy.
SLOW_ASK = 0.005
USED_UP = "the space holds no further layout within the budgets: every one was tried"


class SearchFailed(RuntimeError):
    """Every trial failed; the message carries the first reason."""


@dataclass
class Active:
    """A trial under way: its layout, the rung it is trained on (from 0) and the jobs it still waits for."""

    trial: optuna.Trial
    layout: HybridLayout
    baseline: str | None
    cost: dict[str, int]
    rung: int
    jobs: dict[int, Job] = field(default_factory=dict)


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
        self._firsts = {first.layout.key: first for first in (warm_start or WarmStart()).firsts}
        # What another study trained comes on top: `search.trials` is how much to train here.
        self.wanted = config.search.trials + sum(first.taken is not None for first in self._firsts.values())
        self.ledger = Ledger(folder.ledger)
        metrics = [f"quality ({self.measure})", "log2 throughput ratio"]
        self.memory = StoredTrials(study or open_optuna_study(folder), metrics)
        self.study = self.memory.study
        self._status = StatusWriter(folder.status)
        self.exhausted = False
        self._baselines = space.baselines() if config.search.baselines else {}
        self._design = design_layouts(space)
        self._active: dict[int, Active] = {}
        self._under_way: set[str] = set()
        self._ready: deque[Job] = deque()
        self._job_ids = itertools.count()
        self._owner: dict[int, Active] = {}
        self._losses: Counter[tuple[str, str, int | None, int, bool]] = Counter()
        self._busy_since: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._worker_of: dict[int, str] = {}
        self._busy_seconds = 0.0
        self._first_job: float | None = None
        self._last_result: float | None = None
        self._standing = RunningFront(self.measure, space.num_classes, len(self._baselines))
        self._records = self._standing.records
        self._observed: dict[str, Observation] = {}
        self.ladder = Ladder(Halving(len(self.rungs), config.fidelity.eta if config.fidelity else 2))
        self.study.sampler = make_sampler(
            config, space, config.search.seed, self._observations, self._standing.reference
        )
        for key in dict.fromkeys(line.key for line in self.ledger.evaluations if line.purpose == SEARCH):
            self._refresh(key)
        planned = len(self._design) or config.search.trials
        self._effort = Effort(config, planned, len(self._design or self._baselines), pool.workers)
        for line in self.ledger.evaluations:
            self._effort.add(line)
        self._worked_before = self._effort.device_seconds
        self._began = pool.now()
        self._ask_seconds = 0.0
        self._estimate: Estimate | None = None
        self._stopping: str | None = None
        self._sweep_checkpoints()
        self._todo = self._recover()
        # Everything the sampler's draws depend on is counted from the study, so that a resumed search draws the same.
        trials = self.memory.trials()
        self._asked = sum(not _is_interrupted(trial) and trial.state != TrialState.WAITING for trial in trials)
        self._refusals = _trailing_refusals(trials)
        told = [trial for trial in trials if trial.state in _TOLD and not _is_interrupted(trial)]
        self._told = len(told)
        # What a layout that waits was asked for with: its trial and its parameters.
        self._left = {
            str(trial.user_attrs["key"]): (trial.number, trial.params) for trial in trials if _left_rung(trial)
        }
        # A layout that the ledger holds but whose trial was never told is asked for again, and told from the ledger.
        self._seen = {str(trial.user_attrs.get("key")) for trial in told} | set(self._left)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Search until enough layouts are trained, the time is over, or there is nothing left to try.

        Raises:
            Interrupted: by SIGINT or SIGTERM; in-flight trials are released, everything measured is kept.
            SearchFailed: if every trial failed.
            PoolFailed: if no worker is left.
            OSError: if the ledger or the weights cannot be written.
        """
        self._began = self.pool.now()
        self._estimate = self._remaining()  # of a study that goes on
        try:
            with stop_signals(at_once=self.pool.in_process) as stop:
                while True:
                    self._fill()
                    if not self._active:
                        break
                    events = self.pool.events(POLL_S)
                    while (event := stop.next(events)) is not None:
                        self._handle(event)
                        self._fill()
                    self._ask_ahead()
                    state = self.state()
                    self.view.update(state)
                    self._status.write(state)
        except (Interrupted, PoolFailed):
            self._release_running()
            raise
        finally:
            self._doing.clear()
            self._status.write(self.state(), ended=True)
        complete, failed, waiting = self._counts()
        # Ended for want of layouts: what waits is too far below the hand-made ones, whatever is asked for later.
        if self.exhausted and self._stopping is None and self._told < self.wanted:
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        if failed and not complete and not waiting:
            reason = next(record.reason for record in self.records() if record.state == FAILED)
            raise SearchFailed(
                f"all {failed} trials failed; the first: {reason}. Failures stay in the study: once the cause is "
                "mended, start anew with --set name=…"
            )
        span = 0.0
        if self._first_job is not None and self._last_result is not None:
            span = self._last_result - self._first_job
        utilisation = self._busy_seconds / (span * self.pool.workers) if span > 0 else None
        return Outcome(
            complete=complete,
            failed=failed,
            exhausted=self.exhausted,
            utilisation=utilisation,
            seconds=span,
            stopped=self._stopping
            or (f"search.trials = {self.config.search.trials} are done" if self._told >= self.wanted else USED_UP),
            device_hours=(self._effort.device_seconds - self._worked_before) / 3600,
            estimate=self._estimate,
            waiting=waiting,
        )

    def _why_stop(self) -> str | None:
        """The rule of `search` that ends the asking now; once one is met, it stays so."""
        search = self.config.search
        if self._stopping is None:
            if search.hours is not None and self.pool.now() - self._began > search.hours * 3600:
                self._stopping = f"search.hours = {search.hours:g} are over"
            elif search.device_hours is not None and self._effort.device_seconds >= search.device_hours * 3600:
                self._stopping = f"search.device_hours = {search.device_hours:g} are used"
            elif search.plateau is not None:
                gain = self._standing.gain(search.plateau.trials)
                if gain is not None and gain <= search.plateau.gain:
                    self._stopping = (
                        f"the hypervolume grew by {gain:.2%} over the last {search.plateau.trials} layouts "
                        f"(search.plateau: at most {search.plateau.gain:.2%})"
                    )
        return self._stopping

    def _remaining(self) -> Estimate | None:
        """What is left of this launch: until all is trained, or a limit of `search` on time ends it before."""
        left = self._effort.left()
        if left is None or not left.device_hours:
            return left
        search, share = self.config.search, 1.0
        if search.hours is not None:
            share = min(share, (search.hours * 3600 - (self.pool.now() - self._began)) / left.seconds)
        if search.device_hours is not None:
            share = min(share, (search.device_hours - self._effort.device_seconds / 3600) / left.device_hours)
        share = max(0.0, share)
        return Estimate(left.seconds * share, left.device_hours * share)

    def records(self) -> list[TrialRecord]:
        """All layouts measured so far, in the order of their trials."""
        return sorted(self._records.values(), key=lambda record: record.number)

    def state(self) -> LaunchState:
        """For a view."""
        complete, failed, waiting = self._counts()
        now = self.pool.now()
        elapsed = now - self._first_job if self._first_job is not None else 0.0
        busy = self._busy_seconds + sum(now - since for since in self._busy_since.values())
        left = self._remaining()
        return LaunchState(
            finished=complete,
            failed=failed,
            wanted=self.wanted,
            running=dict(sorted(self._doing.items())),
            front=self._standing.front,
            hypervolume=self._standing.hypervolume,
            utilisation=busy / (elapsed * self.pool.workers) if elapsed else 0.0,
            elapsed=elapsed,
            remaining=left.seconds if left else None,
            waiting=waiting,
            device_hours=self._effort.device_seconds / 3600,
            estimated=(self._estimate.seconds, self._estimate.device_hours) if self._estimate else None,
            stopping=self._stopping or (USED_UP if self.exhausted and not self._active else None),
        )

    def _counts(self) -> tuple[int, int, int]:
        """Layouts complete, failed and waiting between rungs (not those being trained on the next)."""
        counts = self._standing.counts
        waiting = counts[WAITING] - sum(map(self._is_waiting, self._under_way))
        return counts[COMPLETE], counts[FAILED], waiting

    def _is_waiting(self, key: str) -> bool:
        return key in self._records and self._records[key].state == WAITING

    # -- filling the workers ----------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while self.pool.idle() > 0:
            if not self._ready and (self._why_stop() or not self._begin_trial()):
                return
            if self._ready:
                self.pool.submit(self._ready.popleft())

    def _ask_ahead(self) -> None:
        """While all workers are busy, begin the trial that the next free one gets, if an ask would keep it waiting.

        The sampler then knows one result less. So this is done only where an ask takes a noticeable share of a trial,
        and not where jobs run in this process, which works on one thing at a time.
        """
        slow = self._ask_seconds > SLOW_ASK * self._effort.trial_seconds
        if slow and not self.pool.in_process and not self.pool.idle() and not self._ready and not self._why_stop():
            self._begin_trial()

    def _begin_trial(self) -> bool:
        """Begin one more trial if one is wanted: one that was cut short, else a layout that waits, else a new one.

        Returns:
            True if there was one.
        """
        if self._told + self._on_the_last_rung() >= self.wanted:
            return False
        if not self._todo and not self.memory.trials(TrialState.WAITING):
            if self._design:
                return False  # a design asks for nothing beside its layouts
            promotion = self._promotion()
            if promotion is not None:
                self._todo.append(promotion)
            elif self.exhausted:
                return False
        began = time.perf_counter()
        asked = self._ask()
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
        self._seen.add(layout.key)
        self._active[trial.number] = active
        self._under_way.add(layout.key)
        self._observe(layout.key, layout)
        self._advance(active)
        return True

    def _on_the_last_rung(self) -> int:
        """Trials under way that end as COMPLETE; the hand-made ones do from the start."""
        last = len(self.rungs) - 1
        return sum(active.rung == last or active.baseline is not None for active in self._active.values())

    def _promotion(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The trial with which a layout that waits goes on, if one may."""
        if len(self.rungs) == 1:
            return None
        chosen = self.ladder.choose(self._standing.reference(), relaxed=self.exhausted)
        if chosen is None:
            return None
        record = self._records[chosen.key]
        if chosen.key in self._left:
            number, params = self._left[chosen.key]
        else:  # the ledger outlived the journal
            number, params = record.number, self.space.encode(HybridLayout.from_dict(record.layout))
        return dict(params), {"key": chosen.key, "continues": number, "rung": len(chosen.qualities)}

    def _ask(self) -> tuple[optuna.Trial, HybridLayout] | None:
        """The next layout within the budgets that was not seen before; None when there is none left."""
        while True:
            waiting = self.memory.trials(TrialState.WAITING)
            if not waiting and self._todo:
                params, attributes = self._todo.popleft()
                self.study.enqueue_trial(params, user_attrs=attributes)
            elif not waiting and self._refusals >= MAX_REFUSALS:
                drawn = self.space.uniform_unseen(self._seen, random.Random(f"{self.config.search.seed}/{self._asked}"))
                if drawn is None:
                    return None
                self.study.enqueue_trial(self.space.encode(drawn), user_attrs={"drawn": "uniform"})
            # Seeded anew for each ask, so that a resumed search does not repeat its draws.
            entropy = np.random.SeedSequence([self.config.search.seed, self._asked])
            reseed(self.study.sampler, int(entropy.generate_state(1)[0]))
            trial = self.study.ask()
            self._asked += 1
            layout = self.space.suggest(trial)
            trial.set_user_attr("key", layout.key)
            if "continues" in trial.user_attrs:
                self._refusals = 0
                self.memory.begin(trial)
                return trial, layout
            excess = self.space.excess(layout)
            if layout.key in self._seen:
                trial.set_user_attr("duplicate_of", layout.key)
            elif excess:
                for name, amount in excess.items():
                    trial.set_constraint(name, amount)
            else:
                self._refusals = 0
                self.memory.begin(trial)
                return trial, layout
            self._refusals += 1
            self.memory.tell(trial.number, state=TrialState.PRUNED)

    # -- one trial --------------------------------------------------------------------------------------------------

    def _advance(self, active: Active) -> None:
        """Hand in what the ledger does not hold of a trial yet; when nothing is missing, tell it."""
        if (first := self._firsts.get(active.layout.key)) is not None:
            for line in first.lines(trial=active.trial.number, baseline=active.baseline, cost=active.cost):
                self._append(line)
        lines = self.ledger.of(active.layout.key)
        failure = next((line for line in lines if line.what == FAIL), None)
        if failure is not None:  # written before a crash, but not told
            self._fail(active, failure)
            return
        if not any(line.what == TIME for line in lines):
            recorded = self.timings.get(active.layout.key)
            if recorded is None:
                self._hand_in(active, what=TIME)
                return
            job = self._job(active, what=TIME)
            taken = {"values": recorded.values, "conditions": recorded.conditions, "device": recorded.device}
            self._append(job.evaluation(**taken, ended=time.time()))
        last = len(self.rungs) - 1
        if self._records[active.layout.key].state == COMPLETE:  # the ledger outlived the journal
            active.rung = last
        while True:
            to_epoch = self.rungs[active.rung]
            missing = [seed for seed in self.seeds if max(self._trained_to(active.layout.key, seed)) < to_epoch]
            if missing or active.baseline is None or active.rung == last:
                break
            active.rung += 1
        for seed in missing:
            self._train(active, seed, to_epoch)
        if not missing and active.rung == last:
            self._complete(active)
        elif not missing:
            self._leave(active)

    def _trained_to(self, key: str, seed: int) -> set[int]:
        """Epochs after which the ledger holds a training of a layout; 0 always."""
        return {0} | {line.to_epoch for line in self.ledger.of(key) if line.what == TRAIN and line.seed == seed}

    def _train(self, active: Active, seed: int, to_epoch: int) -> None:
        """Hand in a training from the last checkpoint there is to the end of a rung."""
        key = active.layout.key
        trained = sorted(self._trained_to(key, seed), reverse=True)
        from_epoch, checkpoint = 0, None
        for epoch in trained[:-1]:
            try:
                from_epoch, checkpoint = epoch, self._checkpoint(key, seed, epoch).read_bytes()
                break
            except FileNotFoundError:
                continue
        if checkpoint is None:
            from_epoch = 0
        if from_epoch < trained[0]:
            self.view.notice(
                f"Trial {active.trial.number}: the checkpoint after epoch {trained[0]} of {key} is missing; it is "
                f"trained again from {f'epoch {from_epoch}' if from_epoch else 'the start'}."
            )
        self._hand_in(
            active,
            what=TRAIN,
            seed=seed,
            from_epoch=from_epoch,
            to_epoch=to_epoch,
            checkpoint=checkpoint,
            keep_checkpoint=to_epoch < self.rungs[-1],
        )

    def _leave(self, active: Active) -> None:
        """A trial has reached the end of its rung: its layout waits there."""
        trial, key = active.trial, active.layout.key
        self.memory.set(trial.number, rung=active.rung, epoch=self.rungs[active.rung])
        self.memory.tell(trial.number, state=TrialState.PRUNED)
        self._left[key] = (trial.number, trial.params)
        self._ended(active)
        self.view.trial_ended(self._records[key], self.state())

    def _job(self, active: Active, **what: Any) -> Job:
        return Job(
            id=next(self._job_ids),
            layout=active.layout,
            trial=active.trial.number,
            baseline=active.baseline,
            warm_start=first.label if (first := self._firsts.get(active.layout.key)) else None,
            cost=active.cost,
            limit_s=60 * minutes if (minutes := self.config.search.job_minutes) else None,
            **what,
        )

    def _hand_in(self, active: Active, **what: Any) -> None:
        self._queue(active, self._job(active, **what))

    def _queue(self, active: Active, job: Job) -> None:
        active.jobs[job.id] = job
        self._owner[job.id] = active
        self._ready.append(job)

    def _ended(self, active: Active) -> None:
        """A trial is no longer under way."""
        del self._active[active.trial.number]
        self._under_way.discard(active.layout.key)
        self._observe(active.layout.key)

    def _complete(self, active: Active) -> None:
        record = self._records[active.layout.key]
        quality, throughput = record.quality(self.measure), record.log2_ratio
        assert quality is not None
        assert throughput is not None
        names = ("params", "macs", "nll", "top1", "images_per_second", "ratio")
        self.memory.set(active.trial.number, **{name: getattr(record, name) for name in names})
        self.memory.tell(active.trial.number, [quality, throughput])
        self._told += 1
        self._ended(active)
        self._keep_weights()
        self._drop_checkpoints(active.layout.key)
        self.view.trial_ended(record, self.state())

    def _fail(self, active: Active, evaluation: Evaluation) -> None:
        for job_id in active.jobs:
            self._idle(job_id)
            self._owner.pop(job_id, None)
            self.pool.cancel(job_id)
        self._ready = deque(job for job in self._ready if job.id not in active.jobs)
        self._append(evaluation)
        self.memory.set(active.trial.number, reason=evaluation.reason)
        self.memory.tell(active.trial.number, state=TrialState.FAIL)
        self._told += 1
        self._ended(active)
        self._weights(active.layout.key).unlink(missing_ok=True)
        self._drop_checkpoints(active.layout.key)
        self.view.trial_ended(self._records[active.layout.key], self.state())

    # -- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.view.notice(event.text)
            return
        active = self._owner.get(event.job)
        if active is None:
            return
        job = active.jobs[event.job]
        if isinstance(event, Started):
            now = self.pool.now()
            self._first_job = now if self._first_job is None else self._first_job
            self._busy_since[event.worker] = now
            self._worker_of[event.job] = event.worker
            self._doing[event.worker] = f"trial {job.trial}: {'timing' if job.what == TIME else 'training'}"
        elif isinstance(event, Progress):
            worker = self._worker_of[event.job]
            self._doing[worker] = (
                f"trial {job.trial}: epoch {event.epoch} of {event.of}, training loss {event.train_loss:.3f}"
            )
            self.view.update(self.state())
        elif isinstance(event, Lost):
            self._idle(event.job)
            del active.jobs[event.job], self._owner[event.job]
            which = (active.layout.key, job.what, job.seed, job.to_epoch, event.with_node)
            self._losses[which] += 1
            if self._losses[which] < event.tries:
                self.view.notice(f"Trial {job.trial}: {event.reason}; trying once more.")
                self._queue(active, dataclasses.replace(job, id=next(self._job_ids)))
            else:
                reason = f"{job.what}: {event.reason}, {event.tries} times"
                self._fail(active, job.evaluation(what=FAIL, reason=reason, ended=time.time()))
        elif isinstance(event, Done):
            self._idle(event.job)
            self._last_result = self.pool.now()
            del active.jobs[event.job], self._owner[event.job]
            if event.evaluation.what == FAIL:
                self._fail(active, event.evaluation)
                return
            # Before the ledger line: what the ledger holds is never done again, so these must be there.
            last = event.evaluation.to_epoch >= self.rungs[-1]
            if event.weights is not None and event.evaluation.seed == self.seeds[0] and last:
                write_atomic(self._weights(active.layout.key), event.weights)
            if event.checkpoint is not None and job.seed is not None:
                self.folder.checkpoints.mkdir(exist_ok=True)
                write_atomic(self._checkpoint(job.layout.key, job.seed, job.to_epoch), event.checkpoint)
            self._append(event.evaluation)
            if job.what == TRAIN:
                self._drop_checkpoints(job.layout.key, seed=job.seed, before=job.to_epoch)
            if not active.jobs:
                self._advance(active)

    def _idle(self, job_id: int) -> None:
        worker = self._worker_of.pop(job_id, None)
        if worker is not None:
            self._doing.pop(worker, None)
            self._busy_seconds += self.pool.now() - self._busy_since.pop(worker)

    # -- what is kept -----------------------------------------------------------------------------------------------

    def _append(self, evaluation: Evaluation) -> None:
        self.ledger.append(evaluation)
        self._refresh(evaluation.key)
        self._effort.add(evaluation)
        if self._estimate is None and (left := self._remaining()):
            self._make_estimate(left)

    def _make_estimate(self, left: Estimate) -> None:
        """Say what the launch will take, once its first trainings have ended."""
        elapsed = self.pool.now() - (self._began if self._first_job is None else self._first_job)
        worked = (self._effort.device_seconds - self._worked_before) / 3600
        self._estimate = Estimate(elapsed + left.seconds, worked + left.device_hours)
        self.view.estimated(self._estimate.seconds, self._estimate.device_hours)

    def _refresh(self, key: str) -> None:
        lines = self.ledger.of(key)
        self._standing.update(trial_records(lines, epochs=self.config.proxy.epochs, seeds=len(self.seeds))[0])
        self._observe(key)

    def _observe(self, key: str, layout: HybridLayout | None = None) -> None:
        """What samplers and the rungs are told of a layout, anew."""
        before, record = self._observed.get(key), self._records.get(key)
        if layout is None:
            layout = before.layout if before else HybridLayout.from_dict(self._records[key].layout)
        found = self._observed[key] = Observation(
            layout=layout,
            throughput=record.log2_ratio if record else None,
            qualities=tuple(rung.qualities(self.measure) for rung in record.rungs) if record else (),
            under_way=key in self._under_way,
            failed=record is not None and record.state == FAILED,
        )
        if record is not None and found.throughput is not None and found.qualities:
            self.ladder.update(
                Run(
                    key=key,
                    throughput=found.throughput,
                    qualities=found.qualities,
                    baseline=record.baseline is not None,
                    under_way=found.under_way,
                    failed=found.failed,
                )
            )

    def _observations(self) -> list[Observation]:
        """What samplers are told: the table of throughputs, as far as it was not asked for yet, and this study."""
        return [one for one in self._recorded if one.key not in self._observed] + list(self._observed.values())

    @cached_property
    def _recorded(self) -> list[Observation]:
        """The layouts of the space in the table of throughputs, in an order of no meaning.

        A sampler that fits a model to so many of the last of them then has a fair sample of the table.
        """
        found: dict[str, Observation] = {}
        for timing in self.timings.values():
            if timing.layout is None:
                continue
            layout = HybridLayout.from_dict(timing.layout)
            if layout in self.space:
                own = self.space.decode(self.space.encode(layout))  # equal where the key is
                found[own.key] = Observation(own, math.log2(timing.values["ratio"]), source="throughput.file")
        return random.Random(self.config.search.seed).sample(list(found.values()), len(found))

    def _checkpoint(self, key: str, seed: int, epoch: int) -> Path:
        return self.folder.checkpoints / f"{key}.seed{seed}.epoch{epoch}.pt"

    def _drop_checkpoints(self, key: str, *, seed: int | None = None, before: int | None = None) -> None:
        """Delete the checkpoints of a layout: of all seeds, or of one; all, or those of earlier epochs."""
        for epoch in self.rungs[:-1]:
            if before is None or epoch < before:
                for one in self.seeds if seed is None else [seed]:
                    self._checkpoint(key, one, epoch).unlink(missing_ok=True)

    def _sweep_checkpoints(self) -> None:
        """Delete what a crash kept from being deleted."""
        if self.folder.checkpoints.is_dir():
            for key, record in self._records.items():
                if record.state in (COMPLETE, FAILED):
                    self._drop_checkpoints(key)

    def _weights(self, key: str) -> Path:
        return self.folder.weights / f"{key}.safetensors"

    def _keep_weights(self) -> None:
        """Keep the weights of the front, the hand-made baselines and what is under way; delete the rest."""
        keep = {record.key for record in self._standing.front}
        # Those that came with a warm start and are not told yet.
        keep |= self._firsts.keys() - self._records.keys()
        for path in self.folder.weights.glob("*.safetensors"):
            record = self._records.get(path.stem)
            # What is under way, or was when an earlier launch ended, stays: its first seed is not trained again.
            if path.stem not in keep and (record is None or not (record.baseline or record.state == PARTIAL)):
                path.unlink()

    # -- starting and stopping --------------------------------------------------------------------------------------

    def _recover(self) -> deque[tuple[dict[str, Any], dict[str, Any]]]:
        """What has to be asked for again, and the layouts to begin with that were not asked for yet, in their order."""
        self._release_running()
        # Of trials that were lost the ledger keeps the numbers, by which people name layouts.
        lines = (line for line in self.ledger.evaluations if line.purpose == SEARCH)
        self.memory.leave_out(1 + max((line.trial for line in lines), default=-1))
        trials = self.memory.trials()
        alive = {_step(trial) for trial in trials if not _is_interrupted(trial) and _counts_as_asked(trial)}
        todo: dict[tuple[str | None, int], tuple[dict[str, Any], dict[str, Any]]] = {}
        for trial in trials:
            step = _step(trial)
            if _is_interrupted(trial) and step[0] is not None and step not in alive:
                kept: dict[str, Any] = {
                    name: trial.user_attrs[name]
                    for name in ("key", "baseline", "warm_start", "continues", "rung")
                    if name in trial.user_attrs
                }
                # A trial that was enqueued and killed before all was suggested holds its parameters only there.
                params = trial.system_attrs.get("fixed_params", trial.params)
                todo.setdefault(step, (dict(params), kept))
        for key, (layout, attributes) in self._to_begin_with().items():
            if (key, 0) not in alive and (key, 0) not in todo:
                todo[key, 0] = (self.space.encode(layout), {"key": key, **attributes})
        # Trials may be lost or, in a new storage, not there; what they measured is told from the ledger. What has
        # reached the end of a rung goes on by promotion.
        known = {key for key, _ in alive | todo.keys()}
        for record in self.records():
            if record.key not in known and (record.state in (COMPLETE, FAILED) or not record.rungs):
                layout = HybridLayout.from_dict(record.layout)
                todo[record.key, 0] = (self.space.encode(layout), {"key": record.key})
        return deque(todo.values())

    def _to_begin_with(self) -> dict[str, tuple[HybridLayout, dict[str, str]]]:
        """The layouts that are asked for before the sampler is, by key, with what their trials say of them.

        Those that need no training come first, then the hand-made ones, the rest of a warm start, and a design.
        """
        layouts = {key: first.layout for key, first in self._firsts.items() if first.taken}
        layouts |= {layout.key: layout for layout in self._baselines.values()}
        layouts |= {key: first.layout for key, first in self._firsts.items()}
        layouts |= {layout.key: layout for layout in self._design}
        names = {layout.key: {"baseline": name} for name, layout in self._baselines.items()}
        labels = {key: {"warm_start": first.label} for key, first in self._firsts.items()}
        return {key: (layout, names.get(key, {}) | labels.get(key, {})) for key, layout in layouts.items()}

    def _release_running(self) -> None:
        """Tell trials that no worker works on any more FAIL, so that none is left RUNNING for ever."""
        for trial in self.memory.trials(TrialState.RUNNING):
            self.memory.set(trial.number, interrupted=True)
            self.memory.tell(trial.number, state=TrialState.FAIL)


_TOLD = (TrialState.COMPLETE, TrialState.FAIL)


def _step(trial: FrozenTrial) -> tuple[str | None, int]:
    """The layout of a trial and the rung it is trained on: what a trial that was cut short has to do again."""
    return trial.user_attrs.get("key"), trial.user_attrs.get("rung", 0)


def _left_rung(trial: FrozenTrial) -> bool:
    """Whether a trial trained its layout to the end of a rung, where it waits; other PRUNED ones were never trained."""
    return trial.state == TrialState.PRUNED and "epoch" in trial.user_attrs


def _is_interrupted(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("interrupted"))


def _counts_as_asked(trial: FrozenTrial) -> bool:
    refused = trial.state == TrialState.PRUNED and "duplicate_of" not in trial.user_attrs
    return refused or trial.state in (*_TOLD, TrialState.WAITING)


def _trailing_refusals(trials: list[FrozenTrial]) -> int:
    count = 0
    for trial in reversed(trials):
        if _is_interrupted(trial) or trial.state == TrialState.WAITING:
            continue
        if trial.state != TrialState.PRUNED or _left_rung(trial):
            break
        count += 1
    return count
