"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import optuna

from mvsearch.config.sections import StudyConfig
from mvsearch.samplers.observation import Observations
from mvsearch.samplers.optuna_private import seed_generators
from mvsearch.space.space import SearchSpace

NSGA2_POPULATION = 12


def make_sampler(
    config: StudyConfig,
    space: SearchSpace,
    seed: int,
    observations: Observations,
    reference: Callable[[], tuple[float, float]],
) -> optuna.samplers.BaseSampler:
    """The sampler of a study, set as it does best here. It is kept for the whole launch; `reseed` it before each ask.

    Args:
        config: of the study; `search.sampler` says which: ``"known_cost"`` (our own), ``"tpe"`` (multivariate),
            ``"nsga2"`` (a small population: its default of 50 makes the first 50 trials random), ``"gp"`` (Optuna's
            Gaussian process with the expected hypervolume improvement, for noisy objectives) or ``"random"``.
        space: of the study.
        seed: 32 bits.
        observations: what was measured so far, rungs and layouts under way too, for samplers that read it.
        reference: gives the corner from which hypervolume is measured, (quality, throughput).
    """
    name = config.search.sampler
    if name == "known_cost":
        # Not at the top: scikit-learn takes a second to import, and the other samplers do without.
        from mvsearch.samplers import KnownCostSampler

        return KnownCostSampler(space, seed=seed, observations=observations, reference=reference)
    if name == "tpe":
        from mvsearch.samplers.tpe import BoundedTPESampler

        return BoundedTPESampler(multivariate=True, seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=NSGA2_POPULATION, seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


@runtime_checkable
class Reseedable(Protocol):
    """A sampler of ours."""

    def reseed(self, seed: int) -> None:
        """Seed the generators as if it had been made with this seed; what has been learnt stays."""


def reseed(sampler: optuna.samplers.BaseSampler, seed: int) -> None:
    """Seed a sampler's generators as if it had been made with this seed; what it has learnt stays.

    Args:
        sampler: of ours (`Reseedable`), or one of Optuna's that `make_sampler` gives.
        seed: 32 bits.
    """
    if isinstance(sampler, Reseedable):
        sampler.reseed(seed)
    else:
        seed_generators(sampler, seed)
