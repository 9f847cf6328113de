"""What is known of one layout while a search runs: what a sampler of our own reads instead of Optuna's trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mambavision.layout import HybridLayout


@dataclass(frozen=True)
class Observation:
    """One layout: asked for, and perhaps timed and trained.

    Attributes:
        layout: as deployed.
        throughput: log2 of the ratio to the reference layout's; None until it is timed.
        qualities: of each rung it was trained on with every seed, from the first: the quality of every seed, larger is
            better. Without rungs there is one, at `proxy.epochs`.
        under_way: whether a device works on it, or is about to.
        failed: whether it has ended as a failure.
    """

    layout: HybridLayout
    throughput: float | None = None
    qualities: tuple[tuple[float, ...], ...] = ()
    under_way: bool = False
    failed: bool = False


Observations = Callable[[], Sequence[Observation]]
"""Gives every layout of the study, in the order in which they were first asked for; cheap to call at each ask."""
