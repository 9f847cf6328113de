"""The ratio: what the share, the place and the state of a stage's blocks do to quality and throughput.

A wide layout is better and slower whatever its order, so plain averages would mix the effect of the order with that of
the width. Here every comparison is between layouts of exactly equal width (a factor in a least-squares fit); depth and
the attention shares of the other stages are held equal linearly in the same fit. Intervals are Student's t at 95 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mvsearch.record import TrialRecord
from mvsearch.report.data import PLACEMENTS, StageFacts, StudyData

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_ENOUGH = "not enough trials to say"
MIN_TRIALS = 3
"""Fewer trials of a kind, at widths where another kind was tried as well, are not compared."""
MIN_FREEDOM = 4
"""Fewer degrees of freedom left after the fit give intervals too wide to read."""
SHARES = ("none", "under 40 %", "40–60 %", "over 60 %", "all")
OUTCOMES = ("nll", "top1", "throughput")
FACTORS = ("share", "placement", "state")


@dataclass(frozen=True)
class Effect:
    """One kind of stage against the average layout of equal width.

    Attributes:
        label: the kind, e.g. ``"last"``.
        trials: complete layouts of this kind.
        matched: those of them at a width where another kind was tried as well.
        value: estimated difference to the average, in units of the outcome; None: not enough trials to say.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    label: str
    trials: int
    matched: int
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """True if the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """All kinds of one stage by one factor, on one outcome.

    Attributes:
        stage: number of the stage, from 1.
        factor: ``"share"`` (attention blocks over blocks), ``"placement"`` or ``"state"``.
        outcome: ``"nll"`` (minus the NLL in nats, so that larger is better), ``"top1"`` (0 to 1) or ``"throughput"``
            (log2 of the ratio).
        effects: one for each kind that occurs, in a fixed order.
        freedom: degrees of freedom of the fit; 0 where nothing was fitted.
    """

    stage: int
    factor: str
    outcome: str
    effects: tuple[Effect, ...]
    freedom: int = 0


@dataclass(frozen=True)
class Slope:
    """What moving the attention blocks of a stage from its start (centre 0) to its end (centre 1) does.

    Attributes:
        stage: number of the stage, from 1.
        outcome: as in `Comparison`.
        trials: mixed layouts behind it.
        value: difference, in units of the outcome, at equal share; None: not enough trials to say.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    stage: int
    outcome: str
    trials: int
    value: float | None = None
    low: float | None = None
    high: float | None = None


def comparable(study: StudyData) -> list[tuple[TrialRecord, list[StageFacts]]]:
    """Complete layouts with the most common sequence of conv and hybrid stages; others are not compared."""
    forms = Counter(tuple(fact.hybrid for fact in facts) for _, facts in study.facts)
    if not forms:
        return []
    form = forms.most_common(1)[0][0]
    return [(record, facts) for record, facts in study.facts if tuple(fact.hybrid for fact in facts) == form]


def hybrid_stages(study: StudyData) -> list[int]:
    """Numbers of the stages in which order can differ, from 1."""
    pairs = comparable(study)
    return [fact.number for fact in pairs[0][1] if fact.hybrid] if pairs else []


def outcome_of(record: TrialRecord, outcome: str) -> float | None:
    """The record's value of an outcome, larger is better: minus the NLL, top-1, or log2 of the throughput ratio."""
    return record.log2_ratio if outcome == "throughput" else record.quality(outcome)


def share_bin(share: float) -> str:
    """The kind of an attention share from 0 to 1, one of `SHARES`."""
    if share in (0, 1):
        return SHARES[-1] if share else SHARES[0]
    return SHARES[1] if share < 0.4 else SHARES[2] if share <= 0.6 else SHARES[3]


def compare(study: StudyData, stage: int, factor: str, outcome: str) -> Comparison:
    """Compare the kinds of a stage at equal width.

    Args:
        study: where the layouts come from.
        stage: number of a hybrid stage, from 1.
        factor: ``"share"``, ``"placement"`` (mixed orders also at equal share of this stage) or ``"state"`` (at equal
            share too, and only where the stage scans).
        outcome: ``"nll"``, ``"top1"`` or ``"throughput"``.
    """
    pairs = [(r, facts) for r, facts in comparable(study) if outcome_of(r, outcome) is not None]
    if factor == "state":
        pairs = [(r, facts) for r, facts in pairs if facts[stage - 1].state is not None]
    own = [facts[stage - 1] for _, facts in pairs]
    if factor == "share":
        order: Sequence[str] = SHARES
        kinds = [share_bin(fact.share) for fact in own]
    elif factor == "placement":
        order = PLACEMENTS
        kinds = [fact.placement for fact in own]
    else:
        order = [f"N = {state}" for state in sorted({fact.state for fact in own if fact.state is not None})]
        kinds = [f"N = {fact.state}" for fact in own]
    covariates = _held(pairs, stage)
    if factor == "placement":
        covariates.append(_inner_share(own))
    elif factor == "state":
        share = np.array([fact.share for fact in own])
        covariates.append(share - share.mean() if len(own) else share)
    values = [outcome_of(record, outcome) or 0.0 for record, _ in pairs]
    strata = [tuple(fact.dim for fact in facts) for _, facts in pairs]
    effects, freedom = _adjusted_means(kinds, values, strata, covariates)
    ordered = tuple(effects[kind] for kind in order if kind in effects)
    return Comparison(stage, factor, outcome, ordered, freedom)


def centre_slope(study: StudyData, stage: int, outcome: str) -> Slope:
    """Effect of the attention blocks' centre of mass among the stage's mixed orders, at equal width and share."""
    pairs = [
        (record, facts)
        for record, facts in comparable(study)
        if outcome_of(record, outcome) is not None and 0 < facts[stage - 1].share < 1
    ]
    own = [facts[stage - 1] for _, facts in pairs]
    centre = np.array([fact.centre if fact.centre is not None else 0.5 for fact in own])
    empty = Slope(stage, outcome, len(pairs))
    if len(pairs) < MIN_TRIALS or np.ptp(centre) == 0:
        return empty
    values = np.array([outcome_of(record, outcome) or 0.0 for record, _ in pairs])
    dummies = _dummies([tuple(fact.dim for fact in facts) for _, facts in pairs])
    columns = [centre, *dummies, _inner_share(own), *_held(pairs, stage)]
    design = np.column_stack(columns)
    fitted = _contrasts(design, values, np.eye(design.shape[1])[:1])
    if fitted is None or fitted[0] is None:
        return empty
    return Slope(stage, outcome, len(pairs), *fitted[0])


def _held(pairs: Sequence[tuple[TrialRecord, list[StageFacts]]], stage: int) -> list[NDArray[np.float64]]:
    """Centred covariates that vary: depth of every stage, attention share of the other hybrid stages."""
    columns = []
    for index in range(len(pairs[0][1]) if pairs else 0):
        columns.append([float(len(facts[index].blocks)) for _, facts in pairs])
        if pairs[0][1][index].hybrid and index != stage - 1:
            columns.append([facts[index].share for _, facts in pairs])
    arrays = [np.array(column) for column in columns]
    return [array - array.mean() for array in arrays if np.ptp(array) > 0]


def _inner_share(own: Sequence[StageFacts]) -> NDArray[np.float64]:
    """The share among mixed orders, centred; 0 for all Mamba and all attention, whose kind fixes their share."""
    share = np.array([fact.share for fact in own])
    mixed = (share > 0) & (share < 1)
    return np.where(mixed, share - share[mixed].mean(), 0.0) if mixed.any() else np.zeros(len(own))


def _dummies(strata: Sequence[object]) -> list[NDArray[np.float64]]:
    known = list(dict.fromkeys(strata))
    return [np.array([float(s == one) for s in strata]) for one in known]


def _adjusted_means(
    kinds: Sequence[str],
    values: Sequence[float],
    strata: Sequence[object],
    covariates: Sequence[NDArray[np.float64]],
) -> tuple[dict[str, Effect], int]:
    """Least squares of value on kind, stratum and covariates: each kind minus the average over all compared trials.

    Returns:
        One effect for each kind that occurs, and the degrees of freedom left.
    """
    counts = Counter(kinds)
    matched = _matched(kinds, strata)
    kept = [kind for kind in counts if matched[kind] >= MIN_TRIALS]
    kept = _connected(kept, kinds, strata)
    effects = {kind: Effect(kind, counts[kind], matched[kind]) for kind in counts}
    if len(kept) < 2:
        return effects, 0
    rows = [index for index, kind in enumerate(kinds) if kind in kept]
    groups = [np.array([float(kinds[row] == kind) for row in rows]) for kind in kept]
    # One stratum is the base: the groups' indicators already add up to a constant.
    dummies = _dummies([strata[row] for row in rows])[1:]
    held = [column[rows] - column[rows].mean() for column in covariates]
    design = np.column_stack([*groups, *dummies, *held])
    weights = np.array([group.sum() for group in groups]) / len(rows)
    contrasts = np.zeros((len(kept), design.shape[1]))
    contrasts[:, : len(kept)] = np.eye(len(kept)) - weights
    fitted = _contrasts(design, np.array([values[row] for row in rows]), contrasts)
    if fitted is None:
        return effects, 0
    for kind, estimate in zip(kept, fitted, strict=True):
        if estimate is not None:
            effects[kind] = Effect(kind, counts[kind], matched[kind], *estimate)
    return effects, len(rows) - int(np.linalg.matrix_rank(design))


def _matched(kinds: Sequence[str], strata: Sequence[object]) -> Counter[str]:
    """Trials of each kind in a stratum that holds another kind as well."""
    inside: dict[object, set[str]] = {}
    for kind, stratum in zip(kinds, strata, strict=True):
        inside.setdefault(stratum, set()).add(kind)
    return Counter(kind for kind, stratum in zip(kinds, strata, strict=True) if len(inside[stratum]) > 1)


def _connected(kept: Sequence[str], kinds: Sequence[str], strata: Sequence[object]) -> list[str]:
    """The largest set of kinds (by trials) that shared strata join; kinds never tried at equal width fall apart."""
    parts: list[tuple[set[str], set[object]]] = []
    for kind in kept:
        own: tuple[set[str], set[object]] = ({kind}, {s for k, s in zip(kinds, strata, strict=True) if k == kind})
        for part in [part for part in parts if part[1] & own[1]]:
            parts.remove(part)
            own = (own[0] | part[0], own[1] | part[1])
        parts.append(own)
    best = max(parts, key=lambda part: sum(k in part[0] for k in kinds), default=(set(), set()))
    return [kind for kind in kept if kind in best[0]]


def _contrasts(
    design: NDArray[np.float64], values: NDArray[np.float64], contrasts: NDArray[np.float64]
) -> list[tuple[float, float, float] | None] | None:
    """Estimate and 95 % interval of linear combinations of least-squares coefficients.

    Returns:
        (value, low, high) for each contrast, None for one that the trials do not determine; None for all where fewer
        than `MIN_FREEDOM` degrees of freedom are left.
    """
    from scipy.special import stdtrit

    freedom = len(values) - int(np.linalg.matrix_rank(design))
    if freedom < MIN_FREEDOM:
        return None
    inverse = np.linalg.pinv(design.T @ design, hermitian=True)
    coefficients = inverse @ design.T @ values
    residuals = values - design @ coefficients
    variance = float(residuals @ residuals) / freedom
    row_space = np.linalg.pinv(design) @ design
    quantile = float(stdtrit(freedom, 0.975))
    estimates: list[tuple[float, float, float] | None] = []
    for contrast in contrasts:
        if not np.allclose(contrast @ row_space, contrast, atol=1e-8):
            estimates.append(None)
            continue
        value = float(contrast @ coefficients)
        half = quantile * float(np.sqrt(max(variance * contrast @ inverse @ contrast, 0.0)))
        estimates.append((value, value - half, value + half))
    return estimates
