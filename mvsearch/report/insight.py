"""Insight: what share, place and state of a stage's blocks, and width, do to quality and to throughput.

A wide layout is better and slower whatever its order, so plain averages would mix the effect of the order with that of
the size. Every effect here is a difference to one reference kind ("last", half attention, N = 8), at matched
parameters or at matched throughput, and comes from one of two sources, which is always said:

- **matched pairs**: layouts that are equal in everything but the factor and differ by at most `CALIPER` in parameters
  (or throughput). Least squares on the differences of pairs, each pair weighted by one over the layouts it shares its
  set with; where every layout of a set pairs with every other, this is the usual fixed effect of the set. Intervals are
  Student's t at 95 %; the layout is the unit, so two pairs with a layout in common do not count as independent.
- **the model**, where there are too few pairs: a Gaussian process (Matern 5/2, noise fitted) over the features of a
  layout, log parameters (or log2 throughput) among them and held fixed, with the posterior's own 95 % interval. It is
  asked only if it predicts layouts that it has not seen (`MIN_SKILL`).

Where neither can say anything, the effect has no value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mvsearch.published import PUBLISHED, published_blocks
from mvsearch.record import TRAIN, TrialRecord
from mvsearch.report.data import ALL_ATTENTION, ALL_SCAN, PLACEMENTS, StageFacts, StudyData
from mvsearch.report.words import listed, plural

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NOT_ENOUGH = "not enough trials to say"
CALIPER = 0.05
"""Two layouts are matched if the larger cost is at most this share above the smaller one."""
MIN_TRIALS = 3
"""A kind with fewer layouts (for pairs: fewer that have a partner of another kind) is not compared."""
MIN_FREEDOM = 4
"""Fewer degrees of freedom left after the fit give intervals too wide to read."""
MIN_MODEL = 20
"""Fewer layouts do not make a model."""
MIN_SKILL = 0.3
"""A model that explains less of the variance of layouts it has not seen is not used: of 40 layouts of pure noise a fit
of a dozen features seems to explain a fifth."""
SHARES = ("none", "under 40 %", "40–60 %", "over 60 %", "all")
OUTCOMES = ("nll", "top1", "throughput")
FACTORS = ("share", "placement", "state", "width")
MATCHES = ("params", "throughput", "rest")
PAIRS, MODEL, REFERENCE = "matched pairs", "model", "reference"

_FIT_ON = 150
_CONTEXTS = 60
_Pair = tuple[TrialRecord, list[StageFacts]]


@dataclass(frozen=True)
class Effect:
    """One kind of stage (or width) against the reference kind.

    Attributes:
        label: the kind, e.g. ``"first"``.
        trials: complete layouts of this kind.
        pairs: matched pairs that it is a part of.
        source: ``"matched pairs"``, ``"model"``, ``"reference"`` (the kind that others are compared with), or None: not
            enough trials to say.
        value: estimated difference to the reference kind, in units of the outcome; 0 for the reference, None without a
            source.
        low: lower end of its 95 % interval; None for the reference.
        high: upper end.
    """

    label: str
    trials: int
    pairs: int = 0
    source: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """True if the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """All kinds of one factor on one outcome.

    Attributes:
        stage: number of the stage, from 1; 0 for the width, which is of the whole layout.
        factor: one of `FACTORS`: ``"share"`` (attention blocks over blocks), ``"placement"`` (of mixed orders, at
            equal share), ``"state"`` or ``"width"``.
        outcome: ``"nll"`` (minus the NLL in nats, so that larger is better), ``"top1"`` (0 to 1) or ``"throughput"``
            (log2 of the ratio).
        matched: what is held equal: ``"params"``, ``"throughput"``, or ``"rest"`` (everything but the factor, with the
            cost left free: for the width, which decides the cost).
        reference: label of the kind that others are compared with.
        effects: one for each kind that occurs, in a fixed order.
    """

    stage: int
    factor: str
    outcome: str
    matched: str
    reference: str
    effects: tuple[Effect, ...]

    @property
    def known(self) -> tuple[Effect, ...]:
        """Effects with an interval."""
        return tuple(effect for effect in self.effects if effect.low is not None)


@dataclass(frozen=True)
class NamedPattern:
    """One of the published patterns, where the study has it in every hybrid stage.

    Attributes:
        name: as the paper calls it, e.g. ``"last N/2"``.
        published: its ImageNet-1K top-1 in the paper's table 5, one run each, 0 to 1; None where the paper gives none.
        record: the layout here; None where the study has none at the size of the others.
    """

    name: str
    published: float | None
    record: TrialRecord | None


def comparable(study: StudyData) -> list[_Pair]:
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


class Insight:
    """The comparisons of one study; each is made when it is asked for, the models once.

    Args:
        study: where the layouts come from.
    """

    def __init__(self, study: StudyData) -> None:
        self.study = study
        self.stages = hybrid_stages(study)
        self.layouts = comparable(study)
        self._models: dict[tuple[str, str], _Model | None] = {}
        self._comparisons: dict[tuple[int, str, str, str], Comparison] = {}
        self._rests: dict[tuple[int, str], dict[str, Hashable]] = {}

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every factor that varies, stage by stage: quality at matched parameters and at matched throughput, and
        throughput at matched parameters; of the width, both at equal blocks and states."""
        quality = self.study.measure
        found = []
        for stage in self.stages:
            for factor in ("share", "placement", "state"):
                if len(set(self._kinds(stage, factor, quality)[1])) > 1:
                    for outcome, matched in ((quality, "params"), (quality, "throughput"), ("throughput", "params")):
                        found.append(self.compare(stage, factor, outcome, matched))
        if len(set(self._kinds(0, "width", quality)[1])) > 1:
            found += [self.compare(0, "width", outcome, "rest") for outcome in (quality, "throughput")]
        return found

    def skill(self, outcome: str, matched: str) -> float | None:
        """Share of the variance of unseen layouts that a model explains (leave one out); None where there is none."""
        model = self._model(outcome, matched)
        return model.skill if model else None

    def compare(self, stage: int, factor: str, outcome: str, matched: str) -> Comparison:
        """Compare the kinds of a factor.

        Args:
            stage: number of a hybrid stage, from 1; 0 for the width.
            factor: one of `FACTORS`.
            outcome: one of `OUTCOMES`.
            matched: one of `MATCHES`.

        Raises:
            ValueError: for throughput at matched throughput, which is the same for all.
        """
        if outcome == matched == "throughput":
            raise ValueError("outcome: throughput is equal at matched throughput; match params instead")
        asked = (stage, factor, outcome, matched)
        if asked not in self._comparisons:
            self._comparisons[asked] = self._compare(*asked)
        return self._comparisons[asked]

    def _compare(self, stage: int, factor: str, outcome: str, matched: str) -> Comparison:
        pairs, kinds = self._kinds(stage, factor, outcome)
        counts = Counter(kinds)
        order = _order(factor, kinds)
        reference = _reference(factor, counts, self._reference_width())
        by_pairs: dict[str, Effect] = {}
        if pairs:
            by_pairs = self._by_pairs(pairs, kinds, (stage, factor, outcome, matched), reference)
        missing = [k for k in order if k != reference and k not in by_pairs and counts[k] >= MIN_TRIALS]
        by_model: dict[str, Effect] = {}
        if missing and matched != "rest" and counts[reference] >= MIN_TRIALS:
            by_model = self._by_model(pairs, kinds, (stage, factor, outcome, matched), reference, missing)
        effects = []
        for kind in order:
            effect = by_pairs.get(kind) or by_model.get(kind) or Effect(kind, counts[kind])
            if kind == reference and (by_pairs or by_model):
                effect = Effect(kind, counts[kind], 0, REFERENCE, 0.0)
            effects.append(effect)
        return Comparison(stage, factor, outcome, matched, reference, tuple(effects))

    def _kinds(self, stage: int, factor: str, outcome: str) -> tuple[list[_Pair], list[str]]:
        """The layouts that a factor can be told of, and the kind of each."""
        pairs = [(r, facts) for r, facts in self.layouts if outcome_of(r, outcome) is not None and r.params and r.ratio]
        if factor == "width":
            return pairs, [f"{facts[0].dim}" for _, facts in pairs]
        if factor == "placement":
            pure = (ALL_SCAN, ALL_ATTENTION)
            pairs = [(r, facts) for r, facts in pairs if facts[stage - 1].placement not in pure]
            return pairs, [facts[stage - 1].placement for _, facts in pairs]
        if factor == "state":
            pairs = [(r, facts) for r, facts in pairs if facts[stage - 1].state is not None]
            return pairs, [f"N = {facts[stage - 1].state}" for _, facts in pairs]
        return pairs, [share_bin(facts[stage - 1].share) for _, facts in pairs]

    def _reference_width(self) -> str | None:
        reference = next((facts for r, facts in self.layouts if r.key == self.study.reference_key), None)
        return f"{reference[0].dim}" if reference else None

    # -- matched pairs ----------------------------------------------------------------------------------------------

    def _by_pairs(
        self, pairs: Sequence[_Pair], kinds: Sequence[str], asked: tuple[int, str, str, str], reference: str
    ) -> dict[str, Effect]:
        stage, factor, outcome, matched = asked
        units = self._units(pairs, kinds, outcome)
        rest = self._rest(stage, factor)
        sets = [(rest[r.key], seed) for (r, _), _, _, seed in units]
        costs = [_cost(record, matched) for (record, _), _, _, _ in units]
        covariates = []
        joined = _joined_within(sets, costs, None if matched == "rest" else math.log1p(CALIPER))
        if factor == "share":
            # What only Mamba has, and what only attention has, must be equal where both layouts have it.
            own = [facts[stage - 1] for (_, facts), _, _, _ in units]
            for has in ([fact.state for fact in own], [_head_dim(r, stage) for (r, _), _, _, _ in units]):
                values_of = np.array([-1 if value is None else value for value in has])
                equal = values_of[:, None] == values_of[None, :]
                joined &= equal | (values_of < 0)[:, None] | (values_of < 0)[None, :]
            # Within a share the place is free, so it is held equal linearly.
            covariates.append(
                np.array([0.0 if fact.centre is None or fact.share == 1 else fact.centre - 0.5 for fact in own])
            )
        values = np.array([value for _, _, value, _ in units])
        counts = Counter(kinds)
        found = paired_differences([kind for _, kind, _, _ in units], values, joined, reference, covariates)
        return {
            kind: Effect(kind, counts[kind], number, PAIRS, *estimate) for kind, (number, estimate) in found.items()
        }

    def _rest(self, stage: int, factor: str) -> dict[str, Hashable]:
        """What each layout must have in common with its partners, by key; the same for every outcome."""
        if (stage, factor) not in self._rests:
            self._rests[stage, factor] = {r.key: _everything_else(r, f, stage, factor) for r, f in self.layouts}
        return self._rests[stage, factor]

    def _units(
        self, pairs: Sequence[_Pair], kinds: Sequence[str], outcome: str
    ) -> list[tuple[_Pair, str, float, int | None]]:
        """What is paired: layouts by their means, or of a design its trainings, each with those of the same seed.

        A design holds every placement and ratio it asks about, so that there is no wider kind to speak for, and the
        noise is that between trainings.
        """
        if self.study.setting("search", "design") is None or outcome == "throughput" or self.study.seeds < 2:
            return [
                (pair, kind, outcome_of(pair[0], outcome) or 0.0, None) for pair, kind in zip(pairs, kinds, strict=True)
            ]
        found: list[tuple[_Pair, str, float, int | None]] = []
        for pair, kind in zip(pairs, kinds, strict=True):
            record = pair[0]
            for line in record.evaluations:
                if line.what == TRAIN and line.to_epoch == record.epochs:
                    value = line.values["top1"] if outcome == "top1" else -line.values["nll"]
                    found.append((pair, kind, value, line.seed))
        return found

    # -- the model --------------------------------------------------------------------------------------------------

    def _model(self, outcome: str, matched: str) -> _Model | None:
        if (outcome, matched) not in self._models:
            known = [
                (r, facts) for r, facts in self.layouts if outcome_of(r, outcome) is not None and r.params and r.ratio
            ]
            self._models[outcome, matched] = _Model.fit(known, outcome, matched) if len(known) >= MIN_MODEL else None
        return self._models[outcome, matched]

    def _by_model(
        self,
        pairs: Sequence[_Pair],
        kinds: Sequence[str],
        asked: tuple[int, str, str, str],
        reference: str,
        missing: Sequence[str],
    ) -> dict[str, Effect]:
        stage, factor, outcome, matched = asked
        model = self._model(outcome, matched)
        if model is None or model.skill < MIN_SKILL:
            return {}
        levels = [reference, *missing]
        names = {"share": ("share", "turns"), "placement": ("centre", "turns"), "state": ("state",)}[factor]
        settings = []
        for kind in levels:
            own = [facts[stage - 1] for (_, facts), k in zip(pairs, kinds, strict=True) if k == kind]
            settings.append({(stage, name): float(np.mean([_feature(f, name) for f in own])) for name in names})
        contexts = list(pairs)[:: max(1, len(pairs) // _CONTEXTS)]
        counts = Counter(kinds)
        estimates = model.contrasts(contexts, settings)
        return {
            kind: Effect(kind, counts[kind], 0, MODEL, *estimate)
            for kind, estimate in zip(missing, estimates, strict=True)
        }

    # -- published patterns -------------------------------------------------------------------------------------------

    def published(self) -> list[NamedPattern]:
        """The patterns of table 5 at one size: that at which most of them were tried (then the most trained one)."""
        sizes: dict[Hashable, dict[str, TrialRecord]] = {}
        for record, facts in self.layouts:
            hybrid = [fact for fact in facts if fact.hybrid]
            for name in PUBLISHED:
                if hybrid and all(f.blocks == published_blocks(name, len(f.blocks), _mamba(f.blocks)) for f in hybrid):
                    # Where nothing scans the state means nothing: such a layout belongs to every state.
                    size = tuple((fact.dim, len(fact.blocks)) for fact in facts)
                    states = tuple(fact.state for fact in hybrid)
                    sizes.setdefault((size, None if None in states else states), {})[name] = record
        if not sizes:
            return []
        best = max(sizes.items(), key=lambda item: len(item[1]))
        (size, states), found = best  # type: ignore[misc]
        found = {**sizes.get((size, None), {}), **found}
        return [NamedPattern(name, top1, found.get(name)) for name, top1 in PUBLISHED.items()]


def _mamba(blocks: str) -> str:
    return "G" if "G" in blocks else "M"


def _order(factor: str, kinds: Sequence[str]) -> list[str]:
    present = set(kinds)
    if factor in ("share", "placement"):
        return [kind for kind in (SHARES if factor == "share" else PLACEMENTS) if kind in present]
    return sorted(present, key=lambda kind: int(kind.removeprefix("N = ")))


def _reference(factor: str, counts: Counter[str], width: str | None) -> str:
    """The published kind where it was tried often enough (last, half, N = 8; the reference's width), else the most
    common one."""
    published = {"share": "40–60 %", "placement": "last", "state": "N = 8", "width": width}[factor]
    if published is not None and counts[published] >= MIN_TRIALS:
        return published
    return max(counts, key=lambda kind: counts[kind], default="")


def _everything_else(record: TrialRecord, facts: Sequence[StageFacts], stage: int, factor: str) -> Hashable:
    """What two layouts must have in common to be a pair for a factor."""
    parts: list[Any] = []
    for data, fact in zip(record.layout["stages"], facts, strict=True):
        rest = {k: v for k, v in data.items() if k not in ("blocks", "dim", "state", "heads", "layer_scale")}
        head_dim = _head_dim(record, fact.number)
        own = fact.number == stage
        if factor == "width":
            parts.append((fact.blocks, fact.state, fact.dim / facts[0].dim))
        elif not own:
            parts.append((fact.blocks, fact.dim, fact.state, head_dim, tuple(rest.items())))
        elif factor == "placement":
            attends = round(fact.share * len(fact.blocks))
            parts.append((attends, len(fact.blocks), fact.dim, fact.state, head_dim, tuple(rest.items())))
        elif factor == "state":
            parts.append((fact.blocks, fact.dim, head_dim, tuple(rest.items())))
        else:
            # State and heads: see `_by_pairs`.
            parts.append((len(fact.blocks), fact.dim, tuple(rest.items())))
    return tuple(parts)


def _head_dim(record: TrialRecord, stage: int) -> int | None:
    """Channels of an attention head of a stage; None without attention."""
    data = record.layout["stages"][stage - 1]
    return data["dim"] // data.get("heads", 1) if "A" in data["blocks"] else None


def _cost(record: TrialRecord, matched: str) -> float:
    """Natural log of the cost that is to be equal."""
    return math.log(record.ratio or 1.0) if matched == "throughput" else math.log(record.params or 1)


def _joined_within(sets: Sequence[Hashable], costs: Sequence[float], caliper: float | None) -> NDArray[np.bool_]:
    """Whether two layouts are a pair, shape (n, n): of one set, and close in log cost."""
    known = {one: number for number, one in enumerate(dict.fromkeys(sets))}
    group = np.array([known[one] for one in sets])
    joined: NDArray[np.bool_] = group[:, None] == group[None, :]
    if caliper is not None:
        cost = np.array(costs)
        joined &= np.abs(cost[:, None] - cost[None, :]) <= caliper
    np.fill_diagonal(joined, False)
    return joined


def paired_differences(
    kinds: Sequence[str],
    values: NDArray[np.float64],
    joined: NDArray[np.bool_],
    reference: str,
    covariates: Sequence[NDArray[np.float64]] = (),
) -> dict[str, tuple[int, tuple[float, float, float]]]:
    """Each kind minus the reference kind, by least squares on the differences of matched pairs.

    Args:
        kinds: of each layout, length n.
        values: outcome of each layout, shape (n,); noise is taken as independent between layouts.
        joined: which layouts are pairs, symmetric, shape (n, n).
        reference: the kind that others are compared with.
        covariates: numbers of each layout that are held equal linearly, each of shape (n,).

    Returns:
        For each kind that can be told: its number of pairs with layouts of another kind, and (value, low, high), the
        ends at 95 %. Kinds with fewer than `MIN_TRIALS` paired layouts, kinds that no chain of pairs joins to the
        reference, and everything where fewer than `MIN_FREEDOM` degrees of freedom are left, are left out.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.special import stdtrit

    paired = joined.any(axis=1)  # of a thousand layouts most may have no partner
    kind, values, joined = np.array(kinds)[paired], values[paired], joined[np.ix_(paired, paired)]
    covariates = [column[paired] for column in covariates]
    differs = joined & (kind[:, None] != kind[None, :])
    kept = {str(k) for k in set(kind) if differs[kind == k].any(axis=1).sum() >= MIN_TRIALS}
    inside = np.array([k in kept for k in kind], dtype=bool)
    joined = joined & inside[:, None] & inside[None, :]
    differs &= joined
    if reference not in kept:
        return {}
    # Kinds that a chain of pairs joins to the reference.
    names = sorted(kept)
    links = [[bool(differs[np.ix_(kind == a, kind == b)].any()) for b in names] for a in names]
    part = connected_components(np.array(links), directed=False)[1]
    names = [name for name, p in zip(names, part, strict=True) if p == part[names.index(reference)]]
    inside = np.isin(kind, names)
    joined = joined & inside[:, None] & inside[None, :]
    others = [name for name in names if name != reference]
    if not others:
        return {}
    degree = joined.sum(axis=1)
    # In a set where all pair with all of m, each pair weighs 1/m: the least squares of a fixed effect of the set.
    weights = np.where(joined, 2.0 / (degree[:, None] + degree[None, :] + 2.0), 0.0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    columns = [(kind == name).astype(float) for name in others] + [c for c in covariates if np.ptp(c[inside]) > 0]
    design = np.column_stack(columns)
    normal = design.T @ laplacian @ design
    sets = connected_components(joined, directed=False)[0] - int((degree == 0).sum())
    rank = int(np.linalg.matrix_rank(normal, tol=1e-9 * max(1.0, float(np.abs(normal).max()))))
    freedom = int((degree > 0).sum()) - sets - rank
    if freedom < MIN_FREEDOM:
        return {}
    inverse = np.linalg.pinv(normal, hermitian=True, rcond=1e-9)
    coefficients = inverse @ design.T @ laplacian @ values
    residuals = values - design @ coefficients
    middle = design.T @ laplacian @ laplacian @ design
    spare = float(np.trace(laplacian) - np.trace(inverse @ middle))
    variance = float(residuals @ laplacian @ residuals) / spare
    covariance = variance * inverse @ middle @ inverse
    quantile = float(stdtrit(freedom, 0.975))
    determined = np.isclose(np.diag(inverse @ normal), 1.0, atol=1e-6)
    found = {}
    for position, name in enumerate(others):
        if not determined[position]:
            continue
        value = float(coefficients[position])
        half = quantile * math.sqrt(max(float(covariance[position, position]), 0.0))
        number = int(differs[kind == name].sum())
        found[name] = (number, (value, value - half, value + half))
    return found


# -- in words -------------------------------------------------------------------------------------------------------

OUTCOME_NAMES = {"nll": "NLL", "top1": "top-1", "throughput": "throughput"}
FACTOR_NAMES = {
    "share": "attention share",
    "placement": "placement of attention",
    "state": "state size",
    "width": "width of stage 1",
}
MATCH_NAMES = {"params": "at equal parameters", "throughput": "at equal throughput", "rest": "all else equal"}


def subject(one: Comparison) -> str:
    """What a comparison is about, e.g. ``"Stage 2, placement of attention"``."""
    name = FACTOR_NAMES[one.factor]
    return f"Stage {one.stage}, {name}" if one.stage else f"{name[0].upper()}{name[1:]}"


def displayed(value: float, outcome: str) -> float:
    """From an outcome's unit to the one that is shown: a factor for throughput, points for top-1, NLL as itself."""
    if outcome == "throughput":
        return float(2**value)
    return 100 * value if outcome == "top1" else -value


def effect_words(effect: Effect, outcome: str) -> str:
    """An effect and its interval in words, e.g. ``"1.120× (1.050× to 1.200×)"``; `NOT_ENOUGH` without them.

    NLL is given as itself, so that a lower one is better.
    """
    if effect.source == REFERENCE:
        return "the reference"
    if effect.value is None or effect.low is None or effect.high is None:
        return NOT_ENOUGH
    value = displayed(effect.value, outcome)
    ends = sorted((displayed(effect.low, outcome), displayed(effect.high, outcome)))
    if outcome == "throughput":
        return f"{value:.3f}× ({ends[0]:.3f}× to {ends[1]:.3f}×)"
    digits, unit = (3, "nats") if outcome == "nll" else (1, "points")
    texts = [f"{v:+.{digits}f}".replace("-", "−") for v in (value, *ends)]
    return f"{texts[0]} {unit} ({texts[1]} to {texts[2]})"


def effect_short(effect: Effect, outcome: str) -> str:
    """An effect for a narrow table, ``"−0.014 ±0.020 p110"`` (from 110 pairs) or ``"1.037× ±0.019 m"`` (the model)."""
    if effect.source == REFERENCE:
        return "reference"
    if effect.value is None or effect.low is None or effect.high is None:
        return "–"
    half = abs(displayed(effect.high, outcome) - displayed(effect.low, outcome)) / 2
    value = displayed(effect.value, outcome)
    text = f"{value:.3f}×" if outcome == "throughput" else f"{value:+.{3 if outcome == 'nll' else 1}f}"
    source = f"p{effect.pairs}" if effect.source == PAIRS else "m"
    return f"{text} ±{half:.{1 if outcome == 'top1' else 3}f} {source}".replace("-", "−")


def source_words(effect: Effect) -> str:
    """Where an effect comes from, e.g. ``"12 pairs"``, ``"model"``; empty without an interval."""
    if effect.low is None:
        return ""
    return plural(effect.pairs, "pair") if effect.source == PAIRS else "model"


def comparison_words(one: Comparison) -> str:
    """What a comparison says, and what it cannot say, as one sentence without its subject."""
    better, worse = ("faster", "slower") if one.outcome == "throughput" else ("better", "worse")
    what = f"{OUTCOME_NAMES[one.outcome]} {MATCH_NAMES[one.matched]}"
    texts = []
    for word, some in (
        (better, [e for e in one.known if e.clear and (e.value or 0) > 0]),
        (worse, [e for e in one.known if e.clear and (e.value or 0) < 0]),
    ):
        if some:
            each = [f"{e.label} by {_inside(effect_words(e, one.outcome))}, {source_words(e)}" for e in some]
            texts.append(f"{word} than {one.reference}: {'; '.join(each)}")
    unclear = [e for e in one.known if not e.clear]
    if unclear:
        sources = listed(sorted({"the model" if e.source == MODEL else PAIRS for e in unclear}))
        texts.append(f"cannot be told from {one.reference}: {listed([e.label for e in unclear])} (by {sources})")
    silent = [e.label for e in one.effects if e.source is None and e.label != one.reference]
    if not one.known:
        return f"{what}: {NOT_ENOUGH}."
    if silent:
        texts.append(f"{NOT_ENOUGH} about {listed(silent)}")
    return f"{what}: {'; '.join(texts)}."


def headlines(insight: Insight) -> list[str]:
    """What a study says about placement and ratio in quality, at equal parameters, a sentence a stage and factor."""
    said = []
    for stage in insight.stages:
        for factor, question in (("placement", "where attention stands"), ("share", "how much attention")):
            one = insight.compare(stage, factor, insight.study.measure, "params")
            if len(one.effects) < 2:
                continue
            clear = [e for e in one.known if e.clear]
            start = f"Stage {stage}, {question}: "
            if not one.known:
                said.append(f"{start}{NOT_ENOUGH}.")
            elif not clear:
                said.append(
                    f"{start}no difference to “{one.reference}” that can be told "
                    f"({listed([e.label for e in one.known])} compared)."
                )
            else:
                each = [
                    f"“{e.label}” is {'better' if (e.value or 0) > 0 else 'worse'} than “{one.reference}” by "
                    f"{_size_words(e, one.outcome)}"
                    for e in clear
                ]
                said.append(f"{start}{'; '.join(each)}.")
    return said


def _size_words(effect: Effect, outcome: str) -> str:
    """The size of a clear effect on quality, e.g. ``"0.016 nats (95 %: 0.001 to 0.031)"``."""
    value, *ends = (abs(displayed(v or 0.0, outcome)) for v in (effect.value, effect.low, effect.high))
    digits, unit = (3, "nats") if outcome == "nll" else (1, "points")
    low, high = (f"{end:.{digits}f}" for end in sorted(ends))
    return f"{value:.{digits}f} {unit} (95 %: {low} to {high})"


def _inside(words: str) -> str:
    """``"a (b to c)"`` for use among commas, ``"a [b to c]"``."""
    return words.replace("(", "[").replace(")", "]")


def insight_table(insight: Insight) -> pd.DataFrame:
    """Every effect as a row, in the units that are shown: nats of NLL, points of top-1, a factor of throughput."""
    import pandas as pd

    rows = []
    for one in insight.comparisons:
        for effect in one.effects:
            values = [None if v is None else displayed(v, one.outcome) for v in (effect.value, effect.low, effect.high)]
            known = sorted(value for value in values[1:] if value is not None)
            rows.append(
                {
                    "stage": one.stage or None,
                    "factor": one.factor,
                    "outcome": one.outcome,
                    "matched": one.matched,
                    "reference": one.reference,
                    "kind": effect.label,
                    "layouts": effect.trials,
                    "pairs": effect.pairs,
                    "source": effect.source,
                    "difference": values[0],
                    "low": known[0] if known else None,
                    "high": known[-1] if known else None,
                }
            )
    columns = ["stage", "factor", "outcome", "matched", "reference", "kind", "layouts", "pairs", "source"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "low", "high"]).astype({"stage": "Int64"})


def unsupported(insight: Insight) -> list[str]:
    """What a study does not support, as sentences."""
    study, said = insight.study, []
    if not insight.stages:
        return ["No complete layout has a hybrid stage, so there is no ratio or placement to speak of."]
    for stage in insight.stages:
        for factor in ("share", "placement", "state"):
            kinds = set(insight._kinds(stage, factor, study.measure)[1])
            if len(kinds) < 2:
                only = f" ({kinds.pop()})" if kinds else ""
                said.append(f"Stage {stage}: its {FACTOR_NAMES[factor]} was the same in every layout{only}.")
    if len({facts[0].dim for _, facts in insight.layouts}) > 1:
        said.append(
            "Width cannot be compared at equal parameters or throughput: it decides both. It is compared between "
            "layouts of equal blocks and states instead, and costs what it costs."
        )
    else:
        said.append("All layouts have one width, so nothing can be said about it.")
    used = {e.source for one in insight.comparisons for e in one.known}
    for outcome, matched in ((study.measure, "params"), (study.measure, "throughput"), ("throughput", "params")):
        asked = any(
            e.source is None and e.trials >= MIN_TRIALS
            for one in insight.comparisons
            if (one.outcome, one.matched) == (outcome, matched)
            for e in one.effects
        )
        if asked and len(insight.layouts) < MIN_MODEL:
            break
        skill = insight.skill(outcome, matched) if asked or MODEL in used else None
        if skill is not None and skill < MIN_SKILL:
            name = f"{OUTCOME_NAMES[outcome]} {MATCH_NAMES[matched]}"
            said.append(
                f"The model of {name} explains {max(0, round(100 * skill))} % of the variance of layouts it has not "
                f"seen; under {round(100 * MIN_SKILL)} % it is not used."
            )
    if len(insight.layouts) < MIN_MODEL:
        said.append(
            f"{plural(len(insight.layouts), 'layout')} can be compared: too few for a model (it takes {MIN_MODEL})."
        )
    if study.setting("search", "design"):
        said.append(
            "A design compares exactly its own layouts, at one width and state: its intervals are those of the noise "
            "between trainings, and another width may answer otherwise."
        )
    if study.seeds <= 1:
        said.append(
            "Each layout was trained once, so the noise between seeds is in the intervals, but its size is not known."
        )
    left_out = len(study.complete) - len(insight.layouts)
    if left_out:
        said.append(f"{plural(left_out, 'layout')} of another sequence of conv and hybrid stages were not compared.")
    return said


# -- the model ------------------------------------------------------------------------------------------------------


def _feature(fact: StageFacts, name: str) -> float:
    """One number about a stage: share of attention, its centre of mass, changes of letter, log2 of the state."""
    if name == "share":
        return fact.share
    if name == "centre":
        return 0.5 if fact.centre is None else fact.centre
    if name == "turns":
        changes = sum(a != b for a, b in zip(fact.blocks, fact.blocks[1:], strict=False))
        return changes / max(1, len(fact.blocks) - 1)
    if name == "depth":
        return float(len(fact.blocks))
    return math.nan if fact.state is None else math.log2(fact.state)


@dataclass
class _Model:
    """A Gaussian process of an outcome over features of a layout, the matched cost among them; width is not, so that
    "at equal parameters" means: as wide as the parameters allow."""

    names: list[tuple[int, str]]
    outcome: str
    matched: str
    means: NDArray[np.float64]
    scales: NDArray[np.float64]
    centre: float
    spread: float
    process: Any
    skill: float
    widening: float

    @classmethod
    def fit(cls, pairs: Sequence[_Pair], outcome: str, matched: str) -> _Model | None:
        import warnings

        from scipy.special import stdtrit
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        pairs = pairs[:: max(1, -(-len(pairs) // 600))]
        facts = pairs[0][1]
        names = [
            (fact.number, name)
            for fact in facts
            for name in (("share", "centre", "turns", "depth", "state") if fact.hybrid else ("depth",))
        ] + [(fact.number, "dim") for fact in facts[1:]]
        names.append((0, matched))
        raw = _table(pairs, names)
        means = np.nan_to_num(np.nanmean(raw, axis=0))
        raw = np.where(np.isnan(raw), means, raw)
        scales = raw.std(axis=0)
        kept = scales > 1e-9
        if not kept[-1]:
            return None
        names = [name for name, keep in zip(names, kept, strict=True) if keep]
        x = (raw[:, kept] - means[kept]) / scales[kept]
        values = np.array([outcome_of(record, outcome) or 0.0 for record, _ in pairs])
        spread = float(values.std())
        if spread == 0:
            return None
        y = (values - values.mean()) / spread
        # A long length scale calls a feature irrelevant and so any effect of it certain to be nought. The linear part
        # keeps every feature open: a standard deviation of it may move the outcome by a quarter of one, at least.
        curved = ConstantKernel(0.5, (0.01, 20.0)) * Matern(np.full(x.shape[1], 3.0), (0.5, 20.0), nu=2.5)
        linear = ConstantKernel(0.1, (0.06, 2.0)) * DotProduct(0.0, "fixed")
        kernel = curved + linear + WhiteKernel(0.1, (1e-4, 2.0))
        some = np.random.default_rng(0).permutation(len(y))[:_FIT_ON]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = GaussianProcessRegressor(kernel, random_state=0).fit(x[some], y[some])
            process = GaussianProcessRegressor(fitted.kernel_, optimizer=None).fit(x, y)
        inverse = np.linalg.inv(process.kernel_(x))
        left_out = (inverse @ y) / np.diag(inverse)  # errors of leaving one out, in closed form
        skill = 1.0 - float(np.mean(left_out**2) / np.mean(y**2))
        # The posterior takes the fitted noise for the true one, which is too small by what the fit has used up.
        noise = float(process.kernel_.k2.noise_level)
        freedom = max(2.0, noise * float(np.trace(inverse)))
        widening = float(stdtrit(freedom, 0.975)) * math.sqrt(len(y) / freedom)
        return cls(
            names, outcome, matched, means[kept], scales[kept], float(values.mean()), spread, process, skill, widening
        )

    def contrasts(
        self, contexts: Sequence[_Pair], settings: Sequence[dict[tuple[int, str], float]]
    ) -> list[tuple[float, float, float]]:
        """Each setting after the first, minus the first, averaged over contexts, with its 95 % interval.

        Args:
            contexts: layouts whose other features and cost are kept.
            settings: values of features by (stage, name).
        """
        base = _table(contexts, self.names)
        base = np.where(np.isnan(base), self.means, base)
        rows = []
        for setting in settings:
            changed = base.copy()
            for name, value in setting.items():
                if name in self.names:
                    changed[:, self.names.index(name)] = value
            rows.append((changed - self.means) / self.scales)
        noise_free = self.process.kernel_.k1
        n = len(contexts)
        x, known = np.vstack(rows), self.process.X_train_
        cross = noise_free(x, known)
        mean = cross @ self.process.alpha_
        from scipy.linalg import cho_solve

        cov = noise_free(x) - cross @ cho_solve((self.process.L_, True), cross.T)
        found = []
        for number in range(1, len(settings)):
            pick = np.zeros(len(x))
            pick[number * n : (number + 1) * n] = 1 / n
            pick[:n] = -1 / n
            value = self.spread * float(pick @ mean.ravel())
            half = self.widening * self.spread * math.sqrt(max(float(pick @ cov @ pick), 0.0))
            found.append((value, value - half, value + half))
        return found


def _table(pairs: Sequence[_Pair], names: Sequence[tuple[int, str]]) -> NDArray[np.float64]:
    """Features of layouts, shape (layouts, names); nan where a stage has no state."""
    rows = []
    for record, facts in pairs:
        row = []
        for stage, name in names:
            if stage == 0:
                row.append(_cost(record, name))
            elif name == "dim":
                row.append(math.log2(facts[stage - 1].dim / facts[0].dim))
            else:
                row.append(_feature(facts[stage - 1], name))
        rows.append(row)
    return np.array(rows, dtype=float).reshape(len(pairs), len(names))
