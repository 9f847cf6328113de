"""Warm starts: what is taken over from another study, what is only asked for again, known layouts and drawn ones."""

from __future__ import annotations

import csv
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
from fakes import MakeFakeWorker, true_nll
from hypothesis import given
from hypothesis import strategies as st
from searches import MACHINE, told, trials_of, warm_search
from typer.testing import CliRunner

from mambavision.layout import HybridLayout
from mambavision.library import SHIPPED
from mvsearch.analysis.findings import Findings
from mvsearch.cli import app
from mvsearch.config.reading import load_config
from mvsearch.config.sections import StudyConfig
from mvsearch.config.values import ConfigError
from mvsearch.report import write_tables
from mvsearch.space.space import SearchSpace
from mvsearch.space.stage import SpaceError
from mvsearch.study.data import describe_study, load_study
from mvsearch.study.files import StudyError
from mvsearch.study.front import front_records
from mvsearch.study.ledger import read_evaluations
from mvsearch.study.record import COMPLETE, TIME, TRAIN


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of 20 layouts."""
    search = warm_search(tmp_path_factory.mktemp("finished"), "old", "search.trials=20")
    search.run()
    return search


@pytest.fixture
def studies(finished, tmp_path):
    """A folder with the finished study as `old`."""
    shutil.copytree(finished.folder.path, tmp_path / "old")
    return tmp_path


def jobs(log):
    lines = log.read_text().splitlines() if log.exists() else []
    return [(what, key) for what, key, *_ in map(str.split, lines)]


def by_key(search):
    return {record.key: record for record in search.records()}


def test_under_equal_conditions_all_is_taken_over_with_its_source_and_never_measured_again(studies, finished):
    log = studies / "jobs"
    search = warm_search(studies, "new", "warm_start=old", make=MakeFakeWorker(log=log))
    outcome = search.run()
    before, after = by_key(finished), by_key(search)
    assert search.plan.notices == (f"Warm start from {studies / 'old'}: 20 layouts taken over with their results.",)
    assert outcome.complete == len(after) == 28, "what was taken over comes on top of search.trials"
    assert not before.keys() & {key for _, key in jobs(log)}
    assert len(jobs(log)) == 2 * 8
    for key, record in before.items():
        own = after[key]
        assert (own.nll, own.ratio, own.state) == (record.nll, record.ratio, COMPLETE)
        assert (own.warm_start, own.taken_over) == (f"old, trial {record.number}", True)
        assert {line.conditions["source"] for line in own.evaluations} == {f"old, trial {record.number}"}
        assert own.started > record.ended, "the other study's time is not this one's"
    assert {r.baseline for r in search.records()} == {r.baseline for r in finished.records()}
    assert all(record.warm_start is None for record in search.records() if record.key not in before)
    attributes = [trial.user_attrs.get("warm_start") for trial in trials_of(search)]
    assert attributes[:20] == [f"old, trial {record.number}" for record in finished.records()], "they come first"
    assert set(attributes[20:]) == {None}
    write_tables(Findings(load_study(search.folder)), search.folder.path)
    with (search.folder.path / "trials.csv").open() as file:
        rows = {row["key"]: row["warm_start"] for row in csv.DictReader(file)}
    assert rows == {key: record.warm_start or "" for key, record in after.items()}
    assert describe_study(search.folder).startswith("28 of 28 layouts")
    kept = {path.stem for path in search.folder.weights.iterdir()}
    assert {record.key for record in search.state().front} <= kept, "weights come along"


def test_the_state_shows_how_much_is_to_do_with_what_was_taken_over(studies):
    search = warm_search(studies, "new", "warm_start=old")
    state = search.state()
    assert (state.finished, state.wanted) == (0, 28)
    search.run()
    assert (search.state().finished, search.state().wanted) == (28, 28)


@pytest.mark.parametrize(
    ("override", "machine", "why"),
    [
        ("timing.batch_size=32", {}, "timing.batch_size is 32 here and 64 there"),
        ("layout.width=[16, 20, 24]", {}, "reference is "),
    ],
)
def test_trainings_stand_where_only_the_timing_differs(studies, override, machine, why):
    log = studies / "jobs"
    search = warm_search(studies, "new", "warm_start=old", override, make=MakeFakeWorker(log=log), **machine)
    taken = {first.layout.key for first in search.plan.layouts}
    assert taken
    assert f"{len(taken)} taken over with their trainings and timed again, because {why}" in search.plan.notices[0]
    assert search.run().complete == 8 + len(taken)
    done = jobs(log)
    assert sorted(key for what, key in done if what == TIME) == sorted(by_key(search))
    assert not taken & {key for what, key in done if what == TRAIN}
    for key in taken:
        sources = {line.what: line.conditions.get("source") for line in by_key(search)[key].evaluations}
        assert sources[TRAIN].startswith("old, trial")
        assert sources[TIME] is None, "measured here"


@pytest.mark.parametrize(
    ("override", "machine", "why"),
    [
        ("proxy.epochs=3", {}, "proxy.epochs is 3 here and 2 there"),
        ("search.seed=4", {}, "the seeds are [4000] here and [0] there"),
        ("proxy.seeds=2", {}, "the seeds are [0, 1] here and [0] there"),
        (None, {"data": MACHINE["data"] | {"fingerprint": "beef"}}, "data is 'beef' here and 'f00d' there"),
        (None, {"device": "CUDA (made up)"}, "device is 'CUDA (made up)' here"),
        (None, {"scan": "triton"}, "scan is 'triton' here"),
        (None, {"versions": {"torch": "9", "mvsearch": "0.1.0"}}, "versions.torch is '9' here"),
    ],
)
def test_what_was_trained_otherwise_is_only_asked_for_again(studies, override, machine, why):
    settings = ("search.trials=12", "warm_start={study: old, layouts: 4}", *([override] if override else []))
    search = warm_search(studies, "new", *settings, **machine)
    kept = "trained" if not machine or "data" in machine else "trained and timed"
    assert f"9 of 20, the best and the hand-made, {kept} again, because {why}" in search.plan.notices[0]
    search.run()
    records = search.records()
    assert sum(record.state == COMPLETE for record in records) == 12, "they count: they are trained here"
    asked = [record for record in records if record.warm_start]
    assert len(asked) == 9
    assert sum(record.baseline is None for record in asked) == 4
    assert not any(record.taken_over for record in asked)
    for record in asked:
        seeds = {line.seed for line in record.evaluations if line.what == TRAIN and "source" not in line.conditions}
        assert len(seeds) == 1, "with two seeds, the first is taken over"
        assert record.nll == pytest.approx(
            sum(true_nll(HybridLayout.from_dict(record.layout), seed) for seed in record.seeds) / len(record.seeds)
        )


def test_a_seed_that_was_trained_before_is_not_trained_again(studies):
    log = studies / "jobs"
    search = warm_search(studies, "new", "warm_start=old", "proxy.seeds=2", make=MakeFakeWorker(log=log))
    search.run()
    asked = {record.key for record in search.records() if record.warm_start}
    trained = [line.split()[2] for line in log.read_text().splitlines() if line.split()[1] in asked]
    assert set(trained) == {"1"}, "neither timed nor trained with seed 0"


def test_the_best_are_asked_for_front_first(studies, finished):
    front = [record.key for record in front_records([r for r in finished.records() if not r.baseline], "nll")]
    assert len(front) > 2

    def asked(layouts):
        settings = (f"warm_start={{study: old, layouts: {layouts}}}", "proxy.epochs=3")
        search = warm_search(studies, f"best{layouts}", *settings)
        return [f.layout.key for f in search.plan.layouts if not by_key(finished)[f.layout.key].baseline]

    assert asked(1) == front[:1]
    assert asked(2) == [front[0], front[-1]]
    many = asked(12)
    assert len(set(many)) == 12
    assert many[: len(front)] == front


def test_what_does_not_fit_is_named_and_left_out(studies, finished):
    search = warm_search(
        studies, "new", "warm_start=old", "layout.stages.1.depth=[2, 3]", "budgets.params.max=150000", "layout.width=16"
    )
    fit = {first.layout.key for first in search.plan.layouts}
    assert fit
    assert fit == {
        record.key
        for record in finished.records()
        if HybridLayout.from_dict(record.layout) in search.space and record.params <= 150000
    }
    notice = search.plan.notices[0]
    assert f"{20 - len(fit)} do not fit: " in notice
    assert "stage2.depth: 4 is not in the space (" in notice
    assert "width: " in notice
    search.run()
    assert {record.key for record in search.records() if record.warm_start} == fit


def test_a_study_taken_over_twice_still_says_where_it_was_measured(studies):
    warm_search(studies, "second", "warm_start=old").run()
    third = warm_search(studies, "third", "warm_start=second")
    third.run()
    sources = {line.conditions["source"] for line in by_key(third)[third.space.reference().key].evaluations}
    assert len(sources) == 1
    assert "from old, trial" in sources.pop()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("warm_start=odl", "warm_start.study: there is no study 'odl' in .*Did you mean 'old'"),
        ("warm_start=new", "is this study itself"),
        ("warm_start={known: mambavision_tt}", "warm_start.known: no model 'mambavision_tt'.* Did you mean"),
    ],
)
def test_what_is_not_there_is_refused(studies, override, message):
    (studies / "new").mkdir()
    (studies / "new" / "study.yaml").write_text("name: new\n")
    with pytest.raises(StudyError, match=message):
        warm_search(studies, "new", override)


def test_a_study_of_which_nothing_fits_is_refused(studies):
    with pytest.raises(StudyError, match=r"no layout of .*old fits this space: width: \d+ is not in the space \(\d+\)"):
        warm_search(
            studies, "new", "warm_start=old", "layout.width=32", "budgets.params.max=1M", "budgets.macs.max=99M"
        )


def test_a_plan_that_is_gone_or_damaged_is_refused(studies):
    search = warm_search(studies, "new", "warm_start=old")
    search.run()
    search.folder.warm_start.write_text("{")
    with pytest.raises(StudyError, match=r"warm_start\.json: .* cannot be read"):
        warm_search(studies, "new", "warm_start=old")
    search.folder.warm_start.unlink()
    with pytest.raises(StudyError, match=r"warm_start\.json: .* cannot be read"):
        warm_search(studies, "new", "warm_start=old")


def test_another_space_in_the_same_study_is_refused_with_the_way_to_go_on(studies):
    with pytest.raises(
        StudyError, match=r"layout.width.*--set warm_start=.*/old beside it, what still fits is taken over"
    ):
        warm_search(studies, "old", "layout.width=[12, 16]", "search.trials=20")
    with pytest.raises(StudyError) as other:
        warm_search(studies, "old", "layout.width=[12, 16]", "proxy.epochs=5", "search.trials=20")
    assert "warm_start" not in str(other.value)


DRIVER = """
import os
from pathlib import Path
import fakes
from searches import warm_search
count = 0
def kill_when_due():
    global count
    count += 1
    if count == {moment}:
        os.kill(os.getpid(), 9)
real = os.fsync
def fsync(descriptor):
    kill_when_due()
    real(descriptor)
    kill_when_due()
os.fsync = fsync
log = fakes.MakeFakeWorker(log=Path({path!r}) / "jobs")
warm_search(Path({path!r}), "new", *{overrides!r}, make=log, journal=True).run()
"""


EVERYTHING = (
    "warm_start={study: old, known: [mambavision_t, mambavision_s], placement: {last: 3, first: 1}, draws: 3}",
    "search.trials=14",
)


def drive(path, moment, *overrides):
    code = DRIVER.format(path=str(path), moment=moment, overrides=overrides)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def check_nothing_is_lost_or_doubled(studies, whole):
    again = warm_search(studies, "new", *EVERYTHING, journal=True)
    assert told(again) == told(whole)
    lines = read_evaluations(again.folder.ledger)
    assert len({line.identity for line in lines}) == len(lines)
    assert {(line.key, line.warm_start, line.what) for line in lines} == {
        (line.key, line.warm_start, line.what) for line in whole.ledger.evaluations
    }
    labels = [t.user_attrs["warm_start"] for t in trials_of(again) if t.values and "warm_start" in t.user_attrs]
    assert sorted(labels) == sorted(first.label for first in whole.plan.layouts)


@pytest.fixture
def whole(studies, tmp_path_factory):
    """The same warm-started study, not killed."""
    other = tmp_path_factory.mktemp("whole")
    (other / "old").symlink_to(studies / "old")
    search = warm_search(other, "new", *EVERYTHING)
    search.run()
    return search


class Killed(BaseException):
    """Raised where a process would end: nothing is written from then on."""


@pytest.mark.parametrize("moment", [20, 47])
def test_killed_while_taking_over_nothing_is_lost_or_doubled(studies, whole, moment, monkeypatch):
    search = warm_search(studies, "new", *EVERYTHING, journal=True)
    writes = itertools.count(1)
    real = os.fsync

    def fsync(descriptor):
        if next(writes) >= moment:
            raise Killed
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Killed):
        search.run()
    monkeypatch.undo()
    (studies / "old").rename(studies / "gone")
    resumed = warm_search(studies, "new", *EVERYTHING, journal=True)
    assert 1 < len(resumed.ledger.evaluations) < 60
    resumed.run()
    check_nothing_is_lost_or_doubled(studies, whole)


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_doubled(studies, whole):
    kills = 0
    while (ended := drive(studies, 9 + 2 * kills, *EVERYTHING)).returncode == -signal.SIGKILL:
        kills += 1
        assert kills < 80
    assert ended.returncode == 0, ended.stderr
    assert kills >= 10
    check_nothing_is_lost_or_doubled(studies, whole)


def test_with_rungs_what_is_taken_over_is_done_and_what_is_asked_again_begins_below(tmp_path):
    rungs = ("search.sampler=random", "proxy.epochs=4", "fidelity={eta: 2, rungs: 2}")
    old = warm_search(tmp_path, "old", *rungs, "search.trials=9")
    old.run()
    complete = {record.key for record in old.records() if record.state == COMPLETE}
    log = tmp_path / "jobs"
    search = warm_search(tmp_path, "new", *rungs, "warm_start=old", make=MakeFakeWorker(log=log))
    search.run()
    assert complete <= {record.key for record in search.records() if record.taken_over and record.state == COMPLETE}
    assert not complete & {key for _, key in jobs(log)}
    assert sum(r.state == COMPLETE for r in search.records()) == 8 + len(complete)
    plain = warm_search(tmp_path, "plain", "search.sampler=random", "proxy.epochs=4", "warm_start=old")
    assert "because fidelity is None here and {'eta': 2, 'rungs': 2} there" in plain.plan.notices[0]


def space_of(*overrides, name="stagewise", classes=10):
    return SearchSpace(load_config(name, overrides), num_classes=classes, in_chans=1)


WIDE = (
    *("layout.width=[16, 24]", "layout.stages.1.depth=[5, 6, 7]", "layout.stages.1.attention.max=7"),
    *("layout.stages.1.flips=3", "budgets.params.max=1M", "budgets.macs.max=100M", "budgets.memory.max=1G"),
)


def test_known_models_keep_their_order_at_the_nearest_depth_width_and_state(tmp_path):
    search = warm_search(
        tmp_path, "new", "warm_start={known: [mambavision_t, mambavision_s]}", "search.trials=7", *WIDE
    )
    (first,) = search.plan.layouts
    assert [stage.blocks for stage in first.layout.stages] == ["C", "MMMMAAA", "MA"], "of 7 blocks the larger part is M"
    assert (first.layout.stages[0].dim, first.layout.stages[1].state) == (24, 8)
    assert search.plan.notices == (
        "Warm start: mambavision_t, C|CCC|MMMMAAAA|MMAA of width 80 and state 8/8, is scaled to C|MMMMAAA|MA of width "
        "24 and state 8/8.",
        "Warm start: mambavision_s, CCC|CCC|MMMMAAA|MMMAA of width 96 and state 8/8, is scaled to C|MMMMAAA|MA of "
        "width 24 and state 8/8. That is the layout of mambavision_t.",
    )
    search.run()
    assert by_key(search)[first.layout.key].warm_start == "mambavision_t; mambavision_s"


def test_a_known_model_that_is_a_hand_made_layout_is_one_trial_that_says_both(tmp_path):
    settings = ("warm_start={known: mambavision_t}", "layout.width=20", "layout.stages.1.depth=4", "search.trials=6")
    search = warm_search(tmp_path, "new", *settings)
    assert search.plan.notices[0].endswith("That is the hand-made layout 'last half'.")
    assert search.run().complete == 6
    (both,) = [record for record in search.records() if record.warm_start]
    assert (both.baseline, both.warm_start) == ("last half", "mambavision_t")


@pytest.mark.parametrize("model", ["mambavision_t", "mambavision_l3", "mambavision_columnar_tiny"])
@pytest.mark.parametrize("name", ["stagewise", "fashion_mnist", "columnar", "image_folder"])
def test_every_known_model_has_its_like_in_every_space(name, model):
    space = space_of(*(["proxy.root=here"] if name == "image_folder" else []), name=name)
    layout = space.scaled(HybridLayout.from_dict(SHIPPED[model]["layout"]))
    assert layout in space
    assert not space.excess(layout)


def test_an_order_that_the_space_lacks_becomes_the_nearest_placed_one():
    space = space_of("layout.stages.1.placement=[first]", "layout.stages.1.flips=0", "layout.stages.1.attention=1")
    layout = space.scaled(HybridLayout.from_dict(SHIPPED["mambavision_t"]["layout"]))
    assert layout.stages[1].blocks == "AMMM"
    own = HybridLayout.from_dict(SHIPPED["mambavision_t"]["layout"]).override(blocks=["C", "CCC", "AMMMMMMA", "AAMM"])
    assert [stage.blocks for stage in space_of(*WIDE).scaled(own).stages] == ["C", "AMMMMMA", "AM"]


def test_a_known_model_that_the_budgets_forbid_is_refused(tmp_path):
    deep = ("layout.stages.1.depth=[2, 8]", "layout.stages.1.attention.max=8", "budgets={params: {max: 80k}}")
    with pytest.raises(SpaceError, match=r"warm_start.known: mambavision_t: no layout like it is within the budgets"):
        warm_search(tmp_path, "new", "warm_start={known: mambavision_t}", *deep)


@given(st.integers(0, 2**32))
def test_a_drawn_layout_follows_a_rule_of_the_weights(seed):
    space = space_of()
    layout = space.placed({"last": 3.0, "middle": 0.0}, random.Random(seed))
    assert layout in space
    for stage in layout.stages[1:]:
        count = stage.blocks.count("A")
        assert 0 < count < len(stage.blocks)
        assert stage.blocks == "M" * (len(stage.blocks) - count) + "A" * count


def test_draws_follow_the_weights(tmp_path):
    space, rng = space_of("layout.stages.1.depth=4", "layout.stages.1.attention=2"), random.Random(0)
    drawn = [space.placed({"last": 3.0, "first": 1.0}, rng).stages[1].blocks for _ in range(400)]
    assert set(drawn) == {"MMAA", "AAMM"}
    assert 260 <= drawn.count("MMAA") <= 340


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_prior_acts_with_every_sampler_before_its_own_trials(tmp_path, sampler):
    settings = ("warm_start={placement: {first: 1}, draws: 4}", f"search.sampler={sampler}", "search.trials=11")
    search = warm_search(tmp_path, "new", *settings)
    search.run()
    labels = [record.warm_start for record in search.records()]
    assert labels == [None] * 5 + ["placement"] * 4 + [None] * 2
    drawn = search.records()[5:9]
    assert all("MA" not in stage["blocks"] for record in drawn for stage in record.layout["stages"])
    assert all(not search.space.excess(HybridLayout.from_dict(record.layout)) for record in drawn)
    assert search.plan.notices == ("Warm start: 4 layouts drawn with placements first 1.",)


def test_a_prior_that_the_space_cannot_follow_is_refused_and_a_small_space_says_so(tmp_path):
    with pytest.raises(
        SpaceError, match=r"warm_start.placement: stage3.placement: alternate is not in the space; one of last, first"
    ):
        warm_search(tmp_path, "new", "warm_start={placement: {alternate: 1}}")
    fixed = ("layout.stages.1={blocks: M, depth: 2, dim: 2}", "layout.stages.2={blocks: A, depth: 2, dim: 4}")
    with pytest.raises(SpaceError, match="no stage of this space has two letters"):
        warm_search(tmp_path, "new", "warm_start={placement: {last: 1}}", *fixed)
    small = ("layout.width=16", "layout.stages.1.depth=2", "layout.stages.1.state=8", "layout.stages.2.state=8")
    search = warm_search(tmp_path, "new", "warm_start={placement: {last: 1, first: 1}}", *small)
    assert search.plan.notices[0].startswith("Warm start: 2 layouts drawn (of 10: no more were found")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "warm_start: 3 is not allowed; null, a study"),
        ("''", "warm_start: '' is not allowed; null, a study"),
        ("{}", "warm_start: {} is not allowed; null, a study"),
        ("{layouts: 3}", "warm_start.layouts: 3 is not allowed; only with study"),
        ("{study: x, layouts: 0}", "warm_start.layouts: 0 is not allowed; a whole number, 1 or more"),
        ("{study: x, draws: 3}", "warm_start.draws: 3 is not allowed; only with placement"),
        ("{known: [3]}", "warm_start.known: .* the name of a model of the library"),
        ("{known: [a, a]}", "warm_start.known: .* no name is repeated"),
        ("{placement: last}", "warm_start.placement: 'last' is not allowed; null or a mapping from placement rules"),
        ("{placement: {lst: 1}}", "warm_start.placement: .*Did you mean 'last'"),
        ("{placement: {last: 0}}", "warm_start.placement: .* at least one is above 0"),
        ("{studdy: x}", "unknown key warm_start.studdy; .*Did you mean 'study'"),
    ],
)
def test_a_wrong_warm_start_is_named(value, message):
    with pytest.raises(ConfigError, match=message):
        load_config("stagewise", [f"warm_start={value}"])


def test_a_warm_start_is_written_so_that_it_is_read_back():
    for value in ("studies/x", "{known: mambavision_t}", "{study: x, placement: {last: 3}, draws: 2}"):
        config = load_config("stagewise", [f"warm_start={value}"])
        assert StudyConfig.model_validate(config.resolved()) == config
    assert "warm_start" not in load_config("stagewise").resolved()


@pytest.mark.slow
def test_a_dry_run_takes_nothing_over_and_says_what_it_would_ask_for(studies, monkeypatch):
    monkeypatch.chdir(studies)
    settings = ["search.trials=12", "search.sampler=random", "proxy.data=digits"]
    settings += ["proxy.train_images=320", "proxy.val_images=100"]
    arguments = [part for setting in [*settings, "name=new"] for part in ("--set", setting)]
    run = CliRunner().invoke(
        app, ["launch", "stagewise", *arguments, "--set", "warm_start=old", "--studies", ".", "--dry-run"]
    )
    assert run.exit_code == 0, run.output
    said = " ".join(run.output.split())
    assert "15 of 20, the best and the hand-made, trained and timed again, because a dry run takes nothing over" in said
    assert not (studies / "new").exists()
    wrong = CliRunner().invoke(
        app, ["launch", "stagewise", *arguments, "--set", "warm_start=odl", "--studies", ".", "--dry-run"]
    )
    assert wrong.exit_code == 2
