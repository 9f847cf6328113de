"""The measure of quality: its signs, units and words stand in one place, and the configuration allows the same."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import pytest

from mvsearch.config.sections import ObjectivesConfig
from mvsearch.study.measure import Measure


def test_a_measure_is_its_plain_string() -> None:
    assert Measure("nll") is Measure.NLL == "nll"
    assert f"{Measure.TOP1}" == "top1"
    assert {"nll": 1}[Measure.NLL] == 1
    with pytest.raises(ValueError, match="measure: 'acc' is not allowed; one of nll, top1"):
        Measure("acc")


def test_the_configuration_allows_every_measure() -> None:
    assert set(get_args(get_type_hints(ObjectivesConfig)["quality"])) == set(Measure)
    assert [ObjectivesConfig(quality=str(measure)).quality for measure in Measure] == list(Measure)


@pytest.mark.parametrize(
    ("measure", "better", "worse", "guess"), [(Measure.NLL, 0.5, 0.7, -math.log(4)), (Measure.TOP1, 0.7, 0.5, 0.25)]
)
def test_a_quality_is_larger_where_the_value_is_better(
    measure: Measure, better: float, worse: float, guess: float
) -> None:
    assert measure.quality(better) > measure.quality(worse)
    assert (better < worse) is measure.lower_is_better
    assert measure.quality(measure.quality(better)) == better
    assert measure.guess(4) == pytest.approx(guess)
    assert measure.other.other is measure is not measure.other


@pytest.mark.parametrize(
    ("measure", "value", "shown", "text", "difference", "long"),
    [
        (Measure.NLL, 0.6812, 0.6812, "NLL 0.681", "0.034 nats", "0.034 nats"),
        (Measure.TOP1, 0.8123, 81.23, "81.2 %", "3.4 points", "3.4 points of top-1"),
    ],
)
def test_a_quality_is_shown_with_its_unit_and_digits(
    measure: Measure, value: float, shown: float, text: str, difference: str, long: str
) -> None:
    quality = measure.quality(value)
    assert measure.shown(quality) == pytest.approx(shown)
    assert measure.quality_text(quality) == text
    assert measure.difference_text(0.0341) == difference
    assert measure.difference_text(0.0341, long=True) == long
