"""The patterns that the paper compares, by its names."""

from __future__ import annotations

from mambavision.layout import last_half

PUBLISHED_PATTERNS: dict[str, float | None] = {
    "last N/2": 0.823,
    "last N/4": 0.819,
    "mixed-2": 0.816,
    "first N/2": 0.815,
    "mixed-1": 0.814,
    "all Mamba": None,
    "all attention": None,
}
"""Table 5 of the paper (arXiv 2407.08083): patterns of the T layout, ImageNet-1K top-1."""


def published_blocks(name: str, depth: int, mamba: str = "M") -> str | None:
    """A pattern of table 5 for a stage of so many blocks; None where there is none (N/4 of fewer than 4)."""
    patterns = {
        "last N/2": last_half(depth),
        "last N/4": "M" * (depth - depth // 4) + "A" * (depth // 4) if depth >= 4 else None,
        "mixed-1": ("AM" * depth)[:depth],
        "mixed-2": ("MA" * depth)[:depth],
        "first N/2": last_half(depth)[::-1],
        "all Mamba": "M" * depth,
        "all attention": "A" * depth,
    }
    blocks = patterns[name]
    return blocks.replace("M", mamba) if blocks else None
