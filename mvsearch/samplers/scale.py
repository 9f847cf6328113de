"""How qualities of several rungs, and of other studies, come to one scale."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mvsearch.samplers.halving import PAIRS_TO_PREDICT, fit
from mvsearch.samplers.observation import Observation


@dataclass(frozen=True)
class Measured:
    """A layout's qualities on the scale of a full training of this study.

    Attributes:
        observation: what they come from.
        qualities: one for each seed.
        variance: what the way from a lower rung or another study adds to the variance of each of them, 0 or more.
    """

    observation: Observation
    qualities: tuple[float, ...]
    variance: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.qualities)


def on_one_scale(observations: Iterable[Observation], rungs: int) -> list[Measured]:
    """Each layout once, by the highest rung it was trained on, its qualities as if trained in full in this study.

    What was trained in full in this study stays as it is. From each other rung (and from each rung of another study) a
    line leads to it: least squares with a slope of 0 or more over the layouts seen on both, from `PAIRS_TO_PREDICT` of
    them on. Before that, the mean difference of those seen on both is added; and before there are any, the values are
    taken as they are. The residual variance of the line is what the values are less certain by. Before there are three
    layouts to tell it, the variance of the values themselves stands for it.

    Args:
        observations: in any order; of one layout, this study's counts before any other's.
        rungs: how many rungs this study has, 1 or more.

    Returns:
        In the order given; layouts without a quality are left out.
    """
    best: dict[str, Observation] = {}
    groups: dict[tuple[str | None, int], dict[str, float]] = {}
    for observation in observations:
        if observation.rung is None:
            continue
        for rung, seeds in enumerate(observation.qualities):
            if seeds:
                groups.setdefault((observation.source, rung), {})[observation.key] = statistics.fmean(seeds)
        known = best.get(observation.key)
        if known is None or (known.source is not None and observation.source is None):
            best[observation.key] = observation
    full = groups.get((None, rungs - 1), {})
    lines = {group: _line(values, full) for group, values in groups.items() if group != (None, rungs - 1)}
    found = []
    for observation in best.values():
        highest = observation.rung
        assert highest is not None
        seeds = observation.qualities[highest]
        if (observation.source, highest) == (None, rungs - 1):
            found.append(Measured(observation, seeds, 0.0))
        else:
            intercept, slope, variance = lines[observation.source, highest]
            found.append(Measured(observation, tuple(intercept + slope * seed for seed in seeds), variance))
    return found


def _line(values: dict[str, float], full: dict[str, float]) -> tuple[float, float, float]:
    """Intercept, slope and residual variance of the way from the values of a group to those of a full training."""
    pairs = [(value, full[key]) for key, value in values.items() if key in full]
    if len(pairs) >= PAIRS_TO_PREDICT:
        line = fit(pairs)
        return line.intercept, line.slope, line.deviation**2
    differences = [after - before for before, after in pairs]
    known: Sequence[float] = differences if len(differences) > 2 else list(values.values())
    variance = statistics.variance(known) if len(known) > 1 else 0.0
    return statistics.fmean(differences) if differences else 0.0, 1.0, variance
