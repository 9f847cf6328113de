"""calibrate and confirm with a worker that measures nothing: what is trained, kept, resumed and refused."""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter

import pytest
import yaml
from fakes import MakeFakeWorker, true_nll
from searches import search_in
from typer.testing import CliRunner

from mambavision.layout import HybridLayout
from mvsearch.analysis.findings import Findings
from mvsearch.analysis.plans import plan_calibrate, plan_confirm
from mvsearch.cli import app
from mvsearch.driver.repeat import Repeat, repeat
from mvsearch.driver.status import read_status
from mvsearch.driver.stop import Interrupted
from mvsearch.driver.view import View
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.opening import Resources
from mvsearch.pool.replay import ReplayPool
from mvsearch.report import write_tables
from mvsearch.study.data import load_study
from mvsearch.study.files import StudyError, driver_lock
from mvsearch.study.folder import StudyFolder, same_data
from mvsearch.study.ledger import read_evaluations
from mvsearch.study.record import trial_records
from mvsearch.terminal.tables import repeat_line

EPOCHS = 2


DATA = ["proxy.data=digits", "proxy.train_images=320", "proxy.val_images=100", f"proxy.epochs={EPOCHS}"]


ENVIRONMENT = {
    "device": "none",
    "scan": "loop",
    "reference": "none",
    "command": "mvsearch launch",
    "versions": {"mvsearch": "0", "torch": "0"},
    "data": {
        "name": "digits",
        "fingerprint": "of no data",
        "classes": 10,
        "channels": 1,
        "train_images": 320,
        "val_images": 100,
        "class_names": list("0123456789"),
        "mean": [0.5],
        "std": [0.5],
        "licence": "none",
    },
}


def searched_in(path, *overrides):
    search = search_in(path, *DATA, *overrides, brief=True)
    search.folder.record_environment({**ENVIRONMENT, "launch": {"workers": 1}})
    search.run()
    return search.folder


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished study of 14 layouts; look, and do not touch."""
    return searched_in(tmp_path_factory.mktemp("searched"))


@pytest.fixture
def folder(searched, tmp_path):
    """A copy of it."""
    return StudyFolder(shutil.copytree(searched.path, tmp_path / "studies" / searched.name))


def repeated(folder, make_plan, *, make=None, pool=None, **more):
    pool = pool or ReplayPool(make or MakeFakeWorker())
    return Repeat(folder, make_plan(load_study(folder)), pool, **more)


def lines_of(folder, purpose):
    return [line for line in read_evaluations(folder.ledger) if line.purpose == purpose]


class StopAfter(View):
    """Sends a signal to its own process at so many calls."""

    def __init__(self, calls):
        self.calls = calls

    def update(self, state):
        self.calls -= 1
        if self.calls == 0:
            signal.raise_signal(signal.SIGTERM)


def test_calibrate_trains_long_and_fresh_and_changes_nothing_of_the_search(folder):
    before = load_study(folder)
    write_tables(Findings(load_study(folder)), folder.path)
    trials = (folder.path / "trials.csv").read_bytes()
    run = repeated(folder, lambda study: plan_calibrate(study, layouts=12))
    outcome = run.run()
    assert (outcome.done, outcome.failed, outcome.left) == (12, 0, 0)
    lines = lines_of(folder, "calibrate")
    assert Counter(line.key for line in lines) == dict.fromkeys((r.key for r in run.plan.records), 8)
    assert {(line.from_epoch, line.to_epoch) for line in lines} == {(0, 2), (2, 4), (4, 6), (6, 8)}
    assert {line.seed for line in lines} == {500, 501}
    searched_lines = [line for line in read_evaluations(folder.ledger) if line.purpose == "search"]
    assert {line.seed for line in searched_lines if line.what == "train"} == {0}
    study = load_study(folder)
    assert study.records == before.records == trial_records(searched_lines, epochs=EPOCHS, seeds=1)
    assert (study.started, study.ended) == (before.started, before.ended)
    write_tables(Findings(load_study(folder)), folder.path)
    assert (folder.path / "trials.csv").read_bytes() == trials
    found = Findings(study).calibration
    # The fake's long training is its true value with little noise, and so is its proxy.
    assert (len(found.layouts), found.seeds, found.long_epochs, found.verdict) == (12, 2, 8, "green")
    one = found.layouts[3]
    layout = HybridLayout.from_dict(one.layout)
    assert one.longs == tuple(-true_nll(layout, seed) for seed in (500, 501))
    assert not (folder.path / "calibrate-checkpoints").exists()
    front = (folder.path / "front.csv").read_text()
    assert "green" in front


def test_hand_made_layouts_come_first_and_the_same_command_finds_all_done(folder, tmp_path):
    log = tmp_path / "log"
    make = MakeFakeWorker(log=log)
    run = repeated(folder, lambda study: plan_calibrate(study, layouts=13), make=make)
    run.run()
    begun = list(dict.fromkeys(line.split()[1] for line in log.read_text().splitlines()))
    assert begun[:5] == [record.key for record in run.plan.records if record.baseline]
    assert len(begun) == 13
    log.unlink()
    again = repeated(folder, lambda study: plan_calibrate(study, layouts=13), make=make).run()
    assert (again.done, again.utilisation) == (13, None)
    assert not log.exists()
    # Another seed is only what is missing; what was begun with stays.
    repeated(folder, lambda study: plan_calibrate(study, layouts=12, seeds=3), make=make).run()
    assert {line.split()[2] for line in log.read_text().splitlines()} == {"502"}


@pytest.mark.parametrize("calls", [3, 40, 90])
def test_a_stopped_run_goes_on_and_measures_nothing_twice(folder, calls):
    def plan(study):
        return plan_calibrate(study, layouts=12)

    with pytest.raises(Interrupted):
        repeated(folder, plan, view=StopAfter(calls), pool=InlinePool(MakeFakeWorker(), None)).run()
    part = lines_of(folder, "calibrate")
    assert len(part) < 96
    repeated(folder, plan, pool=ReplayPool(MakeFakeWorker(), devices=3)).run()
    lines = lines_of(folder, "calibrate")
    assert len({line.identity for line in lines}) == len(lines) == 96
    assert lines[: len(part)] == part
    assert all(line.from_epoch == line.to_epoch - EPOCHS for line in lines), "each goes on from its checkpoint"


def test_a_missing_checkpoint_costs_the_training_again_and_that_is_said(folder):
    class Told(StopAfter):
        said = ""

        def notice(self, text):
            self.said += text

    with pytest.raises(Interrupted):
        repeated(folder, plan_calibrate, view=StopAfter(5)).run()
    shutil.rmtree(folder.path / "calibrate-checkpoints")
    view = Told(0)
    repeated(folder, plan_calibrate, view=view).run()
    assert "is missing; it is trained again from the start" in view.said
    assert Findings(load_study(folder)).calibration.verdict == "green"


def test_nothing_is_begun_when_the_time_is_over(folder):
    outcome = repeated(folder, plan_confirm, hours=1e-12, make=MakeFakeWorker(seconds=0.001)).run()
    assert (outcome.done, outcome.left) == (0, outcome.wanted)
    assert len(lines_of(folder, "confirm")) == 1
    outcome = repeated(folder, plan_confirm).run()
    assert (outcome.left, outcome.failed) == (0, 0)


def test_a_layout_that_fails_is_left_alone_and_said_and_tried_again_by_the_next_call(folder, tmp_path):
    study = load_study(folder)
    bad = plan_calibrate(study).records[2].key
    make = MakeFakeWorker(faults=((bad, "raise late"),))
    outcome = repeated(folder, plan_calibrate, make=make).run()
    assert (outcome.failed, outcome.left) == (1, 0)
    found = Findings(load_study(folder)).calibration
    assert (found.failed, len(found.layouts)) == (1, outcome.done)
    assert bad not in {one.key for one in found.layouts}
    (failure,) = [line for line in lines_of(folder, "calibrate") if line.what == "fail"]
    assert (failure.key, failure.reason) == (bad, "train: it broke")
    assert next(record for record in load_study(folder).records if record.key == bad).state == "COMPLETE"

    # What fails for a reason that stays costs one stretch of one training a call, after everything else.
    log = tmp_path / "log"
    make = MakeFakeWorker(faults=((bad, "raise late"),), log=log)
    outcome = repeated(folder, lambda study: plan_calibrate(study, seeds=3), make=make).run()
    assert (outcome.failed, outcome.left) == (1, 0)
    assert [line.split()[1:] for line in log.read_text().splitlines()][-1] == [bad, "500", "2", "4"]
    assert sum(bad in line for line in log.read_text().splitlines()) == 1
    assert Findings(load_study(folder)).calibration.failed == 1

    log.unlink()
    outcome = repeated(folder, lambda study: plan_calibrate(study, seeds=3), make=MakeFakeWorker(log=log)).run()
    assert (outcome.failed, outcome.left) == (0, 0)
    begun = [line.split()[1:] for line in log.read_text().splitlines()]
    assert {key for key, *_ in begun} == {bad}
    assert [stretch for _, seed, *stretch in begun if seed == "500"] == [["2", "4"], ["4", "6"], ["6", "8"]]
    found = Findings(load_study(folder)).calibration
    assert (found.failed, found.unfinished) == (0, 0)
    assert bad in {one.key for one in found.layouts}
    assert not (folder.path / "calibrate-checkpoints").exists()


def test_jobs_may_take_longer_than_those_of_the_search_by_their_epochs(folder, monkeypatch):
    """Through `repeat` itself, with the limit of the study; only the data and the devices are not there."""
    fidelity = {"eta": 2, "rungs": 2}
    settings = yaml.safe_load(folder.config.read_text()) | {"fidelity": fidelity}
    settings["search"] |= {"job_minutes": 3.0, "sampler": "random"}
    settings["proxy"] |= {"warmup_epochs": 0}
    folder.config.write_text(yaml.safe_dump(settings))
    jobs = []

    class Watched:
        def __init__(self, *arguments):
            self.fake = MakeFakeWorker()(*arguments)

        def run(self, job):
            jobs.append(job)
            yield from self.fake.run(job)

    monkeypatch.setattr("mvsearch.driver.repeat.same_data", lambda *_: None)
    monkeypatch.setattr("mvsearch.driver.repeat.open_pool", lambda make, data, where: ReplayPool(Watched))
    nothing = {"resources": Resources(), "view": View(), "on_start": lambda plan, pool, done: None}
    repeat(folder, lambda study: plan_calibrate(study, layouts=12), **nothing)
    # The longest job of that search would be an epoch.
    assert {(job.to_epoch - job.from_epoch, job.limit_s) for job in jobs} == {(2, 2 * 180.0)}
    assert jobs[0].over_limit == "train: took longer than search.job_minutes allows for 2 epochs, 6"


def test_a_job_whose_process_is_gone_is_tried_once_more(folder):
    class Forgetful:
        """Ends the first job of each seed without a result."""

        def __init__(self):
            self.lost = Counter()
            self.fake = MakeFakeWorker()("w", "cpu", 1, None)

        def run(self, job):
            self.lost[job.seed] += 1
            if self.lost[job.seed] > 1:
                yield from self.fake.run(job)

    worker = Forgetful()
    outcome = repeated(folder, plan_confirm, pool=ReplayPool(lambda *arguments: worker)).run()
    assert (outcome.failed, outcome.left) == (0, 0)
    assert all(count == outcome.wanted + 1 for count in worker.lost.values())

    class Gone:
        def run(self, job):
            return iter(())

    shutil.copy(folder.ledger, folder.path / "kept")
    few = repeated(folder, lambda study: plan_confirm(study, seeds=4), pool=ReplayPool(lambda *arguments: Gone())).run()
    assert few.failed == few.wanted
    reasons = {line.reason for line in lines_of(folder, "confirm") if line.what == "fail"}
    assert reasons == {"train: worker replay-0 ended the job without a result, 2 times"}


def test_confirm_keeps_the_weights_of_its_first_seed_and_leaves_the_searchs(folder):
    kept = {path.name: path.read_bytes() for path in folder.weights.iterdir()}
    outcome = repeated(folder, plan_confirm).run()
    study = load_study(folder)
    keys = {record.key for record in [*study.front, *study.baselines]}
    assert outcome.done == len(keys)
    assert {path.stem for path in folder.confirmed_weights.iterdir()} == keys
    assert {path.name: path.read_bytes() for path in folder.weights.iterdir()} == kept
    found = Findings(study).confirmation
    assert (found.seeds, found.missing, {one.key for one in found.layouts}) == (3, (), keys)
    assert {line.seed for line in lines_of(folder, "confirm")} == {700, 701, 702}
    assert all(line.values["test_images"] == 64 for line in lines_of(folder, "confirm"))
    # The search goes on as if nothing had been.
    more = search_in(folder.path.parent, *DATA, "search.trials=15", brief=True)
    assert more.run().complete == 15
    assert Findings(load_study(folder)).confirmation.seeds == 3


class Asks(StopAfter):
    """Asks for the status, as another terminal would, whenever a layout is done."""

    def __init__(self, folder, calls=0):
        super().__init__(calls)
        self.folder = folder
        self.seen = []

    def repeated(self, record, nll, reason, state):
        self.seen.append(read_status(self.folder).repeats[-1])


def status_of(folder):
    """Its lines about `calibrate` and `confirm`, as they are printed."""
    done = CliRunner().invoke(
        app, ["status", folder.name, "--studies", str(folder.path.parent)], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    return [line for line in done.stdout.splitlines() if line.startswith(("Calibrate", "Confirm"))]


def test_the_status_says_how_far_calibrate_and_confirm_are(folder, monkeypatch):
    monkeypatch.setattr("mvsearch.driver.status.EVERY_S", 0.0)
    assert status_of(folder) == []
    view = Asks(folder, calls=60)
    with pytest.raises(Interrupted):
        repeated(folder, plan_calibrate, view=view, pool=InlinePool(MakeFakeWorker(seconds=0.001), None)).run()
    assert len(view.seen) >= 3
    assert all(found.driver.running for found in view.seen)
    counts = [found.driver.state.finished for found in view.seen]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert re.fullmatch(r"Calibrate  \d of 14 layouts, \d s, ends about \d\d:\d\d( on .*)?", repeat_line(view.seen[-1]))
    (line,) = status_of(folder)
    assert line.endswith(" of 14 layouts, not running, the same command goes on; no verdict under 12 layouts")

    bad = load_study(folder).front[0].key
    repeated(folder, plan_calibrate).run()
    repeated(folder, plan_confirm, make=MakeFakeWorker(faults=((bad, "raise"),))).run()
    first, second = status_of(folder)
    found = Findings(load_study(folder)).calibration.tau
    assert first.startswith(f"Calibrate  14 of 14 layouts; verdict green, Kendall's tau {found.tau:.2f} (95 % interval")
    volume = Findings(load_study(folder)).confirmation.hypervolume
    assert re.match(r"Confirm    (\d+) of \1 layouts, 1 failed; the front's hypervolume", second)
    assert f" {volume.test:.3f} on the test images, {volume.observed:.3f} as searched; 1 of the present front" in second

    # Of a study whose small files are gone, the ledger still tells.
    folder.repeat_status("calibrate").unlink()
    assert status_of(folder)[0].startswith("Calibrate  14 layouts; verdict green")


def test_calibration_and_confirmation_wait_for_their_layouts(folder):
    with pytest.raises(Interrupted):
        repeated(folder, plan_calibrate, view=StopAfter(30), pool=InlinePool(MakeFakeWorker(), None)).run()
    found = Findings(load_study(folder)).calibration
    assert found.verdict is None
    assert found.unfinished >= 1


BAD = {
    "unknown study": (["calibrate", "stagewide"], "Did you mean 'stagewise'"),
    "too few layouts asked for": (["calibrate", "stagewise", "--layouts", "11"], "layouts: 11 is not allowed"),
    "short": (["calibrate", "stagewise", "--budget-factor", "3"], "budget-factor: 3 is not allowed; 4 to 8"),
    "long": (["calibrate", "stagewise", "--budget-factor", "9"], "budget-factor: 9 is not allowed; 4 to 8"),
    "one seed": (["calibrate", "stagewise", "--seeds", "1"], "seeds: 1 is not allowed; 2 to 100"),
    "no hours": (["calibrate", "stagewise", "--hours", "0"], "hours: 0 is not allowed"),
    "hours without end": (["confirm", "stagewise", "--hours", "nan"], "hours: nan is not allowed"),
    "unknown study to confirm": (["confirm", "nothing"], "nothing"),
    "none of the front": (["confirm", "stagewise", "--layouts", "0"], "layouts: 0 is not allowed"),
    "no error bar": (["confirm", "stagewise", "--seeds", "1"], "seeds: 1 is not allowed"),
    "data changed": (["confirm", "stagewise", "--workers", "1"], "the data has changed since the study was started"),
    "no weights of confirm": (["export", "stagewise", "--weights", "confirmed"], "run `mvsearch confirm stagewise`"),
    "no such weights": (["export", "stagewise", "--weights", "best"], "weights: 'best' is not allowed"),
    "no epochs": (["export", "stagewise", "--retrain", "0"], "retrain: 0 is not allowed"),
    "two sets of weights": (["export", "stagewise", "--retrain", "2", "--weights", "searched"], "exclude each other"),
    "data changed since": (["export", "stagewise", "--retrain", "2"], "the data has changed since"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_leaves_the_ledger_alone(folder, monkeypatch, tmp_path, case):
    arguments, named = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(tmp_path / "library"))
    ledger = folder.ledger.read_bytes()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert named in " ".join(done.stderr.split())
    assert folder.ledger.read_bytes() == ledger
    assert not (tmp_path / "library").exists()


def test_a_launch_refuses_changed_data_in_the_words_of_confirm_and_export(folder):
    written = folder.environment.read_bytes()
    changed = {**ENVIRONMENT, "data": {**ENVIRONMENT["data"], "fingerprint": "of others"}, "launch": {"workers": 1}}
    said = "the data has changed since the study was started (fingerprint of no data then, of others now)"
    for refuse in (
        lambda: folder.record_environment(changed),
        lambda: same_data("stagewise", load_study(folder).fingerprint, "of others"),
    ):
        with pytest.raises(StudyError, match=re.escape(said)):
            refuse()
    assert folder.environment.read_bytes() == written


def test_a_busy_study_is_refused(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with driver_lock(folder.path):
        for arguments in (
            ["calibrate", "stagewise"],
            ["confirm", "stagewise"],
            ["export", "stagewise", "--retrain", "2"],
        ):
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 2
            assert "is being run by another driver" in done.stderr


def test_too_few_layouts_and_no_front_are_refused(tmp_path):
    few = load_study(searched_in(tmp_path, "search.trials=7"))
    with pytest.raises(StudyError, match="only 7 layouts are trained in full, and calibrate needs 12"):
        plan_calibrate(few)
    (tmp_path / "none").mkdir()
    search = search_in(tmp_path / "none", *DATA, brief=True, make=MakeFakeWorker(faults=(("*", "raise"),)))
    search.folder.record_environment({**ENVIRONMENT, "launch": {"workers": 1}})
    with pytest.raises(Exception, match="all 14 trials failed"):
        search.run()
    with pytest.raises(StudyError, match="there is no front to confirm"):
        plan_confirm(load_study(search.folder))
