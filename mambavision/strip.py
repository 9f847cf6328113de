"""A layout as a strip of letters: one cell a block, a gap between stages; in the terminal, on cards, in the diagram.

Colours come from `mambavision.layout.LETTERS`, the only place that knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mambavision.layout import LETTERS, HybridLayout

if TYPE_CHECKING:
    from rich.text import Text

Layout = HybridLayout | Mapping[str, Any]
UNKNOWN = "#8A8F98"
"""Fill of a letter that is not registered (of a later version)."""


def colour(letter: str) -> str:
    """Fill of a letter's cell, ``#RRGGBB``; grey for a letter that is not registered (of a later version)."""
    return LETTERS[letter].colour if letter in LETTERS else UNKNOWN


def ink(fill: str) -> str:
    """Black or white, whichever is easier to read on a fill ``#RRGGBB`` (WCAG 2 relative luminance)."""
    channels = [int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#FFFFFF" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def stages_of(layout: Layout) -> list[dict[str, Any]]:
    """The stages as plain data, from a `HybridLayout` or from its `to_dict()`."""
    data = layout.to_dict() if isinstance(layout, HybridLayout) else layout
    return list(data["stages"])


def stage_label(stage: Mapping[str, Any]) -> str:
    """What stands under a stage: its width, and its state size where it scans, e.g. ``"64 N8"``."""
    scans = any(letter in LETTERS and LETTERS[letter].scans for letter in stage["blocks"])
    return f"{stage['dim']} N{stage.get('state', 8)}" if scans else f"{stage['dim']}"


def rich_strip(layout: Layout, *, numbers: bool = False) -> Text:
    """The strip for a terminal; rich leaves the colours out where the output is none, or NO_COLOR is set.

    Args:
        layout: a `HybridLayout` or its plain data.
        numbers: a second line with width and state size under each stage.
    """
    from rich.text import Text

    text, below = Text(), Text()
    for number, stage in enumerate(stages_of(layout)):
        if number:
            text.append("│", style="dim")
            below.append(" ")
        label = stage_label(stage)
        # Padded to a longer label, so that the numbers stand under their stage.
        width = max(2 * len(stage["blocks"]) + 1, len(label) if numbers else 0)
        for position, letter in enumerate(stage["blocks"]):
            last = position == len(stage["blocks"]) - 1
            cell = f" {letter} " if last else f" {letter}"
            text.append(cell, style=f"bold {ink(colour(letter))} on {colour(letter)}")
        text.append(" " * (width - 2 * len(stage["blocks"]) - 1))
        below.append(label.ljust(width), style="dim")
    return Text.assemble(text, "\n", below) if numbers else text
