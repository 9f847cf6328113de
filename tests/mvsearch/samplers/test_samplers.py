"""KnownCostSampler: what it asks for, what it learns from, and the models inside it."""

from __future__ import annotations

import math
import pickle
import random
import statistics

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase
from optuna.trial import TrialState

from mvsearch.config.reading import load_config
from mvsearch.models.features import Features
from mvsearch.models.gaussian_process import QualityModel, fit_hyperparameters, modelled
from mvsearch.models.throughput import ThroughputModel, made_of
from mvsearch.samplers import KnownCostSampler
from mvsearch.samplers import known_cost as known_cost_module
from mvsearch.samplers.acquisition import expected_hypervolume_gains
from mvsearch.samplers.halving import expected_hypervolume_gain
from mvsearch.samplers.known_cost import _fronts, _last_refit
from mvsearch.samplers.observation import Observation
from mvsearch.samplers.scale import on_one_scale
from mvsearch.space.space import SearchSpace
from mvsearch.study.front import Point

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space_of(*overrides):
    return SearchSpace(load_config("stagewise", overrides), num_classes=10, in_chans=1)


SPACE = space_of("budgets={}")


# Six orders of two blocks and one, at two widths.
TINY = [
    "budgets={}",
    "layout.width=[12, 16]",
    "layout.stages.1.depth=2",
    "layout.stages.1.state=8",
    "layout.stages.1.attention={min: 0, max: 2}",
    "layout.stages.2.depth=1",
    "layout.stages.2.state=8",
    "layout.stages.2.attention={min: 0, max: 1}",
]


def values_of(layout):
    """Quality rises with width and, in stage 2, with attention at the end; throughput falls with both."""
    bits = [letter == "A" for letter in layout.stages[1].blocks]
    late = sum(bit * (i + 1) for i, bit in enumerate(bits)) / 10
    width = math.log2(layout.stages[0].dim)
    return width + late, -1.5 * width - 0.2 * sum(bits) - 0.05 * len(bits)


def study_with(sampler, trials=0, objective=None):
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    study.optimize(objective or (lambda trial: values_of(SPACE.suggest(trial))), n_trials=trials)
    return study


def layouts_of(study, space=SPACE):
    return [space.decode(trial.params) for trial in study.trials]


def test_no_layout_is_asked_for_twice_and_all_are_within_the_budgets():
    space = space_of("budgets.params.max=120000")
    study = study_with(KnownCostSampler(space, seed=0), 24, lambda trial: values_of(space.suggest(trial)))
    layouts = layouts_of(study, space)
    assert len({layout.key for layout in layouts}) == 24
    assert all(not space.excess(layout) for layout in layouts)
    assert any(space.excess(space.sample(random.Random(seed))) for seed in range(20))


def test_a_seed_fixes_what_is_asked_for():
    def run(seed):
        return [layout.key for layout in layouts_of(study_with(KnownCostSampler(SPACE, seed=seed), 12))]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_first_layouts_are_those_of_rules_and_spread_over_the_space():
    layouts = layouts_of(study_with(KnownCostSampler(SPACE, seed=3), 8))
    for layout in layouts:
        assert all(value <= 0 for name, value in SPACE.encode(layout).items() if "flip" in name)
    assert {layout.stages[0].dim for layout in layouts} == {12, 16, 20, 24}
    assert {len(layout.stages[1].blocks) for layout in layouts} == {2, 3, 4}
    assert len({layout.stages[1].blocks.count("A") for layout in layouts}) >= 4


def test_a_space_that_is_used_up_is_gone_through_once_and_then_repeated():
    space = space_of(*TINY)
    study = study_with(
        KnownCostSampler(space, seed=0), space.count() + 2, lambda trial: values_of(space.suggest(trial))
    )
    keys = [layout.key for layout in layouts_of(study, space)]
    assert len(set(keys[: space.count()])) == space.count() == len(set(keys))


def test_it_finds_the_front_of_a_small_space_sooner_than_random():
    space = space_of(*TINY, "layout.width=[12, 16, 20, 24]", "layout.stages.1.depth=4", "layout.stages.1.state=[4, 8]")
    layouts = list(space.layouts())

    def values(layout):  # the state costs and gains nothing: half of the space is beside the point
        quality, throughput = values_of(layout)
        return quality + 0.1 * (layout.stages[2].blocks == "A"), throughput - 0.1 * layout.stages[1].state

    def reached(sampler):
        found = [
            values(layout) for layout in layouts_of(study_with(sampler, 24, lambda t: values(space.suggest(t))), space)
        ]
        return known_hypervolume(found) / known_hypervolume([values(layout) for layout in layouts])

    ours = statistics.fmean(reached(KnownCostSampler(space, seed=seed)) for seed in range(2))
    random_ones = statistics.fmean(reached(optuna.samplers.RandomSampler(seed=seed)) for seed in range(6))
    assert ours > 0.97, (ours, random_ones)
    assert 1 - ours < 0.25 * (1 - random_ones)


def known_hypervolume(points):
    from mvsearch.study.front import hypervolume

    return hypervolume([Point("", *point) for point in points], (3.0, -9.0))


def test_what_failed_was_stopped_or_is_waiting_is_not_asked_for_again():
    space = space_of(*TINY)
    layouts = list(space.layouts())
    study = study_with(KnownCostSampler(space, seed=0))
    for i, layout in enumerate(layouts[:-1]):
        study.enqueue_trial(space.encode(layout))
        if i % 4 == 0:
            continue  # stays WAITING
        trial = study.ask()
        assert space.suggest(trial) in layouts
        if i % 4 < 3:
            study.tell(trial, state=[TrialState.FAIL, TrialState.PRUNED][i % 4 - 1])
    left = {layout.key for layout in layouts} - {
        space.decode({**trial.system_attrs.get("fixed_params", {}), **trial.params}).key for trial in study.trials
    }
    while study.get_trials(states=(TrialState.WAITING,)):
        space.suggest(study.ask())
    assert {space.suggest(study.ask()).key} == left


def test_layouts_under_way_are_not_asked_for_again_and_change_what_is():
    study = study_with(KnownCostSampler(SPACE, seed=0), 10)
    keys = [SPACE.suggest(study.ask()).key for _ in range(12)]
    assert len({*keys, *(layout.key for layout in layouts_of(study))}) >= 22


def test_trials_at_the_same_time_get_layouts_of_their_own():
    space = space_of("budgets={}")
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=KnownCostSampler(space, seed=0))
    study.optimize(lambda trial: values_of(space.suggest(trial)), n_trials=16, n_jobs=4)
    assert len({layout.key for layout in layouts_of(study)}) == 16


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"], ["maximize"] * 3])
def test_another_kind_of_study_is_refused_by_name(directions):
    study = optuna.create_study(directions=directions, sampler=KnownCostSampler(SPACE, seed=0))
    with pytest.raises(ValueError, match=r"directions: \[.*\] is not allowed; KnownCostSampler maximises two"):
        SPACE.suggest(study.ask())


def test_parameters_of_ones_own_are_drawn_beside_the_layout():
    rates = []

    def objective(trial):
        layout = SPACE.suggest(trial)
        rates.append(trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True))
        return values_of(layout)

    study = study_with(KnownCostSampler(SPACE, seed=0), 12, objective)
    assert len(set(rates)) == 12
    assert all("learning_rate" in trial.params and "width" in trial.params for trial in study.trials)


def test_trials_of_another_space_and_not_numbers_are_passed_over():
    study = study_with(KnownCostSampler(SPACE, seed=0), 9)
    other = optuna.distributions.IntDistribution(0, 9)
    study.add_trial(optuna.create_trial(params={"x": 3}, distributions={"x": other}, values=[1, 2]))
    layout = SPACE.decode(study.trials[0].params)
    study.add_trial(
        optuna.create_trial(params=SPACE.encode(layout), distributions=SPACE.distributions(), values=[math.inf, 0.0])
    )
    assert SPACE.suggest(study.ask()).key not in {layout.key for layout in layouts_of_ours(study)}


def layouts_of_ours(study):
    return [
        SPACE.decode(trial.params) for trial in study.trials if trial.state.is_finished() and "width" in trial.params
    ]


def test_a_fixed_parameter_is_left_to_who_fixed_it():
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        sampler = optuna.samplers.PartialFixedSampler({"width": 16}, KnownCostSampler(SPACE, seed=0))
    study = study_with(sampler, 10)
    assert {layout.stages[0].dim for layout in layouts_of(study)} == {16}


def test_a_sampler_goes_on_after_being_pickled():
    sampler = KnownCostSampler(SPACE, seed=0)
    study = study_with(sampler, 9)
    study.sampler = pickle.loads(pickle.dumps(sampler))
    study.optimize(lambda trial: values_of(SPACE.suggest(trial)), n_trials=2)
    assert len({layout.key for layout in layouts_of(study)}) == 11


class TestOptunasOwn(MultiObjectiveSamplerTestCase):
    """Optuna's suite for samplers, as far as it asks for what this one claims: independent draws, two objectives.

    The rest of the suite optimises one objective, which is refused.
    """

    @pytest.fixture
    def sampler(self):
        return lambda: KnownCostSampler(SPACE, seed=0)

    test_float = BasicSamplerTestCase.test_float
    test_int = BasicSamplerTestCase.test_int
    test_categorical = BasicSamplerTestCase.test_categorical
    test_conditional_sample_independent = BasicSamplerTestCase.test_conditional_sample_independent


def told(sampler, observations, **changes):
    """The layout a sampler asks for when it is told these observations."""
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    return SPACE.suggest(study.ask())


def measured(count, seed=0, shift=0.0, **more):
    rng = random.Random(seed)
    found = {}
    while len(found) < count:
        layout = SPACE.sample(rng)
        found[layout.key] = layout
    out = []
    for layout in found.values():
        quality, throughput = values_of(layout)
        out.append(Observation(layout, throughput, ((quality + shift,),), **more))
    return out


def test_another_studys_layouts_teach_and_may_be_asked_for_again():
    borrowed = measured(40, source="studies/other")
    sampler = KnownCostSampler(SPACE, seed=0, observations=lambda: borrowed)
    first = told(sampler, borrowed)
    best = max(values_of(observation.layout)[0] for observation in borrowed)
    # A first layout from the models, not from the rules: it is at once among the good ones.
    quality, throughput = values_of(first)
    worse = sum(values_of(o.layout)[0] <= quality or values_of(o.layout)[1] <= throughput for o in borrowed)
    assert worse == len(borrowed) or quality >= best


def test_in_a_space_too_large_to_list_another_studys_layouts_are_built_upon():
    config = load_config("stagewise", ["layout.width=[8, 12, 16, 20, 24, 28, 32, 36]"])
    space = SearchSpace(config, num_classes=10, in_chans=1)
    assert space.count() > known_cost_module.ENUMERATED
    rng = random.Random(0)
    layouts = {layout.key: layout for layout in (space.sample(rng) for _ in range(12))}.values()
    borrowed = [
        Observation(layout, 0.1 * i, ((-1 - 0.1 * i,),), source="studies/other") for i, layout in enumerate(layouts)
    ]
    sampler = KnownCostSampler(space, seed=0, observations=lambda: borrowed)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    assert space.suggest(study.ask()) in space


def test_a_measured_throughput_counts_for_a_layout_under_way():
    known = measured(20)
    waiting = known[-1]
    told_with = [*known[:-1], Observation(waiting.layout, waiting.throughput, under_way=True)]
    sampler = KnownCostSampler(SPACE, seed=0, observations=lambda: told_with)
    assert told(sampler, told_with).key not in {o.key for o in known}


def test_lower_rungs_come_to_the_scale_of_full_trainings():
    rng = random.Random(0)
    layouts = list({layout.key: layout for layout in (SPACE.sample(rng) for _ in range(40))}.values())[:24]
    full = [values_of(layout)[0] for layout in layouts]
    observations = [
        Observation(layout, 0.0, ((2 * quality - 3,), (quality,)) if i < 10 else ((2 * quality - 3,),))
        for i, (layout, quality) in enumerate(zip(layouts, full, strict=True))
    ]
    found = on_one_scale(observations, rungs=2)
    assert [m.observation.key for m in found] == [o.key for o in observations]
    assert [m.mean for m in found] == pytest.approx(full)
    assert all(m.variance == pytest.approx(0, abs=1e-9) for m in found)


def test_a_lower_rung_that_says_little_is_believed_little():
    rng, noise = random.Random(0), np.random.default_rng(0)
    layouts = list({layout.key: layout for layout in (SPACE.sample(rng) for _ in range(60))}.values())[:40]
    observations = []
    for i, layout in enumerate(layouts):
        quality = values_of(layout)[0]
        early = quality + 0.5 * noise.standard_normal()
        observations.append(Observation(layout, 0.0, ((early,), (quality,)) if i < 20 else ((early,),)))
    found = on_one_scale(observations, rungs=2)
    assert {m.variance for m in found[:20]} == {0.0}
    assert all(0.02 < m.variance < 0.5 for m in found[20:])


def test_before_there_are_pairs_the_difference_is_added():
    a, b, c = (o.layout for o in measured(3))
    observations = [
        Observation(a, 0.0, ((1.0,), (2.0,))),
        Observation(b, 0.0, ((1.5,),)),
        Observation(c, 0.0, ((0.5, 0.7),)),
    ]
    found = {m.observation.key: m for m in on_one_scale(observations, rungs=2)}
    assert found[a.key].qualities == (2.0,)
    assert found[b.key].qualities == (2.5,)
    assert found[c.key].qualities == pytest.approx((1.5, 1.7))
    assert found[b.key].variance > 0


def test_this_study_counts_before_another_one():
    (a,) = measured(1)
    here, there = a, Observation(a.layout, 1.0, ((9.0,),), source="studies/other")
    for order in ([here, there], [there, here]):
        (found,) = on_one_scale(order, rungs=1)
        assert found.observation is here


numbers = st.floats(-3, 3)


points = st.lists(st.tuples(numbers, numbers).map(lambda p: Point("", *p)), max_size=8)


@given(
    points, st.lists(st.tuples(numbers, st.floats(0, 2), numbers), min_size=1, max_size=5), st.tuples(numbers, numbers)
)
def test_the_gain_of_many_layouts_is_that_of_each(front, layouts, reference):
    mean, deviation, throughput = (np.array(column) for column in zip(*layouts, strict=True))
    gains = expected_hypervolume_gains(mean, deviation, throughput, np.zeros(len(mean)), front, reference)
    alone = [expected_hypervolume_gain(*layout, front, reference) for layout in layouts]
    assert gains == pytest.approx(alone, abs=1e-9)


def test_the_gain_with_an_uncertain_throughput_is_the_mean_over_throughputs():
    front = [Point("a", 1.0, 0.0), Point("b", 0.2, 1.0)]
    draws = np.random.default_rng(0).normal(0.5, 0.4, 200_000)
    column = np.full(len(draws), 1.0)
    each = expected_hypervolume_gains(column * 0.8, column * 0.3, draws, column * 0, front, (-1.0, -1.0))
    one = expected_hypervolume_gains(*(np.array([x]) for x in (0.8, 0.3, 0.5, 0.4)), front, (-1.0, -1.0))
    assert one[0] == pytest.approx(each.mean(), rel=0.01)


def random_rows(count, seed=0):
    rng = random.Random(seed)
    layouts = [SPACE.sample(rng) for _ in range(count)]
    return layouts, Features(SPACE).quality(layouts)


def test_features_tell_layouts_apart_and_stages_of_any_depth_have_as_many():
    layouts = list({layout.key: layout for layout in random_rows(300)[0]}.values())
    rows = Features(SPACE).quality(layouts)
    assert rows.shape[0] == len({tuple(row) for row in rows.round(9)}) == len(layouts)
    assert len({len(layout.stages[1].blocks) for layout in layouts}) == 3


def test_the_quality_model_predicts_what_it_has_not_seen_within_its_intervals():
    layouts, rows = random_rows(90)
    noise = np.random.default_rng(0).normal(0, 0.05, 90)
    values = np.array([values_of(layout)[0] for layout in layouts]) + noise
    seen, left = slice(0, 60), slice(60, 90)
    zeros = np.zeros(60)
    model = QualityModel(rows[seen], values[seen], zeros, fit_hyperparameters(rows[seen], values[seen], zeros, 0))
    predictions = model.predict(rows[left])
    error = predictions.means - values[left]
    assert np.sqrt((error**2).mean()) < 0.4 * values.std()
    means, deviations = model.left_out()
    inside = np.abs(means - values[seen]) < 1.645 * deviations
    assert 0.75 <= inside.mean() <= 1


def test_leaving_out_in_closed_form_is_leaving_out():
    layouts, rows = random_rows(12)
    values = np.array([values_of(layout)[0] for layout in layouts])
    variances = np.linspace(0, 0.02, 12)
    hyper = fit_hyperparameters(rows, values, variances, 0)
    model = QualityModel(rows, values, variances, hyper)
    means, deviations = model.left_out()
    # By hand, with the same scale: the joint normal of all values, given the others.
    centre, scale = values.mean(), values.std()
    covariance = hyper.kernel(rows) + np.diag(hyper.noise + variances / scale**2)
    others = np.arange(12) != 5
    weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, 5])
    assert means[5] == pytest.approx(centre + weights @ (values[others] - centre), rel=1e-3)
    assert deviations[5] == pytest.approx(
        scale * math.sqrt(covariance[5, 5] - weights @ covariance[others, 5]), rel=1e-3
    )


def test_several_seeds_make_a_layout_better_known():
    layouts, rows = random_rows(20)
    values = np.array([values_of(layout)[0] for layout in layouts])
    hyper = fit_hyperparameters(rows, values + np.random.default_rng(1).normal(0, 0.2, 20), np.zeros(20), 0)
    once = QualityModel(rows, values, np.zeros(20), hyper)
    thrice = QualityModel(
        np.concatenate([rows, rows[:1], rows[:1]]), np.append(values, [values[0]] * 2), np.zeros(22), hyper
    )
    assert thrice.predict(rows[:1]).deviations[0] < once.predict(rows[:1]).deviations[0]


def test_expecting_a_result_is_the_posterior_with_it():
    layouts, rows = random_rows(30)
    values = np.array([values_of(layout)[0] for layout in layouts])
    hyper = fit_hyperparameters(rows[:20], values[:20], np.zeros(20), 0)
    model = QualityModel(rows[:20], values[:20], np.zeros(20), hyper)
    predictions = model.predict(rows[20:])
    predictions.expect([0, 3])
    predictions.expect([1])
    covariance = hyper.kernel(rows) + np.diag([hyper.noise + 1e-8] * 30)
    known = np.r_[np.arange(20), [20, 23, 21]]
    across = covariance[np.ix_(known, np.arange(24, 30))]
    variance = hyper.kernel.diag(rows[24:]) - (across * np.linalg.solve(covariance[np.ix_(known, known)], across)).sum(
        0
    )
    assert predictions.deviations[4:] == pytest.approx(values[:20].std() * np.sqrt(variance), rel=1e-4)


def test_throughput_is_predicted_from_a_dozen_layouts():
    layouts, _ = random_rows(80, seed=1)

    def log_throughput(layout):
        seconds = layout.stages[0].dim ** 1.7 * (
            3 + sum(1.25 if c == "A" else 0.85 + 0.014 * s.state for s in layout.stages for c in s.blocks)
        )
        return -math.log2(seconds)

    values = np.array([log_throughput(layout) for layout in layouts])
    rows = np.array([made_of(layout) for layout in layouts])
    for known, allowed in ((16, 0.1), (40, 0.03)):
        model = ThroughputModel(rows[:known], values[:known])
        means, deviations = model.predict(rows[40:])
        error = means - values[40:]
        assert np.sqrt((error**2).mean()) * math.log(2) < allowed
        assert (np.abs(error) < 2 * deviations).mean() > 0.8


@pytest.mark.parametrize("known", [0, 1, 2])
def test_throughput_of_too_few_layouts_is_their_mean_and_uncertain(known):
    layouts, _ = random_rows(5)
    rows = np.array([made_of(layout) for layout in layouts])
    model = ThroughputModel(rows[:known], np.arange(known, dtype=float))
    means, deviations = model.predict(rows)
    assert means.tolist() == [statistics.fmean(range(known)) if known else 0.0] * 5
    assert (deviations >= 0.5).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25))
def test_fronts_are_those_of_peeling_one_after_the_other(values):
    ranks = _fronts(values)
    left, rank = set(range(len(values))), 0
    while left:
        layer = {
            i
            for i in left
            if not any(
                values[j][0] >= values[i][0] and values[j][1] >= values[i][1] and values[j] != values[i] for j in left
            )
        }
        assert {i for i in left if ranks[i] == rank} == layer or has_equals(values)
        left -= layer
        rank += 1


def has_equals(values):
    return len(set(values)) < len(values)


def test_the_model_keeps_the_recent_layouts_and_those_near_the_front():
    fronts = [5, 0, 3, 1, 0, 9, 9, 9]
    assert modelled(fronts, 8) == list(range(8))
    assert modelled(fronts, 4) == [1, 4, 6, 7]


def test_refits_grow_rarer():
    due = [_last_refit(count) for count in range(4, 10_000)]
    assert all(last <= count for last, count in zip(due, range(4, 10_000), strict=True))
    assert len(set(due)) < 90
    assert len(set(due[:30])) > 8


def test_a_model_with_more_layouts_than_it_holds_still_asks(monkeypatch):
    monkeypatch.setattr(known_cost_module, "MODELLED", 30)
    known = measured(60)
    sampler = KnownCostSampler(SPACE, seed=0, observations=lambda: known)
    assert told(sampler, known).key not in {o.key for o in known}


def test_what_was_timed_beforehand_is_known_of_a_candidate():
    """Two studies that differ in one timing of a layout that nobody has asked for: fast, it is asked for, slow, not."""
    known = measured(30)
    seen = {o.key for o in known}
    rng = random.Random(5)
    other = next(layout for layout in iter(lambda: SPACE.sample(rng), None) if layout.key not in seen)

    def asked(throughput):
        found = [*known, Observation(other, throughput, source="timings")]
        sampler = KnownCostSampler(SPACE, seed=0, observations=lambda: found)
        sampler._kept = [other]  # among the candidates
        return told(sampler, found).key

    assert asked(5.0) == other.key
    assert asked(-30.0) != other.key
