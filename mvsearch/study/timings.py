"""Recorded timings: throughputs measured before, taken instead of measuring again."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvsearch.study.files import StudyError
from mvsearch.study.ledger import read_evaluations
from mvsearch.study.record import TIME


@dataclass(frozen=True)
class RecordedTiming:
    """One layout's throughput, as it goes into the ledger.

    Attributes:
        values: what `Evaluation.values` of a timing holds.
        conditions: under which it was measured, with ``source`` naming the file it was taken from.
        device: that was timed.
        layout: `HybridLayout.to_dict()`, where the table holds it.
    """

    values: dict[str, Any]
    conditions: dict[str, Any]
    device: str = ""
    layout: dict[str, Any] | None = None


def read_timings(path: Path) -> dict[str, RecordedTiming]:
    """Read timings by layout key.

    Args:
        path: a study's ``evaluations.jsonl``, or a CSV with the columns ``key``, ``images_per_second`` and ``ratio``
            (a study's ``trials.csv`` has them, and what `mvsearch bench --format csv` prints). Rows without a key or
            a throughput are passed over.

    Raises:
        StudyError: if the file is missing, has no timing in it, or a row is not a pair of positive numbers.
    """
    if not path.is_file():
        raise StudyError(f"throughput.file: {path} is not a file; give an evaluations.jsonl or a .csv table")
    try:
        found = _from_csv(path) if path.suffix.lower() == ".csv" else _from_ledger(path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise StudyError(f"throughput.file: {path} cannot be read ({error})") from None
    if not found:
        raise StudyError(f"throughput.file: {path} holds no timing")
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
                    f"throughput.file: {timing.conditions['source']} was taken with {name} = "
                    f"{timing.conditions[name]!r}, and this study has {value!r}; ratios of both cannot be mixed"
                )


def _numbers(where: str, row: dict[str, Any]) -> dict[str, float]:
    try:
        values = {name: float(row[name]) for name in ("images_per_second", "ratio")}
        if not all(math.isfinite(value) and value > 0 for value in values.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise StudyError(
            f"throughput.file: {where}: images_per_second {row.get('images_per_second')!r} and ratio "
            f"{row.get('ratio')!r} must be finite numbers above 0"
        ) from None
    return values


def _from_ledger(path: Path) -> dict[str, RecordedTiming]:
    return {
        line.key: RecordedTiming(
            {**line.values, **_numbers(f"{path}, {line.key}", line.values)},
            {**line.conditions, "source": str(path)},
            line.device,
            line.layout,
        )
        for line in read_evaluations(path)
        if line.what == TIME
    }


def _from_csv(path: Path) -> dict[str, RecordedTiming]:
    needed = ("key", "images_per_second", "ratio")
    found = {}
    with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet may begin it with a mark
        reader = csv.DictReader(file)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise StudyError(f"throughput.file: {path} lacks the column {missing[0]!r}; it needs {', '.join(needed)}")
        for number, row in enumerate(reader, start=2):
            if not row["key"] or not row["images_per_second"]:
                continue  # a model that is no layout, or a trial that failed before it was timed
            values: dict[str, Any] = dict(_numbers(f"{path}, line {number}", row))
            for name, column in (("iqr", "ratio_iqr"), ("iqr", "iqr"), ("latency_ms", "latency_ms")):
                if (value := _number(row.get(column))) is not None:
                    values[name] = value
            device = row.get("timing_device") or row.get("device") or "not recorded"
            layout = json.loads(row.get("layout") or "null")
            found[row["key"]] = RecordedTiming(values, {**_conditions(row), "source": str(path)}, device, layout)
    return found


def _conditions(row: dict[str, str]) -> dict[str, Any]:
    """One column of them in a trials.csv, a column each in a table of `mvsearch bench`."""
    if row.get("timing_conditions"):
        found = json.loads(row["timing_conditions"])
        return found if isinstance(found, dict) else {}
    return {
        name: int(number) if (number := _number(value)) is not None and number.is_integer() else value
        for name in ("reference", "image_size", "batch_size", "threads", "dtype", "scan", "cuda_graph", "torch")
        if (value := row.get(name))
    }


def _number(text: str | None) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
