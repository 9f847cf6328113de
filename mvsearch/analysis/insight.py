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
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mambavision.layout import LETTERS, Letter
from mvsearch.analysis.facts import (
    ALL_BASE,
    ALL_PLACED,
    ORDERS,
    LayoutFacts,
    StageFacts,
    comparable,
    hybrid_stages,
    log_cost,
    outcome_of,
    placed_letter,
)
from mvsearch.analysis.model import MIN_MODEL, MIN_SKILL, OutcomeModel, feature
from mvsearch.analysis.pairs import MIN_TRIALS, joined_within, paired_differences
from mvsearch.analysis.repeated import quality_of
from mvsearch.space.published import PUBLISHED_PATTERNS, is_published
from mvsearch.study.data import StudyData
from mvsearch.study.record import TRAIN, TrialRecord

CALIPER = 0.05
"""Two layouts are matched if the larger cost is at most this share above the smaller one."""


SHARES = ("none", "under 40 %", "40–60 %", "over 60 %", "all")


PAIRS, MODEL, REFERENCE = "matched pairs", "model", "reference"


_CONTEXTS = 60


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
class FactorComparison:
    """The effect of each kind of one factor on one outcome, against a reference kind.

    Attributes:
        stage: number of the stage, from 1; 0 for the width, which is of the whole layout.
        factor: ``"share"`` (blocks with attention over blocks), ``"placement"`` (of mixed orders, at
            equal share), ``"state"`` or ``"width"``.
        placed: the letter whose share and placement these are.
        outcome: ``"nll"`` (minus the NLL in nats, so that larger is better), ``"top1"`` (0 to 1) or ``"throughput"``
            (log2 of the ratio).
        matched: what is held equal: ``"params"``, ``"throughput"``, or ``"rest"`` (everything but the factor, with the
            cost left free: for the width, which decides the cost).
        reference: label of the kind that others are compared with.
        effects: one for each kind that occurs, in a fixed order.
    """

    stage: int
    factor: str
    placed: Letter
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


def by_factor(comparisons: Iterable[FactorComparison]) -> dict[tuple[int, str], list[FactorComparison]]:
    """Comparisons by stage (0 for the width) and factor, in the order given."""
    groups: dict[tuple[int, str], list[FactorComparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.stage, comparison.factor), []).append(comparison)
    return groups


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
        self._models: dict[tuple[str, str], OutcomeModel | None] = {}
        self._comparisons: dict[tuple[int, str, str, str], FactorComparison] = {}
        self._rests: dict[tuple[int, str], dict[str, Hashable]] = {}

    @cached_property
    def comparisons(self) -> list[FactorComparison]:
        """The comparisons of every factor that varies, stage by stage, the width last.

        Of a stage's factors: quality at matched parameters, quality at matched throughput, and throughput at matched
        parameters. Of the width: quality and throughput at equal blocks and states.
        """
        quality = self.study.measure
        found = []
        for stage in self.stages:
            for factor in ("share", "placement", "state"):
                if len(self.kinds(stage, factor)) > 1:
                    for outcome, matched in ((quality, "params"), (quality, "throughput"), ("throughput", "params")):
                        found.append(self.compare(stage, factor, outcome, matched))
        if len(self.kinds(0, "width")) > 1:
            found += [self.compare(0, "width", outcome, "rest") for outcome in (quality, "throughput")]
        return found

    @property
    def intervals(self) -> int:
        """How many effects of all comparisons have an interval."""
        return sum(len(comparison.known) for comparison in self.comparisons)

    def kinds(self, stage: int, factor: str) -> set[str]:
        """The kinds of a factor that occur among the layouts compared, e.g. ``{"last", "mixed"}``."""
        return set(self._kinds(stage, factor, self.study.measure)[1])

    def skill(self, outcome: str, matched: str) -> float | None:
        """Share of the variance of unseen layouts that a model explains (leave one out); None where there is none."""
        model = self._model(outcome, matched)
        return model.skill if model else None

    def compare(self, stage: int, factor: str, outcome: str, matched: str) -> FactorComparison:
        """Compare the kinds of a factor.

        Args:
            stage: number of a hybrid stage, from 1; 0 for the width.
            factor: as in `FactorComparison`.
            outcome: likewise.
            matched: likewise.

        Raises:
            ValueError: for throughput at matched throughput, which is the same for all.
        """
        if outcome == matched == "throughput":
            raise ValueError("outcome: throughput is equal at matched throughput; match params instead")
        asked = (stage, factor, outcome, matched)
        if asked not in self._comparisons:
            self._comparisons[asked] = self._compare(*asked)
        return self._comparisons[asked]

    def _compare(self, stage: int, factor: str, outcome: str, matched: str) -> FactorComparison:
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
        return FactorComparison(stage, factor, self.placed(stage), outcome, matched, reference, tuple(effects))

    def placed(self, stage: int) -> Letter:
        """The letter that share and placement of a stage are told of; of the width, stage 0, it says nothing."""
        return placed_letter(self.layouts, stage)

    def _kinds(self, stage: int, factor: str, outcome: str) -> tuple[list[LayoutFacts], list[str]]:
        """The layouts that a factor can be told of, and the kind of each."""
        pairs = [(r, facts) for r, facts in self.layouts if outcome_of(r, outcome) is not None and r.params and r.ratio]
        if factor == "width":
            return pairs, [f"{facts[0].dim}" for _, facts in pairs]
        if factor == "placement":
            pure = (ALL_BASE, ALL_PLACED)
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
        self, pairs: Sequence[LayoutFacts], kinds: Sequence[str], asked: tuple[int, str, str, str], reference: str
    ) -> dict[str, Effect]:
        stage, factor, outcome, matched = asked
        units = self._units(pairs, kinds, outcome)
        rest = self._rest(stage, factor)
        sets = [(rest[r.key], seed) for (r, _), _, _, seed in units]
        costs = [log_cost(record, matched) for (record, _), _, _, _ in units]
        covariates = []
        joined = joined_within(sets, costs, None if matched == "rest" else math.log1p(CALIPER))
        if factor == "share":
            # What only blocks that scan have, and what only those with attention have, must be equal where both layouts
            # have it.
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
        self, pairs: Sequence[LayoutFacts], kinds: Sequence[str], outcome: str
    ) -> list[tuple[LayoutFacts, str, float, int | None]]:
        """What is paired: layouts by their means, or of a design its trainings, each with those of the same seed.

        A design holds every placement and ratio it asks about, so that there is no wider kind to speak for, and the
        noise is that between trainings.
        """
        if self.study.setting("search", "design") is None or outcome == "throughput" or self.study.seeds < 2:
            return [
                (pair, kind, outcome_of(pair[0], outcome) or 0.0, None) for pair, kind in zip(pairs, kinds, strict=True)
            ]
        found: list[tuple[LayoutFacts, str, float, int | None]] = []
        for pair, kind in zip(pairs, kinds, strict=True):
            record = pair[0]
            for line in record.evaluations:
                if line.what == TRAIN and line.to_epoch == record.epochs:
                    found.append((pair, kind, quality_of(line, outcome), line.seed))
        return found

    # -- the model --------------------------------------------------------------------------------------------------

    def _model(self, outcome: str, matched: str) -> OutcomeModel | None:
        if (outcome, matched) not in self._models:
            known = [
                (r, facts) for r, facts in self.layouts if outcome_of(r, outcome) is not None and r.params and r.ratio
            ]
            self._models[outcome, matched] = (
                OutcomeModel.fit(known, outcome, matched) if len(known) >= MIN_MODEL else None
            )
        return self._models[outcome, matched]

    def _by_model(
        self,
        pairs: Sequence[LayoutFacts],
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
            settings.append({(stage, name): float(np.mean([feature(f, name) for f in own])) for name in names})
        contexts = list(pairs)[:: max(1, len(pairs) // _CONTEXTS)]
        counts = Counter(kinds)
        estimates = model.contrasts(contexts, settings)
        return {
            kind: Effect(kind, counts[kind], 0, MODEL, *estimate)
            for kind, estimate in zip(missing, estimates, strict=True)
        }

    # -- published patterns -------------------------------------------------------------------------------------------

    def published(self) -> list[NamedPattern]:
        """The patterns of the paper's table 5, in its order, at the size at which the study tried most of them; empty
        where it tried none."""
        sizes: dict[Hashable, dict[str, TrialRecord]] = {}
        for record, facts in self.layouts:
            hybrid = [fact for fact in facts if fact.hybrid]
            for name in PUBLISHED_PATTERNS:
                if hybrid and all(is_published(name, fact.blocks) for fact in hybrid):
                    # Where nothing scans the state means nothing: such a layout belongs to every state.
                    size = tuple((fact.dim, len(fact.blocks)) for fact in facts)
                    states = tuple(fact.state for fact in hybrid)
                    sizes.setdefault((size, None if None in states else states), {})[name] = record
        if not sizes:
            return []
        best = max(sizes.items(), key=lambda item: len(item[1]))
        (size, states), found = best  # type: ignore[misc]
        found = {**sizes.get((size, None), {}), **found}
        return [NamedPattern(name, top1, found.get(name)) for name, top1 in PUBLISHED_PATTERNS.items()]


def _order(factor: str, kinds: Sequence[str]) -> list[str]:
    present = set(kinds)
    if factor in ("share", "placement"):
        return [kind for kind in (SHARES if factor == "share" else ORDERS) if kind in present]
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
    attends = any(letter in LETTERS and LETTERS[letter].attends for letter in data["blocks"])
    return data["dim"] // data.get("heads", 1) if attends else None
