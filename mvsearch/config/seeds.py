"""Seeds by purpose, so that no two trainings of a study draw the same numbers unless they are meant to."""

from __future__ import annotations

MAX_SEEDS = 100
"""Most seeds of one purpose."""

_STUDY = 1000  # seeds of a study: search.seed * 1000 to search.seed * 1000 + 999

OFFSETS = {"search": 0, "calibrate": 500, "confirm": 700, "retrain": 900}
"""Where the seeds of each purpose begin: of those that the ledger knows, and of the training anew of an export."""


def seeds_for(purpose: str, search_seed: int, count: int) -> tuple[int, ...]:
    """Seeds of the trainings for one purpose, which no other purpose and no other ``search.seed`` has.

    Args:
        purpose: one of `OFFSETS`.
        search_seed: ``search.seed`` of the study, 0 or more.
        count: 1 to `MAX_SEEDS`.
    """
    first = search_seed * _STUDY + OFFSETS[purpose]
    return tuple(range(first, first + count))


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the data order, augmentation and drop path of one epoch of a training; `epoch` from 1."""
    return seed * 100_003 + epoch
