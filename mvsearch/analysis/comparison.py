"""Studies side by side: fronts, hypervolumes above one corner, attainment over seeds of one space, layouts in common.

Studies may differ in space, sampler, seed and size. What bears on the meaning of a number (data, proxy, objectives,
timing, device, reference layout) must be equal, or the comparison is refused.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mambavision.words import plural
from mvsearch.analysis.gains import device_hours
from mvsearch.study.data import StudyData
from mvsearch.study.files import StudyError
from mvsearch.study.front import (
    HypervolumeStep,
    Point,
    front_records,
    hypervolume,
    hypervolume_history,
    pareto_front,
    point_of,
)
from mvsearch.study.record import TrialRecord

_FREE = {"proxy": ("root", "seeds"), "timing": ()}
_BAND = 0.25


@dataclass(frozen=True)
class SeedGroup:
    """Studies that differ in their seed (and size) alone.

    Attributes:
        name: of its first study, with how many there are.
        studies: their positions among the studies compared.
    """

    name: str
    studies: tuple[int, ...]


@dataclass(frozen=True)
class Attainment:
    """The quality that a share of the studies of a group reaches, at each throughput of their fronts.

    Attributes:
        throughput: log2 of the ratio, rising.
        median: quality that half of the studies reach at this throughput or faster; None where fewer do.
        low: quality that three quarters reach (all of them, where there are fewer than four).
        high: quality that a quarter reaches (the best study, where there are fewer than four).
    """

    throughput: tuple[float, ...]
    median: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class SharedLayout:
    """A layout that several studies have trained.

    Attributes:
        key: of the layout.
        records: what each study measured, by the study's position.
    """

    key: str
    records: Mapping[int, TrialRecord]


class Comparison:
    """Several studies side by side.

    Args:
        studies: two or more, each with a complete layout.

    Raises:
        StudyError: if they cannot be compared; it names the two studies, the field and both values.
    """

    def __init__(self, studies: Sequence[StudyData]) -> None:
        if len(studies) < 2:
            raise StudyError(f"compare: {plural(len(studies), 'study', 'studies')} given; two or more are needed")
        for study in studies:
            if not study.complete:
                raise StudyError(f"compare: {study.name} has no complete layout yet")
        first = studies[0]
        for other in studies[1:]:
            if other is first or (other.name == first.name and other.started == first.started):
                raise StudyError(f"compare: {first.name} is given twice")
            _check(first, other)
        self.studies = tuple(studies)
        self.names = _distinct([study.name for study in studies])
        self.measure = first.measure

    @cached_property
    def reference_point(self) -> tuple[float, float]:
        """(quality, log2 throughput) below which nothing counts: the lowest of the studies' own, in each objective."""
        points = [study.reference_point for study in self.studies]
        return min(quality for quality, _ in points), min(throughput for _, throughput in points)

    def hypervolume(self, records: Sequence[TrialRecord]) -> float:
        """Hypervolume of some layouts above `reference_point`, in units of quality times octaves."""
        points = [point for record in records if (point := point_of(record, self.measure))]
        return hypervolume(points, self.reference_point)

    def hypervolume_steps(self, study: StudyData) -> list[HypervolumeStep]:
        """Hypervolume of one study above `reference_point` after each complete layout, in the order they ended."""
        return hypervolume_history(study.records, self.reference_point, self.measure)

    @cached_property
    def baselines(self) -> float:
        """Hypervolume of all hand-made layouts of all studies."""
        return self.hypervolume([record for study in self.studies for record in study.baselines])

    @cached_property
    def joint_front(self) -> list[tuple[int, TrialRecord]]:
        """The front of all studies together, slowest first, as pairs of a study's position and its record."""
        owners = {id(record): at for at, study in enumerate(self.studies) for record in study.complete}
        everything = [record for study in self.studies for record in study.complete]
        return [(owners[id(record)], record) for record in front_records(everything, self.measure)]

    @cached_property
    def groups(self) -> list[SeedGroup]:
        """The studies by what they share: those of one space, sampler and design are a group."""
        found: dict[str, list[int]] = {}
        for at, study in enumerate(self.studies):
            search = {k: study.setting("search", k) for k in ("sampler", "baselines", "design")}
            same = {k: study.setting(k) for k in ("layout", "budgets", "fidelity")} | search
            found.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(at)
        return [
            SeedGroup(self.names[own[0]] + (f" and {len(own) - 1} more" if len(own) > 1 else ""), tuple(own))
            for own in found.values()
        ]

    def attainment(self, group: SeedGroup) -> Attainment:
        """The attainment surfaces of a group (the empirical attainment function, cut at its quantiles)."""
        fronts = [
            pareto_front(p for r in self.studies[at].complete if (p := point_of(r, self.measure)))
            for at in group.studies
        ]
        at_all = sorted({point.throughput for front in fronts for point in front})
        rows = [[reached(front, throughput) for front in fronts] for throughput in at_all]
        n = len(fronts)
        share = 0.0 if n < 4 else _BAND
        return Attainment(
            tuple(at_all),
            tuple(attained(row, 0.5) for row in rows),
            tuple(attained(row, 1 - share) for row in rows),
            tuple(attained(row, share) for row in rows),
        )

    @cached_property
    def common(self) -> list[SharedLayout]:
        """Layouts complete in two studies or more, best first."""
        found: dict[str, dict[int, TrialRecord]] = {}
        for at, study in enumerate(self.studies):
            for record in study.complete:
                found.setdefault(record.key, {})[at] = record
        shared = [SharedLayout(key, records) for key, records in found.items() if len(records) > 1]
        return sorted(shared, key=lambda one: -max(r.quality(self.measure) or -math.inf for r in one.records.values()))

    @cached_property
    def disagreement(self) -> tuple[float, float] | None:
        """Standard deviations between studies of one layout's quality and log2 throughput; None without `common`.

        Where the studies have the same seed, the trainings were the same, and the first says little.
        """
        if not self.common:
            return None
        squares = [0.0, 0.0]
        df = 0
        for one in self.common:
            values = [(r.quality(self.measure) or 0.0, r.log2_ratio or 0.0) for r in one.records.values()]
            df += len(values) - 1
            for i in range(2):
                squares[i] += statistics.variance(v[i] for v in values) * (len(values) - 1)
        return math.sqrt(squares[0] / df), math.sqrt(squares[1] / df)


@dataclass(frozen=True)
class StudyRow:
    """One study in the table of a comparison.

    Attributes:
        name: of the study.
        sampler: that proposed its layouts, or its design.
        seed: of the search.
        layouts: trained in full.
        hours: device-hours spent.
        front: members of its front.
        hypervolume: above the common corner.
        multiple: the same over that of all hand-made layouts; None without them.
        joint: members of its front that stand on the front of all studies.
    """

    name: str
    sampler: str
    seed: int
    layouts: int
    hours: float
    front: int
    hypervolume: float
    multiple: float | None
    joint: int


def study_rows(comparison: Comparison) -> list[StudyRow]:
    """One row for each study of a comparison, in the order given."""
    rows = []
    for at, study in enumerate(comparison.studies):
        volume = comparison.hypervolume(study.complete)
        rows.append(
            StudyRow(
                name=comparison.names[at],
                sampler=str(study.setting("search", "design") or study.setting("search", "sampler", default="–")),
                seed=int(study.setting("search", "seed", default=0)),
                layouts=len(study.complete),
                hours=device_hours(study)(math.inf),
                front=len(study.front),
                hypervolume=volume,
                multiple=volume / comparison.baselines if comparison.baselines > 0 else None,
                joint=sum(owner == at for owner, _ in comparison.joint_front),
            )
        )
    return rows


def _check(first: StudyData, other: StudyData) -> None:
    """Refuse two studies whose numbers do not mean the same."""
    fields: dict[str, tuple[Any, Any]] = {
        "objectives.quality": (first.measure, other.measure),
        "data (fingerprint)": (first.fingerprint, other.fingerprint),
        "classes": (first.classes, other.classes),
    }
    for section, free in _FREE.items():
        mine, theirs = first.setting(section, default={}), other.setting(section, default={})
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            if key not in free:
                fields[f"{section}.{key}"] = (mine.get(key), theirs.get(key))
    fields["device"] = (first.device, other.device)
    fields["scan"] = (first.scan, other.scan)
    fields["reference layout"] = (first.reference_key, other.reference_key)
    for name, (mine, theirs) in fields.items():
        if mine != theirs:
            why = "speeds are ratios to it" if name == "reference layout" else "their numbers do not mean the same"
            raise StudyError(
                f"compare: {first.name} and {other.name} cannot be compared: {name} is {mine!r} in the one and "
                f"{theirs!r} in the other, so {why}"
            )


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of folders may be equal; such get a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def reached(front: Sequence[Point], throughput: float) -> float:
    """Best quality at a throughput or faster; minus infinity where there is none."""
    return max((point.quality for point in front if point.throughput >= throughput), default=-math.inf)


def attained(values: Sequence[float], share: float) -> float | None:
    """The quality that this share of the studies (one at least) reaches; None where it is not reached."""
    ranked = sorted(values, reverse=True)
    value = ranked[max(1, math.ceil(share * len(ranked))) - 1]
    return value if math.isfinite(value) else None
