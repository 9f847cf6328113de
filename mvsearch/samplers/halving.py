"""Which layout goes on to the next rung: asynchronous halving for two objectives, one of them known.

Successive halving (Hyperband) trains many layouts a little and the promising ones longer; its asynchronous form (ASHA,
Li et al., arXiv 1810.05934) never waits for a rung to fill: whenever a device is free, a layout may go on if fewer than
1/eta of those that arrived at its rung have. ASHA ranks by one loss. Here throughput is an objective too and does not
change from rung to rung, so ranking by dominance would keep every fast, bad layout; the score is instead the
hypervolume that a layout is expected to add at the next rung (expected hypervolume improvement, EHVI, which has a
simple closed form in two dimensions when one of them is known).

Pure functions of plain numbers: the standard library alone, neither Optuna nor torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mvsearch.study.front import Point, pareto_front

PAIRS_TO_PREDICT = 8
"""Layouts that must have been seen on two neighbouring rungs before the later one is predicted from the earlier."""


FLOOR_DEVIATIONS = 2.0
"""How many standard deviations of a seed below the worst hand-made layout is too bad to go on."""


@dataclass(frozen=True)
class Run:
    """One layout on its way up the rungs.

    Attributes:
        key: `HybridLayout.key`.
        throughput: log2 of the ratio to the reference layout's.
        qualities: of each rung it was trained on, from the first: the quality of every seed, larger is better.
        baseline: whether it is hand-made; those go on without being asked.
        under_way: whether a device trains it (or is about to).
        failed: whether it has ended as a failure.
    """

    key: str
    throughput: float
    qualities: tuple[tuple[float, ...], ...]
    baseline: bool = False
    under_way: bool = False
    failed: bool = False

    @cached_property
    def _means(self) -> tuple[float, ...]:
        return tuple(map(statistics.fmean, self.qualities))

    def quality(self, rung: int) -> float:
        """Mean quality over the seeds at a rung it was trained on."""
        return self._means[rung]

    def arrived(self, rung: int) -> bool:
        """Whether it was trained to the end of a rung."""
        return len(self.qualities) > rung

    def went_on(self, rung: int) -> bool:
        """Whether it left a rung for the next, also if it is still being trained there or has failed there."""
        return len(self.qualities) > rung + 1 or (self.arrived(rung) and (self.under_way or self.failed))


@dataclass(frozen=True)
class Prediction:
    """The straight line from the quality at one rung to that at the next.

    Attributes:
        intercept: a of next = a + b · now.
        slope: b, 0 or more.
        deviation: standard deviation of the residuals, sqrt(sum of squares / (pairs − 2)).
    """

    intercept: float
    slope: float
    deviation: float

    def __call__(self, quality: float) -> float:
        """The quality to expect at the next rung."""
        return self.intercept + self.slope * quality


def fit(pairs: Sequence[tuple[float, float]]) -> Prediction:
    """Least squares of the quality at the next rung on the quality at this one, with a slope of 0 or more.

    A layout that is better now is never predicted to be worse later, whatever the noise of few pairs says.

    Args:
        pairs: (quality at this rung, quality at the next), at least 3.

    Raises:
        ValueError: for fewer than 3 pairs.
    """
    if len(pairs) < 3:
        raise ValueError(f"pairs: {len(pairs)} are not enough for a line and its residuals; at least 3")
    now, later = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    mean_now, mean_later = statistics.fmean(now), statistics.fmean(later)
    spread = math.fsum((x - mean_now) ** 2 for x in now)
    together = math.fsum((x - mean_now) * (y - mean_later) for x, y in pairs)
    slope = max(0.0, together / spread) if spread > 0 else 0.0
    intercept = mean_later - slope * mean_now
    squares = math.fsum((y - intercept - slope * x) ** 2 for x, y in pairs)
    return Prediction(intercept, slope, math.sqrt(squares / (len(pairs) - 2)))


def expected_improvement(mean: float, deviation: float, level: float) -> float:
    """E[max(0, Y − level)] for Y normal: (mean − level) Φ(z) + deviation φ(z) with z = (mean − level) / deviation.

    Args:
        mean: of Y.
        deviation: standard deviation of Y, 0 or more; 0 means that Y is known.
        level: what Y must exceed.
    """
    gap = mean - level
    if deviation <= 0:
        return max(0.0, gap)
    z = gap / deviation
    # erfc keeps its digits in the lower tail, where 1 + erf would lose them.
    below = 0.5 * math.erfc(-z / math.sqrt(2))
    return max(0.0, gap * below + deviation * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def expected_hypervolume_gain(
    mean: float, deviation: float, throughput: float, front: Iterable[Point], reference: tuple[float, float]
) -> float:
    """Hypervolume that a layout of known throughput and normally distributed quality is expected to add to a front.

    At each throughput x above the reference's and up to its own, the layout lifts the front by what its quality exceeds
    the front's level there, the best quality among the members at least as fast as x. The level is constant between
    neighbouring members, so the integral is the sum over these segments of (the segment's width below the layout's
    throughput) × (the expected improvement over its level).

    Args:
        mean: of the quality.
        deviation: its standard deviation, 0 or more.
        throughput: log2 ratio.
        front: any points; dominated ones do not matter.
        reference: (quality, throughput) of the corner from which hypervolume is measured.

    Returns:
        The expected gain, in units of quality times octaves of throughput; 0 or more.
    """
    low_quality, low_throughput = reference
    members = pareto_front(p for p in front if p.quality > low_quality and p.throughput > low_throughput)
    edges = [low_throughput, *(p.throughput for p in members), math.inf]
    levels = [*(p.quality for p in members), low_quality]
    gain = 0.0
    for left, right, level in zip(edges, edges[1:], levels, strict=False):
        width = min(right, throughput) - left
        if width <= 0:
            if left >= throughput:
                break
            continue  # members of equal throughput
        gain += width * expected_improvement(mean, deviation, level)
    return gain


@dataclass(frozen=True)
class Halving:
    """The rule of one study.

    Attributes:
        rungs: how many rungs there are, 1 or more.
        eta: one in eta of those that arrived at a rung goes on, 2 or more.
    """

    rungs: int
    eta: int

    def best(self, runs: Sequence[Run], rung: int, reference: tuple[float, float]) -> Run | None:
        """The layout that leaves a rung first of those that wait there; None if none is good enough (`floor`)."""
        waiting = self._waiting(runs, rung)
        # The score falls neither with quality nor with throughput, so a dominated layout cannot have the best one.
        fronts = {point.key for point in pareto_front(Point(r.key, r.quality(rung), r.throughput) for r in waiting)}
        found = self.scores(runs, rung, reference, [run for run in waiting if run.key in fronts])
        return max(found, key=lambda run: (found[run], run.quality(rung), run.key), default=None)

    def _waiting(self, runs: Sequence[Run], rung: int) -> list[Run]:
        least = self.floor(runs, rung)
        return [
            run
            for run in runs
            if run.arrived(rung) and not run.baseline and not run.went_on(rung) and run.quality(rung) >= least
        ]

    def scores(
        self, runs: Sequence[Run], rung: int, reference: tuple[float, float], waiting: Sequence[Run]
    ) -> dict[Run, float]:
        """The score of each of those that wait at a rung.

        From `PAIRS_TO_PREDICT` pairs on, it is the expected hypervolume gain at the next rung, over the front of what
        was measured there; layouts on their way there stand in it with their predicted quality, so that two alike are
        not sent after each other. Before that it is the hypervolume gain at this rung over the front of those that went
        on from it.

        Args:
            runs: all layouts of the study, each once.
            rung: from 0.
            reference: (quality, throughput) from which hypervolume is measured.
            waiting: those to score.
        """
        prediction = self.prediction(runs, rung)
        front: list[Point] = []
        for run in runs:
            if not run.arrived(rung) or not run.went_on(rung):
                continue
            quality = run.quality(rung)
            if prediction is not None:
                quality = run.quality(rung + 1) if run.arrived(rung + 1) else prediction(quality)
            # What failed on the next rung holds no place on its front.
            if run.arrived(rung + 1) or not run.failed:
                front.append(Point(run.key, quality, run.throughput))
        front = pareto_front(front)
        found = {}
        for run in waiting:
            mean, deviation = run.quality(rung), 0.0
            if prediction is not None:
                mean, deviation = prediction(mean), prediction.deviation
            found[run] = expected_hypervolume_gain(mean, deviation, run.throughput, front, reference)
        return found

    def prediction(self, runs: Iterable[Run], rung: int) -> Prediction | None:
        """The line from a rung to the next; None before `PAIRS_TO_PREDICT` layouts were seen on both."""
        pairs = [(run.quality(rung), run.quality(rung + 1)) for run in runs if run.arrived(rung + 1)]
        return fit(pairs) if len(pairs) >= PAIRS_TO_PREDICT else None

    def floor(self, runs: Sequence[Run], rung: int) -> float:
        """The quality below which a layout does not leave a rung; −inf while no hand-made layout was there.

        It is the quality of the worst hand-made layout there minus `FLOOR_DEVIATIONS` standard deviations of a seed:
        pooled over the layouts there with two seeds or more; with one seed a layout, the residual deviation of the line
        to the next rung, which holds the noise of both rungs and so is on the careful side; before there is a line, the
        standard deviation between the hand-made layouts themselves, which is as careful.
        """
        hand_made = [run.quality(rung) for run in runs if run.baseline and run.arrived(rung)]
        if not hand_made:
            return -math.inf
        return min(hand_made) - FLOOR_DEVIATIONS * self._seed_deviation(runs, rung, hand_made)

    def _seed_deviation(self, runs: Sequence[Run], rung: int, hand_made: Sequence[float]) -> float:
        groups = [run.qualities[rung] for run in runs if run.arrived(rung) and len(run.qualities[rung]) > 1]
        if groups:
            squares = math.fsum(statistics.variance(group) * (len(group) - 1) for group in groups)
            return math.sqrt(squares / sum(len(group) - 1 for group in groups))
        prediction = self.prediction(runs, rung)
        if prediction is not None:
            return prediction.deviation
        return statistics.stdev(hand_made) if len(hand_made) > 1 else 0.0


class Ladder:
    """The layouts of a running search, with the places on each rung counted as they change.

    Args:
        halving: the rule.

    Attributes:
        runs: by layout key.
    """

    def __init__(self, halving: Halving) -> None:
        self.halving = halving
        self.runs: dict[str, Run] = {}
        self._arrived = [0] * halving.rungs
        self._gone = [0] * halving.rungs

    def update(self, run: Run) -> None:
        """Take a layout that is new or has changed."""
        for one, change in ((self.runs.get(run.key), -1), (run, 1)):
            if one is not None and not one.baseline:
                for rung in range(len(one.qualities)):
                    self._arrived[rung] += change
                    self._gone[rung] += change * one.went_on(rung)
        self.runs[run.key] = run

    def quota(self, rung: int) -> int:
        """How many more layouts may leave a rung now: floor(arrived / eta) − gone on. Hand-made ones do not count."""
        return self._arrived[rung] // self.halving.eta - self._gone[rung]

    def choose(self, reference: tuple[float, float], *, relaxed: bool = False) -> Run | None:
        """The waiting layout that goes on next, if one may.

        The highest rung is looked at first, as in ASHA; within a rung the best score (`Halving.scores`) wins, then the
        better quality, then the key. Layouts are looked at only where there is a place.

        Args:
            reference: (quality, throughput) from which hypervolume is measured.
            relaxed: whether the quota is lifted: when no new layout can be asked for, those that wait go on.
        """
        runs = list(self.runs.values())
        for rung in reversed(range(self.halving.rungs - 1)):
            if relaxed or self.quota(rung) >= 1:
                best = self.halving.best(runs, rung, reference)
                if best is not None:
                    return best
        return None
