"""What calibration and confirmation say of a ledger's lines, against values worked out by hand."""

from __future__ import annotations

import dataclasses
import io
import math
import random
import statistics

import numpy as np
import pytest
import study_factory
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import kendalltau
from study_factory import calibrated, confirmed, trained, with_lines

from mvsearch.analysis.calibration import calibration, rank_correlation, verdict
from mvsearch.analysis.findings import Findings
from mvsearch.analysis.noise import SeedNoise, difference_noise, seed_noise, standings, study_noise
from mvsearch.analysis.plans import layouts_to_calibrate, layouts_to_confirm
from mvsearch.analysis.rows import confirmed_rows, undominated_rows
from mvsearch.driver.repeat import RepeatOutcome
from mvsearch.report.sentences import calibration_words, confirmation_words
from mvsearch.study.front import Point, families, pareto_front
from mvsearch.study.record import FAIL, Evaluation
from mvsearch.terminal.tables import confirmed_lines, print_front, print_repeat

EPOCHS = study_factory.EPOCHS


values = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=20)


@given(values)
def test_tau_is_that_of_scipy(pairs):
    first, second = zip(*pairs, strict=True)
    expected = kendalltau(first, second).statistic
    found = rank_correlation(first, second, resamples=50)
    assert found.tau == pytest.approx(0.0 if math.isnan(expected) else expected)
    assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9


def test_the_interval_holds_the_true_tau_as_often_as_it_says():
    # Bivariate normal of correlation r: tau is 2 / pi asin r.
    rng, true = np.random.default_rng(0), 2 / math.pi * math.asin(0.8)
    held = 0
    for _ in range(200):
        first = rng.normal(size=16)
        second = 0.8 * first + 0.6 * rng.normal(size=16)
        found = rank_correlation(first, second, resamples=300)
        held += found.low <= true <= found.high
    assert 0.88 <= held / 200 <= 1


@pytest.mark.parametrize(("low", "word"), [(0.4, "green"), (0.39, "amber"), (0.2, "amber"), (0.19, "red"), (-1, "red")])
def test_the_verdict_is_that_of_the_lower_end(low, word):
    assert verdict(low) == word


def test_a_proxy_that_ranks_as_long_training_does_is_green_and_one_that_does_not_is_red():
    good = calibration(calibrated(16, lambda record: record.nll / 2))
    assert (len(good.layouts), good.tau.tau, good.tau.low, good.verdict) == (16, 1.0, 1.0, "green")
    assert (good.ceiling.tau, good.regret, good.seeds, good.long_epochs) == (1.0, 0.0, 2, 4 * EPOCHS)
    bad = calibration(calibrated(16, lambda record: -record.nll))
    assert (bad.tau.tau, bad.verdict) == (-1.0, "red")
    # The proxy's top three are the three worst of all.
    long = sorted(one.long for one in bad.layouts)
    assert bad.regret == pytest.approx(long[-1] - long[2])


def test_the_ceiling_is_between_the_proxy_and_itself():
    study = calibrated(16, lambda record: record.nll, again=lambda record: random.Random(record.key).random())
    found = calibration(study)
    by_hand = kendalltau([one.proxy for one in found.layouts], [one.proxy_again for one in found.layouts]).statistic
    assert found.ceiling.tau == pytest.approx(by_hand)
    assert found.ceiling.tau < 0.9
    assert found.tau.tau == 1.0


def test_under_twelve_layouts_it_says_nothing():
    found = calibration(calibrated(11, lambda record: record.nll))
    assert len(found.layouts) == 11
    assert (found.tau, found.ceiling, found.regret, found.verdict) == (None,) * 4
    assert calibration(calibrated(12, lambda record: record.nll)).verdict == "green"
    assert calibration(study_factory.study()) is None


def test_layouts_that_failed_or_lack_a_seed_do_not_count():
    study = calibrated(16, lambda record: record.nll)
    chosen = layouts_to_calibrate(study.records, "nll", 16)
    lost, failed = chosen[3].key, chosen[5]
    lines = [line for line in study.evaluations if not (line.key == lost and line.seed == 501)]
    lines.append(Evaluation(what=FAIL, key=failed.key, layout=failed.layout, trial=1, purpose="calibrate", reason="no"))
    found = calibration(dataclasses.replace(study, evaluations=tuple(lines)))
    assert (len(found.layouts), found.unfinished, found.failed) == (14, 1, 1)


def test_a_third_seed_of_one_layout_does_not_take_the_verdict_away():
    study = calibrated(16, lambda record: -record.nll)
    record = layouts_to_calibrate(study.records, "nll", 16)[3]
    lines = [trained(record, "calibrate", 502, epochs, record.nll) for epochs in (EPOCHS, 4 * EPOCHS)]
    before, found = (
        calibration(study),
        calibration(dataclasses.replace(study, evaluations=(*study.evaluations, *lines))),
    )
    assert before.verdict == found.verdict == "red"
    assert (len(found.layouts), found.seeds) == (16, 2)


@given(count=st.integers(1, 40), trials=st.integers(6, 40), seed=st.integers(0, 5), begun=st.integers(0, 3))
def test_the_layouts_to_calibrate_on_hold_the_hand_made_and_the_begun(count, trials, seed, begun):
    records = study_factory.records(trials=trials, failures=1, seed=seed)
    complete = [record for record in records if record.state == "COMPLETE"]
    kept = {record.key for record in random.Random(seed).sample(complete, begun)}
    chosen = layouts_to_calibrate(records, "nll", count, begun=kept)
    must = {record.key for record in complete if record.baseline} | kept
    assert must <= {record.key for record in chosen}
    assert len(chosen) == max(len(must), min(count, len(complete)))
    assert chosen == layouts_to_calibrate(list(reversed(records)), "nll", count, begun=kept)


def test_the_sample_is_spread_over_score_and_throughput():
    records = study_factory.records(trials=100, failures=0)
    chosen = {record.key for record in layouts_to_calibrate(records, "nll", 20)}
    for by in (lambda record: record.nll, lambda record: record.ratio):
        ordered = sorted(records, key=by)
        quarters = [sum(record.key in chosen for record in ordered[at : at + 25]) for at in range(0, 100, 25)]
        assert min(quarters) >= 3


def test_confirm_trains_the_front_and_the_hand_made():
    study = study_factory.study(trials=30)
    keys = [record.key for record in layouts_to_confirm(study)]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {record.key for record in [*study.front, *study.baselines]}
    few = layouts_to_confirm(study, 2)
    assert [record.key for record in few[:2]] == [study.front[0].key, study.front[-1].key]
    assert layouts_to_confirm(study, 1)[0].key == study.front[0].key


def test_what_was_chosen_by_luck_and_what_the_splits_differ_are_told_apart():
    study = confirmed(shift=0.05)
    found = Findings(study).confirmation
    volumes = found.hypervolume
    assert volumes.observed > volumes.val > volumes.test
    assert volumes.optimism == pytest.approx((volumes.observed - volumes.val) / volumes.val)
    assert found.baselines_hypervolume.observed < volumes.observed
    assert (found.seeds, found.missing, found.failed) == (3, (), 0)
    one = found.layout(study.front[0].key)
    lines = [line for line in study.evaluations if line.key == one.key and line.purpose == "confirm"]
    assert one.test.top1 == pytest.approx(statistics.fmean(line.values["test_top1"] for line in lines))
    assert one.test.top1_sd == pytest.approx(statistics.stdev(line.values["test_top1"] for line in lines))
    assert (one.test.images, one.val.images) == (2000, 1000)
    table = np.array([one.test.qualities("nll") for one in found.layouts])
    left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert found.noise.df == (len(table) - 1) * 2
    assert found.noise.sd == pytest.approx(math.sqrt((left**2).sum() / found.noise.df))


def test_members_that_were_not_confirmed_are_named():
    study = confirmed(drop=2)
    assert set(Findings(study).confirmation.missing) == {record.key for record in study.front[:2]}
    assert Findings(study_factory.study()).confirmation is None


def test_a_gain_is_over_the_best_hand_made_layout_at_least_as_fast():
    study = confirmed(sd=0.0001)
    for gain in Findings(study).confirmation.gains:
        own = next(record for record in study.front if record.key == gain.layout)
        fast = [record for record in study.baselines if record.ratio >= own.ratio]
        best = min(fast, key=lambda record: record.nll)
        assert gain.baseline == best.baseline
        assert gain.quality == pytest.approx(best.nll - own.nll, abs=0.001)
        assert 0 < gain.quality_se < 0.001
    assert Findings(study).confirmation.gains


def test_noise_is_pooled_within_a_purpose_and_never_across():
    study = calibrated(16, lambda record: record.nll)
    assert study_noise(study).sd == 0  # both fresh seeds agree; the search's one seed is no pair with them
    assert study_noise(study_factory.study(trials=30)) is None
    twice = study_factory.study(trials=30, seeds=2)
    assert study_noise(with_lines(twice, [])).sd == pytest.approx(0.02, rel=0.4)


planes = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12).map(
    lambda pairs: [Point(str(at), float(quality), float(speed)) for at, (quality, speed) in enumerate(pairs)]
)


@given(planes, st.floats(0.01, 3))
def test_a_layout_is_judged_against_the_best_that_is_as_fast(points, sd):
    noise = SeedNoise(sd, 20)
    found = standings(points, dict.fromkeys((p.key for p in points), 2), noise)
    for point, standing in zip(points, found, strict=True):
        others = [p for p in points if p.key != point.key and p.throughput >= point.throughput]
        if not others:
            assert (standing.rival, standing.verdict) == (None, "front")
            continue
        assert standing.gap == point.quality - max(p.quality for p in others)
        assert standing.se == pytest.approx(sd)
    judged = standings(points, dict.fromkeys((p.key for p in points), 2), noise)
    kept = {one.key for one in judged if one.verdict != "dominated"}
    assert {p.key for p in pareto_front(points)} <= kept
    exact = standings(points, dict.fromkeys((p.key for p in points), 1), SeedNoise(1e-9, 20))
    assert {s.key for s in exact if s.verdict == "front"} <= {p.key for p in pareto_front(points)}
    assert not {s.key for s in exact if s.verdict == "dominated"} & {p.key for p in pareto_front(points)}


def test_noise_alone_seldom_condemns():
    # Twenty layouts of one true quality, each trained with three seeds: no verdict but "undecided" is right.
    rng = random.Random(0)
    wrong = 0
    for _ in range(200):
        groups = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(20)]
        points = [Point(str(at), statistics.fmean(group), float(at)) for at, group in enumerate(groups)]
        found = standings(points, {p.key: 3 for p in points}, seed_noise(groups))
        wrong += any(s.verdict != "undecided" for s in found if s.rival)
    assert wrong / 200 <= 0.05  # the level, whichever of the many is the rival


def test_what_a_seed_does_to_all_layouts_alike_cancels_in_a_difference():
    rng = random.Random(0)
    shared = [rng.gauss(0, 5) for _ in range(4)]
    table = [[seed + rng.gauss(0, 1) for seed in shared] for _ in range(30)]
    assert difference_noise([table]).df == 29 * 3
    assert difference_noise([table]).sd == pytest.approx(1, rel=0.2)
    assert seed_noise(table).sd > 3
    assert difference_noise([table, [[1.0], [2.0]]]) == difference_noise([table])
    assert difference_noise([[[1.0, 2.0]], [[1.0], [2.0]], []]) is None


def test_seed_noise_is_pooled_by_degrees_of_freedom():
    assert seed_noise([[1.0], []]) is None
    found = seed_noise([[0.0, 2.0], [0.0, 0.0, 3.0], [7.0]])
    assert (found.sd, found.df) == (pytest.approx(math.sqrt((2 + 6) / 3)), 3)
    assert found.se(4) == pytest.approx(found.sd / 2)


def test_layouts_of_equal_cost_are_one_family():
    records = study_factory.records(trials=30)
    complete = [dataclasses.replace(record, macs=9 + (record.params or 0) % 7) for record in records]
    found = families(complete, "nll")
    shown = [record.key for family in found for record in family.members]
    assert sorted(shown) == sorted(record.key for record in complete if record.state == "COMPLETE")
    costs = [(family.params, family.macs) for family in found]
    assert len(set(costs)) == len(costs) < len(shown)
    for family in found:
        assert {(record.params, record.macs) for record in family.members} == {(family.params, family.macs)}
        nlls = [record.nll for record in family.members]
        assert nlls == sorted(nlls)


def test_each_cost_is_one_row_of_what_cannot_be_told_apart_from_the_front():
    findings = Findings(confirmed(sd=0.02))
    study, standings = findings.study, findings.standings
    rows = undominated_rows(findings)
    kept = {record.key: record for record in study.complete if standings[record.key].verdict != "dominated"}
    assert sum(row.layouts for row in rows) == len(kept) > len(study.front)
    assert sum(row.on_front for row in rows) == len({record.key for record in study.front} & set(kept))
    macs = [row.best.macs for row in rows]
    assert macs == sorted(macs)
    for row in rows:
        same = [record for record in kept.values() if (record.params, record.macs) == (row.best.params, row.best.macs)]
        assert len(same) == row.layouts
        assert row.best.nll == min(record.nll for record in same)
        assert (row.slowest, row.fastest) == (min(r.ratio for r in same), max(r.ratio for r in same))
    assert undominated_rows(Findings(study_factory.study())) == (), "one seed each: nothing is known of the noise"


def test_confirmed_layouts_are_rows_from_the_slowest_to_the_fastest():
    findings = Findings(confirmed())
    found, rows = findings.confirmation, confirmed_rows(findings)
    assert [row.record.key for row in rows] == [layout.key for layout in found.layouts]
    assert [row.record.ratio for row in rows] == sorted(row.record.ratio for row in rows)
    assert [row.fastest for row in rows] == [False] * (len(rows) - 1) + [True]
    assert {row.gain for row in rows} - {None} == set(found.gains)
    for row, layout in zip(rows, found.layouts, strict=True):
        assert row.test_top1 == pytest.approx(statistics.fmean(layout.test.top1s))
        assert row.test_sd == pytest.approx(statistics.stdev(layout.test.top1s))
        assert row.test_nll == pytest.approx(statistics.fmean(layout.test.nlls))
        assert row.verdict == layout.standing.verdict
        assert row.gain is None or (row.on_front and row.gain.layout == row.record.key)
    assert confirmed_rows(Findings(study_factory.study())) == ()


def printed(show, *arguments):
    out = Console(width=200, record=True, file=io.StringIO())
    show(out, *arguments)
    return out.export_text()


def test_the_front_is_printed_with_errors_and_each_cost_once():
    study = confirmed(sd=0.02)
    text = printed(print_front, Findings(study))
    assert f"± {Findings(study).noise.se(1):.3f}" in text
    table = text.partition("The front and what cannot be told apart")[2].splitlines()[2:]
    near = [record for record in study.complete if Findings(study).standings[record.key].verdict != "dominated"]
    assert len(table) == len(families(near, "nll")) < len(near) + 1
    assert len(near) > len(study.front)
    once = printed(print_front, Findings(study_factory.study()))
    assert "nothing is known of the noise" in once
    assert "±" not in once


def test_what_is_said_is_what_was_found():
    study = calibrated(16, lambda record: -record.nll)
    said = calibration_words(Findings(study).calibration)
    assert said[0].startswith("16 layouts trained for 24 epochs with 2 seeds each, against the proxy's 6 epochs.")
    assert "−1.00 (95 % interval −1.00 to −1.00)" in said[1]
    assert said[-1].startswith("Verdict red")
    short = Findings(calibrated(11, lambda record: record.nll)).calibration
    assert len(calibration_words(short)) == 2
    begun = dataclasses.replace(short, layouts=(), unfinished=1, long_epochs=0, seeds=0)
    assert calibration_words(begun)[0] == "No layout is trained long with every seed yet (1 layout not finished)."
    found = Findings(confirmed(shift=0.05)).confirmation
    volume = found.hypervolume
    said = " ".join(confirmation_words(found))
    assert f"was {volume.observed:.3f} as searched, is {volume.val:.3f} with fresh seeds" in said
    assert f"overstated the front by {100 * volume.optimism:.1f} % of the confirmed; the hand-made" in said
    assert f"were not chosen, by {100 * found.baselines_hypervolume.optimism:.1f} %" in said
    for key in found.undecided:
        assert key in said


def test_the_end_of_a_run_says_the_verdict_what_is_left_and_what_to_type_next():
    study = calibrated(16, lambda record: record.nll)
    text = printed(
        print_repeat,
        Findings(study),
        RepeatOutcome("calibrate", 16, 0, 20, 0.9, 60.0),
        ["front.csv", "report.html"],
        "studies/x",
    )
    assert "Verdict green" in text
    assert "4 layouts left; the same command goes on" in text
    assert "Next: open report.html, or mvsearch confirm studies/x" in text
    study = confirmed()
    text = printed(
        print_repeat,
        Findings(study),
        RepeatOutcome("confirm", 16, 0, 16, 0.9, 60.0),
        ["front.csv", "report.html"],
        "synthetic",
    )
    one = Findings(study).confirmation.layouts[0]
    assert f"{100 * one.test.top1:.1f} ± {100 * one.test.top1_sd:.1f} %" in text
    assert "or mvsearch calibrate synthetic" in text
    gain = Findings(study).confirmation.gains[0]
    assert f"{100 * gain.top1:+.1f} ± {100 * gain.top1_se:.1f} ({gain.baseline})".replace("-", "−") in text


def test_no_number_of_a_confirmation_is_cut_short_at_the_width_of_a_log():
    rows = confirmed_rows(Findings(confirmed()))
    out = Console(file=io.StringIO(), width=110)
    out.print(confirmed_lines(rows))
    text = out.file.getvalue()
    assert "…" not in text
    assert all(f"{100 * row.record.top1:.1f}" in text for row in rows)
