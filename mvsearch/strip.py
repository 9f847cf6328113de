"""A layout as a strip of letters: one cell a block, a gap between stages; for the terminal, a page and a hover.

Colours come from `mambavision.layout.LETTERS`, the only place that knows them.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mambavision.layout import LETTERS, HybridLayout

if TYPE_CHECKING:
    from rich.text import Text

Layout = HybridLayout | Mapping[str, Any]
_UNKNOWN = "#8A8F98"


def colour(letter: str) -> str:
    """Fill of a letter's cell, ``#RRGGBB``; grey for a letter that is not registered (of a later version)."""
    return LETTERS[letter].colour if letter in LETTERS else _UNKNOWN


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


def html_strip(layout: Layout, *, numbers: bool = True, scale: int = 0) -> str:
    """The strip as HTML for a page that holds `strip_css()`; read aloud as its pattern.

    Args:
        layout: a `HybridLayout` or its plain data.
        numbers: width and state size under each stage.
        scale: the widest stage of all layouts shown side by side, in channels; 0: of this layout alone. Cells of that
            width are the highest.
    """
    stages = stages_of(layout)
    widest = max([scale, *(stage["dim"] for stage in stages)])
    parts = []
    for stage in stages:
        height = 1.25 + 0.75 * stage["dim"] / widest
        cells = "".join(f'<i class="b-{html.escape(b)}">{html.escape(b)}</i>' for b in stage["blocks"])
        label = f"<small>{html.escape(stage_label(stage))}</small>" if numbers else ""
        parts.append(f'<span style="--h:{height:.2f}em"><span>{cells}</span>{label}</span>')
    pattern = html.escape("|".join(stage["blocks"] for stage in stages))
    return f'<span class="strip" role="img" aria-label="{pattern}">{"".join(parts)}</span>'


def strip_css() -> str:
    """Style of `html_strip`, colours included."""
    cells = "\n".join(
        f".strip .b-{letter} {{ background: {kind.colour}; color: {ink(kind.colour)}; }}"
        for letter, kind in LETTERS.items()
    )
    return f"""
.strip {{ display: inline-flex; gap: .35em; align-items: flex-end; vertical-align: bottom; white-space: nowrap;
  font-size: .8rem; line-height: 1; }}
.strip > span {{ display: inline-flex; flex-direction: column; gap: .2em; }}
.strip > span > span {{ display: flex; gap: 1px; align-items: stretch; height: var(--h); }}
.strip i {{ font-style: normal; font-weight: 600; width: 1.45em; display: grid; place-items: center;
  background: {_UNKNOWN}; color: #000; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.strip small {{ font-size: .85em; color: var(--muted); font-variant-numeric: tabular-nums; }}
{cells}
"""


def hover_strip(layout: Layout) -> str:
    """The strip in the few tags that a plotly hover knows, for a dark label; numbers on a second line."""
    bars = []
    for stage in stages_of(layout):
        # One span a run of equal letters: a page holds thousands of these.
        runs = ((letter, len(list(run))) for letter, run in itertools.groupby(stage["blocks"]))
        bars.append(
            " ".join(f'<b style="color:{colour(b)}">{html.escape(" ".join(b * count))}</b>' for b, count in runs)
        )
    numbers = " │ ".join(stage_label(stage) for stage in stages_of(layout))
    return f"{' │ '.join(bars)}<br>{html.escape(numbers)}"
