"""Numbers and times as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

DASH = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as ``"81.2 %"``."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


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
    """A number with so many digits behind the point."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with separators, ``"12,345"``."""
    return DASH if value is None else f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """``"1 layout"``, ``"7 layouts"``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits and a decimal prefix, ``"1.23 M"``, ``"48.1 MB"`` with unit ``"B"``."""
    if value is None:
        return DASH
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def duration(seconds: float) -> str:
    """``"12 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listed(items: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
