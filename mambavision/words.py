"""Numbers, times and errors as a person reads them."""

from __future__ import annotations


def percent(value: float, digits: int = 1) -> str:
    """A share from 0 to 1 as ``"81.2 %"``."""
    return f"{100 * value:.{digits}f} %"


def scaled(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix, ``"1.23 M"``, ``"48.1 MB"`` with unit ``"B"``."""
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


def plural(number: int, noun: str, many: str | None = None) -> str:
    """``"1 epoch"``, ``"7 epochs"``; `many` where an s does not do."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def reason(error: object) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or repr(error)).splitlines()[0]
