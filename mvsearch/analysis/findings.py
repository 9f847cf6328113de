"""Findings: what a study means. Terminal, report and export read one such object; none of them computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from mvsearch.analysis.calibration import Calibration, calibration
from mvsearch.analysis.confirmation import Confirmation, confirmation
from mvsearch.analysis.gains import (
    Difference,
    Gain,
    Margin,
    Reordering,
    device_hours,
    difference,
    gains,
    margin,
    named_baseline,
    picks,
    reordering,
    validation_images,
)
from mvsearch.analysis.insight import Insight
from mvsearch.analysis.noise import SeedNoise, Standing, pooled_se, standings, study_difference_noise, study_noise
from mvsearch.study.data import StudyData
from mvsearch.study.front import HypervolumeStep, hypervolume_history, point_of
from mvsearch.study.record import TrialRecord


class Findings:
    """What the measurements of one study mean; each finding is computed when it is first asked for, once.

    Args:
        study: what was measured.
    """

    def __init__(self, study: StudyData) -> None:
        self.study = study

    @cached_property
    def calibration(self) -> Calibration | None:
        """Whether the proxy ranks layouts as long training does; None before `mvsearch calibrate`."""
        return calibration(self.study)

    @cached_property
    def confirmation(self) -> Confirmation | None:
        """What fresh seeds and the test split say of the front; None before `mvsearch confirm`."""
        return confirmation(self.study)

    @cached_property
    def noise(self) -> SeedNoise | None:
        """Noise between seeds of a full training, in quality; None where no layout was trained twice."""
        return study_noise(self.study)

    @cached_property
    def difference_noise(self) -> SeedNoise | None:
        """`noise` of the difference of two layouts of the same seeds; None where no two layouts share two seeds.

        What a seed does to all layouts alike is taken out.
        """
        return study_difference_noise(self.study)

    def noise_of(self, measure: str) -> SeedNoise | None:
        """`noise` in the unit of one quality, ``"nll"`` or ``"top1"``, whichever the study's is."""
        return study_noise(self.study, measure)

    @cached_property
    def pooled_se(self) -> float | None:
        """Standard error of a layout's quality in the search, pooled over layouts; None where each has one seed."""
        return pooled_se(self.study.complete, self.study.measure)

    @cached_property
    def standings(self) -> dict[str, Standing]:
        """Each complete layout's `Standing` by its key; empty where the noise is not known."""
        study = self.study
        points = [point for record in study.complete if (point := point_of(record, study.measure))]
        if self.difference_noise is None or self.difference_noise.sd == 0:
            return {}
        seeds = {record.key: len(record.seeds) for record in study.complete}
        return {standing.key: standing for standing in standings(points, seeds, self.difference_noise)}

    @cached_property
    def gains(self) -> list[Gain]:
        """A `Gain` for each complete hand-made layout, slowest first: what the front offers in its place."""
        return gains(self.study)

    @cached_property
    def picks(self) -> dict[str, TrialRecord]:
        """Members of the front by ``"knee"``, ``"fastest"``, ``"most-accurate"``; empty where no layout is complete."""
        return picks(self.study)

    @cached_property
    def named_baseline(self) -> TrialRecord | None:
        """The complete reference layout, else the best hand-made one; None where no hand-made layout is complete."""
        return named_baseline(self.study)

    def margin(self, record: TrialRecord) -> Margin:
        """What hand-made layouts reach at the record's speed or faster, and at its quality or better."""
        return margin(record, self.study.baselines, self.study.measure)

    @cached_property
    def reordering(self) -> Reordering:
        """Which members the front would gain and lose if the other quality decided it."""
        return reordering(self.study)

    @cached_property
    def hypervolume_steps(self) -> list[HypervolumeStep]:
        """Hypervolume after each complete layout, in the order in which they ended."""
        return hypervolume_history(self.study.records, self.study.reference_point, self.study.measure)

    def device_hours(self, moment: float) -> float:
        """Hours that all workers together had spent timing and training by a moment in Unix seconds."""
        return self._device_hours(moment)

    @cached_property
    def _device_hours(self) -> Callable[[float], float]:
        return device_hours(self.study)

    @cached_property
    def validation_images(self) -> int | None:
        """Images that quality was measured on; None where neither the trainings nor the configuration say it."""
        return validation_images(self.study)

    @cached_property
    def insight(self) -> Insight:
        """The comparisons of share, placement, state and width, each made when it is asked for."""
        return Insight(self.study)

    @property
    def importance(self) -> Mapping[str, Mapping[str, float]] | None:
        """Share of each factor by outcome, as the driver wrote it into the study's folder; None where it did not."""
        return self.study.importance

    def difference(self, record: TrialRecord, other: TrialRecord) -> Difference | None:
        """One layout minus another in quality; None where one of them was not trained in full."""
        return difference(self.study, self.confirmation, record, other)
