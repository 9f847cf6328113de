"""What is known of one layout while a search runs: what a sampler of our own reads instead of Optuna's trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mambavision.layout import HybridLayout


@dataclass(frozen=True)
class Observation:
    """One layout: asked for, and perhaps timed and trained.

    Attributes:
        layout: as deployed.
        throughput: log2 of the ratio to the reference layout's; None until it is timed.
        qualities: of each rung it was trained on with every seed, from the first: the quality of every seed, larger is
            better; an empty tuple for a rung of which it is not known. Without rungs there is one, at `proxy.epochs`.
        under_way: whether a device works on it, or is about to.
        failed: whether it has ended as a failure.
        source: None for a layout of this study; else what names the other study, or the table of throughputs, that it
            was measured in. Qualities of another study are brought to the scale of this one, and its layouts may be
            asked for again.
    """

    layout: HybridLayout
    throughput: float | None = None
    qualities: tuple[tuple[float, ...], ...] = ()
    under_way: bool = False
    failed: bool = False
    source: str | None = None

    @cached_property
    def key(self) -> str:
        """`HybridLayout.key`, computed once."""
        return self.layout.key

    @property
    def rung(self) -> int | None:
        """The highest rung with a quality, from 0; None without any."""
        return max((rung for rung, seeds in enumerate(self.qualities) if seeds), default=None)


Observations = Callable[[], Sequence[Observation]]
"""Gives every layout of the study, in the order in which they were first asked for; cheap to call at each ask."""
