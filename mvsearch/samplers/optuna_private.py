"""What mvsearch needs of Optuna and Optuna does not offer: its private names stand here and nowhere else.

`tests/mvsearch/samplers/test_optuna_private.py` names each, shows that it does what is needed, and finds any other in
mvsearch.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import FrozenTrial, TrialState


def seed_generators(sampler: BaseSampler, seed: int) -> None:
    """Seed the generators of one of Optuna's samplers as if it had been made with this seed; what it learnt stays.

    Optuna's own `reseed_rng` takes no seed.

    Args:
        sampler: `RandomSampler`, `TPESampler`, `NSGAIISampler` or `GPSampler`, or of a class made from one of them.
        seed: 32 bits.

    Raises:
        AttributeError: for a sampler that holds no generator where these do.
    """
    fallbacks = [getattr(sampler, name, None) for name in ("_random_sampler", "_independent_sampler")]
    part: Any
    for part in (sampler, *(fallback for fallback in fallbacks if fallback is not None)):
        part._rng.rng.seed(seed)


def non_domination_ranks(losses: np.ndarray, count: int) -> np.ndarray:
    """On which front each trial is, counted from 0: the best front, that of the rest, and so on.

    Args:
        losses: (trials, objectives), all minimised.
        count: fronts are told apart until they hold so many trials; whatever is behind has a rank larger than theirs.
    """
    return _fast_non_domination_rank(losses, n_below=count)


def study_of_some_trials(study: Study, trials: list[FrozenTrial]) -> Study:
    """A study of which a sampler sees only these trials; all else is the study's own."""
    seen: Any = _StudyOfSomeTrials(study, trials)
    return seen


class _StudyOfSomeTrials:
    """What `study_of_some_trials` gives; samplers read trials by the method `_get_trials`."""

    def __init__(self, study: Study, trials: list[FrozenTrial]) -> None:
        self._study = study
        self._trials = trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]
