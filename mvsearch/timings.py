"""Recorded timings: throughputs measured before, taken instead of measuring again."""

from __future__ import annotations

import csv
import json
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
    """

    values: dict[str, Any]
    conditions: dict[str, Any]


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
    found = _from_csv(path) if path.suffix.lower() == ".csv" else _from_ledger(path)
    if not found:
        raise StudyError(f"timings: {path} holds no timing")
    return found


def _from_ledger(path: Path) -> dict[str, RecordedTiming]:
    return {
        line.key: RecordedTiming(line.values, {**line.conditions, "source": str(path)})
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
            try:
                values = {name: float(row[name]) for name in ("images_per_second", "ratio")}
                if min(values.values()) <= 0:
                    raise ValueError
            except ValueError:
                raise StudyError(
                    f"timings: {path}, line {number}: images_per_second {row['images_per_second']!r} and ratio "
                    f"{row['ratio']!r} must be numbers above 0"
                ) from None
            if row.get("ratio_iqr"):
                values["iqr"] = float(row["ratio_iqr"])
            conditions = json.loads(row.get("timing_conditions") or "{}")
            found[row["key"]] = RecordedTiming(values, {**conditions, "source": str(path)})
    return found
