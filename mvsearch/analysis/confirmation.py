"""Confirmation: the front once more, with fresh seeds and on the test split, which the search never sees."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvsearch.analysis.noise import UNDECIDED, SeedNoise, Standing, difference_noise, standings
from mvsearch.analysis.repeated import by_layout, failed_layouts
from mvsearch.study.front import Point, complete_records, hypervolume, pareto_front, point_of
from mvsearch.study.measure import Measure
from mvsearch.study.record import CONFIRM, Evaluation, TrialRecord

if TYPE_CHECKING:
    from mvsearch.study.data import StudyData


@dataclass(frozen=True)
class FreshValues:
    """Values of fresh trainings of one layout on one split.

    Attributes:
        nlls: nats, one a seed.
        top1s: 0 to 1, one a seed.
        images: of the split.
    """

    nlls: tuple[float, ...]
    top1s: tuple[float, ...]
    images: int

    def qualities(self, measure: str) -> tuple[float, ...]:
        """The quality of each seed, larger is better: minus the NLL for ``"nll"``, top-1 for ``"top1"``."""
        own = Measure(measure)
        return tuple(own.quality(value) for value in own.choose(nll=self.nlls, top1=self.top1s))

    def quality(self, measure: str) -> float:
        """Mean of `qualities`."""
        return statistics.fmean(self.qualities(measure))

    @property
    def top1(self) -> float:
        """Mean top-1 over seeds, 0 to 1."""
        return statistics.fmean(self.top1s)

    @property
    def top1_sd(self) -> float | None:
        """Standard deviation of top-1 between seeds; None with one."""
        return statistics.stdev(self.top1s) if len(self.top1s) > 1 else None

    @property
    def nll(self) -> float:
        """Mean NLL over seeds, nats."""
        return statistics.fmean(self.nlls)


@dataclass(frozen=True)
class ConfirmedLayout:
    """One layout that was trained again with fresh seeds.

    Attributes:
        record: what the search measured of it; its throughput is not measured again.
        on_front: whether it stands on the search's front; else it is a hand-made layout to compare with.
        val: the fresh trainings on the validation split, which the search chose by.
        test: the same trainings on the test split, which it never saw.
        standing: its place on the test split, see `noise.standings`; None with one seed.
    """

    record: TrialRecord
    on_front: bool
    val: FreshValues
    test: FreshValues
    standing: Standing | None = None

    @property
    def key(self) -> str:
        """`HybridLayout.key` of the layout."""
        return self.record.key


@dataclass(frozen=True)
class ConfirmedGain:
    """A member of the front against a hand-made layout at least as fast, both with fresh seeds on the test split.

    The pair is chosen by the search's values, so that neither's luck in the fresh trainings decides it.

    Attributes:
        layout: key of the member.
        baseline: name of the hand-made layout.
        quality: difference in quality, positive is better.
        quality_se: its standard error, from `Confirmation.noise`.
        top1: difference in top-1, 0 to 1.
        top1_se: its standard error.
    """

    layout: str
    baseline: str
    quality: float
    quality_se: float | None
    top1: float
    top1_se: float | None


@dataclass(frozen=True)
class Hypervolumes:
    """Hypervolume of the same layouts by what was measured of them, all above the study's reference point.

    Attributes:
        observed: by the values that the search chose them by: too good, as the best of many noisy values is.
        val: by fresh seeds on the same split: `observed` less this is the optimism of choosing, and what the search's
            seeds did to all layouts alike. Of the hand-made layouts, which were not chosen, it is the latter alone.
        test: by fresh seeds on the test split: `val` less this is how the two splits differ.
    """

    observed: float
    val: float
    test: float

    @property
    def optimism(self) -> float:
        """Observed less confirmed on the same split, as a share of the confirmed; nan where that is 0."""
        return (self.observed - self.val) / self.val if self.val > 0 else math.nan


@dataclass(frozen=True)
class Confirmation:
    """The front once more, with fresh seeds and on the test split.

    Attributes:
        measure: what quality is measured by.
        layouts: the members of the front and the hand-made layouts that were trained with every seed, slowest first.
        missing: members of the present front that were not (the search went on, or the time was over).
        failed: layouts of which a training failed, and was not made up for since.
        seeds: fresh trainings a layout.
        noise: of differences between layouts, between seeds, in quality on the test split; None where it is not
            known.
        front: keys of the layouts that no other dominates by their mean on the test split, slowest first.
        hypervolume: of the members of the front.
        baselines_hypervolume: of the hand-made layouts; None where there are none.
        gains: each member against the best hand-made layout at least as fast, where there is one.
    """

    measure: Measure
    layouts: tuple[ConfirmedLayout, ...]
    missing: tuple[str, ...]
    failed: int
    seeds: int
    noise: SeedNoise | None
    front: tuple[str, ...]
    hypervolume: Hypervolumes | None
    baselines_hypervolume: Hypervolumes | None
    gains: tuple[ConfirmedGain, ...]

    def layout(self, key: str) -> ConfirmedLayout | None:
        """The confirmed layout of this key; None if it was not confirmed."""
        return next((one for one in self.layouts if one.key == key), None)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Keys of the members of the front whose fresh seeds do not tell them apart from a layout at least as fast."""
        return tuple(
            one.key for one in self.layouts if one.on_front and one.standing and one.standing.verdict == UNDECIDED
        )


def confirmation(study: StudyData) -> Confirmation | None:
    """The confirmation of a study, from the ledger's lines of `mvsearch confirm`; None where there is no such line."""
    lines = [line for line in study.evaluations if line.purpose == CONFIRM]
    if not lines:
        return None
    measure, epochs = study.measure, int(study.setting("proxy", "epochs"))
    records = {record.key: record for record in complete_records(study.records, measure)}
    trained = {key: by_seed.get(epochs, {}) for key, by_seed in by_layout(lines).items()}
    failed = failed_layouts(lines, CONFIRM)
    seeds = max((len(by_seed) for by_seed in trained.values()), default=0)
    members = {record.key for record in study.front}
    layouts = []
    for key, by_seed in trained.items():
        if key in records and key not in failed and by_seed and len(by_seed) == seeds:
            ordered = [by_seed[seed] for seed in sorted(by_seed)]
            on_front = key in members
            if on_front or records[key].baseline:
                layouts.append(ConfirmedLayout(records[key], on_front, _fresh(ordered, ""), _fresh(ordered, "test_")))
    layouts.sort(key=lambda one: one.record.ratio or 0.0)
    noise = difference_noise([[one.test.qualities(measure) for one in layouts]])
    points = [_point(one, one.test.quality(measure)) for one in layouts]
    if noise is not None and noise.sd > 0:
        judged = standings(points, {one.key: seeds for one in layouts}, noise)
        layouts = [
            ConfirmedLayout(one.record, one.on_front, one.val, one.test, standing)
            for one, standing in zip(layouts, judged, strict=True)
        ]
    done = {one.key for one in layouts}
    own = [one for one in layouts if one.on_front]
    baselines = [one for one in layouts if one.record.baseline]
    return Confirmation(
        measure=measure,
        layouts=tuple(layouts),
        missing=tuple(record.key for record in study.front if record.key not in done),
        failed=len(failed),
        seeds=seeds,
        noise=noise,
        front=tuple(point.key for point in pareto_front(points)),
        hypervolume=_hypervolumes(own, study) if own else None,
        baselines_hypervolume=_hypervolumes(baselines, study) if baselines else None,
        gains=tuple(_gains(own, baselines, measure)),
    )


def _hypervolumes(layouts: Sequence[ConfirmedLayout], study: StudyData) -> Hypervolumes:
    def of(qualities: Iterable[float]) -> float:
        points = [_point(one, quality) for one, quality in zip(layouts, qualities, strict=True)]
        return hypervolume(points, study.reference_point)

    measure = study.measure
    return Hypervolumes(
        observed=of(one.record.quality(measure) or 0.0 for one in layouts),
        val=of(one.val.quality(measure) for one in layouts),
        test=of(one.test.quality(measure) for one in layouts),
    )


def _gains(
    members: Sequence[ConfirmedLayout], baselines: Sequence[ConfirmedLayout], measure: str
) -> Iterable[ConfirmedGain]:
    everyone = {one.key: one for one in [*members, *baselines]}.values()
    noise = difference_noise([[one.test.qualities(measure) for one in everyone]])
    noise_top1 = difference_noise([[one.test.top1s for one in everyone]])
    for one in members:
        own = point_of(one.record, measure)
        fast = [
            (point, other)
            for other in baselines
            if other.key != one.key and (point := point_of(other.record, measure)) and own
            if point.throughput >= own.throughput
        ]
        if not fast:
            continue
        _, rival = max(fast, key=lambda pair: pair[0].quality)
        share = math.sqrt(1 / len(one.test.nlls) + 1 / len(rival.test.nlls))
        yield ConfirmedGain(
            layout=one.key,
            baseline=rival.record.baseline or "",
            quality=one.test.quality(measure) - rival.test.quality(measure),
            quality_se=noise.sd * share if noise else None,
            top1=one.test.top1 - rival.test.top1,
            top1_se=noise_top1.sd * share if noise_top1 else None,
        )


def _fresh(lines: Sequence[Evaluation], prefix: str) -> FreshValues:
    return FreshValues(
        nlls=tuple(line.values[f"{prefix}nll"] for line in lines),
        top1s=tuple(line.values[f"{prefix}top1"] for line in lines),
        images=int(lines[0].values["test_images" if prefix else "val_images"]),
    )


def _point(one: ConfirmedLayout, quality: float) -> Point:
    assert one.record.log2_ratio is not None
    return Point(one.key, quality, one.record.log2_ratio)
