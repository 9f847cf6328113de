"""What the order of a layout's blocks says, as a few plain facts a stage."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mambavision.layout import LETTERS, Letter
from mvsearch.study.data import StudyData
from mvsearch.study.record import TrialRecord


@dataclass(frozen=True)
class StageFacts:
    """What the order of one stage's blocks says, counted from 1.

    Attributes:
        number: the stage, from 1.
        blocks: its letters.
        dim: channels.
        state: SSM state size; None where no block scans.
        share: blocks with attention over all blocks, 0 to 1.
        placement: name of the order, see `placement`.
        centre: mean position of the blocks with attention, 0 (first block) to 1 (last); None without any, and in a
            stage of one block.
        hybrid: False for a convolutional stage.
    """

    number: int
    blocks: str
    dim: int
    state: int | None
    share: float
    placement: str
    centre: float | None
    hybrid: bool = field(default=True)


ALL_BASE, ALL_PLACED = "all base", "all placed"


ORDERS = ("last", "first", "alternating", "middle", "both ends", "mixed")


def placement(attends: Sequence[bool]) -> str:
    """The name, one of `ORDERS`, of where a stage's attention blocks stand among its others.

    ``"all base"`` (none with attention) and ``"all placed"`` (all of them); ``"last"`` and ``"first"`` (all with
    attention in one run at that end); ``"alternating"`` (no two neighbours alike, at least three blocks); ``"middle"``
    (one run that touches neither end); ``"both ends"`` (one run of the others that touches neither end); else
    ``"mixed"``.

    Args:
        attends: True for each block with attention, in order; at least one block.
    """
    if all(attends):
        return ALL_PLACED
    if not any(attends):
        return ALL_BASE
    changes = sum(a != b for a, b in itertools.pairwise(attends))
    if changes == 1:
        return "last" if attends[-1] else "first"
    if changes == len(attends) - 1:
        return "alternating"
    if changes == 2:
        return "both ends" if attends[0] else "middle"
    return "mixed"


def stage_facts(layout: Mapping[str, Any]) -> list[StageFacts]:
    """The facts of every stage of a layout's plain data."""
    facts = []
    for number, stage in enumerate(layout["stages"], start=1):
        kinds = [LETTERS.get(letter) for letter in stage["blocks"]]
        attends = [kind is not None and kind.attends for kind in kinds]
        at = [i for i, yes in enumerate(attends) if yes]
        facts.append(
            StageFacts(
                number=number,
                blocks=stage["blocks"],
                dim=stage["dim"],
                state=stage.get("state", 8) if any(kind and kind.scans for kind in kinds) else None,
                share=len(at) / len(attends),
                placement=placement(attends),
                centre=sum(at) / len(at) / (len(attends) - 1) if at and len(attends) > 1 else None,
                hybrid=all(kind is None or kind.mixes_tokens for kind in kinds),
            )
        )
    return facts


LayoutFacts = tuple[TrialRecord, list[StageFacts]]


def comparable(study: StudyData) -> list[LayoutFacts]:
    """Complete layouts with the most common sequence of conv and hybrid stages; others are not compared."""
    layouts = [(record, stage_facts(record.layout)) for record in study.complete]
    forms = Counter(tuple(fact.hybrid for fact in facts) for _, facts in layouts)
    if not forms:
        return []
    form = forms.most_common(1)[0][0]
    return [(record, facts) for record, facts in layouts if tuple(fact.hybrid for fact in facts) == form]


def placed_letter(layouts: Sequence[LayoutFacts], stage: int) -> Letter:
    """The letter with attention that most layouts have in a stage (counted from 1); self-attention where none has."""
    known = [letter for letter, kind in LETTERS.items() if kind.attends]
    counts = Counter(next((b for b in facts[stage - 1].blocks if b in known), known[0]) for _, facts in layouts)
    return LETTERS[max(known, key=lambda letter: counts[letter])]


def hybrid_stages(study: StudyData) -> list[int]:
    """Numbers of the stages in which order can differ, from 1."""
    pairs = comparable(study)
    return [fact.number for fact in pairs[0][1] if fact.hybrid] if pairs else []


def outcome_of(record: TrialRecord, outcome: str) -> float | None:
    """The record's value of an outcome, larger is better: minus the NLL, top-1, or log2 of the throughput ratio."""
    return record.log2_ratio if outcome == "throughput" else record.quality(outcome)


def log_cost(record: TrialRecord, matched: str) -> float:
    """Natural log of what matched layouts share: the throughput ratio for ``"throughput"``, else parameters."""
    return math.log(record.ratio or 1.0) if matched == "throughput" else math.log(record.params or 1)
