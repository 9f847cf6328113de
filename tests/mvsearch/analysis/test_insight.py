"""Insight: effects of known size are found at matched cost, confounded ones are not, and silence where data is thin."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pytest
import study_factory

from mvsearch.analysis.findings import Findings
from mvsearch.analysis.insight import MODEL, PAIRS, REFERENCE, Insight
from mvsearch.analysis.model import MIN_SKILL
from mvsearch.analysis.pairs import paired_differences
from mvsearch.analysis.rows import pattern_rows
from mvsearch.report.insight_words import (
    NOT_ENOUGH,
    comparison_words,
    effect_words,
    factor_words,
    headlines,
    insight_table,
    unsupported,
)
from mvsearch.report.page import page
from mvsearch.space.published import PUBLISHED_PATTERNS, published_blocks
from mvsearch.study.data import StudyData
from mvsearch.study.record import COMPLETE, TrialRecord


def synthetic(rows: list[tuple[int, str, str, float, float, int]], states: list[int] | None = None) -> StudyData:
    """A study of given (width, stage 2, stage 3, nll, ratio, params)."""
    records = []
    for number, (width, second, third, nll, ratio, params) in enumerate(rows):
        made = study_factory.layout(width, second, third, (states[number] if states else 8, 8))
        values = {"nll": nll, "top1": 0.9 - nll / 10, "ratio": ratio, "params": params, "seeds": (0,)}
        records.append(
            TrialRecord(number=number, key=f"{made.key}-{number}", layout=made.to_dict(), state=COMPLETE, **values)
        )
    return dataclasses.replace(study_factory.study(), records=records)


def wobble(i: int) -> float:
    return 0.01 * ((7 * i) % 5 - 2)


def test_width_does_not_confound_the_share() -> None:
    # Attention was mostly tried in wide layouts, which are better; the true effect of attention is nought.
    kinds = [(16, "MMMM")] * 9 + [(16, "AAAA")] * 3 + [(40, "MMMM")] * 3 + [(40, "AAAA")] * 9
    study = synthetic(
        [
            (width, b, "MMM", (1.0 if width == 16 else 0.5) + wobble(i), 1.0, width * 1000)
            for i, (width, b) in enumerate(kinds)
        ]
    )
    plain = {b: np.mean([r.nll for r in study.complete if b in r.pattern]) for b in ("MMMM", "AAAA")}
    assert plain["MMMM"] - plain["AAAA"] > 0.2
    effects = {e.label: e for e in Insight(study).compare(2, "share", "nll", "params").effects}
    assert effects["none"].source == REFERENCE
    assert effects["all"].source == PAIRS
    assert effects["all"].pairs == 9 * 3 + 3 * 9
    assert abs(effects["all"].value) < 0.02
    assert not effects["all"].clear


def test_pairs_beyond_the_caliper_are_not_matched() -> None:
    kinds = [(16, "MMMM"), (16, "AAAA")] * 6

    def study(params: int, ratio: float) -> Insight:
        rows = [
            (w, b, "MMM", 1 + wobble(i), ratio if "A" in b else 1.0, params if "A" in b else 1000)
            for i, (w, b) in enumerate(kinds)
        ]
        return Insight(synthetic(rows))

    def source(insight: Insight, matched: str) -> str | None:
        return insight.compare(2, "share", "nll", matched).effects[1].source

    assert source(study(1040, 1.2), "params") == PAIRS
    assert source(study(1040, 1.2), "throughput") is None
    assert source(study(1060, 1.02), "params") is None
    assert source(study(1060, 1.02), "throughput") == PAIRS


def test_the_state_does_not_confound_the_share() -> None:
    # A large state is worth 0.2 nats and was tried with little attention; attention itself does nothing.
    rows, states = [], []
    for width in (16, 24, 32):
        for blocks, state in (("MMMA", 16), ("AMMM", 16), ("MMMA", 4), ("MMAA", 4), ("AAMM", 4), ("MMAA", 16)):
            nll = 1 - (0.2 if state == 16 else 0) + wobble(len(rows)) / 10
            rows.append((width, blocks, "MMM", nll, 1.0, width * 1000))
            states.append(state)
    effects = {e.label: e for e in Insight(synthetic(rows, states)).compare(2, "share", "nll", "params").effects}
    assert effects["under 40 %"].source == PAIRS
    assert effects["under 40 %"].pairs == 3 * (2 * 1 + 1 * 2)
    assert abs(effects["under 40 %"].value) < 0.005


def test_placement_does_not_confound_the_share() -> None:
    # Attention first costs 0.1 nats; the mixed layouts mostly have it first. All attention is as good as half, halfway.
    kinds = ["AM", "AM", "AM", "MA", "AA", "AA"]
    rows = [
        (width, "MMMM", third, 1 + {"AM": 0.1, "MA": 0.0, "AA": 0.05}[third] + wobble(i) / 10, 1.0, width * 1000)
        for width in (16, 24, 32)
        for i, third in enumerate(kinds)
    ]
    effects = {e.label: e for e in Insight(synthetic(rows)).compare(3, "share", "nll", "params").effects}
    assert effects["all"].source == PAIRS
    assert abs(effects["all"].value) < 0.005


def test_a_true_effect_of_placement_is_found_with_its_size() -> None:
    # true_values: 0.08 nats between attention in the last and in the first block of stage 3.
    rows, noise = [], np.random.default_rng(0)
    for width in (16, 24, 32):
        for second in ("MMAA", "MAMA"):
            for third in ("AMM", "MMA", "AAM", "MAA"):
                nll, ratio = study_factory.true_values(study_factory.layout(width, second, third))
                rows.append((width, second, third, nll + noise.normal(0, 0.01), ratio, width * 1000))
    insight = Insight(synthetic(rows))
    first = insight.compare(3, "placement", "nll", "params").effects[1]
    assert (first.label, first.source, first.pairs) == ("first", PAIRS, 12)
    assert first.low < -0.08 < first.high < -0.05
    assert "worse than last: first" in comparison_words(insight.compare(3, "placement", "nll", "params"))


def test_least_squares_on_pairs_is_the_fixed_effect_of_complete_sets() -> None:
    rng = np.random.default_rng(1)
    sets = np.repeat(np.arange(5), (3, 4, 2, 5, 3))
    kinds = [("a", "b", "c")[i % 3] for i in range(len(sets))]
    values = rng.normal(size=len(sets)) + sets
    joined = (sets[:, None] == sets[None, :]) & ~np.eye(len(sets), dtype=bool)
    found = paired_differences(kinds, values, joined, "a")
    design = np.column_stack(
        [[float(k == name) for k in kinds] for name in "bc"] + [(sets == s).astype(float) for s in range(5)]
    )
    coefficients, residual, _, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(sets) - 7
    error = np.sqrt(residual[0] / freedom * np.diag(np.linalg.inv(design.T @ design)))
    from scipy.special import stdtrit

    for position, name in enumerate("bc"):
        value, low, high = found[name][1]
        assert value == pytest.approx(coefficients[position])
        assert (high - low) / 2 == pytest.approx(stdtrit(freedom, 0.975) * error[position])


def test_kinds_that_no_chain_of_pairs_joins_are_left_out() -> None:
    kinds = ["a", "b"] * 4 + ["c", "d"] * 4
    values = np.random.default_rng(0).normal(size=16)
    sets = np.array([0] * 8 + [1] * 8)
    joined = (sets[:, None] == sets[None, :]) & ~np.eye(16, dtype=bool)
    assert set(paired_differences(kinds, values, joined, "a")) == {"b"}
    assert set(paired_differences(kinds, values, joined, "d")) == {"c"}


def test_intervals_of_a_factor_without_effect_leave_out_zero_about_one_time_in_twenty() -> None:
    clear = total = 0
    for seed in range(8):
        study = study_factory.study(trials=40, failures=0, seed=seed)
        insight = Insight(study)
        for stage in (2, 3):
            for effect in insight.compare(stage, "state", "throughput", "params").known:
                assert effect.source == MODEL
                total += 1
                clear += effect.clear
    assert total == 32
    assert clear <= 5


def test_the_model_finds_what_the_pairs_cannot() -> None:
    study = study_factory.study(trials=120, failures=0)
    insight = Insight(study)
    first = next(e for e in insight.compare(3, "placement", "nll", "params").effects if e.label == "first")
    assert first.source == MODEL
    assert first.low < -0.08 < first.high < 0
    faster = next(e for e in insight.compare(2, "share", "throughput", "params").effects if e.label == "all")
    assert faster.clear
    assert faster.value > 0


def test_a_model_that_predicts_nothing_says_nothing() -> None:
    draw, noise = random.Random(0), np.random.default_rng(0)
    made = [study_factory.draw(draw) for _ in range(40)]
    rows = [
        (m.stages[0].dim, m.stages[1].blocks, m.stages[2].blocks, noise.normal(1, 0.1), 1 + noise.random() / 5, n)
        for m, n in zip(made, noise.integers(1000, 1500, size=40).tolist(), strict=True)
    ]
    insight = Insight(synthetic(rows, [m.stages[1].state for m in made]))
    assert insight.skill("nll", "params") < MIN_SKILL
    assert not insight.compare(2, "state", "nll", "params").known
    assert any("it is not used" in sentence for sentence in unsupported(insight))


def test_a_small_study_claims_nothing_and_says_why() -> None:
    insight = Insight(study_factory.study(trials=7, failures=0))
    assert insight.comparisons
    assert not any(one.known for one in insight.comparisons)
    assert all(NOT_ENOUGH in comparison_words(one) for one in insight.comparisons)
    assert any("too few for a model" in sentence for sentence in unsupported(insight))
    assert NOT_ENOUGH in page(Findings(insight.study))


def test_headlines_say_what_is_better_and_what_cannot_be_told() -> None:
    said = headlines(Insight(study_factory.study(trials=120, failures=0)))
    (third,) = [sentence for sentence in said if sentence.startswith("Stage 3, where attention stands")]
    found = re.search(r"“first” is worse than “last” by (\S+) nats \(95 %: (\S+) to ([\d.]+)\)", third)
    value, low, high = map(float, found.groups())
    assert 0 < low < value < high
    (second,) = [sentence for sentence in said if sentence.startswith("Stage 2, where attention stands")]
    assert "no difference to “last” that can be told" in second or "than “last”" in second
    few = headlines(Insight(study_factory.study(trials=7, failures=0)))
    assert all(NOT_ENOUGH in sentence for sentence in few)


def test_throughput_at_matched_throughput_is_refused() -> None:
    with pytest.raises(ValueError, match="match params instead"):
        Insight(study_factory.study()).compare(2, "share", "throughput", "throughput")


@pytest.mark.parametrize(
    ("name", "depth", "blocks"),
    [
        ("last N/2", 8, "MMMMAAAA"),
        ("last N/4", 8, "MMMMMMAA"),
        ("first N/2", 8, "AAAAMMMM"),
        ("first N/2", 5, "AAMMM"),
        ("mixed-1", 8, "AMAMAMAM"),
        ("mixed-2", 8, "MAMAMAMA"),
        ("all Mamba", 3, "MMM"),
        ("last N/4", 2, None),
    ],
)
def test_published_patterns(name: str, depth: int, blocks: str | None) -> None:
    assert published_blocks(name, depth) == blocks


def test_published_patterns_are_found_at_one_size() -> None:
    patterns = {one.name: one for one in Insight(study_factory.study()).published()}
    assert list(patterns) == list(PUBLISHED_PATTERNS)
    assert patterns["last N/2"].record.pattern == "C|MMAA|MMA"
    assert patterns["all attention"].record.baseline == "all attention"
    assert patterns["last N/4"].record is None
    assert patterns["last N/2"].published == 0.823
    sizes = {tuple(s["dim"] for s in one.record.layout["stages"]) for one in patterns.values() if one.record}
    assert sizes == {(24, 48, 96)}


def test_published_patterns_that_were_tried_are_rows_best_first() -> None:
    study = study_factory.study()
    tried = [one for one in Insight(study).published() if one.record]
    rows = pattern_rows(Findings(study))
    assert {(row.name, row.published_top1) for row in rows} == {(one.name, one.published) for one in tried}
    assert [row.record.nll for row in rows] == sorted(one.record.nll for one in tried)
    alone = dataclasses.replace(study, records=study.records[:1])
    assert len(alone.complete) == 1
    assert pattern_rows(Findings(alone)) == (), "one pattern compares with none"


def test_what_is_placed_is_called_after_its_letter() -> None:
    made = study_factory.study(trials=60)
    records = []
    for record in made.records:
        *others, third = record.layout["stages"]
        stages = [*others, third | {"blocks": third["blocks"].replace("A", "P")}]
        records.append(dataclasses.replace(record, layout=record.layout | {"stages": stages}))
    before, after = Insight(made), Insight(dataclasses.replace(made, records=records))
    assert factor_words("share", after.placed(2)) == "attention share"
    assert factor_words("share", after.placed(3)) == "parallel share"
    assert factor_words("placement", after.placed(3)) == "placement of parallel mixing"
    kinds = [
        [(one.factor, effect.label, effect.trials) for one in insight.comparisons for effect in one.effects]
        for insight in (before, after)
    ]
    assert [kind for kind in kinds[0] if kind[0] != "state"] == [kind for kind in kinds[1] if kind[0] != "state"]
    found = "; ".join(headlines(after))
    assert "Stage 2, how much attention" in found
    assert "Stage 3, how much parallel mixing" in found
    assert len([one for one in after.published() if one.record]) < 2


def test_every_effect_has_a_row_in_shown_units() -> None:
    insight = Insight(study_factory.study(trials=60))
    table = insight_table(insight)
    assert len(table) == sum(len(one.effects) for one in insight.comparisons)
    known = table.dropna(subset=["low"])
    assert ((known.low <= known.difference) & (known.difference <= known.high)).all()
    one = next(one for one in insight.comparisons if one.outcome == "throughput" and one.known)
    row = known[(known.outcome == "throughput") & (known.kind == one.known[0].label) & (known.factor == one.factor)]
    assert 2 ** one.known[0].value in list(row.difference)


def test_words_turn_nll_so_that_lower_is_better() -> None:
    insight = Insight(study_factory.study(trials=120, failures=0))
    one = insight.compare(3, "placement", "nll", "params")
    first = next(e for e in one.effects if e.label == "first")
    assert first.value < 0
    assert effect_words(first, "nll").startswith("+0.0")
    assert "worse than last: first by +0.0" in comparison_words(one)


def test_importance_finds_what_decides() -> None:
    from mvsearch.driver.importance import importances

    # The best are wide, whatever their state; the worst have a large state, whatever their width.
    draw = random.Random(0)
    rows, states = [], []
    for number in range(150):
        width, state = draw.choice((16, 24, 32, 40)), draw.choice((4, 8, 16))
        nll = 1.0 - (0.5 if width == 40 else 0) + (5.0 if state == 16 else 0) + 0.01 * draw.random()
        rows.append((width, draw.choice(("MMAA", "MAMA", "AAMM")), "MMA", nll, 1 + number / 100, 1000))
        states.append(state)
    found = importances(synthetic(rows, states))
    assert set(found) == {"quality", "throughput", "both"}
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
    assert max(found["quality"], key=found["quality"].get) == "width"
    assert importances(study_factory.study(trials=12, failures=0)) is None
