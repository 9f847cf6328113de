"""The front: dominance, exact hypervolume in two dimensions, knee and picks, all of (quality, throughput).

Both are maximised. Quality is minus the NLL or top-1 (`TrialRecord.quality`), throughput is log2 of the ratio to the
study's reference layout. Only the standard library is needed, and SciPy where noise is judged.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mvsearch.study.measure import Measure
from mvsearch.study.record import COMPLETE, TrialRecord

PICKS = ("knee", "fastest", "most-accurate")


@dataclass(frozen=True)
class Point:
    """One layout in the plane of the two objectives; larger is better in both.

    Attributes:
        key: what the point stands for, `HybridLayout.key`.
        quality: minus the NLL in nats, or top-1 from 0 to 1.
        throughput: log2 of the ratio to the reference layout's throughput.

    Raises:
        ValueError: if an objective is not a finite number.
    """

    key: str
    quality: float
    throughput: float

    def __post_init__(self) -> None:
        for name in ("quality", "throughput"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{self.key}: {name}: {getattr(self, name)!r} is not allowed; a finite number")


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point dominates, slowest (and so best) first.

    Points that are equal in both objectives do not dominate each other: all of them are kept, in the order given.
    """
    front: list[Point] = []
    best = -math.inf
    # Fastest first: a point is on the front where no faster point is as good, and no equally fast one is better.
    for point in sorted(points, key=lambda p: (p.throughput, p.quality), reverse=True):
        equal = front and (front[-1].throughput, front[-1].quality) == (point.throughput, point.quality)
        if point.quality > best or equal:
            front.append(point)
            best = point.quality
    # A stable sort puts the slowest first and leaves equal points in the order given.
    return sorted(front, key=lambda p: p.throughput)


def hypervolume(points: Iterable[Point], reference: tuple[float, float]) -> float:
    """Area that the points dominate above a reference point; exact.

    Args:
        points: any points; those not above the reference in both objectives add nothing.
        reference: (quality, throughput) of the corner from which the area is measured.

    Returns:
        The area, in units of quality times octaves of throughput; at least 0.
    """
    low_quality, low_throughput = reference
    area, left = 0.0, low_throughput
    for point in pareto_front(p for p in points if p.quality > low_quality and p.throughput > low_throughput):
        area += (point.throughput - left) * (point.quality - low_quality)
        left = point.throughput
    return area


def knee(front: Sequence[Point]) -> Point:
    """The member of a front that lies furthest above the line between its two ends, each axis scaled to 0..1.

    Of equal ones the more accurate is taken; a front of one or two points therefore gives its more accurate point.

    Raises:
        ValueError: if the front is empty.
    """
    if not front:
        raise ValueError("front: no points; a knee needs at least one")
    qualities, throughputs = [p.quality for p in front], [p.throughput for p in front]

    def scaled(value: float, values: list[float]) -> float:
        span = max(values) - min(values)
        return (value - min(values)) / span if span > 0 else 0.0

    # The scaled ends are (0, 1) and (1, 0), so the distance from the line between them grows with the sum. Rounding
    # keeps two ends, whose sums may differ in the last bit, a tie.
    return max(
        front,
        key=lambda p: (round(scaled(p.quality, qualities) + scaled(p.throughput, throughputs), 12), p.quality),
    )


def pick(front: Sequence[Point], which: str) -> Point:
    """One member of a front.

    Args:
        front: the members, in any order.
        which: ``"knee"``, ``"fastest"`` or ``"most-accurate"``.

    Raises:
        ValueError: if the front is empty or `which` is none of these.
    """
    if which not in PICKS:
        near = difflib.get_close_matches(which, PICKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"pick: {which!r} is not allowed; one of {', '.join(PICKS)}.{hint}")
    if not front:
        raise ValueError("front: no points to pick from")
    if which == "knee":
        return knee(front)
    if which == "fastest":
        return max(front, key=lambda p: (p.throughput, p.quality))
    return max(front, key=lambda p: (p.quality, p.throughput))


def point_of(record: TrialRecord, measure: str) -> Point | None:
    """The record in the plane of the objectives; None unless it is COMPLETE and both numbers are finite.

    Args:
        record: one layout with what was measured of it.
        measure: ``"nll"`` or ``"top1"``.

    Raises:
        ValueError: for another measure.
    """
    quality, throughput = record.quality(measure), record.log2_ratio
    if record.state != COMPLETE or quality is None or throughput is None:
        return None
    return Point(record.key, quality, throughput) if math.isfinite(quality) and math.isfinite(throughput) else None


def complete_records(records: Iterable[TrialRecord], measure: str) -> list[TrialRecord]:
    """The records that have a `point_of`, in the order given."""
    return [record for record in records if point_of(record, measure)]


def front_records(records: Iterable[TrialRecord], measure: str) -> list[TrialRecord]:
    """The COMPLETE records that no other dominates, slowest (and so best) first; equal ones are all kept."""
    complete = [(record, point) for record in records if (point := point_of(record, measure))]
    keys = {(p.quality, p.throughput) for p in pareto_front(point for _, point in complete)}
    members = [(record, point) for record, point in complete if (point.quality, point.throughput) in keys]
    return [record for record, _ in sorted(members, key=lambda pair: pair[1].throughput)]


def reference_point(baselines: Iterable[TrialRecord], n_classes: int, measure: str) -> tuple[float, float]:
    """The corner from which hypervolume is measured, fixed when a study has timed its hand-made baselines.

    Args:
        baselines: records of the hand-made layouts; those without a timing are left out.
        n_classes: classes of the data set, at least 2.
        measure: ``"nll"`` or ``"top1"``.

    Returns:
        (quality of a uniform guess, log2 of half the ratio of the slowest baseline). Where no baseline was timed,
        the reference layout itself, whose ratio is 1, stands for them.

    Raises:
        ValueError: for fewer than 2 classes or an unknown measure.
    """
    if n_classes < 2:
        raise ValueError(f"n_classes: {n_classes!r} is not allowed; at least 2")
    slowest = min((record.ratio for record in baselines if record.ratio), default=1.0)
    return Measure(measure).guess(n_classes), math.log2(slowest / 2)


@dataclass(frozen=True)
class HypervolumeStep:
    """The hypervolume once one more layout was complete.

    Attributes:
        complete: layouts complete so far, this one among them; from 1.
        number: trial number of this one.
        hypervolume: of all complete so far, in units of quality times octaves.
        multiple: the same over the hypervolume of the hand-made baselines; None without them, or where theirs is 0.
    """

    complete: int
    number: int
    hypervolume: float
    multiple: float | None


def hypervolume_history(
    records: Iterable[TrialRecord], reference: tuple[float, float], measure: str
) -> list[HypervolumeStep]:
    """Hypervolume after each complete layout, in the order in which they ended.

    Args:
        records: all records of a study, in any order; those without an end time come last, by number.
        reference: the study's `reference_point`.
        measure: ``"nll"`` or ``"top1"``.
    """
    complete = complete_records(records, measure)
    complete.sort(key=lambda r: (math.inf if r.ended is None else r.ended, r.number))
    baselines = hypervolume((p for r in complete if r.baseline and (p := point_of(r, measure))), reference)
    steps: list[HypervolumeStep] = []
    front: list[Point] = []
    for count, record in enumerate(complete, start=1):
        point = point_of(record, measure)
        front = pareto_front([*front, *([point] if point else [])])
        area = hypervolume(front, reference)
        steps.append(HypervolumeStep(count, record.number, area, area / baselines if baselines > 0 else None))
    return steps


@dataclass(frozen=True)
class Family:
    """Layouts of equal cost: the same blocks in another order have the same parameters and multiply-accumulates.

    Attributes:
        params: of each.
        macs: of each, without the scan.
        members: best quality first.
    """

    params: int | None
    macs: int | None
    members: tuple[TrialRecord, ...]


def families(records: Iterable[TrialRecord], measure: str) -> list[Family]:
    """Group complete records by their cost, so that each cost is shown once; cheapest first.

    Those of which no cost is known each stand alone, at the end.
    """
    groups: dict[tuple[object, ...], list[TrialRecord]] = {}
    for record in complete_records(records, measure):
        cost = (record.params, record.macs, record.macs_attention, record.macs_scan)
        groups.setdefault((record.key,) if None in cost[:2] else cost, []).append(record)
    found = [
        Family(members[0].params, members[0].macs, tuple(sorted(members, key=lambda r: -(r.quality(measure) or 0.0))))
        for members in groups.values()
    ]
    return sorted(found, key=lambda f: (math.inf if f.macs is None else f.macs, f.params or 0))
