"""A space as Optuna sees it: its distributions, and asking a trial for a layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import BaseTrial

from mambavision.layout import HybridLayout
from mvsearch.space.layouts import LayoutSpace


def distributions(space: LayoutSpace) -> dict[str, BaseDistribution]:
    """The distribution of each of the space's `parameters`, by name."""
    return {name: _distribution(values) for name, values in space.parameters.items()}


def suggest(space: LayoutSpace, trial: BaseTrial) -> HybridLayout:
    """Ask a trial for every parameter, and build the layout of them."""
    params: dict[str, Any] = {}
    for name, distribution in distributions(space).items():
        if isinstance(distribution, IntDistribution):
            params[name] = trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
        elif isinstance(distribution, CategoricalDistribution):
            params[name] = trial.suggest_categorical(name, distribution.choices)
    return space.decode(params)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Evenly spaced whole numbers keep their order for the sampler; anything else is a category."""
    if all(type(value) is int for value in values) and len({b - a for a, b in itertools.pairwise(values)}) == 1:
        return IntDistribution(values[0], values[-1], step=values[1] - values[0])
    return CategoricalDistribution(values)
