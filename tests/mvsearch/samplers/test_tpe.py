"""TPE at the pace of a large study: Optuna's own while a study is small, and the same best trials when it is large."""

from __future__ import annotations

import random
import warnings

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState, create_trial

from mvsearch.samplers import tpe
from mvsearch.samplers.tpe import BoundedTPESampler

warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


RANGES = {name: FloatDistribution(0, 1) for name in "ab"}


def study_of(trials, sampler, seed=0):
    """A study of random points; a tenth refused as duplicates, a tenth outside a constraint, some under way."""
    rng = random.Random(seed)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for number in range(trials):
        params = {name: rng.random() for name in RANGES}
        values = [params["a"] + rng.random() / 3, 1 - params["a"] + params["b"] / 3]
        how = {"state": TrialState.COMPLETE, "values": values}
        if number % 10 == 3:
            how = {"state": TrialState.PRUNED}
        elif number % 10 == 5:
            how = {"state": TrialState.PRUNED, "constraints": {"budget": 0.1 * rng.random()}}
        elif number % 50 == 7:
            how = {"state": TrialState.RUNNING}
        study.add_trial(create_trial(params=params, distributions=RANGES, **how))
    return study


def asked(study):
    return study.ask(RANGES).params


def test_a_small_study_is_searched_as_by_optuna():
    ours = study_of(300, BoundedTPESampler(multivariate=True, seed=3))
    theirs = study_of(300, optuna.samplers.TPESampler(multivariate=True, seed=3))
    assert asked(ours) == asked(theirs)


@pytest.mark.parametrize("more", [0, 30])
def test_in_a_large_one_the_best_are_the_same_and_few_of_the_rest_are_looked_at(monkeypatch, more):
    monkeypatch.setattr(tpe, "MAX_REST", 100)
    sampler = BoundedTPESampler(multivariate=True, seed=3)
    study = study_of(1500, sampler)
    sampler._history(study)
    for trial in study_of(more, sampler, seed=1).trials:  # after it was decided which are looked at
        study.add_trial(trial)
    history = sampler._history(study)
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    below = {trial.number for trial in _split_trials(study, finished, tpe.BEST_TRIALS)[0]}
    seen = [trial for trial in history if trial.state.is_finished()]
    assert {trial.number for trial in _split_trials(study, seen, tpe.BEST_TRIALS)[0]} == below
    assert len(below) == tpe.BEST_TRIALS
    assert 100 <= len(seen) < 300
    running = {trial.number for trial in study.trials if trial.state == TrialState.RUNNING}
    assert running == {trial.number for trial in history if trial.state == TrialState.RUNNING}
    third = len(finished) // 3
    assert sum(trial.number < finished[third].number for trial in seen) > 25, "from all ages"
    assert set(asked(study)) == set(RANGES)


def test_what_was_learnt_late_counts(monkeypatch):
    monkeypatch.setattr(tpe, "MAX_REST", 100)
    study = study_of(600, BoundedTPESampler(multivariate=True, seed=3))
    asked(study)
    for number in range(40):
        values = [2.0 + number / 1e6, 2.0 - number / 1e6]
        study.add_trial(create_trial(params={"a": 0.9, "b": 0.1}, distributions=RANGES, values=values))
    found = [asked(study) for _ in range(8)]
    assert sum(abs(params["a"] - 0.9) < 0.2 and abs(params["b"] - 0.1) < 0.2 for params in found) >= 6
