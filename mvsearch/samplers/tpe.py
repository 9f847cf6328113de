"""Optuna's TPE at the pace of a large study."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mvsearch.samplers.optuna_private import non_domination_ranks, seed_generators, study_of_some_trials

MAX_REST = 1000
"""Finished trials that stand for all those that are not among the best."""

BEST_TRIALS = 25
"""The best trials that TPE makes a density of, from 250 on: `optuna.samplers._tpe.sampler.default_gamma`."""

AGAIN = 50
"""After so many more finished trials it is decided anew which are looked at; those in between all are."""


class BoundedTPESampler(TPESampler):
    """TPE for two objectives, both maximised, whose time to ask hardly grows with the study.

    TPE draws candidates from a density of the best trials (25 of them) and compares it with a density of all the rest:
    it ranks every trial, and sums one kernel for each trial and candidate, so that an ask takes a second at 10,000. The
    best are the same here: all trials of the first fronts that hold 25 are kept. Of the rest, sorted by age as TPE
    weighs them, `MAX_REST` evenly spaced ones stand for all. Running trials are all kept. A study of fewer trials is
    searched as by Optuna's own.

    Takes the arguments of `optuna.samplers.TPESampler`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._kept: set[int] = set()
        self._known: set[int] = set()

    def reseed(self, seed: int) -> None:
        """Seed the generators as if it had been made with this seed; what has been learnt stays."""
        seed_generators(self, seed)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(study_of_some_trials(study, self._history(study)), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        seen = study_of_some_trials(study, self._history(study))
        return super().sample_independent(seen, trial, param_name, param_distribution)

    def _history(self, study: Study) -> list[FrozenTrial]:
        """The trials that are looked at."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False, states=states)
        finished = [trial for trial in trials if trial.state != TrialState.RUNNING]
        if len(finished) <= MAX_REST + BEST_TRIALS:
            return trials
        if len(finished) - len(self._known) >= AGAIN:
            best = _best(finished)
            rest = [trial.number for trial in finished if trial.number not in best]
            spaced = (rest[(2 * i + 1) * len(rest) // (2 * MAX_REST)] for i in range(MAX_REST))
            self._kept = best.union(spaced)
            self._known = {trial.number for trial in finished}
        return [
            trial
            for trial in trials
            if trial.state == TrialState.RUNNING or trial.number in self._kept or trial.number not in self._known
        ]


def _best(finished: list[FrozenTrial]) -> set[int]:
    """Numbers of the feasible COMPLETE trials on the first fronts that together hold `BEST_TRIALS`, whole fronts."""
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    complete = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    if not complete:
        return set()
    ranks = non_domination_ranks(-np.array([trial.values for trial in complete]), BEST_TRIALS)
    last = np.sort(ranks)[min(BEST_TRIALS, len(ranks)) - 1]
    return {trial.number for trial, rank in zip(complete, ranks, strict=True) if rank <= last}
