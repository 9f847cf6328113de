"""One look for terminal and figures, here and in the search: colours, type, the console."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

ACCENT = "#0072B2"
GREY = "#8A8F98"
GRID = "rgba(138,143,152,0.25)"
TEXT = "#737373"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def figure_style(title: str, height: int, top: int) -> dict[str, Any]:
    """Layout of a plotly figure: transparent, with greys readable on white and on black.

    Args:
        title: plain text.
        height: of the figure in pixels.
        top: margin above the drawing in pixels.
    """
    return {
        "template": None,
        "title": {"text": html.escape(title), "x": 0, "xref": "paper", "font": {"size": 15}},
        "height": height,
        "margin": {"l": 10, "r": 16, "t": top, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": TEXT},
        "showlegend": False,
        "hoverlabel": {"bgcolor": "#16181D", "bordercolor": "#3A3F47", "font": {"color": "#F2F3F5", "family": FONT}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "rgba(138,143,152,0.6)", "activecolor": ACCENT},
    }


def console(*, stderr: bool = False, width: int = 120) -> Console:
    """A console that honours NO_COLOR, and breaks no lines where the output is no terminal.

    Args:
        stderr: where it prints.
        width: columns at least, where the output is no terminal.
    """
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    if not found.is_terminal:
        return Console(stderr=stderr, highlight=False, width=max(width, found.width), soft_wrap=True)
    return found
