"""What asks for layouts, and which of them go on to the next rung."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.samplers.known_cost import KnownCostSampler
    from mvsearch.samplers.observation import Observation, Observations

__all__ = ["KnownCostSampler", "Observation", "Observations"]

__getattr__ = lazily(
    __name__, {"KnownCostSampler": "known_cost", "Observation": "observation", "Observations": "observation"}
)
