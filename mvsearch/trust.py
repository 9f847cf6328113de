"""How far a study can be trusted: which layouts `calibrate` and `confirm` train again, and what came of it.

Both write into the study's ledger under a purpose of their own; what they mean is computed from its lines alone.
`calibrate` asks whether the proxy ranks layouts as long training does. `confirm` trains the front once more with fresh
seeds and looks at the test split, which the search never sees.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvsearch.front import (
    UNDECIDED,
    Point,
    SeedNoise,
    Standing,
    complete_records,
    difference_noise,
    hypervolume,
    pareto_front,
    point_of,
    seed_noise,
    standings,
)
from mvsearch.record import CALIBRATE, CONFIRM, FAIL, TRAIN, Evaluation, TrialRecord

if TYPE_CHECKING:
    from mvsearch.report.data import StudyData

MIN_LAYOUTS = 12
"""Below this a rank correlation says nothing."""

FACTORS = (4, 8)
"""Least and most epochs of a long training, as a multiple of the proxy's."""

TOP = 3
"""How many of the proxy's best the regret is about."""

GREEN, AMBER, RED = "green", "amber", "red"
GREEN_FROM, AMBER_FROM = 0.4, 0.2
"""Lower bounds of tau from which a verdict is green, and amber."""

RESAMPLES = 4000
# Seeds of a study are search.seed * 1000 + 0, 1, …, at most 99; these stay clear of them and of each other.
_OFFSETS = {CALIBRATE: 500, CONFIRM: 700}
MAX_SEEDS = 100


def fresh_seeds(purpose: str, search_seed: int, count: int) -> list[int]:
    """Seeds that the search has not used: ``"calibrate"`` and ``"confirm"`` have their own.

    Args:
        purpose: ``"calibrate"`` or ``"confirm"``.
        search_seed: ``search.seed`` of the study.
        count: 1 to `MAX_SEEDS`.
    """
    return [search_seed * 1000 + _OFFSETS[purpose] + number for number in range(count)]


# -- calibrate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibratedLayout:
    """One layout, trained short and long.

    Attributes:
        key: of the layout.
        number: its trial.
        layout: `HybridLayout.to_dict()`.
        baseline: name of the hand-made layout, or None.
        proxy: quality as the search measured it: the mean over its seeds.
        proxy_again: quality after as many epochs with fresh seeds, as many as the search had (or as there are).
        long: mean quality after the long training.
        longs: the same, one a seed.
    """

    key: str
    number: int
    layout: dict[str, Any]
    baseline: str | None
    proxy: float
    proxy_again: float
    long: float
    longs: tuple[float, ...]


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b with a 95 % percentile bootstrap interval over layouts.

    Attributes:
        tau: -1 to 1.
        low: lower end of the interval.
        high: upper end.
    """

    tau: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Whether the proxy ranks layouts as long training does.

    Attributes:
        measure: ``"nll"`` or ``"top1"``; qualities are minus the first in nats, or the second from 0 to 1.
        layouts: those trained with every seed, by trial number.
        unfinished: layouts begun and not trained with every seed yet.
        failed: layouts of which a training failed, and was not made up for since.
        epochs: of the proxy.
        long_epochs: of a long training.
        seeds: long trainings a layout.
        proxy_seeds: trainings behind a proxy score of the search.
        tau: between the proxy score and the long training; None under `MIN_LAYOUTS` layouts, as all that follows.
        ceiling: between the proxy score and the same proxy with fresh seeds: no ranking by the proxy can agree with
            anything much better than with itself.
        regret: best long quality of all less the best of the proxy's `TOP`: what is lost by training only those.
        regret_in_sd: the same in units of `noise`.
        noise: of differences between layouts, between seeds of a long training.
        verdict: ``"green"`` (lower end of tau's interval at least 0.4), ``"amber"`` (0.2), ``"red"``, or None.
    """

    measure: str
    layouts: tuple[CalibratedLayout, ...]
    unfinished: int
    failed: int
    epochs: int
    long_epochs: int
    seeds: int
    proxy_seeds: int
    tau: RankCorrelation | None = None
    ceiling: RankCorrelation | None = None
    regret: float | None = None
    regret_in_sd: float | None = None
    noise: SeedNoise | None = None
    verdict: str | None = None


def choose_layouts(
    records: Iterable[TrialRecord], measure: str, count: int, *, begun: Iterable[str] = ()
) -> list[TrialRecord]:
    """Layouts to calibrate on: the hand-made ones and those begun, then a sample stratified over score and throughput.

    The complete layouts are cut by proxy score into `count` strata of equal size; the emptiest give first, each the
    layout whose rank by throughput is furthest from those chosen. So the sample stands for the whole study, not for
    its front, and is the same each time.

    Args:
        records: of one study.
        measure: ``"nll"`` or ``"top1"``.
        count: layouts wanted; there are fewer where the study has fewer, and more where more were begun.
        begun: keys that an earlier run has begun with; they stay.
    """
    complete = sorted(complete_records(records, measure), key=lambda r: (r.quality(measure) or 0.0, r.key))
    stratum = {record.key: position * count // len(complete) for position, record in enumerate(complete)}
    by_speed = sorted(complete, key=lambda r: (r.ratio or 0.0, r.key))
    rank = {record.key: position for position, record in enumerate(by_speed)}
    kept = set(begun)
    chosen = [record for record in complete if record.baseline or record.key in kept]
    rest = [record for record in complete if record not in chosen]
    while rest and len(chosen) < count:
        taken = [stratum[record.key] for record in chosen]
        emptiest = min((stratum[record.key] for record in rest), key=lambda one: (taken.count(one), one))
        ranks = [rank[record.key] for record in chosen]
        best = max(
            (record for record in rest if stratum[record.key] == emptiest),
            key=lambda r: (min((abs(rank[r.key] - other) for other in ranks), default=0), -rank[r.key]),
        )
        chosen.append(best)
        rest.remove(best)
    return sorted(chosen, key=lambda record: record.number)


def calibration(study: StudyData) -> Calibration | None:
    """What the calibration of a study says; None if there was none.

    Where trainings of several lengths are in the ledger, the longest with most layouts counts; where layouts have
    unequal numbers of seeds, as many as enough layouts for a verdict have.
    """
    lines = [line for line in study.evaluations if line.purpose == CALIBRATE]
    if not lines:
        return None
    measure, epochs = study.measure, int(study.setting("proxy", "epochs"))
    trained = _by_layout(lines)
    failed = failed_layouts(lines, CALIBRATE)
    lengths = sorted({line.to_epoch for line in lines if line.what == TRAIN and line.to_epoch > epochs})
    long_epochs = max(
        lengths,
        key=lambda length: (sum(bool(of.get(length)) for of in trained.values()), length),
        default=0,
    )
    counts = sorted((len(of.get(long_epochs, {})) for key, of in trained.items() if key not in failed), reverse=True)
    seeds = (
        counts[MIN_LAYOUTS - 1] if len(counts) >= MIN_LAYOUTS and counts[MIN_LAYOUTS - 1] else max(counts, default=0)
    )
    records = {record.key: record for record in complete_records(study.records, measure)}
    found = []
    for key, of in trained.items():
        longs, again = of.get(long_epochs, {}), of.get(epochs, {})
        record = records.get(key)
        if record is None or key in failed or not longs or len(longs) < seeds or not again:
            continue
        proxy = record.quality(measure)
        assert proxy is not None
        qualities = tuple(_quality(longs[seed], measure) for seed in sorted(longs)[:seeds])
        repeated = [_quality(again[seed], measure) for seed in sorted(again)][: max(1, len(record.seeds))]
        found.append(
            CalibratedLayout(
                key=key,
                number=record.number,
                layout=record.layout,
                baseline=record.baseline,
                proxy=proxy,
                proxy_again=statistics.fmean(repeated),
                long=statistics.fmean(qualities),
                longs=qualities,
            )
        )
    found.sort(key=lambda one: one.number)
    noise = difference_noise([[one.longs for one in found]])
    plain = Calibration(
        measure=measure,
        layouts=tuple(found),
        unfinished=len(set(trained) - failed - {one.key for one in found}),
        failed=len(failed),
        epochs=epochs,
        long_epochs=long_epochs,
        seeds=seeds,
        proxy_seeds=min((len(records[one.key].seeds) for one in found), default=0),
        noise=noise,
    )
    if len(found) < MIN_LAYOUTS:
        return plain
    scores, longs_of_all = [one.proxy for one in found], [one.long for one in found]
    tau = rank_correlation(scores, longs_of_all)
    top = sorted(found, key=lambda one: -one.proxy)[:TOP]
    regret = max(longs_of_all) - max(one.long for one in top)
    return dataclasses.replace(
        plain,
        tau=tau,
        ceiling=rank_correlation(scores, [one.proxy_again for one in found]),
        regret=regret,
        regret_in_sd=regret / noise.sd if noise and noise.sd > 0 else None,
        verdict=verdict(tau.low),
    )


def verdict(low: float) -> str:
    """``"green"``, ``"amber"`` or ``"red"`` for the lower end of tau's interval."""
    return GREEN if low >= GREEN_FROM else AMBER if low >= AMBER_FROM else RED


def rank_correlation(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> RankCorrelation:
    """Kendall's tau-b of paired values, with a 95 % percentile bootstrap interval over the pairs.

    A resample holds pairs several times; these are ties, which tau-b leaves out of its count. Where all values of one
    side are equal there is no order, and tau is 0.

    Args:
        first: one value a layout.
        second: as many.
        resamples: of the bootstrap.
        seed: of the bootstrap, so that the same data give the same interval.
    """
    import numpy as np

    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    sign_a, sign_b = (np.sign(values[:, None] - values[None, :]) for values in (a, b))
    # How often each layout is in a resample; its pairs count as often as the product says.
    counts = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=resamples)
    weights = np.vstack([np.ones(len(a)), counts]).astype(float)

    def pairs(signs: Any) -> Any:
        return np.einsum("ri,ij,rj->r", weights, signs, weights, optimize=True)

    scale = np.sqrt(pairs(np.abs(sign_a)) * pairs(np.abs(sign_b)))
    taus = np.divide(pairs(sign_a * sign_b), scale, out=np.zeros_like(scale), where=scale > 0)
    low, high = np.quantile(taus[1:], [0.025, 0.975])
    return RankCorrelation(float(taus[0]), float(low), float(high))


# -- confirm ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fresh:
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
        """One a seed, larger is better: minus the NLL for ``"nll"``, top-1 for ``"top1"``."""
        return self.top1s if measure == "top1" else tuple(-nll for nll in self.nlls)

    def quality(self, measure: str) -> float:
        """Their mean."""
        return statistics.fmean(self.qualities(measure))

    @property
    def top1(self) -> float:
        """Mean top-1."""
        return statistics.fmean(self.top1s)

    @property
    def top1_sd(self) -> float | None:
        """Standard deviation of top-1 between seeds; None with one."""
        return statistics.stdev(self.top1s) if len(self.top1s) > 1 else None

    @property
    def nll(self) -> float:
        """Mean NLL."""
        return statistics.fmean(self.nlls)


@dataclass(frozen=True)
class ConfirmedLayout:
    """One layout that was trained again with fresh seeds.

    Attributes:
        record: what the search measured of it; its throughput is not measured again.
        on_front: whether it stands on the search's front; else it is a hand-made layout to compare with.
        val: the fresh trainings on the validation split, which the search chose by.
        test: the same trainings on the test split, which it never saw.
        standing: its place on the test split, see `front.standings`; None with one seed.
    """

    record: TrialRecord
    on_front: bool
    val: Fresh
    test: Fresh
    standing: Standing | None = None

    @property
    def key(self) -> str:
        """Of the layout."""
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
        """Observed less confirmed on the same split, as a share of the confirmed."""
        return (self.observed - self.val) / self.val if self.val > 0 else math.nan


@dataclass(frozen=True)
class Confirmation:
    """The front once more, with fresh seeds and on the test split.

    Attributes:
        measure: ``"nll"`` or ``"top1"``.
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

    measure: str
    layouts: tuple[ConfirmedLayout, ...]
    missing: tuple[str, ...]
    failed: int
    seeds: int
    noise: SeedNoise | None
    front: tuple[str, ...]
    hypervolume: Hypervolumes | None
    baselines_hypervolume: Hypervolumes | None
    gains: tuple[ConfirmedGain, ...]

    def of(self, key: str) -> ConfirmedLayout | None:
        """One layout by key; None if it was not confirmed."""
        return next((one for one in self.layouts if one.key == key), None)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Members of the front that cannot be told apart from a faster one by fresh seeds."""
        return tuple(
            one.key for one in self.layouts if one.on_front and one.standing and one.standing.verdict == UNDECIDED
        )


def to_confirm(study: StudyData, count: int | None = None) -> list[TrialRecord]:
    """The layouts that `confirm` trains: the front and the hand-made ones, each once.

    Args:
        study: what was measured.
        count: how many of the front at most, spread evenly from the slowest to the fastest; None: all.
    """
    front = study.front
    if count is not None and count < len(front):
        last = len(front) - 1
        front = [front[round(at * last / (count - 1)) if count > 1 else 0] for at in range(count)]
    keys = {record.key for record in front}
    return [*front, *(record for record in study.baselines if record.key not in keys)]


def confirmation(study: StudyData) -> Confirmation | None:
    """What the confirmation of a study says; None if there was none."""
    lines = [line for line in study.evaluations if line.purpose == CONFIRM]
    if not lines:
        return None
    measure, epochs = study.measure, int(study.setting("proxy", "epochs"))
    records = {record.key: record for record in complete_records(study.records, measure)}
    trained = {key: of.get(epochs, {}) for key, of in _by_layout(lines).items()}
    failed = failed_layouts(lines, CONFIRM)
    seeds = max((len(of) for of in trained.values()), default=0)
    members = {record.key for record in study.front}
    found = []
    for key, of in trained.items():
        if key in records and key not in failed and of and len(of) == seeds:
            ordered = [of[seed] for seed in sorted(of)]
            on_front = key in members
            if on_front or records[key].baseline:
                found.append(ConfirmedLayout(records[key], on_front, _fresh(ordered, ""), _fresh(ordered, "test_")))
    found.sort(key=lambda one: one.record.ratio or 0.0)
    noise = difference_noise([[one.test.qualities(measure) for one in found]])
    points = [_point(one, one.test.quality(measure)) for one in found]
    if noise is not None and noise.sd > 0:
        judged = standings(points, {one.key: seeds for one in found}, noise)
        found = [
            ConfirmedLayout(one.record, one.on_front, one.val, one.test, standing)
            for one, standing in zip(found, judged, strict=True)
        ]
    done = {one.key for one in found}
    own = [one for one in found if one.on_front]
    baselines = [one for one in found if one.record.baseline]
    return Confirmation(
        measure=measure,
        layouts=tuple(found),
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


# -- what both read --------------------------------------------------------------------------------------------------


def failed_layouts(lines: Iterable[Evaluation], purpose: str) -> set[str]:
    """Keys of the layouts of which a training failed that has not come as far in a later run.

    Args:
        lines: of one ledger.
        purpose: ``"calibrate"`` or ``"confirm"``.
    """
    own = [line for line in lines if line.purpose == purpose]
    reached: dict[tuple[str, int | None], int] = {}
    for line in own:
        if line.what == TRAIN:
            reached[line.key, line.seed] = max(line.to_epoch, reached.get((line.key, line.seed), 0))
    return {line.key for line in own if line.what == FAIL and reached.get((line.key, line.seed), -1) < line.to_epoch}


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
    """The same for differences between layouts trained with the same seeds, see `front.difference_noise`."""
    return difference_noise(_repeated(study, measure))


def _repeated(study: StudyData, measure: str | None = None) -> list[list[tuple[float, ...]]]:
    """Qualities of full proxy trainings: a table of layouts by seeds for each purpose, of layouts with every seed."""
    epochs = study.setting("proxy", "epochs")
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in study.evaluations:
        if line.what == TRAIN and line.to_epoch == epochs and line.seed is not None:
            of = found.setdefault(line.purpose, {}).setdefault(line.key, {})
            of[line.seed] = _quality(line, measure or study.measure)
    tables = []
    for layouts in found.values():
        most = max(len(of) for of in layouts.values())
        tables.append([tuple(of[seed] for seed in sorted(of)) for of in layouts.values() if len(of) == most])
    return tables


def _by_layout(lines: Iterable[Evaluation]) -> dict[str, dict[int, dict[int, Evaluation]]]:
    """Trainings by layout key, epochs at their end and seed; a seed trained twice counts once."""
    found: dict[str, dict[int, dict[int, Evaluation]]] = {}
    for line in lines:
        of = found.setdefault(line.key, {})
        if line.what == TRAIN and line.seed is not None:
            of.setdefault(line.to_epoch, {}).setdefault(line.seed, line)
    return found


def _quality(line: Evaluation, measure: str) -> float:
    value: float = line.values["top1"] if measure == "top1" else -line.values["nll"]
    return value


def _fresh(lines: Sequence[Evaluation], prefix: str) -> Fresh:
    return Fresh(
        nlls=tuple(line.values[f"{prefix}nll"] for line in lines),
        top1s=tuple(line.values[f"{prefix}top1"] for line in lines),
        images=int(lines[0].values["test_images" if prefix else "val_images"]),
    )


def _point(one: ConfirmedLayout, quality: float) -> Point:
    assert one.record.log2_ratio is not None
    return Point(one.key, quality, one.record.log2_ratio)
