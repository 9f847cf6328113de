"""The front against brute force."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import study_factory
from hypothesis import given
from hypothesis import strategies as st

from mvsearch.study.front import (
    PICKS,
    Point,
    front_records,
    hypervolume,
    hypervolume_history,
    knee,
    pareto_front,
    pick,
    point_of,
    reference_point,
)
from mvsearch.study.record import COMPLETE, FAILED, PARTIAL, TrialRecord

# Few distinct values, so that ties and duplicates are common.
GRID = st.integers(-4, 4).map(float)


POINTS = st.lists(st.tuples(GRID, GRID), max_size=12).map(
    lambda pairs: [Point(str(i), quality, throughput) for i, (quality, throughput) in enumerate(pairs)]
)


FINE_POINTS = st.lists(st.tuples(*[st.floats(-5, 5)] * 2), min_size=1, max_size=15).map(
    lambda pairs: [Point(str(i), quality, throughput) for i, (quality, throughput) in enumerate(pairs)]
)


def record(key: str, nll: float | None, ratio: float | None, state: str = COMPLETE, **more: object) -> TrialRecord:
    number = int(key) if key.isdigit() else 0
    return TrialRecord(number=number, key=key, layout={"stages": []}, state=state, nll=nll, ratio=ratio, **more)


@given(POINTS)
def test_the_front_is_what_nothing_dominates_and_keeps_equal_points(points: list[Point]) -> None:
    expected = {
        p.key
        for p in points
        if not any(
            q.quality >= p.quality
            and q.throughput >= p.throughput
            and (q.quality > p.quality or q.throughput > p.throughput)
            for q in points
        )
    }
    front = pareto_front(points)
    assert {p.key for p in front} == expected
    assert len(front) == len(expected)
    assert [p.throughput for p in front] == sorted(p.throughput for p in front)
    assert [p.quality for p in front] == sorted((p.quality for p in front), reverse=True)


@given(POINTS, st.tuples(GRID, GRID))
def test_hypervolume_is_the_number_of_unit_cells_dominated(points: list[Point], reference: tuple[float, float]) -> None:
    cells = itertools.product(range(-4, 4), repeat=2)
    covered = sum(
        quality >= reference[0]
        and throughput >= reference[1]
        and any(p.quality > quality and p.throughput > throughput for p in points)
        for quality, throughput in cells
    )
    assert hypervolume(points, reference) == pytest.approx(covered)


@given(FINE_POINTS, st.tuples(*[st.floats(-6, 6)] * 2))
def test_hypervolume_agrees_with_inclusion_by_slices(points: list[Point], reference: tuple[float, float]) -> None:
    cuts = sorted({reference[1], *(p.throughput for p in points if p.throughput > reference[1])})
    area = 0.0
    for left, right in itertools.pairwise(cuts):
        best = max((p.quality for p in points if p.throughput >= right), default=-math.inf)
        area += (right - left) * max(0.0, best - reference[0])
    assert hypervolume(points, reference) == pytest.approx(area, abs=1e-9)


@given(FINE_POINTS)
def test_picks_are_members_with_the_extreme_objective(points: list[Point]) -> None:
    front = pareto_front(points)
    shuffled = random.Random(0).sample(front, len(front))
    assert all(pick(shuffled, which) in front for which in PICKS)
    assert pick(shuffled, "fastest").throughput == max(p.throughput for p in points)
    assert pick(shuffled, "most-accurate").quality == max(p.quality for p in points)


def test_the_knee_is_the_corner_and_does_not_depend_on_units() -> None:
    front = [Point("slow", 1.0, 0.0), Point("corner", 0.9, 0.8), Point("flat", 0.3, 0.9), Point("fast", 0.0, 1.0)]
    assert knee(front).key == "corner"
    assert knee([Point(p.key, 1000 * p.quality, p.throughput - 7) for p in front]).key == "corner"
    assert knee([front[0], front[-1]]).key == "slow"
    assert knee(front[2:3]).key == "flat"


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"'fatest'.*knee, fastest, most-accurate.*Did you mean 'fastest'"):
        pick([Point("a", 0, 0)], "fatest")
    with pytest.raises(ValueError, match="no points"):
        pick([], "knee")
    with pytest.raises(ValueError, match="a: quality: nan"):
        Point("a", math.nan, 0.0)
    with pytest.raises(ValueError, match="measure: 'acc'"):
        point_of(record("1", 1.0, 1.0), "acc")
    with pytest.raises(ValueError, match="n_classes: 1"):
        reference_point([], 1, "nll")


def test_only_complete_and_finite_records_stand_on_the_front() -> None:
    records = [
        record("1", 0.5, 2.0),
        record("2", 0.1, 4.0, FAILED),
        record("3", 0.1, 4.0, PARTIAL),
        record("4", None, 4.0),
        record("5", 0.1, None),
        record("6", math.nan, 4.0),
        record("7", 0.4, 1.0),
        record("8", 0.5, 2.0),
        record("9", 0.6, 1.5),
    ]
    assert [r.key for r in front_records(records, "nll")] == ["7", "1", "8"]
    assert front_records([], "nll") == []


def test_the_measure_decides_the_front() -> None:
    records = [record("1", 0.5, 2.0, top1=0.7), record("2", 0.6, 1.0, top1=0.8)]
    assert [r.key for r in front_records(records, "nll")] == ["1"]
    assert [r.key for r in front_records(records, "top1")] == ["2", "1"]


def test_reference_point_is_a_uniform_guess_at_half_the_slowest_speed() -> None:
    baselines = [record("1", 0.5, 1.0), record("2", 0.6, 0.8), record("3", None, None)]
    assert reference_point(baselines, 10, "nll") == pytest.approx((-math.log(10), math.log2(0.4)))
    assert reference_point(baselines, 4, "top1") == pytest.approx((0.25, math.log2(0.4)))
    assert reference_point([], 10, "nll") == pytest.approx((-math.log(10), -1.0))


def test_history_grows_to_the_hypervolume_of_all_and_is_one_after_the_baselines() -> None:
    records = study_factory.records(trials=25, failures=2)
    reference = reference_point([r for r in records if r.baseline], 10, "nll")
    shuffled = random.Random(1).sample(records, len(records))
    steps = hypervolume_history(shuffled, reference, "nll")
    complete = [r for r in records if r.state == COMPLETE]
    assert [s.number for s in steps] == [r.number for r in complete]
    areas = [s.hypervolume for s in steps]
    assert areas == sorted(areas)
    points = [p for r in complete if (p := point_of(r, "nll"))]
    assert areas[-1] == pytest.approx(hypervolume(points, reference))
    assert steps[4].multiple == pytest.approx(1.0)
    assert steps[-1].multiple == pytest.approx(areas[-1] / areas[4])
    bare = hypervolume_history([r for r in records if not r.baseline], reference, "nll")
    assert bare
    assert all(s.multiple is None for s in bare)
