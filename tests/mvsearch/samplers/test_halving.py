"""Who goes on to the next rung: the formulas against brute force, and the rule against its plain wording."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvsearch.samplers.halving import Halving, Ladder, Run, expected_hypervolume_gain, expected_improvement, fit
from mvsearch.study.front import Point, hypervolume

REFERENCE = (-2.0, -1.0)


number = st.floats(-1.9, 2, allow_nan=False).map(lambda value: round(value, 3))


points = st.lists(st.tuples(number, number), max_size=8).map(
    lambda pairs: [Point(str(i), quality, throughput) for i, (quality, throughput) in enumerate(pairs)]
)


def gain(front, quality, throughput):
    return hypervolume([*front, Point("new", quality, throughput)], REFERENCE) - hypervolume(front, REFERENCE)


@given(points, number, st.floats(-3, 3).map(lambda value: round(value, 3)))
def test_a_known_quality_gains_what_the_hypervolume_grows_by(front, quality, throughput):
    assert expected_hypervolume_gain(quality, 0.0, throughput, front, REFERENCE) == pytest.approx(
        gain(front, quality, throughput), abs=1e-9
    )


@given(points, number, st.floats(0.01, 1.5), st.floats(-2, 3).map(lambda value: round(value, 3)))
@settings(max_examples=40)
def test_an_uncertain_quality_gains_the_mean_over_its_draws(front, mean, deviation, throughput):
    # Quadrature of the plain gain over the normal density: an even grid of 12 standard deviations.
    grid = np.linspace(-6, 6, 601)
    density = np.exp(-0.5 * grid**2)
    gains = [gain(front, mean + deviation * z, throughput) for z in grid]
    expected = float(np.dot(gains, density) / density.sum())
    found = expected_hypervolume_gain(mean, deviation, throughput, front, REFERENCE)
    assert found == pytest.approx(expected, abs=2e-3 * deviation + 1e-6)


def test_an_uncertain_quality_gains_the_mean_of_a_monte_carlo_run():
    front = [Point("a", 0.5, -0.5), Point("b", 0.2, 0.4), Point("c", -0.4, 1.5)]
    draws = np.random.default_rng(0).normal(0.3, 0.4, 20_000)
    gains = [gain(front, quality, 0.9) for quality in draws]
    error = float(np.std(gains)) / math.sqrt(len(gains))
    assert expected_hypervolume_gain(0.3, 0.4, 0.9, front, REFERENCE) == pytest.approx(np.mean(gains), abs=4 * error)


@given(st.floats(-50, 50), st.floats(0, 5), st.floats(-50, 50))
def test_an_expected_improvement_is_at_least_the_improvement_of_the_mean(mean, deviation, level):
    value = expected_improvement(mean, deviation, level)
    assert value >= max(0.0, mean - level) * (1 - 1e-12)
    assert value <= max(0.0, mean - level) + deviation


@given(st.lists(st.tuples(number, number), min_size=3, max_size=20))
def test_the_line_is_the_least_squares_one_and_never_falls(pairs):
    now, later = np.array(pairs).T
    line = fit(pairs)
    assert line.slope >= 0
    design = np.stack([np.ones(len(now)), now], 1)
    (intercept, slope), *_ = np.linalg.lstsq(design, later, rcond=None)
    if np.ptp(now) > 0.01 and slope > 0:
        assert (line.intercept, line.slope) == pytest.approx((intercept, slope), abs=1e-6)
        squares = np.sum((later - design @ [intercept, slope]) ** 2)
        assert line.deviation == pytest.approx(math.sqrt(squares / (len(now) - 2)), abs=1e-6)
    elif slope < 0 and np.ptp(now) > 0.01:
        assert (line.intercept, line.slope) == pytest.approx((later.mean(), 0.0))


def test_two_pairs_make_no_line():
    with pytest.raises(ValueError, match="at least 3"):
        fit([(0, 1), (1, 2)])


def run(key, throughput, *qualities, **more):
    seeds = tuple(quality if isinstance(quality, tuple) else (quality,) for quality in qualities)
    return Run(str(key), throughput, seeds, **more)


def choose(halving, runs, *, relaxed=False):
    ladder = Ladder(halving)
    for one in runs:
        ladder.update(one)
    return ladder.choose(REFERENCE, relaxed=relaxed)


def test_one_in_eta_goes_on_without_waiting_for_the_others():
    halving = Halving(3, 3)
    waiting = [run("a", 0.0, -1.0), run("b", 0.0, -0.5)]
    assert choose(halving, waiting) is None
    waiting.append(run("c", 0.0, -1.5))
    assert choose(halving, waiting).key == "b"
    waiting[1] = run("b", 0.0, -0.5, under_way=True)
    assert choose(halving, waiting) is None, "its place is taken while it is still being trained"
    waiting[1] = run("b", 0.0, -0.5, failed=True)
    assert choose(halving, waiting) is None, "and when it has failed on the way"
    assert choose(halving, waiting, relaxed=True).key == "a"
    hand_made = [run(f"hand {i}", 0.0, -2.0, -2.0, -2.0, baseline=True) for i in range(9)]
    assert choose(halving, [*waiting, *hand_made]) is None, "hand-made layouts give no places"


def test_the_higher_rung_goes_first():
    low = [run(f"low{i}", 0.0, -1.0 + i / 10) for i in range(3)]
    high = [run(f"high{i}", 0.0, -1.0, -0.9 + i / 10) for i in range(3)]
    runs = [*low, *high, *(run(f"more{i}", 0.0, -1.5) for i in range(6))]
    assert choose(Halving(3, 3), runs).key == "high2"
    high[2] = run("high2", 0.0, -1.0, -0.7, under_way=True)
    assert choose(Halving(3, 3), [*low, *high, *runs[6:]]).key == "low2", "12 arrived and 3 have gone"


def test_a_fast_bad_layout_does_not_go_on_for_its_speed():
    """Not dominated at any rung, and worse than the worst hand-made one by more than the noise of a seed."""
    hand_made = [run("h1", 0.0, (-1.0, -1.02), baseline=True), run("h2", -0.5, (-0.8, -0.82), baseline=True)]
    fast, fine = run("fast", 3.0, (-1.5, -1.52)), run("fine", -0.9, (-0.9, -0.92))
    others = [run("x", -0.9, (-1.0, -1.0))]
    assert choose(Halving(2, 3), [*hand_made, fast, fine, *others]).key == "fine"
    noisy = [run("h1", 0.0, (-0.7, -1.3), baseline=True), run("h2", -0.5, (-0.5, -1.1), baseline=True)]
    assert choose(Halving(2, 3), [*noisy, fast, fine, *others]).key == "fast", "within two seed deviations"


def test_the_floor_takes_the_noise_from_seeds_else_from_the_line_else_from_the_hand_made():
    halving = Halving(2, 3)
    seeds = [run("h", 0.0, (-1.0, -1.2), baseline=True), run("a", 0.0, (-0.5, -0.7)), run("b", 0.0, (-0.5, -0.5))]
    pooled = math.sqrt((0.02 + 0.02 + 0.0) / 3)
    assert halving.floor(seeds, 0) == pytest.approx(-1.1 - 2 * pooled)
    few = [run(f"h{i}", 0.0, quality, baseline=True) for i, quality in enumerate((-1.0, -0.8, -0.6))]
    assert halving.floor(few, 0) == pytest.approx(-1.0 - 2 * 0.2)
    rng = random.Random(0)
    many = [run(f"h{i}", 0.0, -i / 10, -i / 20 + rng.gauss(0, 0.01), baseline=True) for i in range(8)]
    assert halving.floor(many, 0) == pytest.approx(-0.7 - 2 * halving.prediction(many, 0).deviation)
    assert halving.floor([run("a", 0.0, -1.0)], 0) == -math.inf


def test_from_eight_pairs_on_the_next_rung_is_predicted():
    halving = Halving(2, 2)
    # Of those seen on both rungs the end is the same whatever the start was: only throughput is left to gain.
    pairs = [run(f"p{i}", -0.5, -1.0 + i / 10, -0.5 + 0.01 * (-1) ** i) for i in range(8)]
    slow, fast = run("slow", 0.2, 1.0), run("fast", 0.8, -0.9)
    waiting = [slow, fast, *(run(f"w{i}", -0.9, -1.9) for i in range(16))]
    assert halving.prediction(pairs, 0) is not None
    assert choose(halving, [*pairs, *waiting]) == fast
    assert halving.prediction(pairs[:7], 0) is None
    assert choose(halving, [*pairs[:7], *waiting]) == slow


def test_two_alike_are_not_sent_after_each_other():
    twins = [run("twin1", 0.5, -0.5), run("twin2", 0.5, -0.5)]
    other = run("other", -0.8, -0.4)
    rest = [run(f"r{i}", -0.9, -1.9) for i in range(9)]
    for pairs in ([], [run(f"p{i}", -0.9, -1.0 - i / 10, -0.9 - i / 10) for i in range(8)]):
        halving = Halving(2, 3)
        first = choose(halving, [*twins, other, *rest, *pairs], relaxed=True)
        assert first.key == "twin2"
        sent = [twins[0], run("twin2", 0.5, -0.5, under_way=True)]
        assert choose(halving, [*sent, other, *rest, *pairs], relaxed=True) == other


@st.composite
def studies(draw):
    rungs = draw(st.integers(1, 4))
    runs = []
    for key in range(draw(st.integers(0, 25))):
        reached = draw(st.integers(1, rungs))
        qualities = [(draw(number),) for _ in range(reached)]
        flags = draw(st.sampled_from([{}, {}, {}, {"baseline": True}, {"under_way": True}, {"failed": True}]))
        runs.append(Run(f"{key:02}", draw(number), tuple(qualities), **flags))
    return runs, rungs, draw(st.integers(2, 4)), draw(st.booleans())


@given(studies())
def test_the_choice_is_the_best_of_those_that_may(study):
    runs, rungs, eta, relaxed = study
    halving = Halving(rungs, eta)
    chosen = choose(halving, runs, relaxed=relaxed)
    may = {}
    for rung in range(rungs - 1):
        there = [r for r in runs if len(r.qualities) > rung]
        own = [r for r in there if not r.baseline]
        gone = [r for r in own if len(r.qualities) > rung + 1 or r.under_way or r.failed]
        waiting = [r for r in own if r not in gone and r.quality(rung) >= halving.floor(runs, rung)]
        if waiting and (relaxed or len(gone) < len(own) // eta):
            may[rung] = waiting
    if not may:
        assert chosen is None
        return
    top = max(may)
    assert chosen in may[top]
    scores = halving.scores(runs, top, REFERENCE, may[top])
    assert scores[chosen] == max(scores.values()) >= 0


@given(studies(), st.randoms())
def test_a_ladder_chooses_the_same_however_the_layouts_came_up(study, rng):
    runs, rungs, eta, relaxed = study
    ladder = Ladder(Halving(rungs, eta))
    for final in runs:
        for reached in range(1, len(final.qualities)):
            ladder.update(
                Run(final.key, final.throughput, final.qualities[:reached], final.baseline, rng.random() < 0.5)
            )
        ladder.update(final)
    assert ladder.choose(REFERENCE, relaxed=relaxed) == choose(Halving(rungs, eta), runs, relaxed=relaxed)
