"""What ends a search, and how long it takes: rules, estimates, and what is said of both."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState
from rich.console import Console
from searches import replaying, search_in, study_in

from mvsearch.driver.estimate import planned
from mvsearch.driver.running_front import RunningFront
from mvsearch.driver.status import read_status
from mvsearch.driver.view import View
from mvsearch.pool.replay import ReplayPool
from mvsearch.report import words
from mvsearch.study.data import load_study
from mvsearch.study.front import hypervolume_history
from mvsearch.study.record import COMPLETE
from mvsearch.terminal.live import panel
from mvsearch.terminal.tables import print_outcome

FULL = ("search.sampler=random", "proxy.epochs=9")


RUNGS = (*FULL, "fidelity={eta: 3, rungs: 3}")


def replayed(path, *overrides, devices=3, view=None):
    return search_in(path, *overrides, brief=True, view=view, pool=replaying(devices))


def hours(search):
    return sum(line.ended - line.started for line in search.ledger.evaluations) / 3600


def test_the_rule_that_was_met_is_named(tmp_path):
    ends = {}
    for name, rule in (
        ("trials", ("search.trials=8",)),
        ("hours", ("search.trials=400", "search.hours=0.2")),
        ("device_hours", ("search.trials=400", "search.device_hours=0.5")),
        ("plateau", ("search.trials=400", "search.plateau={trials: 6, gain: 0.001}")),
    ):
        (tmp_path / name).mkdir()
        search = replayed(tmp_path / name, *FULL, *rule)
        ends[name] = (search, search.run())
    assert {name: end.stopped.split(" ")[0] for name, (_, end) in ends.items() if name != "plateau"} == {
        "trials": "search.trials", "hours": "search.hours", "device_hours": "search.device_hours",
    }  # fmt: skip
    assert ends["trials"][1].complete == 8
    search, end = ends["device_hours"]
    longest = max(line.ended - line.started for line in search.ledger.evaluations) / 3600
    assert 0.5 <= hours(search) <= 0.5 + 2 * 3 * longest, "what is under way is finished"
    assert end.device_hours == pytest.approx(hours(search))
    search, end = ends["plateau"]
    assert end.stopped.startswith("the hypervolume grew by")
    assert end.stopped.endswith("over the last 6 layouts (search.plateau: at most 0.10%)")
    assert 11 <= end.complete < 400
    assert search.state().stopping == end.stopped


def test_device_hours_count_all_launches_and_may_be_raised(tmp_path):
    first = replayed(tmp_path, *FULL, "search.trials=400", "search.device_hours=0.3")
    first.run()
    again = search_in(tmp_path, *FULL, "search.trials=400", "search.device_hours=0.3")
    assert again.run().stopped.startswith("search.device_hours")
    assert len(again.ledger.evaluations) == len(first.ledger.evaluations)


@pytest.mark.parametrize("order", [1, -1])
def test_the_gain_is_that_of_the_last_layouts_to_end(tmp_path, order):
    search = replayed(tmp_path, *FULL, "search.trials=20")
    search.run()
    records = [record for record in search.records() if record.state == COMPLETE]
    areas = [step.hypervolume for step in hypervolume_history(records, search.observed.standing.reference(), "nll")]
    standing = RunningFront("nll", 10, 5)
    for record in sorted(records, key=lambda record: order * record.ended)[: 19 if order == 1 else 20]:
        standing.update(record)
        standing.gain(10)
    assert standing.gain(19) is None
    standing.update(max(records, key=lambda record: record.ended))
    for last in (1, 5, 12):
        assert standing.gain(last) == pytest.approx(areas[-1] / areas[-1 - last] - 1)


@pytest.mark.parametrize("overrides", [(*FULL, "search.trials=30"), (*RUNGS, "search.trials=15", "proxy.seeds=2")])
def test_what_is_planned_is_about_what_is_done(tmp_path, overrides):
    search = replayed(tmp_path, *overrides)
    search.run()
    timed, epochs = planned(search.config, search.config.search.trials, 5)
    lines = search.ledger.evaluations
    trained = sum(line.to_epoch - line.from_epoch for line in lines if line.what == "train")
    if search.config.fidelity is None:
        assert (timed, epochs) == (sum(line.what == "time" for line in lines), trained)
    else:
        assert epochs == pytest.approx(trained, rel=0.3)


class Heard(View):
    estimates = ()

    def estimated(self, seconds, device_hours):
        self.estimates = (*self.estimates, (seconds, device_hours))


def test_an_estimate_is_made_once_early_and_compared_with_what_it_took(tmp_path):
    view = Heard()
    search = replayed(tmp_path, *FULL, "search.trials=30", view=view)
    outcome = search.run()
    ((seconds, device_hours),) = view.estimates
    assert (outcome.estimate.seconds, outcome.estimate.device_hours) == (seconds, device_hours)
    assert seconds == pytest.approx(outcome.seconds, rel=0.5)
    assert device_hours == pytest.approx(outcome.device_hours, rel=0.5)
    assert outcome.device_hours == pytest.approx(hours(search))
    assert search.state().remaining == 0


@pytest.mark.parametrize("rule", ["search.hours=0.5", "search.device_hours=0.5"])
def test_an_estimate_knows_the_rules_that_end_the_search(tmp_path, rule):
    view = Heard()
    search = replayed(tmp_path, *FULL, "search.trials=400", rule, view=view)
    outcome = search.run()
    assert outcome.stopped.startswith(rule.partition("=")[0])
    ((seconds, device_hours),) = view.estimates
    assert seconds == pytest.approx(outcome.seconds, rel=0.3)
    assert device_hours == pytest.approx(outcome.device_hours, rel=0.3)


def test_a_launch_says_why_it_ended_and_how_far_off_it_was(tmp_path):
    search = study_in(tmp_path)
    outcome = search.run()
    out = Console(width=300, record=True, file=io.StringIO())
    loaded = load_study(search.folder)
    object.__setattr__(loaded, "environment", {**loaded.environment, "device": "cpu", "scan": "loop"})
    guess = SimpleNamespace(seconds=2 * outcome.seconds, device_hours=outcome.device_hours / 2)
    outcome = SimpleNamespace(**{**vars(outcome), "estimate": guess})
    print_outcome(out, loaded, ["report.html"], loaded.name, outcome)
    text = out.export_text()
    assert "14 layouts trained in full. Stopped because search.trials = 14 are done." in text
    assert "off by +100% and −50%" in text
    out.print(panel(read_status(search.folder).state))
    assert "device-hours   estimate for this launch:" in out.export_text()


class Elsewhere(ReplayPool):
    """Devices that are not this process."""

    in_process = False


@pytest.mark.parametrize(("takes", "ahead"), [(0.0, False), (1e6, True)])
def test_a_slow_ask_is_made_while_the_workers_are_busy(tmp_path, monkeypatch, takes, ahead):
    clock = iter(float(takes * number) for number in range(10**6))
    monkeypatch.setattr("mvsearch.driver.search.time.perf_counter", lambda: next(clock))
    waiting = []

    class Watching(View):
        def update(self, state):
            under_way = len(search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
            waiting.append((search.pool.idle(), under_way))

    pool = replaying(2, make=Elsewhere)
    search = search_in(tmp_path, *FULL, "search.trials=12", brief=True, view=Watching(), pool=pool)
    outcome = search.run()
    assert outcome.complete == 12
    assert any(active == 3 for idle, active in waiting if not idle) is ahead
    assert max(active for _, active in waiting) <= 3


def test_hours_are_never_written_with_an_exponent():
    assert [words.hours(value) for value in (0.0631, 7.46, 99.4, 150.2, 1234.5)] == [
        "0.063",
        "7.5",
        "99",
        "150",
        "1,234",
    ]
