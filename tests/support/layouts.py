"""Small layouts that the tests of the library share."""

from __future__ import annotations

from typing import Any

from mambavision.layout import HybridLayout, StageLayout


def three_stages(mix: str = "MA", dim: int = 8, **changes: Any) -> HybridLayout:
    """C, then two hybrid stages of `mix`; two heads; any field changed by name."""
    layout = HybridLayout(
        stages=tuple(
            StageLayout(blocks=blocks, dim=dim << i, heads=2, state=4) for i, blocks in enumerate(("C", mix, mix))
        ),
        in_dim=6,
        stem_stride=2,
    )
    return layout.override(**changes)


def columnar(blocks: str = "MMAA", dim: int = 16, patch: int = 4) -> HybridLayout:
    """One stage on a patch stem."""
    return HybridLayout(stages=(StageLayout(blocks=blocks, dim=dim, heads=4),), stem="patch", patch=patch)
