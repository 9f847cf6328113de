"""Which layouts `calibrate` and `confirm` train again, with which seeds and for how long."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvsearch.config.seeds import MAX_SEEDS, seeds_for
from mvsearch.study.files import StudyError
from mvsearch.study.front import complete_records
from mvsearch.study.record import CALIBRATE, CONFIRM, TrialRecord

if TYPE_CHECKING:
    from mvsearch.study.data import StudyData


MIN_LAYOUTS = 12
"""Below this a rank correlation says nothing."""


EPOCH_FACTORS = (4, 8)
"""Least and most epochs of a long training, as a multiple of the proxy's."""


def layouts_to_calibrate(
    records: Iterable[TrialRecord], measure: str, count: int, *, begun: Iterable[str] = ()
) -> list[TrialRecord]:
    """Layouts to calibrate on: the hand-made ones and those begun, then a sample stratified over score and throughput.

    The complete layouts are cut by proxy score into `count` strata of equal size; the emptiest give first, each the
    layout whose rank by throughput is furthest from those chosen. So the sample stands for the whole study, not for
    its front, and is the same each time.

    Args:
        records: of one study.
        measure: ``"nll"`` or ``"top1"``.
        count: layouts wanted; there are fewer where the study has fewer, and more where more were begun.
        begun: keys that an earlier run has begun with; they stay.
    """
    complete = sorted(complete_records(records, measure), key=lambda r: (r.quality(measure) or 0.0, r.key))
    stratum = {record.key: position * count // len(complete) for position, record in enumerate(complete)}
    by_speed = sorted(complete, key=lambda r: (r.ratio or 0.0, r.key))
    rank = {record.key: position for position, record in enumerate(by_speed)}
    kept = set(begun)
    chosen = [record for record in complete if record.baseline or record.key in kept]
    rest = [record for record in complete if record not in chosen]
    while rest and len(chosen) < count:
        taken = [stratum[record.key] for record in chosen]
        emptiest = min((stratum[record.key] for record in rest), key=lambda one: (taken.count(one), one))
        ranks = [rank[record.key] for record in chosen]
        best = max(
            (record for record in rest if stratum[record.key] == emptiest),
            key=lambda r: (min((abs(rank[r.key] - other) for other in ranks), default=0), -rank[r.key]),
        )
        chosen.append(best)
        rest.remove(best)
    return sorted(chosen, key=lambda record: record.number)


def layouts_to_confirm(study: StudyData, count: int | None = None) -> list[TrialRecord]:
    """The layouts that `confirm` trains: the front and the hand-made ones, each once.

    Args:
        study: what was measured.
        count: how many of the front at most, spread evenly from the slowest to the fastest; None: all.
    """
    front = study.front
    if count is not None and count < len(front):
        last = len(front) - 1
        front = [front[round(at * last / (count - 1)) if count > 1 else 0] for at in range(count)]
    keys = {record.key for record in front}
    return [*front, *(record for record in study.baselines if record.key not in keys)]


@dataclass(frozen=True)
class Plan:
    """The trainings of one run of `calibrate` or `confirm`.

    Attributes:
        purpose: ``"calibrate"`` or ``"confirm"``; goes into the ledger's lines.
        records: the layouts, in the order in which they are begun.
        seeds: of the trainings of each.
        stops: epochs at which each training is measured, rising; between them it can be stopped and gone on with.
    """

    purpose: str
    records: tuple[TrialRecord, ...]
    seeds: tuple[int, ...]
    stops: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.records, "a plan has layouts"

    @property
    def epochs(self) -> int:
        """Epochs of all trainings together."""
        return len(self.records) * len(self.seeds) * self.stops[-1]


def plan_calibrate(study: StudyData, *, layouts: int = 16, factor: int = EPOCH_FACTORS[0], seeds: int = 2) -> Plan:
    """What `calibrate` trains: layouts of all scores and speeds, long.

    A training is measured after each multiple of the proxy's epochs. After the first it is the proxy over again, with
    a seed that the search has not used; so the ceiling costs nothing more, and a kill loses little.

    Raises:
        StudyError: a number that is not allowed, or too few complete layouts.
    """
    _whole("layouts", layouts, MIN_LAYOUTS, why="under 12 a rank correlation says nothing")
    _whole("budget-factor", factor, *EPOCH_FACTORS, why="a long training is 4 to 8 times the proxy")
    _whole("seeds", seeds, 2, MAX_SEEDS)
    if len(study.complete) < MIN_LAYOUTS:
        raise StudyError(
            f"{study.name}: only {len(study.complete)} layouts are trained in full, and calibrate needs {MIN_LAYOUTS}; "
            "go on with the search (--set search.trials=…) first"
        )
    begun = {line.key for line in study.evaluations if line.purpose == CALIBRATE}
    chosen = layouts_to_calibrate(study.records, study.measure, layouts, begun=begun)
    # Hand-made ones first, then in no order, so that a time limit leaves a sample of all scores.
    own = [record for record in chosen if not record.baseline]
    random.Random(study.setting("search", "seed", default=0)).shuffle(own)
    own.sort(key=lambda record: record.key not in begun)
    epochs = int(study.setting("proxy", "epochs"))
    return Plan(
        CALIBRATE,
        (*(record for record in chosen if record.baseline), *own),
        seeds_for(CALIBRATE, study.setting("search", "seed", default=0), seeds),
        tuple(epochs * multiple for multiple in range(1, factor + 1)),
    )


def plan_confirm(study: StudyData, *, layouts: int | None = None, seeds: int = 3) -> Plan:
    """What `confirm` trains: the front and the hand-made layouts, as the search did but with fresh seeds.

    Raises:
        StudyError: a number that is not allowed, or no front.
    """
    if layouts is not None:
        _whole("layouts", layouts, 1)
    _whole("seeds", seeds, 2, MAX_SEEDS)
    if not study.front:
        raise StudyError(f"{study.name}: no layout has been trained in full yet, so there is no front to confirm")
    chosen = layouts_to_confirm(study, layouts)
    # Hand-made ones first: without them nothing on the front can be compared.
    chosen.sort(key=lambda record: record.baseline is None)
    search_seed = study.setting("search", "seed", default=0)
    return Plan(CONFIRM, tuple(chosen), seeds_for(CONFIRM, search_seed, seeds), (study.setting("proxy", "epochs"),))


def _whole(name: str, value: int, low: int, high: int | None = None, *, why: str | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise StudyError(f"{name}: {value!r} is not allowed; {allowed}{f' ({why})' if why else ''}")
