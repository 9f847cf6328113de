"""No two trainings of a study draw the same numbers unless they are meant to."""

from __future__ import annotations

import itertools

import pytest

from mvsearch.config.sections import ProxyConfig
from mvsearch.config.seeds import MAX_SEEDS, OFFSETS, epoch_seed, seeds_for
from mvsearch.study.record import CALIBRATE, CONFIRM, SEARCH


def test_no_two_purposes_share_a_seed_within_the_allowed_counts() -> None:
    given = [seed for study in (0, 1, 2) for purpose in OFFSETS for seed in seeds_for(purpose, study, MAX_SEEDS)]
    assert len(given) == len(set(given)) == 3 * len(OFFSETS) * MAX_SEEDS


def test_no_configuration_asks_for_more_seeds_than_a_purpose_has() -> None:
    assert ProxyConfig(seeds=MAX_SEEDS).seeds == MAX_SEEDS
    with pytest.raises(ValueError, match="seeds"):
        ProxyConfig(seeds=MAX_SEEDS + 1)


def test_every_purpose_of_the_ledger_has_seeds() -> None:
    assert {SEARCH, CALIBRATE, CONFIRM} < OFFSETS.keys()


def test_seeds_of_stored_studies_stay_as_they_are() -> None:
    assert {purpose: seeds_for(purpose, 3, 2) for purpose in OFFSETS} == {
        "search": (3000, 3001),
        "calibrate": (3500, 3501),
        "confirm": (3700, 3701),
        "retrain": (3900, 3901),
    }


def test_no_two_epochs_of_neighbouring_seeds_share_their_draws() -> None:
    pairs = list(itertools.product(seeds_for("search", 0, 3) + seeds_for("confirm", 0, 3), range(1, 2000)))
    assert len({epoch_seed(*pair) for pair in pairs}) == len(pairs)
