"""Calibration: does the proxy rank layouts as long training does?"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvsearch.analysis.noise import SeedNoise, difference_noise
from mvsearch.analysis.plans import MIN_LAYOUTS
from mvsearch.analysis.repeated import by_layout, failed_layouts, quality_of
from mvsearch.study.front import complete_records
from mvsearch.study.measure import Measure
from mvsearch.study.record import CALIBRATE, TRAIN

if TYPE_CHECKING:
    from mvsearch.study.data import StudyData


TOP = 3
"""How many of the proxy's best the regret is about."""


GREEN, AMBER, RED = "green", "amber", "red"


GREEN_FROM, AMBER_FROM = 0.4, 0.2
"""Lower bounds of tau from which a verdict is green, and amber."""


RESAMPLES = 4000


@dataclass(frozen=True)
class CalibratedLayout:
    """What the proxy and a long training measured of one layout.

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
        measure: what quality is measured by; qualities are minus the first in nats, or the second from 0 to 1.
        layouts: those trained with every seed, by trial number.
        unfinished: layouts begun and not trained with every seed yet.
        failed: layouts of which a training failed, and was not made up for since.
        epochs: of the proxy.
        long_epochs: of a long training.
        seeds: long trainings a layout.
        tau: between the proxy score and the long training; None under `MIN_LAYOUTS` layouts, as all that follows.
        ceiling: between the proxy score and the same proxy with fresh seeds: no ranking by the proxy can agree with
            anything much better than with itself.
        regret: best long quality of all less the best of the proxy's `TOP`: what is lost by training only those.
        regret_in_sd: the same in units of `noise`.
        noise: of differences between layouts, between seeds of a long training.
        verdict: ``"green"`` (lower end of tau's interval at least 0.4), ``"amber"`` (0.2), ``"red"``, or None.
    """

    measure: Measure
    layouts: tuple[CalibratedLayout, ...]
    unfinished: int
    failed: int
    epochs: int
    long_epochs: int
    seeds: int
    tau: RankCorrelation | None = None
    ceiling: RankCorrelation | None = None
    regret: float | None = None
    regret_in_sd: float | None = None
    noise: SeedNoise | None = None
    verdict: str | None = None


def calibration(study: StudyData) -> Calibration | None:
    """The calibration of a study, from the ledger's lines of `mvsearch calibrate`; None where there is no such line.

    Where trainings of several lengths are in the ledger, the longest with most layouts counts; where layouts have
    unequal numbers of seeds, as many as enough layouts for a verdict have.
    """
    lines = [line for line in study.evaluations if line.purpose == CALIBRATE]
    if not lines:
        return None
    measure, epochs = study.measure, int(study.setting("proxy", "epochs"))
    trained = by_layout(lines)
    failed = failed_layouts(lines, CALIBRATE)
    lengths = sorted({line.to_epoch for line in lines if line.what == TRAIN and line.to_epoch > epochs})
    long_epochs = max(
        lengths,
        key=lambda length: (sum(bool(by_epoch.get(length)) for by_epoch in trained.values()), length),
        default=0,
    )
    counts = sorted(
        (len(by_epoch.get(long_epochs, {})) for key, by_epoch in trained.items() if key not in failed), reverse=True
    )
    seeds = (
        counts[MIN_LAYOUTS - 1] if len(counts) >= MIN_LAYOUTS and counts[MIN_LAYOUTS - 1] else max(counts, default=0)
    )
    records = {record.key: record for record in complete_records(study.records, measure)}
    layouts = []
    for key, by_epoch in trained.items():
        longs, again = by_epoch.get(long_epochs, {}), by_epoch.get(epochs, {})
        record = records.get(key)
        if record is None or key in failed or not longs or len(longs) < seeds or not again:
            continue
        proxy = record.quality(measure)
        assert proxy is not None
        qualities = tuple(quality_of(longs[seed], measure) for seed in sorted(longs)[:seeds])
        repeated = [quality_of(again[seed], measure) for seed in sorted(again)][: max(1, len(record.seeds))]
        layouts.append(
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
    layouts.sort(key=lambda one: one.number)
    noise = difference_noise([[one.longs for one in layouts]])
    plain = Calibration(
        measure=measure,
        layouts=tuple(layouts),
        unfinished=len(set(trained) - failed - {one.key for one in layouts}),
        failed=len(failed),
        epochs=epochs,
        long_epochs=long_epochs,
        seeds=seeds,
        noise=noise,
    )
    if len(layouts) < MIN_LAYOUTS:
        return plain
    scores, longs_of_all = [one.proxy for one in layouts], [one.long for one in layouts]
    tau = rank_correlation(scores, longs_of_all)
    top = sorted(layouts, key=lambda one: -one.proxy)[:TOP]
    regret = max(longs_of_all) - max(one.long for one in top)
    return dataclasses.replace(
        plain,
        tau=tau,
        ceiling=rank_correlation(scores, [one.proxy_again for one in layouts]),
        regret=regret,
        regret_in_sd=regret / noise.sd if noise and noise.sd > 0 else None,
        verdict=verdict(tau.low),
    )


def verdict(low: float) -> str:
    """``"green"`` where the lower end of tau's interval is at least 0.4, ``"amber"`` from 0.2, else ``"red"``."""
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
