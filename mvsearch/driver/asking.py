"""Asking a study for layouts: what is tried next, what is refused, and what a study that goes on has to ask again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mambavision.layout import HybridLayout
from mvsearch.driver.trials import StoredTrials
from mvsearch.samplers.registry import reseed
from mvsearch.space.space import SearchSpace
from mvsearch.study.record import COMPLETE, FAILED, TrialRecord

MAX_REFUSALS = 50
"""Refusals in a row after which the next layout is drawn uniformly from those that were not asked for yet."""

# A trial is one layout on one rung, or on all of them. It takes one of these states:
#   ┌───────────┬────────────────────┬────────────────────────────────────┬───────┬───────┬──────┬─────────┐
#   │ State     │ Attribute          │ Meaning                            │ Asked │ Ended │ Seen │ Settled │
#   ├───────────┼────────────────────┼────────────────────────────────────┼───────┼───────┼──────┼─────────┤
#   │ WAITING   │                    │ enqueued; the next ask takes it    │ no    │ no    │ no   │ yes     │
#   │ RUNNING   │                    │ being measured                     │ yes   │ no    │ yes  │ no      │
#   │ COMPLETE  │                    │ trained to the last rung           │ yes   │ yes   │ yes  │ yes     │
#   │ FAIL      │                    │ its layout has failed              │ yes   │ yes   │ yes  │ yes     │
#   │ FAIL      │ interrupted        │ cut short by a stop, or lost       │ no    │ no    │ no   │ no      │
#   │ PRUNED    │ duplicate_of       │ refused: the layout was seen       │ yes   │ no    │ –    │ no      │
#   │ PRUNED    │ (constraint)       │ refused: over a budget             │ yes   │ no    │ no   │ yes     │
#   │ PRUNED    │ epoch (and rung)   │ waits at the end of a rung         │ yes   │ no    │ yes  │ yes     │
#   │ PRUNED    │ iterations         │ stopped early by Ray Tune          │ yes   │ no    │ yes  │ yes     │
#   └───────────┴────────────────────┴────────────────────────────────────┴───────┴───────┴──────┴─────────┘
# Asked: counts among the asks, on which the sampler's draws depend. Ended: counts among the layouts that have ended.
# Seen: its layout is not asked for again, but to continue it. Settled: a study that goes on does not ask for its layout
# on this rung again on behalf of a trial that was cut short. A row without an attribute means that none of the others
# is there. "–": the layout is seen by the trial that it duplicates.


class LayoutAsker:
    """Asks the sampler of a study for layouts that are within the budgets and were not asked for before.

    What it counts, it counts from the study's trials, so that a study that goes on asks for the same as one that was
    never stopped.

    Args:
        space: what is searched.
        trials: of the study.
        seed: of the draws, 0 or more.
        reseeds: whether the sampler is seeded anew for each ask, so that a study that goes on does not repeat its
            draws; if not, its generator must be kept with the study.

    Attributes:
        ended: trials that are complete or failed.
        todo: what is asked for before the sampler is: parameters, and attributes of the trial.
    """

    def __init__(self, space: SearchSpace, trials: StoredTrials, seed: int, *, reseeds: bool = True) -> None:
        self.space = space
        self.trials = trials
        self.todo: deque[tuple[dict[str, Any], dict[str, Any]]] = deque()
        self._seed = seed
        self._reseeds = reseeds
        self._count()

    def _count(self) -> None:
        trials = [trial for trial in self.trials.trials() if not _is_interrupted(trial)]
        self._asked = sum(trial.state != TrialState.WAITING for trial in trials)
        self._refusals = _trailing_refusals(trials)
        self.ended = sum(trial.state in _ENDED for trial in trials)
        # A layout that the ledger holds but whose trial never ended is asked for again, and told from the ledger.
        self._seen = {str(trial.user_attrs.get("key")) for trial in trials if _was_begun(trial)}
        # With what a layout that waits at a rung was asked for: its trial and its parameters.
        self._at_rung = {
            str(trial.user_attrs["key"]): (trial.number, trial.params)
            for trial in trials
            if trial.state == TrialState.PRUNED and "epoch" in trial.user_attrs
        }

    # -- asking -----------------------------------------------------------------------------------------------------

    @property
    def next_is_fixed(self) -> bool:
        """Whether the next layout is one that was enqueued, and not the sampler's to choose."""
        return bool(self.todo or self.trials.trials(TrialState.WAITING))

    def add(self, layout: HybridLayout, **attributes: Any) -> None:
        """Have a layout asked for, after those that were added before and ahead of the sampler's own.

        Args:
            layout: of the space.
            attributes: of its trial.
        """
        self.todo.append((self.space.encode(layout), attributes))

    def promote(self, record: TrialRecord, rung: int) -> None:
        """Have a layout that waits asked for once more, to go on.

        Args:
            record: of the layout.
            rung: on which it goes on, from 1.
        """
        if record.key in self._at_rung:
            number, params = self._at_rung[record.key]
        else:  # the ledger outlived the journal
            number, params = record.number, self.space.encode(HybridLayout.from_dict(record.layout))
        self.todo.append((dict(params), {"key": record.key, "continues": number, "rung": rung}))

    def note(self, key: str) -> None:
        """Count a layout that was not asked for here as asked for."""
        self._asked += 1
        self._seen.add(key)

    def ask(self) -> tuple[optuna.Trial, HybridLayout] | None:
        """Begin the trial of the next layout that is within the budgets and was not seen before.

        Layouts that are refused on the way are told PRUNED, with what they exceed or whom they duplicate.

        Returns:
            The trial, with the layout's key in its attribute ``key``, and the layout; None when there is none left.
        """
        study = self.trials.study
        while True:
            if not self._enqueue():
                return None
            if self._reseeds:
                entropy = np.random.SeedSequence([self._seed, self._asked])
                reseed(study.sampler, int(entropy.generate_state(1)[0]))
            trial = study.ask()
            self._asked += 1
            layout = self.space.suggest(trial)
            trial.set_user_attr("key", layout.key)
            if "continues" in trial.user_attrs or not self._refuse(trial, layout):
                self._refusals = 0
                self._seen.add(layout.key)
                self.trials.begin(trial)
                return trial, layout

    def _enqueue(self) -> bool:
        """Fix the next layout where it is not the sampler's to choose; False if there is none left to draw."""
        if self.trials.trials(TrialState.WAITING):
            return True
        if self.todo:
            params, attributes = self.todo.popleft()
            self.trials.study.enqueue_trial(params, user_attrs=attributes)
        elif self._refusals >= MAX_REFUSALS:
            drawn = self.space.uniform_unseen(self._seen, random.Random(f"{self._seed}/{self._asked}"))
            if drawn is None:
                return False
            self.trials.study.enqueue_trial(self.space.encode(drawn), user_attrs={"drawn": "uniform"})
        return True

    def _refuse(self, trial: optuna.Trial, layout: HybridLayout) -> bool:
        """Tell a trial PRUNED if its layout was seen or is over a budget; whether it was."""
        excess = self.space.excess(layout)
        if layout.key in self._seen:
            trial.set_user_attr("duplicate_of", layout.key)
        elif excess:
            for name, amount in excess.items():
                trial.set_constraint(name, amount)
        else:
            return False
        self._refusals += 1
        self.trials.tell(trial.number, state=TrialState.PRUNED)
        return True

    # -- telling ----------------------------------------------------------------------------------------------------

    def complete(self, number: int, values: Sequence[float], **attributes: Any) -> None:
        """Tell a trial COMPLETE, with its values and attributes."""
        self.trials.set(number, **attributes)
        self.trials.tell(number, values)
        self.ended += 1

    def fail(self, number: int, reason: str | None) -> None:
        """Tell a trial FAIL, and why."""
        self.trials.set(number, reason=reason)
        self.trials.tell(number, state=TrialState.FAIL)
        self.ended += 1

    def leave_at_rung(self, trial: optuna.Trial, rung: int, epoch: int) -> None:
        """Tell a trial PRUNED that has reached the end of its rung, where its layout waits.

        Args:
            trial: of the layout.
            rung: from 0.
            epoch: at the end of which it waits.
        """
        self.trials.set(trial.number, rung=rung, epoch=epoch)
        self.trials.tell(trial.number, state=TrialState.PRUNED)
        self._at_rung[trial.user_attrs["key"]] = (trial.number, trial.params)

    # -- starting and stopping --------------------------------------------------------------------------------------

    def release_running(self) -> None:
        """Tell trials that no worker works on any more FAIL, so that none is left RUNNING for ever."""
        for trial in self.trials.trials(TrialState.RUNNING):
            self.trials.set(trial.number, interrupted=True)
            self.trials.tell(trial.number, state=TrialState.FAIL)

    def recover(
        self,
        starting: Mapping[str, tuple[HybridLayout, dict[str, str]]],
        records: Iterable[TrialRecord],
        trials_used: int,
    ) -> None:
        """Begin a study, or go on with one that was stopped or killed: fills `todo`.

        Args:
            starting: layouts that are asked for first, by key, with the attributes of their trials.
            records: what the ledger holds of every layout.
            trials_used: trial numbers below it are taken; of trials that were lost the ledger keeps the numbers, by
                which people name layouts.
        """
        self.release_running()
        self.trials.leave_out(trials_used)
        trials = self.trials.trials()
        settled = {_step(trial) for trial in trials if _is_settled(trial)}
        todo: dict[tuple[str | None, int], tuple[dict[str, Any], dict[str, Any]]] = {}
        for trial in trials:
            step = _step(trial)
            if _is_interrupted(trial) and step[0] is not None and step not in settled:
                kept: dict[str, Any] = {
                    name: trial.user_attrs[name]
                    for name in ("key", "baseline", "warm_start", "continues", "rung")
                    if name in trial.user_attrs
                }
                # A trial that was enqueued and killed before all was suggested holds its parameters only there.
                params = trial.system_attrs.get("fixed_params", trial.params)
                todo.setdefault(step, (dict(params), kept))
        for key, (layout, attributes) in starting.items():
            if (key, 0) not in settled and (key, 0) not in todo:
                todo[key, 0] = (self.space.encode(layout), {"key": key, **attributes})
        # Trials may be lost or, in a new storage, not there; what they measured is told from the ledger. What has
        # reached the end of a rung goes on by promotion.
        known = {key for key, _ in settled | todo.keys()}
        for record in records:
            if record.key not in known and (record.state in (COMPLETE, FAILED) or not record.rungs):
                layout = HybridLayout.from_dict(record.layout)
                todo[record.key, 0] = (self.space.encode(layout), {"key": record.key})
        self.todo = deque(todo.values())
        self._count()


_ENDED = (TrialState.COMPLETE, TrialState.FAIL)


def _step(trial: FrozenTrial) -> tuple[str | None, int]:
    """The layout of a trial and the rung it is trained on: what a trial that was cut short has to do again."""
    return trial.user_attrs.get("key"), trial.user_attrs.get("rung", 0)


def _is_interrupted(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("interrupted"))


def _is_refused(trial: FrozenTrial) -> bool:
    """Whether a trial was told PRUNED before anything was measured of it."""
    return trial.state == TrialState.PRUNED and not trial.user_attrs.keys() & {"epoch", "iterations"}


def _was_begun(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.WAITING and not _is_refused(trial)


def _is_settled(trial: FrozenTrial) -> bool:
    pruned = trial.state == TrialState.PRUNED and "duplicate_of" not in trial.user_attrs
    return not _is_interrupted(trial) and (pruned or trial.state in (*_ENDED, TrialState.WAITING))


def _trailing_refusals(trials: Sequence[FrozenTrial]) -> int:
    count = 0
    for trial in reversed(trials):
        if trial.state == TrialState.WAITING:
            continue
        if not _is_refused(trial):
            break
        count += 1
    return count
