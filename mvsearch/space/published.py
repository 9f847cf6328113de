"""The patterns that the paper compares, by its names."""

from __future__ import annotations

from mambavision.layout import last_half
from mvsearch.config.letters import base_of

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


def published_blocks(name: str, depth: int, base: str = "M", placed: str = "A") -> str | None:
    """A pattern of table 5 for a stage of so many blocks; None where there is none (N/4 of fewer than 4).

    Args:
        name: a key of `PUBLISHED_PATTERNS`.
        depth: number of blocks.
        base: the letter that takes the part of ``M``.
        placed: the letter that takes the part of ``A``.
    """
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
    return blocks and blocks.translate(str.maketrans("MA", base + placed))


def is_published(name: str, blocks: str) -> bool:
    """Whether blocks are a pattern of table 5, with any Mamba letter in the part of ``M``."""
    return blocks == published_blocks(name, len(blocks), base_of(blocks) or "M")
