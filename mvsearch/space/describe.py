"""What a space holds, for people to look at."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

from mambavision.layout import HybridLayout
from mvsearch.space.space import SearchSpace


@dataclass(frozen=True)
class SpaceDescription:
    """What `mvsearch space FILE` says.

    Attributes:
        name: of the study.
        count: number of distinct layouts.
        share_within_budget: 0 to 1.
        searched: the searched keys with their values.
        proxy_image_size: pixels.
        deployed_image_size: pixels.
        proxy_tokens: fewest and most tokens a window of each stage while the proxy trains.
        deployed_tokens: the same as deployed.
        cost_range: lowest and highest of params, macs (an image) and memory (bytes) among corners and draws.
        baselines: the hand-made layouts by name.
        samples: a few layouts within budget, drawn uniformly.
    """

    name: str
    count: int
    share_within_budget: float
    searched: dict[str, tuple[Any, ...]]
    proxy_image_size: int
    deployed_image_size: int
    proxy_tokens: tuple[tuple[int, int], ...]
    deployed_tokens: tuple[tuple[int, int], ...]
    cost_range: dict[str, tuple[int, int]]
    baselines: dict[str, HybridLayout]
    samples: tuple[HybridLayout, ...]


def describe(space: SearchSpace, samples: int = 6, seed: int = 0) -> SpaceDescription:
    """What a space holds, for people to look at.

    Args:
        space: one that passes its `check`.
        samples: how many layouts to draw.
        seed: of the draws.
    """
    config = space.config
    drawn = list(itertools.islice(space.corners_and_draws(), 1000))
    costs = [space.cost(layout) for layout in drawn]

    def tokens(size: int, layouts: list[HybridLayout]) -> tuple[tuple[int, int], ...]:
        stages = zip(*(layout.tokens_per_window(size) for layout in layouts), strict=True)
        return tuple((min(stage), max(stage)) for stage in stages)

    rng = random.Random(seed)
    shown: dict[str, HybridLayout] = {}
    while len(shown) < samples:
        layout = space.uniform_unseen(set(shown), rng)
        if layout is None:
            break
        shown[layout.key] = layout
    return SpaceDescription(
        name=config.name,
        count=space.count(),
        share_within_budget=space.share_within_budget(),
        searched=space.searched(),
        proxy_image_size=config.proxy.image_size,
        deployed_image_size=config.deployed_image_size,
        proxy_tokens=tokens(config.proxy.image_size, [config.proxy.as_trained(layout) for layout in drawn]),
        deployed_tokens=tokens(config.deployed_image_size, drawn),
        cost_range={
            name: (min(getattr(c, name) for c in costs), max(getattr(c, name) for c in costs))
            for name in ("params", "macs", "memory")
        },
        baselines=space.baselines(),
        samples=tuple(shown.values()),
    )
