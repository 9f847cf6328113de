"""What is said when data cannot be had or used."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be had or used; the message names what was asked for and what is allowed or how to get it."""


def check_count(field: str, value: object, low: int, high: int) -> None:
    """Raise DataError unless the value is None or a whole number from `low` to `high`."""
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise DataError(f"{field}: {value!r} is not allowed; a whole number from {low} to {high}")


def check_limit(name: str, field: str, value: int, most: int, why: str) -> None:
    """Raise DataError if more images are asked for than data set `name` can give."""
    if value > most:
        raise DataError(f"{field}: {value:,} is not allowed; data {name} allows at most {most:,} here ({why})")
