"""Optuna samplers of our own."""

from mvsearch.observation import Observation, Observations
from mvsearch.samplers.known_cost import KnownCostSampler

__all__ = ["KnownCostSampler", "Observation", "Observations"]
