"""Numbers and times as a person reads them; a dash for what is not known."""

from __future__ import annotations

from collections.abc import Sequence

from mambavision import words
from mambavision.words import duration, plural

__all__ = ["count", "duration", "factor", "fixed", "listed", "percent", "plural", "points", "scaled", "with_error"]

DASH = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as ``"81.2 %"``."""
    return DASH if value is None else words.percent(value, digits)


def with_error(value: float | None, error: float | None, digits: int = 1) -> str:
    """A share and its standard error, ``"81.2 ± 0.4 %"``; without the error where there is none."""
    if value is None or error is None:
        return percent(value, digits)
    return f"{100 * value:.{digits}f} ± {100 * error:.{digits}f} %"


def points(value: float) -> str:
    """A difference of shares as percentage points, ``"+1.2 points"``."""
    return f"{100 * value:+.1f} points".replace("-", "−")


def factor(value: float | None) -> str:
    """A ratio as ``"1.32×"``."""
    return DASH if value is None else f"{value:.3g}×" if value >= 10 else f"{value:.2f}×"


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with this many digits behind the point, ``"−0.125"``."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with separators, ``"12,345"``."""
    return DASH if value is None else f"{value:,.0f}"


def hours(value: float) -> str:
    """Hours as a number of two digits or more, ``"0.063"``, ``"7.5"``, ``"150"``, ``"1,234"``."""
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits and a decimal prefix, ``"1.23 M"``, ``"48.1 MB"`` with unit ``"B"``."""
    return DASH if value is None else words.scaled(value, unit)


def listed(items: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
