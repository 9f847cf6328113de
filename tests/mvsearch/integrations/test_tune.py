"""The Ray Tune searcher: what it proposes, what it tells, and a real `Tuner.fit` and `Tuner.restore`."""

from __future__ import annotations

import math
import pickle
import random
import signal
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from tune_trainable import kind_of, trainable
from tuners import METRIC, MODE, TINY, quiet_ray, searcher_of, space_of, tuner_in

from mambavision.layout import HybridLayout
from mvsearch.integrations.tune import LayoutSearcher
from mvsearch.space.stage import SpaceError


def run(searcher, count, result=None, start=0):
    layouts = []
    for i in range(start, start + count):
        layouts.append(HybridLayout.from_dict(searcher.suggest(f"t{i}")["layout"]))
        nll = 2.0 - 0.02 * layouts[-1].stages[0].dim
        searcher.on_trial_complete(f"t{i}", result or {"nll": nll, "speed": 1000.0})
    return layouts


@pytest.mark.parametrize("sampler", ["random", "ours"])
def test_every_layout_is_within_budget_and_new_until_there_are_none(sampler):
    sizes = sorted(space_of(*TINY).cost(layout).params for layout in space_of(*TINY).layouts())
    searcher = searcher_of(*TINY, f"budgets.params.max={sizes[len(sizes) // 2]}", sampler=sampler)
    within = [layout for layout in searcher.space.layouts() if not searcher.space.excess(layout)]
    assert 0 < len(within) < searcher.space.count()
    layouts = run(searcher, len(within))
    assert {layout.key for layout in layouts} == {layout.key for layout in within}
    assert searcher.suggest("one more") == Searcher.FINISHED


def test_both_objectives_are_told_to_be_maximised():
    searcher = searcher_of()
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"nll": 1.5, "speed": 1024.0})
    latency = LayoutSearcher(space_of(), ["top1", "seconds"], ["max", "min"], sampler=optuna.samplers.RandomSampler())
    latency.suggest("a")
    latency.on_trial_complete("a", {"top1": 0.5, "seconds": 0.25})
    assert searcher.study.trials[-1].values == [-1.5, 10.0]
    assert latency.study.trials[-1].values == [0.5, 2.0]
    assert latency.study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2


@pytest.mark.parametrize(
    ("result", "error", "reason"),
    [
        ({"nll": math.nan, "speed": 1.0}, False, "nll: nan is no number"),
        ({"nll": 1.0, "speed": math.inf}, False, "speed: inf is no number"),
        ({"nll": 1.0}, False, "speed: missing from the last result"),
        ({"nll": 1.0, "speed": 0.0}, False, "speed: 0 is not above 0"),
        ({"nll": "low", "speed": 1.0}, False, "nll: 'low' is no number"),
        (None, False, "nll: missing from the last result"),
        (None, True, "the trial raised"),
        ({"nll": 1.0, "speed": 1.0}, True, "the trial raised"),
    ],
)
def test_what_is_no_result_is_told_fail_with_its_reason_and_the_search_goes_on(result, error, reason):
    searcher = searcher_of()
    searcher.suggest("a")
    searcher.on_trial_complete("a", result, error=error)
    (trial,) = searcher.study.get_trials(states=(TrialState.FAIL,))
    assert trial.user_attrs["reason"] == reason
    run(searcher, 2)
    assert not searcher.study.get_trials(states=(TrialState.RUNNING,))


def test_a_trial_that_was_stopped_early_stands_on_no_front():
    searcher = searcher_of(iterations=9)
    for name, reached in (("stopped", 3), ("whole", 9)):
        searcher.suggest(name)
        searcher.on_trial_complete(name, {"nll": 0.1 * reached, "speed": 9.0, "training_iteration": reached})
    (stopped, whole) = [trial for trial in searcher.study.trials if "tune_trial" in trial.user_attrs]
    assert (stopped.state, stopped.user_attrs["iterations"]) == (TrialState.PRUNED, 3)
    assert searcher.study.best_trials == [whole]


def test_a_trial_is_told_once_and_asked_twice_gives_the_same(tmp_path):
    searcher = searcher_of()
    first = searcher.suggest("a")
    assert searcher.suggest("a") == first
    for _ in range(2):
        searcher.on_trial_complete("a", {"nll": 1.0, "speed": 2.0})
    searcher.on_trial_complete("unknown", {"nll": 1.0, "speed": 2.0})
    assert len(searcher.study.get_trials(states=(TrialState.COMPLETE,))) == 1


def test_points_come_first_once_each():
    space = space_of()
    points = [*space.baselines().values()]
    searcher = searcher_of(points_to_evaluate=[points[0], points[1].to_dict(), points[0]])
    layouts = run(searcher, 3)
    assert layouts[:2] == points[:2]
    assert layouts[2].key not in {point.key for point in points[:2]}


@pytest.mark.parametrize("sampler", ["random", "ours"])
def test_a_saved_search_goes_on_without_lost_or_doubled_trials(tmp_path, sampler):
    searcher = searcher_of(sampler=sampler, points_to_evaluate=list(space_of().baselines().values()))
    before = run(searcher, 3)
    under_way = searcher.suggest("under way")["layout"]
    searcher.save(str(tmp_path / "state.pkl"))
    restored = searcher_of(sampler=sampler)
    restored.restore(str(tmp_path / "state.pkl"))
    assert restored.suggest("under way")["layout"] == under_way
    restored.on_trial_complete("under way", {"nll": 1.0, "speed": 4.0})
    after = run(restored, 6, start=3)
    keys = [layout.key for layout in (*before, HybridLayout.from_dict(under_way), *after)]
    assert len(set(keys)) == len(keys)
    assert keys[:5] == [layout.key for layout in searcher.space.baselines().values()]
    assert len(restored.study.get_trials(states=(TrialState.COMPLETE,))) == len(keys)


def test_a_state_of_another_version_is_refused(tmp_path):
    (tmp_path / "state.pkl").write_bytes(pickle.dumps({"_study": None, "_numbers": {}}))
    with pytest.raises(ValueError, match="written by another version of mvsearch, as it lacks trials"):
        searcher_of().restore(str(tmp_path / "state.pkl"))


def test_a_trial_that_only_tune_knows_is_taken_note_of():
    searcher, other = searcher_of(), searcher_of()
    layout = other.suggest("lost")["layout"]
    flat = {"nll": 1.0, "speed": 8.0} | {f"config/layout/{name}": value for name, value in layout.items()}
    searcher.on_trial_result("lost", {"nll": 2.0, "speed": 8.0, "config": {"layout": layout}})
    searcher.on_trial_complete("lost", flat)
    (trial,) = searcher.study.get_trials(states=(TrialState.COMPLETE,))
    assert (trial.values, trial.user_attrs["key"]) == ([-1.0, 3.0], HybridLayout.from_dict(layout).key)
    assert HybridLayout.from_dict(layout).key not in {other.key for other in run(searcher, 3)}


def test_bad_arguments_are_named():
    space = space_of()
    for arguments, message in (
        (("nll", "min"), "metric: 'nll' is not allowed; two words"),
        ((["nll", "nll"], MODE), "two different results"),
        ((METRIC, ["min", "up"]), "mode: 'up' is not allowed; one of min, max"),
        ((METRIC, ["min"]), r"mode: \['min'\] is not allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            LayoutSearcher(space, *arguments)
    wide = space_of("layout.width=[12, 32]").sample(random.Random(2)).override(dim=[32, 64, 128])
    with pytest.raises(SpaceError, match=r"points_to_evaluate\[0\]: width: 32 is not in the space"):
        LayoutSearcher(space, METRIC, MODE, points_to_evaluate=[wide])
    with pytest.raises(SpaceError, match=r"points_to_evaluate\[0\]: over budgets.params"):
        LayoutSearcher(
            space_of("budgets.params.max=90000"), METRIC, MODE,
            points_to_evaluate=[max(space.baselines().values(), key=lambda layout: space.cost(layout).params)],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "mode", "config", "message"),
    [
        ("nll", None, {}, "metric: TuneConfig has 'nll'; leave it out there"),
        (None, "min", {}, "mode: TuneConfig has 'min'; leave it out there"),
        (None, None, {"layout": 1}, "param_space: 'layout' is what LayoutSearcher fills in"),
        (None, None, {"train": {"rate": tune.choice([1, 2])}}, "param_space: train.rate is to be searched"),
        (None, None, {"rate": tune.grid_search([1, 2])}, "param_space: rate is to be searched"),
    ],
)
def test_what_tune_must_not_say_is_refused(metric, mode, config, message):
    with pytest.raises(ValueError, match=message):
        searcher_of().set_search_properties(metric, mode, config)
    assert searcher_of().set_search_properties(None, None, {"rate": 0.1})


def check_trials(results, study, samples):
    """Tune and Optuna know the same layouts, each once, and what became of them."""
    assert len(results) == samples
    keys = [HybridLayout.from_dict(result.config["layout"]).key for result in results]
    assert len(set(keys)) == samples
    trials = [trial for trial in study.trials if "tune_trial" in trial.user_attrs]
    assert sorted(trial.user_attrs["key"] for trial in trials) == sorted(keys)
    for trial in trials:
        assert trial.state == (TrialState.FAIL if kind_of(trial.user_attrs["key"]) < 3 else TrialState.COMPLETE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tuner_fits_and_failures_do_not_stop_it(tmp_path):
    tuner = tuner_in(tmp_path, 10)
    with quiet_ray():
        results = tuner.fit()
    saved = searcher_of(sampler="ours")
    saved.restore_from_dir(str(tmp_path / "run"))
    check_trials(results, saved.study, 10)
    assert {trial.state for trial in saved.study.trials} == {TrialState.COMPLETE, TrialState.FAIL}


DRIVER = """
import os, signal
from mvsearch.integrations.tune import LayoutSearcher
from tuners import quiet_ray, tuner_in
from pathlib import Path
told = LayoutSearcher.on_trial_complete
def tell(self, *arguments, **more):
    told(self, *arguments, **more)
    if sum(trial.state.is_finished() for trial in self.study.trials) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
LayoutSearcher.on_trial_complete = tell
with quiet_ray():
    tuner_in(Path({folder!r}), 8).fit()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tuner_that_was_killed_is_restored_without_lost_or_doubled_trials(tmp_path):
    code = DRIVER.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    with quiet_ray():
        tuner = tune.Tuner.restore(str(tmp_path / "run"), trainable, resume_errored=False)
        results = tuner.fit()
    saved = searcher_of(sampler="ours")
    saved.restore_from_dir(str(tmp_path / "run"))
    check_trials(results, saved.study, 8)
