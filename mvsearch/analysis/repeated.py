"""Reading the trainings of `calibrate` and `confirm` out of a ledger."""

from __future__ import annotations

from collections.abc import Iterable

from mvsearch.study.measure import Measure
from mvsearch.study.record import FAIL, TRAIN, Evaluation


def failed_layouts(lines: Iterable[Evaluation], purpose: str) -> set[str]:
    """Keys of the layouts of which a training failed that has not come as far in a later run.

    Args:
        lines: of one ledger.
        purpose: ``"calibrate"`` or ``"confirm"``.
    """
    own = [line for line in lines if line.purpose == purpose]
    reached: dict[tuple[str, int | None], int] = {}
    for line in own:
        if line.what == TRAIN:
            reached[line.key, line.seed] = max(line.to_epoch, reached.get((line.key, line.seed), 0))
    return {line.key for line in own if line.what == FAIL and reached.get((line.key, line.seed), -1) < line.to_epoch}


def by_layout(lines: Iterable[Evaluation]) -> dict[str, dict[int, dict[int, Evaluation]]]:
    """Trainings by layout key, epochs at their end and seed; a seed trained twice counts once."""
    found: dict[str, dict[int, dict[int, Evaluation]]] = {}
    for line in lines:
        by_epoch = found.setdefault(line.key, {})
        if line.what == TRAIN and line.seed is not None:
            by_epoch.setdefault(line.to_epoch, {}).setdefault(line.seed, line)
    return found


def quality_of(line: Evaluation, measure: str) -> float:
    """Quality on the validation split after a training; larger is better."""
    return Measure(measure).quality(line.values[measure])
