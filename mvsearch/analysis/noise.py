"""How far a training moves with its seed, and which layouts can be told apart in spite of it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mvsearch.analysis.repeated import quality_of
from mvsearch.study.data import StudyData
from mvsearch.study.front import Point
from mvsearch.study.record import TRAIN, TrialRecord


def pooled_se(records: Sequence[TrialRecord], measure: str) -> float | None:
    """Standard error of a layout's mean over seeds, pooled over layouts: steadier than one from two seeds.

    The variance between seeds is averaged over the layouts, weighted by their degrees of freedom, and divided by the
    smallest number of seeds. None where no layout has two seeds.
    """
    pairs = [(se, len(r.seeds)) for r in records if (se := r.quality_se(measure)) is not None and len(r.seeds) > 1]
    if not pairs:
        return None
    variance = sum(se**2 * n * (n - 1) for se, n in pairs) / sum(n - 1 for _, n in pairs)
    return math.sqrt(variance / min(n for _, n in pairs))


@dataclass(frozen=True)
class SeedNoise:
    """How far one training moves with its seed, pooled over layouts.

    Attributes:
        sd: standard deviation between seeds of one layout, in the unit of quality.
        df: degrees of freedom behind it: the trainings less the layouts.
    """

    sd: float
    df: int

    def se(self, seeds: int) -> float:
        """Standard error of a mean over this many seeds."""
        return self.sd / math.sqrt(seeds)


def seed_noise(groups: Iterable[Sequence[float]]) -> SeedNoise | None:
    """Pool the standard deviation between seeds over layouts; None where no group has two values.

    One layout has too few seeds for an estimate of its own to be of use, so all are taken to have the same.

    Args:
        groups: the qualities of each layout, one a seed; groups of fewer than two say nothing and are passed over.
    """
    squares, df = 0.0, 0
    for values in groups:
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            df += len(values) - 1
    return SeedNoise(math.sqrt(squares / df), df) if df else None


def difference_noise(blocks: Iterable[Sequence[Sequence[float]]]) -> SeedNoise | None:
    """As `seed_noise`, for differences between layouts that were trained with the same seeds.

    A seed brings the same initialisation, data order and augmentation to every layout. What it does to all of them
    alike cancels in a difference, so it is taken out here: what is left is the deviation of each value from the sum of
    its layout's mean and its seed's. None where no block has two layouts with two seeds.

    Args:
        blocks: each a table of the qualities of layouts (rows) trained with the same seeds (columns); different blocks
            may have other layouts and other seeds.
    """
    squares, df = 0.0, 0
    for rows in blocks:
        if len(rows) < 2 or len(rows[0]) < 2:
            continue
        layouts = [statistics.fmean(row) for row in rows]
        seeds = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        mean = statistics.fmean(layouts)
        squares += math.fsum(
            (value - layout - seed + mean) ** 2
            for row, layout in zip(rows, layouts, strict=True)
            for value, seed in zip(row, seeds, strict=True)
        )
        df += (len(rows) - 1) * (len(rows[0]) - 1)
    return SeedNoise(math.sqrt(squares / df), df) if df else None


def quality_se(record: TrialRecord, measure: str, noise: SeedNoise | None) -> float | None:
    """Standard error of a record's quality: its own where it has two seeds, else the pooled one, else None."""
    own = record.quality_se(measure)
    if own is not None:
        return own
    return noise.se(len(record.seeds)) if noise and record.seeds else None


ON_FRONT, UNDECIDED, DOMINATED = "front", "undecided", "dominated"


@dataclass(frozen=True)
class Standing:
    """Whether a layout belongs to the front, once noise is taken into account.

    Attributes:
        key: the layout.
        rival: the best of the others that are at least as fast; None for the fastest of all.
        gap: its quality less the rival's; None without a rival.
        se: standard error of that difference; None without a rival.
        verdict: ``"front"`` (better than all that are at least as fast), ``"dominated"`` (worse than one of them) or
            ``"undecided"`` (the difference is within what seeds alone make).
    """

    key: str
    rival: str | None
    gap: float | None
    se: float | None
    verdict: str


def standings(
    points: Sequence[Point], seeds: Mapping[str, int], noise: SeedNoise, *, alpha: float = 0.05
) -> list[Standing]:
    """Judge each layout against the best of the others that are at least as fast, in the order given.

    A two-sided t test of the difference in quality, with one `SeedNoise` for all. As the rival is the best of
    many, the level of each test is `alpha` over the number of pairs of layouts (Bonferroni): the chance that any
    verdict of ``"front"`` or ``"dominated"`` is wrong is at most `alpha`, as far as seeds go. Throughput is taken as
    exact. Where the qualities are those by which the layouts were chosen, they are too good and this does not mend it;
    fresh seeds (`mvsearch confirm`) are free of that.

    Args:
        points: one a layout.
        seeds: how many trainings are behind each key.
        noise: between seeds: `difference_noise` where all layouts have the same seeds, else `seed_noise`.
        alpha: between 0 and 1.
    """
    from scipy.special import stdtrit

    pairs = max(1, len(points) * (len(points) - 1) // 2)
    threshold = float(stdtrit(noise.df, 1 - alpha / (2 * pairs)))
    rivals: dict[str, Point | None] = {}
    best: list[Point] = []  # the two best of those at least as fast, so that one of them is another
    fastest_first = sorted(points, key=lambda p: -p.throughput)
    for _, equally_fast in itertools.groupby(fastest_first, key=lambda p: p.throughput):
        group = list(equally_fast)
        best = sorted([*best, *group], key=lambda p: -p.quality)[:2]
        for point in group:
            rivals[point.key] = next((other for other in best if other.key != point.key), None)
    found = []
    for point in points:
        rival = rivals[point.key]
        if rival is None:
            found.append(Standing(point.key, None, None, None, ON_FRONT))
            continue
        gap = point.quality - rival.quality
        se = noise.sd * math.sqrt(1 / seeds[point.key] + 1 / seeds[rival.key])
        verdict = UNDECIDED if abs(gap) <= threshold * se else ON_FRONT if gap > 0 else DOMINATED
        found.append(Standing(point.key, rival.key, gap, se, verdict))
    return found


def study_noise(study: StudyData, measure: str | None = None) -> SeedNoise | None:
    """Noise between seeds of a full proxy training on the validation split, from all repeated trainings of a study.

    Seeds of the search, of `calibrate` and of `confirm` are pooled within each and never across: what the search has
    chosen by is not a fair draw.

    Args:
        study: what was measured.
        measure: ``"nll"`` or ``"top1"``; None: the study's.
    """
    return seed_noise(row for block in _repeated(study, measure) for row in block)


def study_difference_noise(study: StudyData, measure: str | None = None) -> SeedNoise | None:
    """The same for differences between layouts trained with the same seeds, see `difference_noise`."""
    return difference_noise(_repeated(study, measure))


def _repeated(study: StudyData, measure: str | None = None) -> list[list[tuple[float, ...]]]:
    """Qualities of full proxy trainings: a table of layouts by seeds for each purpose, of layouts with every seed."""
    epochs = study.setting("proxy", "epochs")
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in study.evaluations:
        if line.what == TRAIN and line.to_epoch == epochs and line.seed is not None:
            by_seed = found.setdefault(line.purpose, {}).setdefault(line.key, {})
            by_seed[line.seed] = quality_of(line, measure or study.measure)
    tables = []
    for layouts in found.values():
        most = max(len(by_seed) for by_seed in layouts.values())
        tables.append(
            [tuple(by_seed[seed] for seed in sorted(by_seed)) for by_seed in layouts.values() if len(by_seed) == most]
        )
    return tables
