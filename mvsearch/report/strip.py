"""A layout's strip on a page and in a hover; `mambavision.strip` has the rest of it, the terminal's form included."""

from __future__ import annotations

import html
import itertools

from mambavision.layout import LETTERS
from mambavision.strip import UNKNOWN, Layout, colour, ink, stage_label, stages_of

__all__ = ["colour", "hover_strip", "html_strip", "ink", "stage_label", "stages_of", "strip_css"]


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
  background: {UNKNOWN}; color: #000; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.strip small {{ font-size: .85em; color: var(--muted); font-variant-numeric: tabular-nums; }}
{cells}
"""


def hover_strip(layout: Layout) -> str:
    """The strip in the few HTML tags that a plotly hover draws, for a dark label; numbers on a second line."""
    bars = []
    for stage in stages_of(layout):
        # One span a run of equal letters: a page holds thousands of these.
        runs = ((letter, len(list(run))) for letter, run in itertools.groupby(stage["blocks"]))
        bars.append(
            " ".join(f'<b style="color:{colour(b)}">{html.escape(" ".join(b * count))}</b>' for b, count in runs)
        )
    numbers = " │ ".join(stage_label(stage) for stage in stages_of(layout))
    return f"{' │ '.join(bars)}<br>{html.escape(numbers)}"
