"""KnownCostSampler: an Optuna sampler for layouts, which uses that throughput is known before anything is trained."""

from __future__ import annotations

import functools
import math
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from mambavision.layout import HybridLayout
from mvsearch.models.features import Features
from mvsearch.models.gaussian_process import Hyperparameters, QualityModel, fit_hyperparameters, modelled
from mvsearch.models.throughput import ThroughputModel, made_of
from mvsearch.samplers.acquisition import expected_hypervolume_gains
from mvsearch.samplers.observation import Observation, Observations
from mvsearch.samplers.scale import Measured, on_one_scale
from mvsearch.space.space import SearchSpace
from mvsearch.space.stage import SpaceError
from mvsearch.study.front import Point, pareto_front

RULE_LAYOUTS = 8
"""Layouts asked for before any model is asked: hand-made ones and those of placement rules, spread over the space."""

MODELLED = 1000
"""Layouts that the quality model holds at most (`mvsearch.models.gaussian_process.modelled` says which)."""

ENUMERATED = 4096
"""Spaces of up to this many layouts are candidates as a whole."""

_MUTATIONS = 200
_DRAWS = 100
_KEPT = 200
_STEPS = (0.6, 0.3, 0.1)  # how likely a candidate is 1, 2 or 3 changes away from its parent
_MODEL_FROM = 4  # layouts with a quality
_FITTED = 300  # qualities that hyperparameters are fitted to at most


@dataclass(frozen=True)
class _Known:
    """What has been asked for so far.

    Attributes:
        seen: keys of the layouts of this study.
        own: its layouts.
        observations: what did not fail, of other studies too.
        pending: what is under way.
    """

    seen: set[str]
    own: Sequence[Observation]
    observations: Sequence[Observation]
    pending: Sequence[Observation]


class KnownCostSampler(BaseSampler):
    """Asks for the layout that is expected to add most hypervolume, for two maximised objectives: quality, throughput.

    Only the quality of a layout that was not trained is uncertain. It is predicted by a Gaussian process, its
    throughput by a regression on what was timed, and the expected hypervolume improvement over the front of posterior
    means then has a closed form. It is looked for among mutations of that front, random layouts and rule patterns
    (small spaces: among all layouts); always within the budgets of the space, and never a layout asked for before.
    Layouts under way count as trained, with the quality expected of them. The first few layouts are rule patterns.

    Args:
        space: what is searched; the objective calls ``space.suggest(trial)``. Parameters that are not of the space are
            drawn independently and at random.
        seed: 32 bits; None: drawn.
        observations: gives all that is known of the study (rungs, seeds, layouts under way, other studies' results).
            None: it is read from the trials of the Optuna study, COMPLETE ones with the values (quality, log2
            throughput).
        reference: (quality, throughput) of the corner from which hypervolume is measured, or what gives it at each
            ask. None: the worst quality and half of the lowest throughput seen.

    Raises:
        ValueError: at the first ask, for a study whose directions are not two times "maximize".
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int | None = None,
        observations: Observations | None = None,
        reference: tuple[float, float] | Callable[[], tuple[float, float]] | None = None,
    ) -> None:
        self._space = space
        self._observations = observations
        self._reference = reference
        self._names = space.distributions()
        self._rungs = len(space.config.rung_epochs)
        self._design_seed = np.random.SeedSequence().entropy if seed is None else seed
        self._rng = random.Random(seed)
        self._others = RandomSampler(seed=seed)
        self._lock = threading.RLock()
        self._features = Features(space)
        self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._trials: dict[int, Observation | None] = {}
        self._asked: dict[int, HybridLayout] = {}
        self._hyperparameters: tuple[int, Hyperparameters] | None = None
        self._kept: list[HybridLayout] = []
        self._proposals: list[HybridLayout] = []
        self._proposals_from = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    # -- what Optuna calls --------------------------------------------------------------------------------------------

    def reseed(self, seed: int) -> None:
        """Seed the generators; what has been learnt stays, and so does the order of the first layouts."""
        self._rng.seed(seed)
        self._others = RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        self._rng.seed()
        self._others.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if study.directions != [StudyDirection.MAXIMIZE] * 2:
            given = ", ".join(direction.name.lower() for direction in study.directions)
            raise ValueError(
                f"directions: [{given}] is not allowed; KnownCostSampler maximises two objectives, quality and log2 "
                'throughput: create_study(directions=["maximize", "maximize"])'
            )
        return dict(self._names)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        fixed = trial.system_attrs.get("fixed_params", {})
        if all(name in fixed for name in search_space):
            return {}
        with self._lock:
            layout = self._propose(self._known(study, trial))
            self._asked[trial.number] = layout
        params = self._space.encode(layout)
        return {name: params[name] for name in search_space if name in params}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    # -- what is known ------------------------------------------------------------------------------------------------

    def _known(self, study: optuna.Study, trial: FrozenTrial) -> _Known:
        found = self._observations() if self._observations is not None else self._read(study, trial)
        own = [observation for observation in found if observation.source is None]
        return _Known(
            seen={observation.key for observation in own},
            own=own,
            observations=[observation for observation in found if not observation.failed],
            pending=[observation for observation in own if observation.under_way and not observation.failed],
        )

    def _read(self, study: optuna.Study, asking: FrozenTrial) -> list[Observation]:
        """What the trials of a study say. Layouts of several COMPLETE trials are observed once, with all their values.

        FAIL and PRUNED trials were asked for, and say no more.
        """
        found: dict[str, Observation] = {}
        for trial in study.get_trials(deepcopy=False):
            if trial.number == asking.number:
                continue
            if trial.number in self._trials:
                observation = self._trials[trial.number]
            else:
                observation = self._of_trial(trial)
                if trial.state.is_finished():
                    self._trials[trial.number] = observation
                    self._asked.pop(trial.number, None)
            if observation is None:
                continue
            before = found.get(observation.key)
            if before is None or not before.qualities:
                found[observation.key] = observation
            elif observation.qualities:
                seeds = before.qualities[-1] + observation.qualities[-1]
                found[observation.key] = Observation(before.layout, before.throughput, (*before.qualities[:-1], seeds))
        return list(found.values())

    def _of_trial(self, trial: FrozenTrial) -> Observation | None:
        """None for a trial that is not of the space."""
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        layout = self._asked.get(trial.number)
        if all(name in params for name in self._names):
            try:
                layout = self._space.decode({name: params[name] for name in self._names})
            except SpaceError:
                return None
        if layout is None:
            return None
        if trial.state == TrialState.COMPLETE:
            quality, throughput = trial.values
            if not math.isfinite(quality) or not math.isfinite(throughput):
                return Observation(layout, failed=True)
            return Observation(layout, throughput, (*[()] * (self._rungs - 1), (quality,)))
        return Observation(layout, under_way=not trial.state.is_finished(), failed=trial.state.is_finished())

    # -- what to ask for ----------------------------------------------------------------------------------------------

    def _propose(self, known: _Known) -> HybridLayout:
        measured = sum(observation.rung is not None for observation in known.observations)
        borrowed = any(o.source is not None and o.rung is not None for o in known.observations)
        layout = None
        if (len(known.seen) < RULE_LAYOUTS and not borrowed) or measured < _MODEL_FROM:
            layout = self._rule_layout(known.seen)
        else:
            layout = self._from_list(known, measured)
        layout = layout or self._space.uniform_unseen(known.seen, self._rng)
        # All have been asked for: whatever is given is a repetition.
        return layout or self._space.sample(self._rng)

    def _new(self, layout: HybridLayout, seen: set[str]) -> bool:
        return layout.key not in seen and not self._space.excess(layout)

    def _rule_layout(self, seen: set[str]) -> HybridLayout | None:
        """The next of a Latin hypercube over all parameters but the flips, in an order that the seed fixes."""
        rng = random.Random(f"rule layouts {self._design_seed}")
        for _ in range(20):
            columns: dict[str, list[Any]] = {}
            for name, distribution in self._names.items():
                values = [0] if ".flip" in name else _values(distribution)
                places = [values[(2 * i + 1) * len(values) // (2 * RULE_LAYOUTS)] for i in range(RULE_LAYOUTS)]
                columns[name] = rng.sample(places, RULE_LAYOUTS)
            for i in range(RULE_LAYOUTS):
                layout = self._space.decode({name: column[i] for name, column in columns.items()})
                if self._new(layout, seen):
                    return layout
        return None

    def _from_list(self, known: _Known, measured: int) -> HybridLayout | None:
        """The next of a short list, which one look at the models has given.

        The list is longer the more is known, and the more is under way: what comes in while an eighth of that is asked
        for changes little beside all the results that are still out.
        """
        length = 1 + measured // 100 + len(known.pending) // 8
        if measured >= self._proposals_from + length:
            self._proposals = []
        self._proposals = [layout for layout in self._proposals if layout.key not in known.seen]
        if not self._proposals:
            # Matrices this small gain nothing from threads, which in a search would fight with what is being trained.
            with _blas().limit(limits=1):
                best = self._best(known, length)
            self._proposals = [layout for layout in best if layout.key not in known.seen]
            self._proposals_from = measured
        return self._proposals[0] if self._proposals else None

    def _best(self, known: _Known, length: int) -> list[HybridLayout]:
        """The layouts that are expected to add most hypervolume, each taking those before it as trained."""
        measured = on_one_scale(known.observations, self._rungs)
        throughputs = self._fit_throughput([o for o in known.observations if o.throughput is not None][-MODELLED:])
        of_measured = self._throughputs([m.observation for m in measured], throughputs)
        due = _last_refit(len(measured))
        measured, of_measured = _reduced(measured, of_measured)
        model = self._model(measured, due)
        own = [i for i, m in enumerate(measured) if m.observation.source is None]
        means = _per_layout(model.fitted(), measured)
        points = [Point(m.observation.key, means[i], of_measured[i]) for i, m in enumerate(measured)]
        front = pareto_front(points[i] for i in own)
        reference = self._reference() if callable(self._reference) else self._reference
        reference = reference or (float(means.min()), float(of_measured.min()) - 1)

        by_key = {m.observation.key: m.observation.layout for m in measured}
        waiting = [o for o in known.pending if o.rung is None]
        # Layouts of a space are equal where their keys are, and faster to compare.
        parents = front or pareto_front(points)  # before this study has a front, another's
        candidates = self._candidates([by_key[p.key] for p in parents], {o.layout for o in known.own})
        if not candidates:
            return []
        layouts = [o.layout for o in waiting] + candidates
        predictions = model.predict(self._quality_rows(layouts))
        throughput, deviation = throughputs.predict(self._made_of(layouts))
        # Those under way were mostly timed; so was what another study or a table of timings has brought.
        timed = {o.layout: o.throughput for o in known.observations if o.throughput is not None}
        for i, layout in enumerate(layouts):
            if (measurement := timed.get(layout)) is not None:
                throughput[i], deviation[i] = measurement, 0.0
        predictions.expect(range(len(waiting)))
        front += [Point(o.key, float(predictions.means[i]), float(throughput[i])) for i, o in enumerate(waiting)]
        chosen: list[int] = []
        gains = np.zeros(0)
        for _ in range(min(length, len(candidates))):
            gains = expected_hypervolume_gains(
                predictions.means, predictions.deviations, throughput, deviation, front, reference
            )
            gains[: len(waiting)] = -1
            gains[chosen] = -1
            best = int(gains.argmax())
            chosen.append(best)
            predictions.expect([best])
            front.append(Point(layouts[best].key, float(predictions.means[best]), float(throughput[best])))
        order = np.argsort(-gains, kind="stable")
        self._kept = [layouts[i] for i in order[:_KEPT] if gains[i] >= 0]
        return [layouts[i] for i in chosen]

    def _fit_throughput(self, timed: list[Observation]) -> ThroughputModel:
        rows = self._made_of([o.layout for o in timed])
        return ThroughputModel(rows, np.array([o.throughput for o in timed], dtype=float))

    def _model(self, measured: list[Measured], due: int) -> QualityModel:
        """The posterior, with the hyperparameters of when there were `due` layouts."""
        rows = self._quality_rows([m.observation.layout for m in measured])
        lengths = [len(m.qualities) for m in measured]
        rows = np.repeat(rows, lengths, axis=0)
        values = np.array([quality for m in measured for quality in m.qualities])
        variances = np.repeat([m.variance for m in measured], lengths)
        if self._hyperparameters is None or self._hyperparameters[0] != due:
            first = sum(lengths[:due])
            # Three numbers need no more rows than these, and the time grows with the cube of the rows.
            some = np.unique(np.linspace(0, first - 1, min(first, _FITTED)).round().astype(int))
            fitted = fit_hyperparameters(rows[some], values[some], variances[some], seed=due)
            self._hyperparameters = due, fitted
        return QualityModel(rows, values, variances, self._hyperparameters[1])

    def _candidates(self, front: list[HybridLayout], seen: set[HybridLayout]) -> list[HybridLayout]:
        if self._space.count() <= ENUMERATED:
            return [layout for layout in self._all if layout not in seen]
        # Half of the parents are the best candidates of the last time: a local search from one time to the next.
        parents = [*front, *self._kept[: len(front)]]
        drawn = [*self._kept, *self._mutations(parents), *(self._space.sample(self._rng) for _ in range(_DRAWS))]
        return [layout for layout in dict.fromkeys(drawn) if layout not in seen and not self._space.excess(layout)]

    def _mutations(self, parents: list[HybridLayout]) -> list[HybridLayout]:
        found = []
        for _ in range(_MUTATIONS):
            layout = self._rng.choice(parents)
            for _ in range(self._rng.choices(range(1, len(_STEPS) + 1), _STEPS)[0]):
                layout = self._space.mutate(layout, self._rng)
            found.append(layout)
        return found

    @cached_property
    def _all(self) -> list[HybridLayout]:
        return [layout for layout in self._space.layouts() if not self._space.excess(layout)]

    # -- rows of the models -------------------------------------------------------------------------------------------

    def _quality_rows(self, layouts: Sequence[HybridLayout]) -> np.ndarray:
        return self._features.quality(layouts)

    def _made_of(self, layouts: Sequence[HybridLayout]) -> np.ndarray:
        return np.array([made_of(layout) for layout in layouts], dtype=float)

    def _throughputs(self, observations: Sequence[Observation], model: ThroughputModel) -> np.ndarray:
        """Measured where it was, else predicted."""
        found = np.array([math.nan if o.throughput is None else o.throughput for o in observations])
        unknown = np.flatnonzero(np.isnan(found))
        if len(unknown):
            found[unknown], _ = model.predict(self._made_of([observations[int(i)].layout for i in unknown]))
        return found


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, CategoricalDistribution)
    return distribution.choices


def _last_refit(count: int) -> int:
    """At how many layouts the hyperparameters were fitted last: every third at first, then each time a tenth more."""
    last = _MODEL_FROM
    while (following := last + max(3, last // 10)) <= count:
        last = following
    return last


def _reduced(measured: list[Measured], throughputs: np.ndarray) -> tuple[list[Measured], np.ndarray]:
    """The layouts that the model holds, and their throughputs."""
    if len(measured) <= MODELLED:
        return measured, throughputs
    kept = modelled(_fronts([(m.mean, t) for m, t in zip(measured, throughputs, strict=True)]), MODELLED)
    return [measured[i] for i in kept], throughputs[kept]


def _fronts(points: Iterable[tuple[float, float]]) -> list[int]:
    """On how many-th front each point lies, from 0: the layers of non-dominated sorting, in two dimensions."""
    points = list(points)
    ranks = [0] * len(points)
    best: list[float] = []  # of each front, the best quality among its members so far, which are all faster
    for i in sorted(range(len(points)), key=lambda i: (-points[i][1], -points[i][0])):
        quality = points[i][0]
        low, high = 0, len(best)
        while low < high:
            middle = (low + high) // 2
            if best[middle] >= quality:
                low = middle + 1
            else:
                high = middle
        if low == len(best):
            best.append(quality)
        best[low] = quality
        ranks[i] = low
    return ranks


def _per_layout(fitted: np.ndarray, measured: list[Measured]) -> np.ndarray:
    """The posterior mean of each layout; all rows of a layout have the same."""
    first = np.cumsum([0, *(len(m.qualities) for m in measured)])[:-1]
    return fitted[first]
