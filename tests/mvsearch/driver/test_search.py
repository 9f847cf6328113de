"""The loop with a worker that measures nothing: what is asked, told, kept and recovered."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections import Counter

import optuna
import pytest
from fakes import FEW_LAYOUTS, MakeFakeWorker, noise, true_ratio
from searches import StopAfter, drive, kill_twenty_times, search_in, told, trials_of

from mvsearch.config.reading import load_config
from mvsearch.driver.search import SearchFailed
from mvsearch.driver.stop import Interrupted
from mvsearch.driver.trials import open_optuna_study
from mvsearch.driver.view import View
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.job import Lost, Notice
from mvsearch.pool.pool import PoolFailed
from mvsearch.pool.replay import ReplayPool
from mvsearch.samplers.optuna_private import seed_generators
from mvsearch.space.space import SearchSpace
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder
from mvsearch.study.ledger import read_evaluations
from mvsearch.study.record import COMPLETE, FAILED
from mvsearch.study.timings import RecordedTiming, check_conditions, read_timings


def test_a_search_trains_so_many_distinct_layouts_baselines_first(tmp_path):
    search = search_in(tmp_path)
    outcome = search.run()
    records = search.records()
    assert (outcome.complete, outcome.failed, outcome.exhausted) == (14, 0, False)
    assert len({record.key for record in records}) == 14
    names = ["all Mamba", "all attention", "last half", "first half", "alternating"]
    assert sorted(record.baseline for record in records[:5]) == sorted(names)
    assert all(record.baseline is None for record in records[5:])
    for trial, record in zip(told(search), records, strict=True):
        assert trial == (record.key, [-record.nll, record.log2_ratio])
    assert all(search.space.excess(search.space.decode(search.space.encode(_layout(r)))) == {} for r in records)


def _layout(record):
    from mambavision.layout import HybridLayout

    return HybridLayout.from_dict(record.layout)


@pytest.mark.parametrize(
    "sampler", ["known_cost", "tpe", "nsga2", "random", pytest.param("gp", marks=pytest.mark.slow)]
)
def test_the_same_seed_asks_for_the_same_layouts_and_another_seed_for_others(tmp_path, sampler):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / name
        path.mkdir()
        trials = 13 if sampler in ("gp", "known_cost") else 24  # of which it draws the last few from its model
        search = search_in(path, f"search.sampler={sampler}", f"search.seed={seed}", f"search.trials={trials}")
        search.run()
        runs[name] = [key for key, _ in told(search)]
    assert runs["a"] == runs["b"]
    assert runs["a"][:5] == runs["c"][:5]
    assert runs["a"][5:] != runs["c"][5:]


def test_budgets_and_duplicates_are_refused_before_a_worker_sees_them(tmp_path):
    log = tmp_path / "jobs"
    search = search_in(tmp_path, "budgets.params.max=120000", make=MakeFakeWorker(log=log))
    search.run()
    refused = [trial for trial in trials_of(search) if trial.state == optuna.trial.TrialState.PRUNED]
    assert refused
    assert all(trial.constraints or "duplicate_of" in trial.user_attrs for trial in refused)
    over = [trial for trial in refused if trial.constraints]
    assert over
    assert all(value > 0 for trial in over for value in trial.constraints.values())
    jobs = log.read_text().splitlines()
    assert len(jobs) == len(set(jobs)) == 28
    assert all(record.params <= 120000 for record in search.records())


def test_a_space_that_is_used_up_ends_well(tmp_path):
    search = search_in(tmp_path, *FEW_LAYOUTS)
    outcome = search.run()
    assert outcome.exhausted
    assert outcome.complete == search.space.count() == 8


def test_a_failed_trial_has_its_reason_and_the_search_goes_on(tmp_path):
    search = search_in(tmp_path)
    bad = search.space.baselines()["first half"].key
    search = search_in(tmp_path, make=MakeFakeWorker(faults=((bad, "raise"),)))
    outcome = search.run()
    assert (outcome.complete, outcome.failed) == (13, 1)
    record = next(record for record in search.records() if record.key == bad)
    assert (record.state, record.reason) == (FAILED, "time: it broke")
    (failed,) = [trial for trial in trials_of(search) if trial.state == optuna.trial.TrialState.FAIL]
    assert failed.user_attrs["reason"] == "time: it broke"
    again = search_in(tmp_path)
    assert again.run().failed == 1


def test_when_all_fail_the_search_fails_with_the_first_reason(tmp_path):
    search = search_in(tmp_path, make=MakeFakeWorker(faults=(("*", "raise"),)))
    with pytest.raises(SearchFailed, match="all 14 trials failed; the first: time: it broke"):
        search.run()


def test_a_lost_process_is_tried_twice(tmp_path):
    from mvsearch.pool.job import Lost

    class Losing(InlinePool):
        lost = 0

        def events(self, timeout):
            for event in super().events(timeout):
                if event.job in losing and self.lost < times:
                    self.lost += 1
                    losing.add(event.job + 1)
                    self.cancel(event.job)
                    yield Lost(event.job, "the process died")
                    return
                yield event

    for times, failed in ((1, 0), (2, 1)):
        path = tmp_path / str(times)
        path.mkdir()
        losing = {0}
        search = search_in(path, pool=Losing(MakeFakeWorker(), None))
        outcome = search.run()
        assert (outcome.complete, outcome.failed) == (14 - failed, failed)
        if failed:
            assert search.records()[0].reason == "time: the process died, 2 times"


def test_several_seeds_are_replicates_of_one_trial(tmp_path):
    search = search_in(tmp_path, "proxy.seeds=3", "search.trials=6")
    search.run()
    assert len(told(search)) == 6
    for record in search.records():
        assert len(record.seeds) == 3
        assert record.nll_se is not None
        values = [line.values["nll"] for line in record.evaluations if line.what == "train"]
        assert record.nll == pytest.approx(sum(values) / 3)


def test_weights_of_front_and_baselines_are_kept_and_no_others(tmp_path):
    search = search_in(tmp_path, "search.trials=30")
    search.run()
    kept = {path.stem for path in search.folder.weights.iterdir()}
    front = {record.key for record in search.state().front}
    assert kept == front | {record.key for record in search.records() if record.baseline}
    assert len(kept) < 30


def test_recorded_timings_are_taken_and_give_the_same_trials(tmp_path):
    first = search_in(tmp_path)
    first.run()
    other = tmp_path / "other"
    other.mkdir()
    log = tmp_path / "jobs"
    second = search_in(other, make=MakeFakeWorker(log=log), timings=read_timings(first.folder.ledger))
    second.run()
    assert told(second) == told(first)
    assert all(line.startswith("train") for line in log.read_text().splitlines())
    timings = [line for line in second.ledger.evaluations if line.what == "time"]
    assert {line.conditions["source"] for line in timings} == {str(first.folder.ledger)}


def _table(layouts, ratio):
    """Recorded timings of layouts, of which `ratio` says the throughput."""
    return {
        layout.key: RecordedTiming(
            {"images_per_second": 1000 * ratio(layout), "ratio": ratio(layout)},
            {"source": "t"},
            layout=layout.to_dict(),
        )
        for layout in layouts
    }


def test_the_sampler_knows_the_table_of_throughputs_before_it_asks(tmp_path):
    # A few layouts are fast for no reason that a regression could see.
    fast = {}

    def ratio(layout):
        return fast.setdefault(layout.key, 64.0 if noise("fast", layout.key) < 0.005 else 1.0)

    space = SearchSpace(load_config("stagewise"), num_classes=10, in_chans=1)
    table = _table(space.layouts(), ratio)
    assert 6 < sum(value > 1 for value in fast.values()) < 40
    asked = {}
    for name in ("layouts", "no layouts"):
        if name == "no layouts":
            table = {key: dataclasses.replace(timing, layout=None) for key, timing in table.items()}
        (tmp_path / name).mkdir()
        pool = ReplayPool(MakeFakeWorker())
        search = search_in(tmp_path / name, "search.sampler=known_cost", timings=table, pool=pool)
        search.run()
        asked[name] = sum(fast[key] > 1 for key, _ in told(search)[8:])  # those before are spread over the space
    # By chance three of six would be asked for once in a million.
    assert asked["layouts"] >= 3
    assert asked["no layouts"] == 0


def test_a_sampler_is_told_a_fair_sample_of_the_table_whichever_part_of_it_it_reads(tmp_path, monkeypatch):
    told_of = []

    def make_sampler(config, space, seed, observations, reference):
        told_of.append(observations)
        return optuna.samplers.RandomSampler(seed=seed)

    monkeypatch.setattr("mvsearch.driver.search.make_sampler", make_sampler)
    space = SearchSpace(load_config("stagewise"), num_classes=10, in_chans=1)
    layouts = list(space.layouts())  # by width
    strange = layouts[0].override(state=[8, 7, 8])
    search = search_in(tmp_path, timings=_table([*layouts, strange], true_ratio), pool=ReplayPool(MakeFakeWorker()))
    search.run()
    found = told_of[0]()
    assert sorted(one.key for one in found) == sorted(layout.key for layout in layouts)
    assert [one.key for one in found[-14:]] == [record.key for record in search.records()]
    assert {one.source for one in found[:-14]} == {"throughput.file"}
    assert all(one.throughput == pytest.approx(math.log2(true_ratio(one.layout))) for one in found)
    widths = Counter(layout.stages[0].dim for layout in layouts)
    of_the_last = Counter(one.layout.stages[0].dim for one in found[-1000:])
    assert all(of_the_last[width] / 1000 == pytest.approx(n / len(layouts), abs=0.1) for width, n in widths.items())


@pytest.mark.parametrize("ratio", ["nan", "inf", "-1", "0", "", "fast"])
def test_timings_that_are_no_numbers_are_refused(tmp_path, ratio):
    table = tmp_path / "trials.csv"
    table.write_text(f"key,images_per_second,ratio\na,100,1.0\nb,100,{ratio}\n")
    with pytest.raises(StudyError, match=r"line 3: .* must be finite numbers above 0"):
        read_timings(table)
    if ratio in ("nan", "-1"):
        values = {"images_per_second": 100.0, "ratio": float(ratio)}
        line = {"what": "time", "key": "b", "layout": {}, "trial": 0, "values": values}
        (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(StudyError, match="must be finite numbers above 0"):
            read_timings(tmp_path / "evaluations.jsonl")


def test_a_table_that_went_through_a_spreadsheet_is_read(tmp_path):
    table = tmp_path / "table.csv"
    heads = "\ufeffkey,images_per_second,ratio,iqr,batch_size,dtype,timing_conditions"
    table.write_text(f"{heads}\na,10,1,5e-05,64.0,float32,\nb,20,2,,²,float32,\nc,30,3,,,,[1]\n", encoding="utf-8")
    read = read_timings(table)
    assert read["a"].values == {"images_per_second": 10, "ratio": 1, "iqr": 5e-05}
    assert read["a"].conditions == {"source": str(table), "batch_size": 64, "dtype": "float32"}
    assert read["b"].conditions["batch_size"] == "²"
    assert read["c"].conditions == {"source": str(table)}


def test_timings_of_other_conditions_are_refused(tmp_path):
    timing = RecordedTiming({"ratio": 1.0}, {"source": "x.csv", "batch_size": 64, "reference": "a"}, "cpu")
    check_conditions({"k": timing}, {"batch_size": 64, "reference": "a", "image_size": 32})
    with pytest.raises(StudyError, match="batch_size = 64, and this study has 128"):
        check_conditions({"k": timing}, {"batch_size": 128})


def test_weights_of_a_layout_that_waits_for_a_seed_are_kept_over_a_resume(tmp_path):
    settings = ("proxy.seeds=2", "search.trials=6", "search.baselines=false")
    first = search_in(tmp_path, *settings)
    first.run()
    lines = first.folder.ledger.read_text().splitlines()
    first.folder.ledger.write_text("\n".join(line for line in lines if json.loads(line)["seed"] != 1) + "\n")
    for record in first.records():
        (first.folder.weights / f"{record.key}.safetensors").touch()
    first.folder.journal.unlink()
    again = search_in(tmp_path, *settings)
    again.run()
    kept = {path.stem for path in again.folder.weights.iterdir()}
    assert {record.key for record in again.state().front} == kept


class Losing(InlinePool):
    """Loses so many jobs of one layout, with the machine they ran on or without."""

    def __init__(self, key, times, with_node):
        super().__init__(MakeFakeWorker(), None)
        self.key, self.times, self.with_node = key, times, with_node
        self.lost = []

    def submit(self, job):
        if job.layout.key == self.key and job.what == "train" and self.times:
            self.times -= 1
            self.lost.append(job.id)
        else:
            super().submit(job)

    def idle(self):
        return 0 if self.lost else super().idle()

    def events(self, timeout):
        if self.lost:
            yield Notice("a machine went away")
            yield Lost(self.lost.pop(), "it is gone", with_node=self.with_node)
        yield from super().events(timeout)


@pytest.mark.parametrize(
    ("times", "with_node", "state"), [(1, False, COMPLETE), (2, False, FAILED), (9, True, COMPLETE), (10, True, FAILED)]
)
def test_a_lost_machine_is_no_fault_of_the_layouts_but_not_for_ever(tmp_path, times, with_node, state):
    said = []
    view = View()
    view.notice = said.append
    plain = search_in(tmp_path, "search.trials=6")
    key = plain.space.baselines()["last half"].key
    pool = Losing(key, times, with_node)
    search = search_in(tmp_path, "search.trials=6", pool=pool, view=view, brief=True)
    search.run()
    record = next(record for record in search.records() if record.key == key)
    assert record.state == state
    assert said.count("a machine went away") == times
    if state == FAILED:
        assert record.reason == f"train: it is gone, {times} times"


def test_when_no_worker_is_left_the_search_ends_and_can_go_on(tmp_path):
    key = SearchSpace(load_config("stagewise"), num_classes=10, in_chans=1).baselines()["first half"].key
    make = MakeFakeWorker(faults=((key, "break the device"),))
    search = search_in(tmp_path, "search.trials=8", brief=True, make=make)
    with pytest.raises(PoolFailed, match=r"device-side assert.*Everything measured so far is kept"):
        search.run()
    assert not search.study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    again = search_in(tmp_path, "search.trials=8", brief=True)
    outcome = again.run()
    assert (outcome.complete, outcome.failed) == (8, 0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_nothing_is_left_running(tmp_path, signum):
    search = search_in(tmp_path, view=StopAfter(12, signum))
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stopped:
        search.run()
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) == before
    assert not [trial for trial in trials_of(search) if trial.state == optuna.trial.TrialState.RUNNING]
    whole = search_in(tmp_path)
    assert whole.run().complete == 14


@pytest.mark.slow
def test_killed_at_any_20_moments_the_same_command_goes_on_to_the_same_result(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = search_in(tmp_path / "whole", "search.trials=16")
    whole.run()
    path = tmp_path / "killed"
    path.mkdir()
    kill_twenty_times(path, 50, ("search.trials=16",))
    resumed = search_in(path, "search.trials=16")
    assert told(resumed) == told(whole)
    lines = read_evaluations(resumed.folder.ledger)
    assert len({line.identity for line in lines}) == len(lines) == 32
    assert not [trial for trial in trials_of(resumed) if trial.state == optuna.trial.TrialState.RUNNING]
    jobs = (path / "jobs").read_text().splitlines()
    assert len(jobs) <= 32 + 20


def test_killed_once_in_the_middle_the_same_trials_and_values_come_out(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = search_in(tmp_path / "whole", "search.trials=16")
    whole.run()
    path = tmp_path / "killed"
    path.mkdir()
    assert drive(path, (121, False)) == [-signal.SIGKILL]
    in_flight = open_optuna_study(StudyFolder(path / "stagewise")).study
    assert 3 < len(in_flight.get_trials()) < 21
    resumed = search_in(path, "search.trials=16")
    resumed.run()
    assert told(resumed) == told(whole)


def test_what_is_in_the_ledger_but_was_not_told_is_told_without_measuring_again(tmp_path):
    search = search_in(tmp_path, "search.trials=6")
    search.run()
    lines = search.folder.journal.read_text().splitlines()
    last_told = max(number for number, line in enumerate(lines) if json.loads(line)["op_code"] == 6)
    search.folder.journal.write_text("\n".join(lines[:last_told]) + "\n")
    log = tmp_path / "jobs"
    again = search_in(tmp_path, "search.trials=6", make=MakeFakeWorker(log=log))
    assert again.run().complete == 6
    assert not log.exists()
    assert len(told(again)) == 6


def test_the_time_limit_ends_the_asking(tmp_path):
    search = search_in(tmp_path, "search.trials=500", "search.hours=0.0002", make=MakeFakeWorker(seconds=0.05))
    outcome = search.run()
    assert 1 <= outcome.complete < 100
    assert all(record.state == COMPLETE for record in search.records())


def test_utilisation_counts_only_time_in_which_a_worker_was_busy(tmp_path):
    slow = search_in(tmp_path, "search.trials=6", make=MakeFakeWorker(seconds=0.2))
    began = time.monotonic()
    outcome = slow.run()
    assert outcome.seconds <= time.monotonic() - began
    assert 12 * 0.2 / outcome.seconds <= outcome.utilisation <= 1.0
    assert true_ratio(slow.space.reference()) > 0


def test_a_sampler_is_kept_over_its_asks_and_sees_what_was_measured(tmp_path, monkeypatch):
    seen = []

    class Reading(optuna.samplers.RandomSampler):
        def reseed(self, seed):
            seen.append((seed, self.observations()))
            seed_generators(self, seed)

    def make(config, space, seed, observations, reference):
        sampler = Reading(seed=seed)
        sampler.observations = observations
        made.append(sampler)
        return sampler

    made = []
    monkeypatch.setattr("mvsearch.driver.search.make_sampler", make)
    bad = search_in(tmp_path).space.baselines()["first half"].key
    made.clear()
    search = search_in(tmp_path, *RUNGS_OF_TWO, make=MakeFakeWorker(faults=((bad, "raise late"),)))
    search.run()
    assert len(made) == 1
    assert len({seed for seed, _ in seen}) == len(seen)
    last = {found.layout.key: found for found in seen[-1][1]}
    records = {record.key: record for record in search.records()}
    assert set(last) <= set(records)
    ended = [found for key, found in last.items() if not found.under_way]
    assert {len(found.qualities) for found in ended} == {1, 2}
    for found in ended:
        record = records[found.layout.key]
        assert found.throughput == record.log2_ratio
        assert found.qualities == tuple(rung.qualities("nll") for rung in record.rungs)[: len(found.qualities)]
        assert found.failed == (record.state == FAILED)
    assert last[bad].failed


RUNGS_OF_TWO = ("search.sampler=random", "proxy.epochs=6", "fidelity={eta: 3, rungs: 2}", "search.trials=8")
