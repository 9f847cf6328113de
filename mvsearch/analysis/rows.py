"""What the terminal and the page both list, as plain frozen rows; each of them draws the rows its own way."""

from __future__ import annotations

from dataclasses import dataclass

from mvsearch.analysis.confirmation import ConfirmedGain
from mvsearch.analysis.findings import Findings
from mvsearch.analysis.noise import DOMINATED
from mvsearch.study.front import families
from mvsearch.study.record import TrialRecord


@dataclass(frozen=True)
class UndominatedRow:
    """Layouts of one cost that stand on the front or cannot be told apart from it.

    Attributes:
        best: the one of the best quality.
        layouts: how many there are.
        on_front: how many of them stand on the front.
        slowest: the lowest throughput among them, as a ratio to the reference layout's.
        fastest: the highest.
    """

    best: TrialRecord
    layouts: int
    on_front: int
    slowest: float
    fastest: float


def undominated_rows(findings: Findings) -> tuple[UndominatedRow, ...]:
    """The front and what cannot be told apart from it, a row a cost, cheapest first; empty where noise is not known."""
    study, standings = findings.study, findings.standings
    if not standings:
        return ()
    members = {record.key for record in study.front}
    kept = [record for record in study.complete if standings[record.key].verdict != DOMINATED]
    rows = []
    for family in families(kept, study.measure):
        ratios = [record.ratio or 0.0 for record in family.members]
        on_front = sum(record.key in members for record in family.members)
        rows.append(UndominatedRow(family.members[0], len(family.members), on_front, min(ratios), max(ratios)))
    return tuple(rows)


@dataclass(frozen=True)
class ConfirmedRow:
    """One layout as the search measured it, and as fresh seeds confirm it.

    Attributes:
        record: what the search measured.
        on_front: whether it stands on the search's front; else it is a hand-made layout to compare with.
        val_top1: mean of the fresh trainings on the validation split, 0 to 1.
        val_sd: its standard deviation between seeds; None with one seed.
        test_top1: mean of the same trainings on the test split, 0 to 1.
        test_sd: its standard deviation between seeds; None with one seed.
        test_nll: mean NLL on the test split, nats.
        verdict: ``"front"``, ``"undecided"`` or ``"dominated"`` (`Standing.verdict`) on the test split; None where the
            noise between seeds is not known.
        fastest: whether no other confirmed layout is as fast, so that its verdict is ``"front"`` at any quality.
        gain: over the best hand-made layout that is at least as fast; None where there is none, and for what is not
            on the front.
    """

    record: TrialRecord
    on_front: bool
    val_top1: float
    val_sd: float | None
    test_top1: float
    test_sd: float | None
    test_nll: float
    verdict: str | None
    fastest: bool
    gain: ConfirmedGain | None


def confirmed_rows(findings: Findings) -> tuple[ConfirmedRow, ...]:
    """The confirmed layouts, slowest first; empty before `mvsearch confirm` has trained one with every seed."""
    confirmation = findings.confirmation
    if confirmation is None:
        return ()
    gains = {gain.layout: gain for gain in confirmation.gains}
    return tuple(
        ConfirmedRow(
            record=layout.record,
            on_front=layout.on_front,
            val_top1=layout.val.top1,
            val_sd=layout.val.top1_sd,
            test_top1=layout.test.top1,
            test_sd=layout.test.top1_sd,
            test_nll=layout.test.nll,
            verdict=layout.standing.verdict if layout.standing else None,
            fastest=layout.standing is not None and layout.standing.rival is None,
            gain=gains.get(layout.key),
        )
        for layout in confirmation.layouts
    )


@dataclass(frozen=True)
class PatternRow:
    """A published pattern that the study has in every hybrid stage.

    Attributes:
        name: as the paper calls it, e.g. ``"last N/2"``.
        published_top1: its ImageNet-1K top-1 in the paper's table 5, 0 to 1; None where the paper gives none.
        record: the layout here.
    """

    name: str
    published_top1: float | None
    record: TrialRecord


def pattern_rows(findings: Findings) -> tuple[PatternRow, ...]:
    """The published patterns that the study tried at one size, best first; empty where it tried fewer than two."""
    measure = findings.study.measure
    rows = [
        PatternRow(pattern.name, pattern.published, pattern.record)
        for pattern in findings.insight.published()
        if pattern.record is not None
    ]
    if len(rows) < 2:
        return ()
    return tuple(sorted(rows, key=lambda row: -(row.record.quality(measure) or 0.0)))
