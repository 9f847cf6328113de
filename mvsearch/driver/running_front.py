"""Where a study stands: its records, counts, front and hypervolume, kept up to date with every record that changes."""

from __future__ import annotations

from collections import Counter

from mvsearch.study.front import front_records, hypervolume, hypervolume_history, point_of, reference_point
from mvsearch.study.record import COMPLETE, FAILED, TrialRecord


class RunningFront:
    """The records of a study. A front of ten thousand layouts is not computed anew for each of them.

    Args:
        measure: ``"nll"`` or ``"top1"``.
        classes: of the data set.
        baselines: how many hand-made layouts the study trains.

    Attributes:
        records: by layout key, in the order in which the layouts were first asked for.
        counts: layouts in each state.
        front: COMPLETE records that no other dominates, slowest first.
    """

    def __init__(self, measure: str, classes: int, baselines: int) -> None:
        self.records: dict[str, TrialRecord] = {}
        self.counts: Counter[str] = Counter()
        self.front: list[TrialRecord] = []
        self._measure = measure
        self._classes = classes
        self._baselines = baselines
        self._hand_made: dict[str, TrialRecord] = {}
        self._hypervolume: float | None = None
        self._stale = True
        # After each COMPLETE layout, in the order in which they ended; None until the reference point is settled.
        self._areas: list[float] | None = None

    def update(self, record: TrialRecord) -> None:
        """Take a record that is new or has changed. One that was COMPLETE stays as it was."""
        before = self.records.get(record.key)
        self.records[record.key] = record
        if before is not None:
            self.counts[before.state] -= 1
        self.counts[record.state] += 1
        if record.baseline:
            self._hand_made[record.key] = record
            self._stale = True
            self._areas = None
        if record.state == COMPLETE and (before is None or before.state != COMPLETE):
            self.front = front_records([*self.front, record], self._measure)
            self._stale = True
            if self._areas is not None:
                self._areas.append(self._area(self.front, self.reference()))

    def gain(self, layouts: int) -> float | None:
        """By what share of itself the hypervolume has grown over the last so many COMPLETE layouts.

        None until all hand-made layouts have ended, and before there are as many more.
        """
        if self._areas is None:
            ended = [record for record in self._hand_made.values() if record.state in (COMPLETE, FAILED)]
            if len(ended) < max(self._baselines, len(self._hand_made)):
                return None
            history = hypervolume_history(self.records.values(), self.reference(), self._measure)
            self._areas = [step.hypervolume for step in history]
        if len(self._areas) <= layouts + len(self._hand_made) or self._areas[-1 - layouts] <= 0:
            return None
        return self._areas[-1] / self._areas[-1 - layouts] - 1

    def _area(self, records: list[TrialRecord], reference: tuple[float, float]) -> float:
        return hypervolume((point for record in records if (point := point_of(record, self._measure))), reference)

    @property
    def hypervolume(self) -> float | None:
        """Of the front, as a multiple of the hand-made layouts' own; None until all of these have ended."""
        if self._stale:
            self._hypervolume = self._multiple()
            self._stale = False
        return self._hypervolume

    def reference(self) -> tuple[float, float]:
        """(quality, throughput) of the corner from which hypervolume is measured, of the hand-made layouts so far."""
        return reference_point(self._hand_made.values(), self._classes, self._measure)

    def _multiple(self) -> float | None:
        hand_made = list(self._hand_made.values())
        ended = [record for record in hand_made if record.state in (COMPLETE, FAILED)]
        if not hand_made or len(hand_made) < self._baselines or len(ended) < len(hand_made):
            return None
        done = [record for record in hand_made if record.state == COMPLETE]
        if not done:
            return None
        reference = reference_point(done, self._classes, self._measure)
        own = self._area(done, reference)
        return self._area(self.front, reference) / own if own > 0 else None
