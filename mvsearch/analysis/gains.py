"""What the front offers in place of the hand-made layouts."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mvsearch.analysis.confirmation import Confirmation
from mvsearch.analysis.noise import SeedNoise, difference_noise, study_difference_noise
from mvsearch.study.data import StudyData
from mvsearch.study.front import PICKS, Point, front_records, pick, point_of
from mvsearch.study.measure import Measure
from mvsearch.study.record import TrialRecord


@dataclass(frozen=True)
class Margin:
    """One layout against the hand-made ones; quality and throughput in the units of `Point`.

    Attributes:
        at_speed: the best hand-made layout that is at least as fast; None if there is none.
        at_quality: the fastest hand-made layout that is at least as good; None if there is none.
    """

    at_speed: TrialRecord | None
    at_quality: TrialRecord | None


def margin(record: TrialRecord, baselines: Iterable[TrialRecord], measure: str) -> Margin:
    """What hand-made layouts reach at the record's speed or faster, and at its quality or better."""
    own = point_of(record, measure)
    others = [(other, point) for other in baselines if (point := point_of(other, measure))]
    if own is None:
        return Margin(None, None)
    fast = [pair for pair in others if pair[1].throughput >= own.throughput]
    good = [pair for pair in others if pair[1].quality >= own.quality]
    at_speed = max(fast, key=lambda pair: pair[1].quality, default=None)
    at_quality = max(good, key=lambda pair: pair[1].throughput, default=None)
    return Margin(at_speed and at_speed[0], at_quality and at_quality[0])


@dataclass(frozen=True)
class Gain:
    """What the front offers in place of one hand-made layout; the same layout where it offers nothing better.

    Attributes:
        baseline: the hand-made layout.
        better: the best member of the front that is at least as fast as it.
        faster: the fastest member of the front that is at least as good as it.
    """

    baseline: TrialRecord
    better: TrialRecord
    faster: TrialRecord


@dataclass(frozen=True)
class Difference:
    """One layout minus another in quality, with half of a 95 % interval where seeds allow one.

    Attributes:
        nll: difference in NLL, nats; negative is better.
        nll_half: half of its interval; None where no layout was trained twice.
        top1: difference in top-1, 0 to 1; positive is better.
        top1_half: half of its interval.
        seeds: fresh trainings of each on the test split, where both were confirmed; None: as the search measured it.
    """

    nll: float
    nll_half: float | None
    top1: float
    top1_half: float | None
    seeds: int | None = None

    def clear(self, measure: str) -> bool | None:
        """Whether the interval of a measure leaves out zero; None without an interval."""
        value, half = Measure(measure).choose(nll=(self.nll, self.nll_half), top1=(self.top1, self.top1_half))
        return None if half is None else abs(value) > half


def difference(
    study: StudyData, confirmed: Confirmation | None, record: TrialRecord, other: TrialRecord
) -> Difference | None:
    """Compare two layouts: by fresh seeds on the test split where both were confirmed, else as the search measured.

    The noise is that of differences between layouts of the same seeds, pooled (`noise.difference_noise`); intervals are
    Student's t at 95 %.
    """
    mine = confirmed.layout(record.key) if confirmed else None
    theirs = confirmed.layout(other.key) if confirmed else None
    if confirmed and mine and theirs:
        n = confirmed.seeds
        noises = [difference_noise([[one.test.qualities(m) for one in confirmed.layouts]]) for m in Measure]
        halves = [_half(noise, n, n) for noise in noises]
        nll, top1 = mine.test.nll - theirs.test.nll, mine.test.top1 - theirs.test.top1
        return Difference(nll, halves[0], top1, halves[1], seeds=n)
    if record.nll is None or other.nll is None or record.top1 is None or other.top1 is None:
        return None
    halves = [_half(study_difference_noise(study, m), len(record.seeds), len(other.seeds)) for m in Measure]
    return Difference(record.nll - other.nll, halves[0], record.top1 - other.top1, halves[1])


def _half(noise: SeedNoise | None, first: int, second: int) -> float | None:
    from scipy.special import stdtrit

    if noise is None or not first or not second:
        return None
    return float(stdtrit(noise.df, 0.975)) * noise.sd * math.sqrt(1 / first + 1 / second)


def named_baseline(study: StudyData) -> TrialRecord | None:
    """The complete reference layout ("last half"), else the best hand-made one; None where none is complete."""
    reference = next((r for r in study.baselines if r.key == study.reference_key), None)
    return reference or max(study.baselines, key=lambda r: r.quality(study.measure) or -math.inf, default=None)


def gains(study: StudyData) -> list[Gain]:
    """A gain for each complete hand-made layout, slowest first; each is met or beaten by the front, by definition."""
    found = []
    members = [(record, point) for record in study.front if (point := point_of(record, study.measure))]
    for baseline in sorted(study.baselines, key=lambda record: record.ratio or 0.0):
        own = point_of(baseline, study.measure)
        if own is None:
            continue
        fast = [pair for pair in members if pair[1].throughput >= own.throughput]
        good = [pair for pair in members if pair[1].quality >= own.quality]
        better = max(fast, key=lambda pair: pair[1].quality)
        faster = max(good, key=lambda pair: pair[1].throughput)
        found.append(Gain(baseline, better[0], faster[0]))
    return found


def picks(study: StudyData) -> dict[str, TrialRecord]:
    """Members of the front by ``"knee"``, ``"fastest"`` and ``"most-accurate"``; empty where no layout is complete."""
    by_point: dict[Point, TrialRecord] = {}
    for record in study.front:
        point = point_of(record, study.measure)
        if point:
            by_point[point] = record
    return {which: by_point[pick(list(by_point), which)] for which in PICKS} if by_point else {}


def validation_images(study: StudyData) -> int | None:
    """Images that quality was measured on, by the trainings, else by the configuration; None where neither says it."""
    for record in study.records:
        for line in record.evaluations:
            if line.values.get("val_images"):
                return int(line.values["val_images"])
    asked = study.setting("proxy", "val_images")
    return asked if isinstance(asked, int) else None


def device_hours(study: StudyData) -> Callable[[float], float]:
    """A function from a moment in Unix seconds to the hours that all workers had spent timing and training by then."""
    done = (line for record in study.records for line in record.evaluations if 0 < line.started < line.ended)
    lines = sorted((line.ended, line.ended - line.started) for line in done)
    ends = [end for end, _ in lines]
    spent = list(itertools.accumulate((seconds / 3600 for _, seconds in lines), initial=0.0))
    return lambda moment: spent[bisect.bisect_right(ends, moment)]


@dataclass(frozen=True)
class Reordering:
    """How the front would change if the other of NLL and top-1 decided it.

    Attributes:
        gained: layouts on the front by the other measure only.
        lost: layouts on the front by the study's measure only.
        pairs: pairs of front members (of either measure) that both measures order.
        swapped: how many of them the two measures order differently.
    """

    gained: tuple[TrialRecord, ...] = ()
    lost: tuple[TrialRecord, ...] = ()
    pairs: int = 0
    swapped: int = 0


def reordering(study: StudyData) -> Reordering:
    """Compare the front by the study's measure with the front by the other one."""
    own_front, other_front = study.front, front_records(study.complete, study.measure.other)
    own_keys, other_keys = {r.key for r in own_front}, {r.key for r in other_front}
    gained = tuple(r for r in other_front if r.key not in own_keys)
    members = [r for r in [*own_front, *gained] if r.nll is not None and r.top1 is not None]
    pairs = swapped = 0
    for position, first in enumerate(members):
        for second in members[position + 1 :]:
            by_nll = (second.nll or 0.0) - (first.nll or 0.0)
            by_top1 = (first.top1 or 0.0) - (second.top1 or 0.0)
            pairs += by_nll != 0 and by_top1 != 0
            swapped += by_nll * by_top1 < 0
    return Reordering(gained, tuple(r for r in own_front if r.key not in other_keys), pairs, swapped)
