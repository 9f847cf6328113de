"""The report: what it says about made-up studies whose truth is known, and that the page stands alone."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study_factory
from hypothesis import given
from hypothesis import strategies as st

from mambavision.layout import LETTERS, HybridLayout, StageLayout
from mambavision.strip import ink, rich_strip
from mvsearch.analysis.facts import placement, stage_facts
from mvsearch.analysis.findings import Findings
from mvsearch.analysis.gains import device_hours, gains, margin, picks, reordering
from mvsearch.analysis.insight import Insight, share_bin
from mvsearch.analysis.noise import pooled_se
from mvsearch.report import figures, front_table, trials_table, write_report, write_tables
from mvsearch.report.drawing import front_figure
from mvsearch.report.page import page
from mvsearch.report.section_first import margin_words
from mvsearch.report.strip import hover_strip, html_strip
from mvsearch.study.data import StudyData
from mvsearch.study.record import COMPLETE, Evaluation, TrialRecord


def with_records(study: StudyData, records: list[TrialRecord]) -> StudyData:
    return dataclasses.replace(study, records=records)


@functools.cache
def shown(trials: int = 30, seeds: int = 1) -> tuple[StudyData, str]:
    """A synthetic study and its page, made once."""
    study = study_factory.study(trials=trials, seeds=seeds)
    return study, page(Findings(study))


def visible(text: str) -> str:
    """The page without plotly.js and the figures, without tags: what a person reads."""
    body = text[text.index("<main>") : text.index("</main>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.mark.parametrize("quality", ["nll", "top1"])
def test_the_front_can_be_recomputed_from_trials_csv(tmp_path: Path, quality: str) -> None:
    study = study_factory.study(trials=60, seeds=2, quality=quality)
    write_tables(Findings(study), tmp_path)
    trials = pd.read_csv(tmp_path / "trials.csv", float_precision="round_trip")
    front = pd.read_csv(tmp_path / "front.csv", float_precision="round_trip")
    done = trials[trials.state == COMPLETE]
    rows = [(row.key, -row.nll if quality == "nll" else row.top1, row.ratio) for row in done.itertuples()]
    expected = [
        (key, ratio)
        for key, value, ratio in rows
        if not any(v >= value and r >= ratio and (v > value or r > ratio) for _, v, r in rows)
    ]
    assert list(front.key) == [key for key, _ in sorted(expected, key=lambda pair: pair[1])]
    assert set(trials.key[trials.on_front]) == set(front.key)
    assert 3 < len(front) < len(done)


def test_numbers_survive_the_csv_exactly(tmp_path: Path) -> None:
    study = study_factory.study(trials=20, seeds=2)
    write_tables(Findings(study), tmp_path)
    rows = pd.read_csv(tmp_path / "trials.csv", float_precision="round_trip", dtype={"seeds": str}).set_index("key")
    for record in study.records:
        row = rows.loc[record.key]
        if record.state == COMPLETE:
            for name in ("nll", "nll_se", "top1", "top1_se", "ratio", "images_per_second", "train_seconds", "params"):
                assert row[name] == getattr(record, name), name
            assert tuple(float(text) for text in row.windows.split(";")) == record.windows
            assert tuple(float(text) for text in row.reference_windows.split(";")) == record.reference_windows
            assert row.seeds == "0;1"
        else:
            assert math.isnan(row.nll)
            assert row.reason == "loss became NaN in epoch 2 (rate 0.002)."
        assert HybridLayout.from_json(row.layout).key == record.key


def test_trials_table_says_what_each_stage_is() -> None:
    made = study_factory.layout(24, "MMAA", "AAA", (4, 16))
    record = TrialRecord(number=3, key=made.key, layout=made.to_dict(), state="PARTIAL")
    row = trials_table([record]).iloc[0]
    assert (row.stage2_blocks, row.stage2_attention_share, row.stage2_state, row.stage2_dim) == ("MMAA", 0.5, 4, 48)
    assert row.stage3_depth == 3
    assert row.stage3_attention_share == 1
    assert pd.isna(row.stage3_state)
    assert pd.isna(row.stage1_state)
    assert not row.on_front


def test_tables_of_an_empty_study_are_empty(tmp_path: Path) -> None:
    write_tables(Findings(with_records(study_factory.study(), [])), tmp_path)
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 0
    assert len(pd.read_csv(tmp_path / "front.csv")) == 0


def test_front_table_margins_by_hand() -> None:
    study = study_factory.study(trials=60)
    table = front_table(Findings(study)).set_index("key")
    baselines = study.baselines
    seen = 0
    for record in study.front:
        row = table.loc[record.key]
        fast = [b for b in baselines if b.ratio >= record.ratio]
        if fast:
            best = min(fast, key=lambda b: b.nll)
            assert row.gain_over == best.baseline
            assert row.nll_gain == pytest.approx(best.nll - record.nll)
            assert row.top1_gain == pytest.approx(record.top1 - best.top1)
            seen += 1
        else:
            assert pd.isna(row.gain_over)
            assert pd.isna(row.nll_gain)
        good = [b for b in baselines if b.nll <= record.nll]
        if good:
            assert row.speed_gain == pytest.approx(record.ratio / max(b.ratio for b in good))
    assert 0 < seen < len(study.front)


def test_every_baseline_is_met_or_beaten_by_the_front() -> None:
    study = study_factory.study(trials=60)
    found = gains(study)
    assert {gain.baseline.baseline for gain in found} == set(study_factory.HAND_MADE)
    for gain in found:
        assert gain.better.ratio >= gain.baseline.ratio
        assert gain.better.nll <= gain.baseline.nll
        assert gain.faster.nll <= gain.baseline.nll
        assert gain.faster.ratio >= gain.better.ratio
    assert any(gain.better.key != gain.baseline.key for gain in found)


def test_margin_of_a_layout_beyond_the_baselines() -> None:
    study = study_factory.study(trials=60)
    fastest, best = picks(study)["fastest"], picks(study)["most-accurate"]
    assert margin(fastest, study.baselines, "nll").at_speed is None
    assert margin(best, study.baselines, "nll").at_quality is None


def test_pooled_se_is_the_seed_sd_over_root_n() -> None:
    study = study_factory.study(trials=300, seeds=2)
    assert pooled_se(study.complete, "nll") == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
    assert pooled_se(study_factory.study().complete, "nll") is None


def test_reordering_finds_where_the_measures_disagree() -> None:
    study = study_factory.study()
    front = study.front
    # By top-1 the slowest member becomes the worst of the front, so it leaves it and swaps with all others.
    changed = [dataclasses.replace(r, top1=0.01) if r.key == front[0].key else r for r in study.records]
    changed = [dataclasses.replace(r, top1=1 - r.nll / 10) if r.key != front[0].key and r.nll else r for r in changed]
    found = reordering(with_records(study, changed))
    assert [r.key for r in found.lost] == [front[0].key]
    assert found.swapped == len(front) + len(found.gained) - 1
    same = [dataclasses.replace(r, top1=1 - r.nll / 10) if r.nll else r for r in study.records]
    assert reordering(with_records(study, same)).swapped == 0


@pytest.mark.parametrize(
    ("blocks", "name"),
    [
        ("MMMM", "all base"),
        ("AAA", "all placed"),
        ("MMAA", "last"),
        ("AMM", "first"),
        ("MA", "last"),
        ("MAMA", "alternating"),
        ("AMA", "alternating"),
        ("MAAM", "middle"),
        ("AMMA", "both ends"),
        ("MAAMA", "mixed"),
        ("GGG", "all base"),
        ("GGAA", "last"),
        ("AMGA", "both ends"),
    ],
)
def test_placement_names(blocks: str, name: str) -> None:
    assert placement([letter == "A" for letter in blocks]) == name
    made = study_factory.layout(24, "MMAA", blocks)
    assert stage_facts(made.to_dict())[2].placement == name


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_placement_turns_round_with_the_order(attends: list[bool]) -> None:
    turned = {"last": "first", "first": "last"}
    name = placement(attends)
    assert placement(attends[::-1]) == turned.get(name, name)


def test_centre_of_mass_and_share() -> None:
    facts = stage_facts(study_factory.layout(24, "MMMAA", "MMM").to_dict())
    assert facts[1].centre == pytest.approx(0.875)
    assert facts[1].share == pytest.approx(0.4)
    assert (facts[2].centre, facts[0].state, facts[0].hybrid) == (None, None, False)
    assert [share_bin(x) for x in (0, 0.2, 0.4, 0.6, 0.8, 1)] == [
        "none",
        "under 40 %",
        "40–60 %",
        "40–60 %",
        "over 60 %",
        "all",
    ]


def test_one_seed_says_that_there_are_no_error_bars_and_two_show_them() -> None:
    (once, text_once), (twice, text_twice) = shown(), shown(seeds=2)
    text = visible(text_once)
    assert "n = 1 seed), so no error bars are available" in text
    assert "short prox" in text.lower()
    assert "±" not in text
    text = visible(text_twice)
    assert "no error bars" not in text
    assert "n = 2 seeds" in text
    assert "±" in text
    bars = [
        trace.error_y.visible for trace in front_figure(Findings(twice), "top1").data if trace.name == "on the front"
    ]
    assert bars == [True]
    assert not any(trace.error_y.visible for trace in front_figure(Findings(once), "top1").data)


def test_the_title_says_scan_path_and_device_and_on_cpu_whom_that_favours() -> None:
    study = study_factory.study()
    title = front_figure(Findings(study), "top1").layout.title.text
    assert "loop scan" in title
    assert "cpu (8 threads of an AMD EPYC)" in title
    assert "favours attention" in title
    lines = [
        dataclasses.replace(
            r, evaluations=tuple(dataclasses.replace(e, device="cuda:0 NVIDIA H100") for e in r.evaluations)
        )
        for r in study.records
    ]
    gpu = dataclasses.replace(with_records(study, lines), environment={"device": "NVIDIA H100"})
    assert "favours" not in front_figure(Findings(gpu), "top1").layout.title.text


def test_the_first_screen_shows_the_three_picks_with_gains() -> None:
    study, text = shown()
    first = text[text.index("<main>") : text.index('<h2 id="front">')]
    for record in picks(study).values():
        assert record.key in first
        assert html_strip(record.layout, numbers=False).split("aria-label=")[1].split(">")[0] in first
    for name in study_factory.HAND_MADE:
        assert name in first
    assert "No hand-made layout is as " in visible(first + "</main>")


def _answer(text: str) -> str:
    return text[text.index('<section class="take">') : text.index("</aside>")]


def test_the_answer_names_the_layout_its_margin_over_last_half_and_what_is_not_known() -> None:
    study, text = shown()
    answer = _answer(text)
    best, named = picks(study)["knee"], next(r for r in study.baselines if r.baseline == "last half")
    assert f'aria-label="{best.pattern}"' in answer
    said = visible(f"<main>{answer}</main>")
    assert f"{best.ratio / named.ratio:.2f}× the speed of the hand-made “last half”" in said
    assert f"NLL {best.nll - named.nll:+.3f}".replace("-", "−") in said
    assert "top-1 " + f"{100 * (best.top1 - named.top1):+.1f} points".replace("-", "−") in said
    assert "one training each, so there is no interval" in said
    assert "Not calibrated" in said
    assert "Not confirmed" in said


def test_a_calibrated_and_confirmed_study_says_so_with_intervals() -> None:
    study = study_factory.trusted(study_factory.study())
    text = page(Findings(study))
    said = visible(text)
    answer = visible(f"<main>{_answer(text)}</main>")
    assert f"Calibration {Findings(study).calibration.verdict}" in answer
    assert "Not confirmed" not in said
    best, named = picks(study)["knee"], next(r for r in study.baselines if r.baseline == "last half")
    mine, theirs = (
        Findings(study).confirmation.layout(best.key).test,
        Findings(study).confirmation.layout(named.key).test,
    )
    found = Findings(study).difference(best, named)
    assert (found.nll, found.top1, found.seeds) == (mine.nll - theirs.nll, mine.top1 - theirs.top1, 3)
    assert f"{found.nll:+.3f} ± {found.nll_half:.3f}".replace("-", "−") in answer
    assert "3 fresh seeds each on the test split" in answer
    volumes = Findings(study).confirmation.hypervolume
    for value in (volumes.observed, volumes.val, volumes.test):
        assert f"{value:.3f}" in said
    assert {"calibration", "confirmation"} <= set(re.findall(r'data-figure="(\w+)"', text))


def test_on_red_the_answer_warns() -> None:
    study = study_factory.trusted(study_factory.study())
    turned = tuple(
        dataclasses.replace(line, values={**line.values, "nll": 3 - line.values["nll"]})
        if line.to_epoch == 4 * study_factory.EPOCHS
        else line
        for line in study.evaluations
    )
    red = dataclasses.replace(study, evaluations=turned)
    assert Findings(red).calibration.verdict == "red"
    assert "no reason to take this layout" in _answer(page(Findings(red)))
    assert "no reason to take this layout" not in _answer(page(Findings(study)))


def test_a_hand_made_answer_still_says_its_margin_over_last_half() -> None:
    study = study_factory.study()
    first = next(r for r in study.baselines if r.baseline == "first half")
    said = " ".join(margin_words(Findings(study), first))
    assert "the speed of the hand-made “last half”" in said
    assert "It is itself hand-made, “first half”" in said
    named = next(r for r in study.baselines if r.baseline == "last half")
    assert margin_words(Findings(study), named) == [
        "This is the hand-made layout “last half” itself: the search found none better here."
    ]


def test_the_interval_of_a_difference_is_that_of_a_t_test() -> None:
    from scipy.stats import t

    study = study_factory.study(trials=20, seeds=3, failures=0)
    one, other = study.complete[6], study.complete[7]
    # Seeds are the same for all layouts: a two-way table without interaction.
    nlls = np.array([[line.values["nll"] for line in r.evaluations if line.what == "train"] for r in study.complete])
    rest = nlls - nlls.mean(axis=1, keepdims=True) - nlls.mean(axis=0) + nlls.mean()
    freedom = 2 * (len(nlls) - 1)
    found = Findings(dataclasses.replace(study, evaluations=_lines(study))).difference(one, other)
    assert found.nll == pytest.approx(one.nll - other.nll)
    half = t.ppf(0.975, freedom) * math.sqrt((rest**2).sum() / freedom) * math.sqrt(2 / 3)
    assert found.nll_half == pytest.approx(half)
    assert found.clear("nll") == (abs(found.nll) > found.nll_half)
    assert Findings(study_factory.study()).difference(one, other).nll_half is None


def _lines(study: StudyData) -> tuple[Evaluation, ...]:
    return tuple(line for record in study.records for line in record.evaluations)


def test_the_page_says_what_a_warm_start_brought_and_nothing_without_one() -> None:
    study = study_factory.study()
    assert "Warm start" not in page(Findings(study))
    taken, *others = study.complete
    lines = tuple(
        dataclasses.replace(line, conditions=line.conditions | {"source": "old, trial 4"}) for line in taken.evaluations
    )
    records = [dataclasses.replace(taken, warm_start="old <b>, trial 4", evaluations=lines)]
    records += [dataclasses.replace(record, warm_start="old <b>, trial 7") for record in others[:2]]
    records += [dataclasses.replace(others[2], warm_start="mambavision_t")]
    study = dataclasses.replace(study, records=[*records, *others[3:]])
    words = "3 layouts from old &lt;b&gt; (1 with their results, not trained again) and 1 layout from mambavision_t"
    assert f"<p>Warm start: {words}.</p>" in page(Findings(study))


def test_device_hours_are_the_time_that_workers_worked() -> None:
    study = study_factory.study(trials=12, failures=0)
    hours = device_hours(study)
    assert hours(0.0) == 0
    # Each layout is timed for 2 s and trained for 9.
    assert hours(math.inf) == pytest.approx(12 * 11 / 3600)
    assert hours(study.complete[0].ended) == pytest.approx(11 / 3600)


def test_the_trials_hold_what_they_are_searched_by_and_layouts_that_read_back() -> None:
    study, text = shown()
    rows = re.findall(r'<tr data-t="([^"]*)" data-k="([^"]*)">', text)
    assert len(rows) == len(study.records)
    members = {record.key for record in study.front}
    for record, (words, kinds) in zip(sorted(study.records, key=lambda r: r.number), rows, strict=True):
        assert record.pattern.lower() in words
        assert ("front" in kinds.split()) == (record.key in members)
        assert ("hand-made" in kinds.split()) == (record.baseline is not None)
    layouts = json.loads(re.search(r'id="layouts">(.*?)</script>', text, re.S).group(1))
    for record in study.records:
        assert HybridLayout.from_json(layouts[str(record.number)]).to_dict() == record.layout


def test_the_front_is_drawn_once_each_and_hover_shows_the_strip() -> None:
    study, _ = shown()
    figure = front_figure(Findings(study), "top1")
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["on the front"].x) == [r.ratio for r in study.front]
    assert list(traces["on the front"].y) == [100 * r.top1 for r in study.front]
    assert len(traces["hand-made"].x) == 5
    assert len(traces["dominated"].x) == len(
        {r.key for r in study.complete} - {r.key for r in study.front + study.baselines}
    )
    assert hover_strip(study.front[0].layout) in traces["on the front"].hovertext[0]
    drawn = {a.text for a in figure.layout.annotations}
    assert all(any(name in text for text in drawn) for name in (*study_factory.HAND_MADE, "knee", "fastest"))


def test_figures_have_names_titles_and_every_part_of_the_page(tmp_path: Path) -> None:
    study, text = shown()
    drawn = figures(Findings(study))
    on_page = set(re.findall(r'data-figure="(\w+)"', text))
    assert set(drawn) == {*on_page, "ratio"}
    assert {
        "front",
        "front_nll",
        "hypervolume",
        "ratio_stage2_share_nll_params",
        "ratio_stage3_placement_throughput_params",
    } <= on_page
    assert all(figure.layout.title.text for figure in drawn.values())


def test_everything_from_a_study_is_escaped(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&lt;<!--"
    study = study_factory.study(seeds=2, name=bad)
    records = [
        dataclasses.replace(
            r, reason=bad if r.reason else None, baseline=f"{r.baseline}{bad}" if r.baseline else None, key=r.key + bad
        )
        for r in study.records
    ]
    data = {"fingerprint": bad, "class_names": [bad]}
    versions = {"torch": bad}
    environment = {"device": bad, "scan": bad, bad: {bad: [bad]}, "command": bad, "data": data, "versions": versions}
    environment["git_commit"] = bad
    study = dataclasses.replace(
        study,
        records=records,
        environment=environment,
        config={**study.config, "proxy": {**study.config["proxy"], "data": bad}, bad: bad},
        reference_key=bad,
        importance={bad: {bad: 1.0}},
    )
    write_report(Findings(study), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[str, dict[str, str | None]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append((tag, dict(attrs)))

    tags = Tags()
    tags.feed(text)
    assert [tag for tag, _ in tags.seen].count("script") == 4
    assert not any(tag in ("img", "iframe", "object", "embed") for tag, _ in tags.seen)
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert "alert(1)" in visible(text)  # it is shown, as text
    data = re.search(r'id="figures">(.*?)</script>', text, re.S)
    assert data is not None
    assert "<!" not in data.group(1)
    assert "</" not in data.group(1)  # nothing in the figures could end the script element
    spec = json.loads(data.group(1))
    texts = [a["text"] for a in spec["front"]["layout"]["annotations"]]
    assert not any("<script" in one or "<img" in one for one in texts)


def test_the_page_asks_nothing_of_the_network() -> None:
    _, text = shown()
    head = text[: text.index("<style>")]
    assert "default-src 'none'" in head
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", markup)
    assert "url(" not in markup
    assert "@import" not in markup


@pytest.mark.parametrize(
    "study",
    [
        pytest.param(with_records(study_factory.study(), []), id="nothing yet"),
        pytest.param(study_factory.study(trials=8, failures=3), id="few"),
        pytest.param(with_records(study_factory.study(), study_factory.study(failures=25).failed), id="all failed"),
        pytest.param(with_records(study_factory.study(), study_factory.study().complete[:1]), id="one layout"),
        pytest.param(
            with_records(study_factory.study(), [r for r in study_factory.study().records if not r.baseline]),
            id="no baselines",
        ),
        pytest.param(dataclasses.replace(study_factory.study(), config={}, environment={}), id="no config"),
    ],
)
def test_poor_studies_still_make_a_page(study: StudyData) -> None:
    text = visible(page(Findings(study)))
    if not study.complete:
        assert "No layout is complete" in text
    else:
        assert "Take this layout" in text
    if study.failed:
        assert f"{len(study.failed)} trials failed" in text
        assert "loss became NaN in epoch 2" in text
    if not study.baselines and study.complete:
        assert "No hand-made layout is complete" in text


def test_a_columnar_study_makes_a_page() -> None:
    rows = []
    for number in range(24):
        blocks = ("GGGG", "GGAA", "AAGG", "AAAA")[number % 4]
        width = 64 if number % 8 < 4 else 48
        made = HybridLayout(stages=(StageLayout(blocks=blocks, dim=width, heads=4, state=8),), stem="patch", patch=4)
        rows.append(
            TrialRecord(
                number=number,
                key=f"{made.key}{number}",
                layout=made.to_dict(),
                state=COMPLETE,
                nll=1 + number / 50,
                top1=0.5,
                ratio=1 + (number % 5) / 9,
                params=1000 * width,
            )
        )
    study = with_records(study_factory.study(), rows)
    text = page(Findings(study))
    assert "Stage 1" in visible(text)
    assert 'aria-label="GGAA"' in text
    assert f".b-G {{ background: {LETTERS['G'].colour};" in text
    shares = Insight(study).compare(1, "share", "nll", "params")
    assert [(effect.label, effect.trials) for effect in shares.effects] == [("none", 6), ("40–60 %", 12), ("all", 6)]
    assert all(effect.value is not None for effect in shares.effects)
    states = {fact.state for record in rows for fact in stage_facts(record.layout)}
    assert states == {8, None}, "of gated Mamba; all attention has none"


def test_the_report_replaces_the_old_one_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    write_report(Findings(study_factory.study(trials=5, failures=0)), target)
    assert target.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(OSError, match="absent"):
        write_report(Findings(study_factory.study(trials=5, failures=0)), tmp_path / "absent" / "report.html")


@pytest.mark.slow
def test_a_thousand_trials_fit_in_eight_megabytes() -> None:
    assert len(page(Findings(study_factory.study(trials=1000, seeds=2))).encode()) < 8e6


def test_front_and_report_import_neither_torch_nor_the_search() -> None:
    code = (
        "import sys, mvsearch.analysis.findings, mvsearch.report.page, mvsearch.report.tables;"
        "print(sorted({'torch', 'optuna', 'ray', 'pydantic', 'pandas', 'plotly'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("letter", LETTERS)
def test_letters_can_be_read_on_their_cells(letter: str) -> None:
    assert contrast(LETTERS[letter].colour, ink(LETTERS[letter].colour)) >= 4.5


def test_a_strip_shows_every_block_with_its_colour_and_the_numbers() -> None:
    from rich.console import Console

    made = study_factory.layout(24, "MMAA", "AAA", (4, 16))
    text = rich_strip(made, numbers=True)
    assert [line.split() for line in text.plain.splitlines()] == [list("C│MMAA│AAA"), ["24", "48", "N4", "96"]]
    backgrounds = {str(span.style).split(" on ")[1] for span in text.spans if " on " in str(span.style)}
    assert backgrounds == {LETTERS[letter].colour for letter in "CMA"}
    plain = Console(file=io.StringIO(), no_color=True, width=80)
    plain.print(rich_strip(made))
    assert "C │ M M A A │ A A A" in plain.file.getvalue()
    assert "\x1b[" not in plain.file.getvalue()
    shown = html_strip(made.to_dict())
    assert 'aria-label="C|MMAA|AAA"' in shown
    assert shown.count("<i ") == 8
    assert "48 N4" in shown
    heights = [float(h) for h in re.findall(r"--h:([\d.]+)em", shown)]
    assert heights == sorted(heights)
    assert len(set(heights)) == 3
