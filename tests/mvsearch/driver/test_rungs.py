"""Rungs through the whole loop: what goes on, what waits, what survives a crash, and what is measured never twice."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import signal
from collections import Counter

import optuna
import pytest
import torch
from fakes import MakeFakeWorker, checkpoint
from optuna.trial import TrialState
from rich.console import Console
from searches import THREE_RUNGS, StopAfter, drive, kill_twenty_times, replaying, search_in, told, trials_of
from trainings import LAYOUT, settings, stripes

from mambavision.layout import HybridLayout
from mvsearch.config.sections import TimingConfig
from mvsearch.driver.stop import Interrupted
from mvsearch.driver.view import View
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.pool.job import Done, Job
from mvsearch.pool.replay import ReplayPool
from mvsearch.report import trials_table
from mvsearch.report.section_trials import _row
from mvsearch.study.ledger import read_evaluations
from mvsearch.study.record import COMPLETE, FAILED, TRAIN, WAITING
from mvsearch.terminal.live import panel, record_line

EPOCHS = (1, 3, 9)


def of(records, state):
    return [record for record in records if record.state == state]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that ran to its end undisturbed."""
    search = search_in(tmp_path_factory.mktemp("whole"), *THREE_RUNGS)
    search.outcome = search.run()
    return search


def test_many_are_begun_few_go_on_and_only_those_trained_in_full_are_complete(whole):
    search, outcome = whole, whole.outcome
    records = search.records()
    complete, waiting = of(records, COMPLETE), of(records, WAITING)
    assert len(complete) == outcome.complete == 9
    assert len(waiting) == outcome.waiting == len(records) - 9 > 20
    assert sorted(told(search)) == sorted((r.key, [-r.nll, r.log2_ratio]) for r in complete)
    assert [bool(record.baseline) for record in records[:6]] == [True] * 5 + [False], "hand-made layouts run first"
    assert all(record.state == COMPLETE for record in records[:5]), "and in full"
    assert all(record.state == COMPLETE for record in search.state().front)
    own = [record for record in records if not record.baseline]
    for earlier, later in itertools.pairwise(EPOCHS):
        gone = sum(record.epochs >= later for record in own)
        assert 0 < gone <= sum(record.epochs >= earlier for record in own) // 3
    for record in records:
        lines = [(line.what, line.from_epoch, line.to_epoch) for line in record.evaluations]
        steps = [("train", start, end) for start, end in itertools.pairwise((0, *EPOCHS)) if end <= record.epochs]
        assert lines == [("time", 0, 0), *steps], "timed once and first; each rung goes on from the one before it"
        assert record.nll is None or record.state == COMPLETE
    kept = {path.name for path in search.folder.checkpoints.iterdir()}
    assert kept == {f"{record.key}.seed0.epoch{record.epochs}.pt" for record in waiting}, "for a larger search.trials"


def test_each_rung_is_a_trial_and_a_promotion_says_what_it_continues(whole):
    search = whole
    trials = trials_of(search)
    states = Counter(trial.state for trial in trials)
    left = [trial for trial in trials if trial.state == TrialState.PRUNED and "epoch" in trial.user_attrs]
    assert states[TrialState.RUNNING] == states[TrialState.WAITING] == states[TrialState.FAIL] == 0
    assert {(trial.user_attrs["rung"], trial.user_attrs["epoch"]) for trial in left} == {(0, 1), (1, 3)}
    promoted = [trial for trial in trials if "continues" in trial.user_attrs]
    assert len(promoted) == sum(len(record.rungs) - 1 for record in search.records() if not record.baseline)
    for trial in promoted:
        before = trials[trial.user_attrs["continues"]]
        assert before in left
        assert before.number < trial.number
        assert before.params == trial.params
        assert before.user_attrs["key"] == trial.user_attrs["key"]
        assert before.user_attrs["rung"] + 1 == trial.user_attrs["rung"]


def test_every_seed_of_a_rung_is_trained_before_the_next(tmp_path):
    search = search_in(tmp_path, *THREE_RUNGS, "proxy.seeds=2", "search.trials=7", brief=True)
    search.run()
    done = set()
    for line in search.ledger.evaluations:
        if line.what == TRAIN:
            assert not line.from_epoch or all((line.key, seed, line.from_epoch) in done for seed in search.seeds)
            done.add((line.key, line.seed, line.to_epoch))
    assert all(len(record.seeds) == 2 for record in of(search.records(), COMPLETE))
    assert all(len(rung.nlls) == 2 for record in search.records() for rung in record.rungs)
    assert len(of(search.records(), COMPLETE)) == 7


class Watched(ReplayPool):
    """Notes when a device has nothing to do while time passes."""

    search = None

    def events(self, timeout):
        if self.idle() and self.search.wants_more() and not self.search.exhausted:
            self.idled.append(self.now())
        yield from super().events(timeout)


def test_no_device_is_idle_while_something_can_run(tmp_path):
    search = search_in(tmp_path, *THREE_RUNGS, "search.trials=12", brief=True, pool=replaying(5, make=Watched))
    pool = search.pool
    pool.search, pool.idled = search, []
    outcome = search.run()
    assert pool.idled == []
    assert outcome.complete == 12
    # Nobody waits for a rung to fill: the first layout goes on while others are still in their first rung.
    lines = [line for line in search.ledger.evaluations if line.what == TRAIN and not line.baseline]
    first_on = min(line.started for line in lines if line.from_epoch)
    assert sum(line.started > first_on for line in lines if not line.from_epoch) > 10
    workers = {(line.key, line.worker) for line in lines}
    assert len(workers) > len({line.key for line in lines}), "some went on where they had not begun"


def test_a_failed_layout_never_goes_on(whole, tmp_path):
    bad = next(record.key for record in whole.records() if record.epochs == 9 and not record.baseline)
    search = search_in(tmp_path, *THREE_RUNGS, make=MakeFakeWorker(faults=((bad, "raise late"),)), brief=True)
    outcome = search.run()
    assert (outcome.complete, outcome.failed) == (8, 1)
    (failed,) = of(search.records(), FAILED)
    assert (failed.key, failed.reason, failed.epochs) == (bad, "train: it broke", 1)
    tries = [trial.state for trial in trials_of(search) if trial.user_attrs.get("key") == bad]
    assert tries.count(TrialState.FAIL) == 1
    assert tries.count(TrialState.PRUNED) >= 1


SMALL = ["layout.width=16", "layout.stages.1.depth=2", "layout.stages.1.flips=0", "layout.stages.1.state=[4, 8]"]


SMALL += ["layout.stages.1.attention={min: 0, max: 2}", "layout.stages.2.depth=1", "layout.stages.2.state=8"]


SMALL += ["layout.stages.2.attention={min: 0, max: 1}", "search.trials=100"]


def test_in_a_space_that_is_used_up_those_that_wait_go_on_and_the_search_ends(tmp_path):
    search = search_in(tmp_path, *THREE_RUNGS, *SMALL, brief=True)
    outcome = search.run()
    assert outcome.exhausted
    assert "every one was tried" in outcome.stopped
    assert not search.folder.checkpoints.exists(), "nothing can go on"
    assert outcome.complete + outcome.waiting == search.space.count() == 14
    assert outcome.complete > 9
    ladder = search.observed.ladder
    for record in of(search.records(), WAITING):  # only what is worse than the hand-made ones
        rung = len(record.rungs) - 1
        assert record.rungs[rung].quality("nll") < ladder.halving.floor(list(ladder.runs.values()), rung)


def test_what_can_still_go_on_in_a_space_that_is_used_up_is_kept_for_more_trials(tmp_path):
    first = search_in(tmp_path, *THREE_RUNGS, *SMALL, "search.trials=8")
    assert first.run().waiting
    assert first.exhausted
    view = Notices()
    assert search_in(tmp_path, *THREE_RUNGS, *SMALL, view=view).run().complete > 9
    assert view.notices == [], "no checkpoint is missing"


class Notices(View):
    def __init__(self):
        self.notices, self.waiting = [], 0

    def notice(self, text):
        self.notices.append(text)

    def update(self, state):
        self.waiting = max(self.waiting, state.waiting)


def stopped(path, moment=100):
    """A search that a signal stopped while layouts wait, and those."""
    search = search_in(path, *THREE_RUNGS, view=StopAfter(moment, signal.SIGTERM))
    with pytest.raises(Interrupted):
        search.run()
    assert not [trial for trial in trials_of(search) if trial.state == TrialState.RUNNING]
    waiting = {record.key: record.epochs for record in of(search.records(), WAITING)}
    assert len(waiting) > 5
    return search, waiting


def kept(search):
    return {path.name for path in search.folder.checkpoints.iterdir()}


def test_layouts_wait_with_their_checkpoints_while_the_search_is_stopped(whole, tmp_path):
    search, waiting = stopped(tmp_path)
    assert kept(search) >= {f"{key}.seed0.epoch{epoch}.pt" for key, epoch in waiting.items()}
    assert len(kept(search)) <= len(waiting) + 1, "and nothing else but what is under way"
    view = Notices()
    log = tmp_path / "jobs"
    again = search_in(tmp_path, *THREE_RUNGS, make=MakeFakeWorker(log=log), view=view)
    again.run()
    assert view.notices == []
    assert view.waiting > len(waiting)
    assert told(again) == told(whole)
    lines = read_evaluations(again.folder.ledger)
    assert len(lines) == len({line.identity for line in lines}) == len(read_evaluations(whole.folder.ledger))
    assert kept(again) == kept(whole)


def test_a_missing_checkpoint_costs_the_rung_again_and_that_is_said(whole, tmp_path):
    search, waiting = stopped(tmp_path)
    at_three = {key for key, epoch in waiting.items() if epoch == 3}
    assert at_three
    shutil.rmtree(search.folder.checkpoints)
    search.folder.checkpoints.mkdir()
    for key in at_three:  # the one before the last is still there
        layout = HybridLayout.from_dict(search.observed.records[key].layout)
        (search.folder.checkpoints / f"{key}.seed0.epoch1.pt").write_bytes(checkpoint(layout, 0, 1))
    view = Notices()
    again = search_in(tmp_path, *THREE_RUNGS, view=view)
    again.run()
    assert told(again) == told(whole)
    lines = again.ledger.evaluations
    assert len(lines) == len({line.identity for line in lines})
    repeated = [line for line in lines if line.what == TRAIN and (line.from_epoch, line.to_epoch) in ((0, 3), (1, 9))]
    repeated += [line for line in lines if line.what == TRAIN and (line.from_epoch, line.to_epoch) == (0, 9)]
    assert len(view.notices) == len(repeated) >= 2
    assert any(line.from_epoch == 1 for line in repeated)
    for line in repeated:
        start = f"epoch {line.from_epoch}" if line.from_epoch else "the start"
        assert any(line.key in text and text.endswith(f"trained again from {start}.") for text in view.notices)


def test_killed_once_the_same_trials_and_values_come_out(whole, tmp_path):
    path = tmp_path / "killed"
    path.mkdir()
    assert drive(path, (601, False), overrides=THREE_RUNGS) == [-signal.SIGKILL]
    view = Notices()
    resumed = search_in(path, *THREE_RUNGS, view=view)
    assert 0 < len(resumed.records()) < len(whole.records())
    resumed.run()
    assert (told(resumed), view.notices) == (told(whole), [])
    assert not [trial for trial in trials_of(resumed) if trial.state == TrialState.RUNNING]


@pytest.mark.slow
def test_killed_at_any_20_moments_nothing_is_lost_or_done_twice(tmp_path):
    few = (*THREE_RUNGS, "search.trials=7")
    (tmp_path / "whole").mkdir()
    whole = search_in(tmp_path / "whole", *few)
    whole.run()
    path = tmp_path / "killed"
    path.mkdir()
    kill_twenty_times(path, 60, few)
    resumed = search_in(path, *few)
    assert told(resumed) == told(whole)
    lines = read_evaluations(resumed.folder.ledger)
    assert len({line.identity for line in lines}) == len(lines) == len(whole.ledger.evaluations)
    assert not [trial for trial in trials_of(resumed) if trial.state == TrialState.RUNNING]
    assert len((path / "jobs").read_text().splitlines()) <= len(lines) + 20


def test_the_time_limit_ends_promotions_too_and_what_waits_is_kept(tmp_path):
    search = search_in(tmp_path, *THREE_RUNGS, "search.hours=0.3", "search.trials=50", brief=True, pool=replaying(3))
    outcome = search.run()
    assert 5 < outcome.complete < 40
    assert 0.3 * 3600 < search.pool.now() < 0.3 * 3600 + 120
    assert outcome.waiting > 5
    assert len(kept(search)) == outcome.waiting


def test_a_promotion_that_was_trained_but_not_told_is_told_without_training_again(whole, tmp_path):
    shutil.copytree(whole.folder.path, tmp_path / whole.folder.name)
    journal = tmp_path / whole.folder.name / whole.folder.journal.name
    lines = journal.read_text().splitlines()
    last_told = max(number for number, line in enumerate(lines) if json.loads(line)["op_code"] == 6)
    journal.write_text("\n".join(lines[:last_told]) + "\n")
    log = tmp_path / "jobs"
    again = search_in(tmp_path, *THREE_RUNGS, make=MakeFakeWorker(log=log))
    assert again.run().complete == 9
    assert not log.exists()
    assert told(again) == told(whole)


def test_a_layout_that_waits_is_not_begun_again_after_a_resume(tmp_path):
    search = search_in(tmp_path, *THREE_RUNGS, *SMALL, view=StopAfter(60, signal.SIGTERM))
    with pytest.raises(Interrupted):
        search.run()
    assert of(search.records(), WAITING)
    again = search_in(tmp_path, *THREE_RUNGS, *SMALL)
    again.run()
    first = [t.user_attrs["key"] for t in trials_of(again) if t.user_attrs.get("epoch") == 1]
    assert len(first) == len(set(first)) == sum(not record.baseline for record in again.records())


def test_nothing_is_begun_that_could_not_be_trained_in_full(tmp_path):
    search = search_in(tmp_path, *THREE_RUNGS, "search.trials=5", brief=True, pool=replaying(8))
    assert search.run().complete == len(search.records()) == 5, "the hand-made ones under way are all that is wanted"


def test_a_journal_that_is_lost_costs_no_training(tmp_path):
    search, waiting = stopped(tmp_path)
    search.folder.journal.unlink()
    log = tmp_path / "jobs"
    again = search_in(tmp_path, *THREE_RUNGS, make=MakeFakeWorker(log=log))
    assert again.run().complete >= 9
    begun = {line.split()[1] for line in log.read_text().splitlines() if line.endswith(" 0 0 1")}
    assert not begun & set(waiting)


def test_a_training_in_rungs_on_any_workers_ends_where_one_at_once_does():
    config = settings(epochs=3, warmup_epochs=0.5, drop_path=0.2)
    make = MakeWorker(config, TimingConfig(), LAYOUT)

    def trained(from_epoch, to_epoch, given=None):
        worker = make(f"worker {from_epoch}", "cpu", 1, stripes())
        job = Job(
            id=0, what="train", layout=LAYOUT, trial=0, seed=4, from_epoch=from_epoch, to_epoch=to_epoch,
            checkpoint=given, keep_checkpoint=to_epoch < 3,
        )  # fmt: skip
        done = list(worker.run(job))[-1]
        assert isinstance(done, Done)
        assert done.evaluation.what == "train", done.evaluation.reason
        return done

    whole = trained(0, 3)
    torch.rand(7)  # whatever a process did before must not matter
    first = trained(0, 1)
    second = trained(1, 2, first.checkpoint)
    last = trained(2, 3, second.checkpoint)
    assert last.weights == whole.weights
    for name in ("nll", "top1"):
        assert last.evaluation.values[name] == whole.evaluation.values[name]
    assert first.weights != second.weights != last.weights
    curve = [epoch for done in (first, second, last) for epoch in done.evaluation.values["curve"]]
    assert curve == whole.evaluation.values["curve"]


def test_tables_report_and_terminal_say_how_far_the_others_came(tmp_path):
    search, waiting = stopped(tmp_path)
    records = search.records()
    table = trials_table(records).set_index("key")
    for record in records:
        row = table.loc[record.key]
        assert row["state"] == record.state
        assert row["epochs"] == record.epochs
        if record.state == WAITING:
            assert not row["on_front"]
            assert row["nll"] != row["nll"], "no number of a full training"
            assert row["rung_nll"] == record.rungs[-1].nlls[0]
            words = f"stopped after {record.epochs} epoch{'s' if record.epochs > 1 else ''}"
            assert words in _row(record, set(), 1)
    state = search.state()
    assert 0 <= len(waiting) - state.waiting <= 1, "one may have been on its way when the signal came"
    out = Console(width=120, record=True, file=io.StringIO())
    out.print(panel(state))
    assert f"{state.waiting} waiting between rungs" in out.export_text()
    late = next(record for record in records if waiting.get(record.key) == 3)
    assert "waits after 3 epochs, NLL" in record_line(late, state).plain


def test_optuna_learns_nothing_from_a_layout_that_was_stopped(whole):
    """Why its samplers are refused: of the trials of a study with rungs only the few COMPLETE ones have values."""
    trials = trials_of(whole)
    assert all(trial.values is None for trial in trials if trial.state == TrialState.PRUNED)
    with pytest.raises(NotImplementedError):
        optuna.Trial(whole.study, trials[0]._trial_id).report(0.0, 1)


def test_with_a_larger_number_of_trials_those_that_wait_go_on_from_their_checkpoints(whole, tmp_path):
    shutil.copytree(whole.folder.path, tmp_path / whole.folder.name)
    view = Notices()
    again = search_in(tmp_path, *THREE_RUNGS, "search.trials=12", view=view)
    before = {record.key for record in of(again.records(), WAITING)}
    assert again.run().complete == 12
    assert view.notices == []
    assert before & {record.key for record in of(again.records(), COMPLETE)}
