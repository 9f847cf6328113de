"""Comparing studies: one corner for all, attainment by hand, and refusals that name what differs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics

import pytest
import study_factory
from typer.testing import CliRunner

from mvsearch.analysis.comparison import Comparison, study_rows
from mvsearch.cli import app
from mvsearch.report.page_compare import compare_figures, compare_page, compare_words
from mvsearch.study.data import StudyData
from mvsearch.study.files import StudyError
from mvsearch.study.front import hypervolume, pareto_front, point_of


def made(name: str, seed: int = 0, trials: int = 30, **search: object) -> StudyData:
    study = study_factory.study(trials=trials, seed=seed, name=name)
    study.config["search"] |= {"seed": seed} | search
    return dataclasses.replace(study, started=study.started + seed)


def three() -> Comparison:
    return Comparison([made("a", 0), made("b", 1, sampler="random"), made("c", 2)])


def test_hypervolumes_are_above_one_corner_below_all() -> None:
    found = three()
    corners = [study.reference_point for study in found.studies]
    assert found.reference_point == (corners[0][0], min(throughput for _, throughput in corners))
    for row, study in zip(study_rows(found), found.studies, strict=True):
        points = [point_of(record, "nll") for record in study.complete]
        assert row.hypervolume == pytest.approx(hypervolume(points, found.reference_point))
        assert row.hypervolume >= hypervolume(points, study.reference_point)
        assert (row.layouts, row.front) == (len(study.complete), len(study.front))


def test_the_joint_front_is_that_of_all_layouts_together() -> None:
    found = three()
    points = [point_of(record, "nll") for study in found.studies for record in study.complete]
    assert len(found.joint_front) == len(pareto_front(points))
    assert sum(row.joint for row in study_rows(found)) == len(found.joint_front)


def test_seeds_of_one_search_are_a_group_and_another_sampler_is_not() -> None:
    found = three()
    assert [group.studies for group in found.groups] == [(0, 2), (1,)]
    assert any("2 seeds of one search (a and c)" in sentence for sentence in compare_words(found))


def test_attainment_is_what_so_many_studies_reach_at_a_speed_or_faster() -> None:
    found = Comparison([made(name, seed) for seed, name in enumerate("abcde")])
    (group,) = found.groups
    surface = found.attainment(group)
    assert list(surface.throughput) == sorted(surface.throughput)
    for at in range(0, len(surface.throughput), 7):
        throughput = surface.throughput[at]
        best = []
        for study in found.studies:
            fast = [-r.nll for r in study.complete if r.log2_ratio >= throughput]
            best.append(max(fast, default=-math.inf))
        best.sort()
        middle = statistics.median(best)
        assert surface.median[at] == (middle if math.isfinite(middle) else None)
        for share, values in ((0.75, surface.low), (0.25, surface.high)):
            if values[at] is not None:
                assert sum(value >= values[at] for value in best) >= share * 5
                assert sum(value > values[at] for value in best) < share * 5 or values[at] == best[-1]


def test_common_layouts_and_how_far_their_values_differ() -> None:
    found = three()
    keys = [{record.key for record in study.complete} for study in found.studies]
    shared = (keys[0] & keys[1]) | (keys[0] & keys[2]) | (keys[1] & keys[2])
    assert {one.key for one in found.common} == shared
    assert len(shared) >= 5  # the hand-made ones at least
    sd, _ = found.disagreement
    assert sd == pytest.approx(0.02, rel=0.6)  # the factory's noise between trainings


def _changed(study: StudyData, **config: dict[str, object]) -> StudyData:
    merged = {**study.config, **{key: {**study.config.get(key, {}), **value} for key, value in config.items()}}
    return dataclasses.replace(study, config=merged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: _changed(s, proxy={"epochs": 9}),
            r"a and b cannot be compared: proxy\.epochs is 6 in the one",
        ),
        (lambda s: _changed(s, timing={"batch_size": 1}), r"timing\.batch_size is 64 in the one and 1 in the other"),
        (lambda s: _changed(s, objectives={"quality": "top1"}), r"objectives\.quality is 'nll'"),
        (
            lambda s: dataclasses.replace(s, environment={**s.environment, "data": {"fingerprint": "other"}}),
            r"data \(fingerprint\) is 'f00dfeed' in the one and 'other' in the other",
        ),
        (lambda s: dataclasses.replace(s, environment={**s.environment, "device": "H100"}), "device is"),
        (lambda s: dataclasses.replace(s, reference_key="other"), "so speeds are ratios to it"),
        (lambda s: dataclasses.replace(s, records=[]), "b has no complete layout yet"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(change, message) -> None:
    with pytest.raises(StudyError, match=message):
        Comparison([made("a"), change(made("b", 1))])


def test_one_study_or_the_same_twice_is_refused() -> None:
    with pytest.raises(StudyError, match="1 study given; two or more are needed"):
        Comparison([made("a")])
    with pytest.raises(StudyError, match="a is given twice"):
        Comparison([made("a"), made("a")])


def test_the_page_stands_alone_and_escapes_names() -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    found = Comparison([made(bad), made("b", 1)])
    text = compare_page(found)
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "<img" not in markup
    figures = re.search(r'id="figures">(.*?)</script>', text, re.S).group(1)
    assert set(json.loads(figures)) == set(re.findall(r'data-figure="(\w+)"', text)) == set(compare_figures(found))
    assert "<img" not in figures.replace("\\u003c", "")
    assert len(text) < 8e6


def test_bands_are_drawn_for_groups_alone() -> None:
    grouped = compare_figures(Comparison([made("a"), made("c", 2)]))["fronts"]
    apart = compare_figures(Comparison([made("a"), made("b", 1, sampler="random")]))["fronts"]
    assert any(trace.fill == "tonexty" for trace in grouped.data)
    assert not any(trace.fill for trace in apart.data)


def test_the_verb_names_an_unknown_study(tmp_path) -> None:
    done = CliRunner().invoke(app, ["compare", "a", "b", "--studies", str(tmp_path)])
    assert done.exit_code == 2
    assert "there is no study 'a'" in done.output


@pytest.mark.parametrize("out", ["nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", "a", "b", "--out", out])
    assert done.exit_code == 2
    assert f"out: {out} is " in done.output
