"""Options that a person gives: what is said of one that is not allowed."""

from __future__ import annotations


class OptionError(ValueError):
    """An option that is not allowed; the message names it, its value, and what is."""


def check_whole(field: str, value: int | None, least: int = 1) -> None:
    """Raise OptionError unless the value is None or `least` or more."""
    if value is not None and value < least:
        raise OptionError(f"{field}: {value!r} is not allowed; a whole number, {least} or more")


def check_number(field: str, value: float, low: float, high: float) -> None:
    """Raise OptionError unless the value is a number from `low` to `high`."""
    if not low <= value <= high:
        raise OptionError(f"{field}: {value!r} is not allowed; a number from {low:g} to {high:g}")
