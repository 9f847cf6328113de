"""Where the sampler's memory is kept: the journal, a real PostgreSQL, and the dashboard on either."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import optuna
import pytest
from fakes import MakeFakeWorker
from optuna.trial import TrialState
from searches import THREE_RUNGS, StopAfter, search_in, search_with, told, trials_of
from typer.testing import CliRunner

from mvsearch import cli
from mvsearch.config.reading import load_config
from mvsearch.driver.asking import LayoutAsker
from mvsearch.driver.stop import Interrupted
from mvsearch.driver.trials import StoredTrials, connect, open_optuna_study
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.pool import PoolFailed
from mvsearch.space.space import SearchSpace
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL server of this test: a unix socket in a folder of its own, run by a user that is not root."""
    initdb = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if initdb is None:
        pytest.skip("PostgreSQL's programs are not here (apt-get install postgresql)")
    become = []
    folder = Path(tempfile.mkdtemp(prefix="mvsearch-postgres-"))
    if os.getuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        os.chown(folder, user.pw_uid, user.pw_gid)
    quiet = {"check": True, "capture_output": True, "cwd": folder}
    subprocess.run([*become, initdb, "-D", folder / "data", "-U", "postgres", "-A", "trust", "-N"], **quiet)
    options = f"-F -c listen_addresses= -k {folder}"
    server = [*become, Path(initdb).with_name("pg_ctl"), "-D", folder / "data"]
    subprocess.run([*server, "-w", "-o", options, "-l", folder / "log", "start"], **quiet)
    yield f"postgresql://postgres@/postgres?host={folder}"
    subprocess.run([*server, "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder)


def kept(url, search):
    name = search.folder.database_name.read_text().strip()
    return optuna.load_study(study_name=name, storage=connect(url))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("search.trials=12",), (*THREE_RUNGS, "search.trials=7")])
def test_in_postgresql_a_search_is_stopped_and_goes_on_as_in_a_journal(postgres, tmp_path, overrides):
    (tmp_path / "journal").mkdir()
    journal = search_in(tmp_path / "journal", *overrides)
    journal.run()
    path = tmp_path / "database"
    first = search_with(postgres, path, *overrides, view=StopAfter(16, signal.SIGTERM))
    with pytest.raises(Interrupted):
        first.run()
    assert not [t for t in kept(postgres, first).get_trials() if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    second = search_with(postgres, path, *overrides)
    assert 0 < len(second.records()) < len(journal.records())
    second.run()
    assert told(second) == told(journal)
    assert not second.folder.journal.exists()
    here, there = trials_of(second), kept(postgres, second).get_trials()
    assert [(t.number, t.state, t.values, t.params) for t in here] == [
        (t.number, t.state, t.values, t.params) for t in there
    ]
    for ours, theirs in zip(here, there, strict=True):
        assert ours.user_attrs.items() <= theirs.user_attrs.items()
        assert ours.constraints == theirs.constraints


KILLED = """
import os
from pathlib import Path
import mvsearch.driver.trials
from searches import search_with
real, count = mvsearch.driver.trials.StoredTrials.{method}, 0
def dying(*args, **kwargs):
    global count
    count += 1
    if count == {moment}:
        os.kill(os.getpid(), 9)
    return real(*args, **kwargs)
mvsearch.driver.trials.StoredTrials.{method} = dying
search_with({url!r}, Path({path!r}), "search.trials=12").run()
"""


@pytest.mark.slow
def test_a_driver_killed_beside_postgresql_leaves_nothing_running(postgres, tmp_path):
    (tmp_path / "journal").mkdir()
    journal = search_in(tmp_path / "journal", "search.trials=12")
    journal.run()
    path = tmp_path / "database"
    for method, moment in (("begin", 4), ("tell", 5)):
        code = KILLED.format(url=postgres, path=str(path), method=method, moment=moment)
        died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        assert died.returncode == -signal.SIGKILL, died.stderr
    whole = search_with(postgres, path, "search.trials=12")
    whole.run()
    assert told(whole) == told(journal)
    assert not [t for t in kept(postgres, whole).get_trials() if t.state == TrialState.RUNNING]


@pytest.mark.slow
def test_studies_of_one_name_in_one_database_do_not_meet(postgres, tmp_path):
    mine = search_with(postgres, tmp_path / "mine", "search.trials=6", "search.seed=1")
    yours = search_with(postgres, tmp_path / "yours", "search.trials=7", "search.seed=2")
    mine.run()
    yours.run()
    assert len(told(mine)) == 6
    assert len(told(yours)) == 7
    assert mine.folder.name == yours.folder.name
    names = {search.folder.database_name.read_text() for search in (mine, yours)}
    assert len(names) == 2
    assert len(kept(postgres, mine).get_trials(states=[TrialState.COMPLETE])) == 6


def test_in_an_empty_storage_what_the_ledger_holds_counts(tmp_path):
    settings = ("search.trials=9", "search.sampler=known_cost")
    first = search_in(tmp_path, *settings)
    first.run()
    first.folder.journal.unlink()
    again = search_in(tmp_path, *settings)
    assert again.run().complete == 9
    assert len(again.ledger.evaluations) == len(first.ledger.evaluations)
    assert sorted(told(again)) == sorted(told(first))


def test_in_an_empty_storage_no_two_layouts_get_one_number(tmp_path):
    settings = ("search.sampler=tpe", "budgets.params.max=90000")
    first = search_in(tmp_path, *settings, "search.trials=10")
    first.run()
    first.folder.journal.unlink()
    again = search_in(tmp_path, *settings, "search.trials=16")
    assert again.run().complete == 16
    numbers = [record.number for record in again.records()]
    assert len(set(numbers)) == 16
    assert numbers[:10] == [record.number for record in first.records()]


@pytest.mark.slow
def test_a_study_goes_on_in_another_storage_and_nothing_is_measured_again(tmp_path):
    first = search_in(tmp_path, "search.trials=7", "search.sampler=random")
    first.run()
    url = f"sqlite:///{tmp_path}/trials.db"
    again = search_with(url, tmp_path, "search.trials=8", "search.sampler=random")
    lines = len(again.ledger.evaluations)
    assert again.run().complete >= 8
    identities = [line.identity for line in again.ledger.evaluations]
    assert len(identities) == len(set(identities)) >= lines


def test_a_trial_enqueued_from_outside_is_the_next(tmp_path):
    search_in(tmp_path, "search.trials=6", "search.sampler=random").run()
    study = open_optuna_study(StudyFolder(tmp_path / "stagewise")).study
    last = study.get_trials()[-1]
    wanted = {**last.params, "width": next(w for w in (12, 16, 20, 24) if w != last.params["width"])}
    study.enqueue_trial(wanted)
    again = search_in(tmp_path, "search.trials=7", "search.sampler=random")
    again.run()
    enqueued = open_optuna_study(again.folder).study.get_trials()[last.number + 1]
    assert enqueued.params == wanted
    assert enqueued.state == TrialState.COMPLETE
    assert "key" in enqueued.user_attrs


def test_a_trial_enqueued_from_outside_is_asked_for_again_after_a_kill(tmp_path):
    settings = ("search.trials=7", "search.sampler=random")
    search_in(tmp_path, "search.trials=6", "search.sampler=random").run()
    opened = open_optuna_study(StudyFolder(tmp_path / "stagewise"))
    params = opened.study.get_trials()[-1].params
    wanted = {**params, "width": next(w for w in (12, 16, 20, 24) if w != params["width"])}
    opened.study.enqueue_trial(wanted)
    space = SearchSpace(load_config("stagewise", settings), num_classes=10, in_chans=1)
    assert LayoutAsker(space, StoredTrials(opened), seed=0).ask()  # and nobody tells it
    again = search_in(tmp_path, *settings)
    again.run()
    assert again.space.decode(wanted).key in {record.key for record in again.records()}


class Broken(InlinePool):
    """Has no worker left before anything is measured."""

    def events(self, timeout):
        raise PoolFailed("the device is gone")


def test_in_a_database_too_a_study_that_measured_nothing_is_forgotten(tmp_path):
    url = f"sqlite:///{tmp_path}/trials.db"
    first = search_with(url, tmp_path, pool=Broken(MakeFakeWorker(), None))
    with pytest.raises(PoolFailed):
        first.run()
    again = search_with(url, tmp_path, "layout.width=[8, 12]", "search.trials=6", "search.sampler=random")
    assert again.run().complete == 6
    assert all(record.layout["stages"][0]["dim"] in (8, 12) for record in again.records())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://postgres@/x?host=/nowhere", "cannot be opened"),
        ("oracle9://host/name", "of no database that SQLAlchemy knows"),
        ("mysql+oursql://host/name", "storage: mysql+oursql://host/name"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_message(url, says):
    with pytest.raises(StudyError, match=r"^storage: .*") as refused:
        connect(url)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyError, match=r"needs a package that is not here .*mvsearch\[postgres\]"):
        connect("postgresql://host/name")


@pytest.mark.slow
def test_a_database_that_goes_away_ends_the_search_with_one_message_and_it_goes_on_later(tmp_path):
    url = f"sqlite:///{tmp_path}/trials.db"
    search = search_with(url, tmp_path / "s", "search.trials=8", "search.sampler=random")
    real, left = StoredTrials.tell, [4]

    def failing(self, *args, **more):
        left[0] -= 1
        if not left[0]:
            (tmp_path / "trials.db").write_bytes(b"not a database" * 1000)
        real(self, *args, **more)

    backup = tmp_path / "backup"
    StoredTrials.tell = failing
    try:
        shutil.copy(tmp_path / "trials.db", backup)
        with pytest.raises(OSError, match="storage: the database does not answer"):
            search.run()
    finally:
        StoredTrials.tell = real
    shutil.copy(backup, tmp_path / "trials.db")
    again = search_with(url, tmp_path / "s", "search.trials=8", "search.sampler=random")
    assert again.run().complete == 8


def test_what_the_dashboard_needs_is_named(tmp_path, monkeypatch):
    search_in(tmp_path, "search.trials=5").run()

    def invoke(*arguments):
        return CliRunner().invoke(cli.app, ["dashboard", *arguments, "--studies", str(tmp_path)])

    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    missing = invoke("stagewise")
    assert missing.exit_code == 2
    assert "pip install 'mvsearch[dashboard]'" in missing.output.replace("\n", "")
    monkeypatch.undo()
    (tmp_path / "stagewise" / "journal.log").unlink()
    empty = invoke("stagewise")
    assert empty.exit_code == 2
    assert "its sampler has no memory yet" in empty.output.replace("\n", "")


@pytest.fixture
def page(tmp_path):
    """A page of a headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser.new_page()
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["journal", "postgresql"])
def test_the_dashboard_shows_both_objectives_and_changes_nothing(request, page, tmp_path, where):
    if where == "journal":
        search = search_in(tmp_path, "search.trials=12")
    else:
        url = request.getfixturevalue("postgres")
        search = search_with(url, tmp_path, "search.trials=12")
    search.run()
    before = search.folder.journal.read_bytes() if where == "journal" else b""
    code = "from mvsearch.cli import main; main()"
    command = [sys.executable, "-u", "-c", code, "dashboard", "stagewise", "--port", "0", "--studies", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[0]
            page.goto(address)
            for objective in ("quality (nll)", "log2 throughput ratio"):
                page.wait_for_function(f"document.body.textContent.includes({objective!r})", timeout=60_000)
            if where == "journal":
                api = address.replace("dashboard/studies", "api/studies")
                with pytest.raises(urllib.error.HTTPError):
                    urllib.request.urlopen(urllib.request.Request(api, method="DELETE"), timeout=30)
                assert search.folder.journal.read_bytes() == before
        finally:
            server.terminate()  # not SIGINT, which a test run started in the background passes on as ignored
            server.wait(timeout=20)
