"""Recorded timings: throughputs measured before, taken instead of measuring again."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvsearch.ledger import StudyError, read_evaluations
from mvsearch.record import TIME


@dataclass(frozen=True)
class RecordedTiming:
    """One layout's throughput, as it goes into the ledger.

    Attributes:
        values: what `Evaluation.values` of a timing holds.
        conditions: under which it was measured, with ``source`` naming the file it was taken from.
        device: that was timed.
    """

    values: dict[str, Any]
    conditions: dict[str, Any]
    device: str = ""


def read_timings(path: Path) -> dict[str, RecordedTiming]:
    """Read timings by layout key.

    Args:
        path: a study's ``evaluations.jsonl``, or a CSV with the columns ``key``, ``images_per_second`` and ``ratio``
            (a study's ``trials.csv`` has them).

    Raises:
        StudyError: if the file is missing, has no timing in it, or a row is not a pair of positive numbers.
    """
    if not path.is_file():
        raise StudyError(f"timings: {path} is not a file; give an evaluations.jsonl or a trials.csv")
    try:
        found = _from_csv(path) if path.suffix.lower() == ".csv" else _from_ledger(path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise StudyError(f"timings: {path} cannot be read ({error})") from None
    if not found:
        raise StudyError(f"timings: {path} holds no timing")
    return found


def check_conditions(timings: dict[str, RecordedTiming], expected: dict[str, Any]) -> None:
    """Refuse timings that were taken under other conditions than this study's.

    Args:
        timings: as `read_timings` gives them.
        expected: this study's conditions; what a timing does not say is not compared.

    Raises:
        StudyError: naming the condition.
    """
    for timing in timings.values():
        for name, value in expected.items():
            if name in timing.conditions and timing.conditions[name] != value:
                raise StudyError(
                    f"timings: {timing.conditions['source']} was taken with {name} = {timing.conditions[name]!r}, and "
                    f"this study has {value!r}; ratios of both cannot be mixed"
                )


def _numbers(where: str, row: dict[str, Any]) -> dict[str, float]:
    try:
        values = {name: float(row[name]) for name in ("images_per_second", "ratio")}
        if not all(math.isfinite(value) and value > 0 for value in values.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise StudyError(
            f"timings: {where}: images_per_second {row.get('images_per_second')!r} and ratio {row.get('ratio')!r} must "
            "be finite numbers above 0"
        ) from None
    return values


def _from_ledger(path: Path) -> dict[str, RecordedTiming]:
    return {
        line.key: RecordedTiming(
            {**line.values, **_numbers(f"{path}, {line.key}", line.values)},
            {**line.conditions, "source": str(path)},
            line.device,
        )
        for line in read_evaluations(path)
        if line.what == TIME
    }


def _from_csv(path: Path) -> dict[str, RecordedTiming]:
    needed = ("key", "images_per_second", "ratio")
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise StudyError(f"timings: {path} lacks the column {missing[0]!r}; it needs {', '.join(needed)}")
        for number, row in enumerate(reader, start=2):
            if not row["images_per_second"]:
                continue  # a trial that failed before it was timed
            values: dict[str, Any] = dict(_numbers(f"{path}, line {number}", row))
            if (iqr := row.get("ratio_iqr")) and iqr.replace(".", "", 1).isdigit():
                values["iqr"] = float(iqr)
            conditions = json.loads(row.get("timing_conditions") or "{}")
            found[row["key"]] = RecordedTiming(
                values, {**conditions, "source": str(path)}, row.get("timing_device") or "not recorded"
            )
    return found
