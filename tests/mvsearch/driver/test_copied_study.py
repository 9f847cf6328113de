"""A study is what lies in its folder: copied or renamed, it goes on where it lies, and the original stays as it was."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from fakes import MakeFakeWorker
from optuna.trial import TrialState
from typer.testing import CliRunner

from mvsearch.cli import app
from mvsearch.driver.trials import DIRECTIONS, connect, open_dashboard, open_optuna_study
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.pool import PoolFailed
from mvsearch.study.data import load_study
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder, goes_on_in, study_of
from mvsearch.study.ledger import read_evaluations

SMALL = [
    *("--set", "search.trials=13", "--set", "search.sampler=tpe", "--set", "proxy.data=digits"),
    *("--set", "proxy.train_images=100", "--set", "proxy.val_images=100", "--set", "proxy.epochs=2", "--workers", "1"),
]


STOPPED = 31  # events of a pool before the search is stopped; the sampler has been asked by then


class Stopped(InlinePool):
    """Has no worker left after some events."""

    def events(self, timeout):
        for number, event in enumerate(super().events(timeout)):
            self.left = getattr(self, "left", STOPPED) - 1
            if self.left < 0:
                raise PoolFailed(f"the device is gone (event {number})")
            yield event


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def launch(monkeypatch, *arguments, pool=InlinePool, fails=False):
    """As a person does it, with workers that measure nothing."""
    monkeypatch.setattr("mvsearch.driver.launch.open_pool", lambda make, data, where: pool(MakeFakeWorker(), None))
    done = CliRunner().invoke(app, ["launch", *map(str, arguments)])
    assert done.exit_code == (1 if fails else 0), done.output
    return done.output


def stop(monkeypatch, *more):
    """Launch ``studies/a``, which stops in the middle."""
    said = launch(monkeypatch, "stagewise", *SMALL, "--set", "name=a", *more, pool=Stopped, fails=True)
    assert "the device is gone" in said
    return Path("studies/a")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trials(folder):
    """What the sampler was given, of all trials but those that were cut short."""
    found = open_optuna_study(StudyFolder(folder)).study.get_trials()
    return [(t.state, t.params, t.values) for t in found if "interrupted" not in t.user_attrs]


def keys(folder):
    return [(line.what, line.key) for line in read_evaluations(folder / "evaluations.jsonl")]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Two studies of the same settings: ``whole``, and ``a``, which was stopped in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("launched"))
        launch(patch, "stagewise", *SMALL, "--set", "name=whole")
        stop(patch)
        return Path.cwd() / "studies"


@pytest.fixture
def whole(launched):
    return launched / "whole"


@pytest.fixture
def original(launched):
    """``studies/a`` in the folder of this test."""
    return Path(shutil.copytree(launched / "a", "studies/a"))


@pytest.mark.parametrize("place", ["studies/b", "elsewhere/a", "studies/a (copy)"])
def test_a_copy_goes_on_in_its_own_folder_and_the_original_stays(monkeypatch, whole, original, place):
    copied = Path(place)
    shutil.copytree(original, copied)
    before = content(original)
    lines = keys(original)
    assert 0 < len(lines) < len(keys(whole))
    launch(monkeypatch, copied / "study.yaml", "--workers", "1")
    assert content(original) == before
    assert keys(copied)[: len(lines)] == lines, "nothing is measured again"
    assert sorted(keys(copied)) == sorted(keys(whole)), "with the sampler's memory it asks for the same"
    assert trials(copied) == trials(whole)
    assert yaml.safe_load((copied / "study.yaml").read_text())["name"] == copied.name
    assert sorted(path.name for path in Path("studies").iterdir()) == sorted(
        {"a"} | ({copied.name} if copied.parent == Path("studies") else set())
    )
    study = load_study(StudyFolder(copied))
    assert (study.name, study.config["name"]) == (copied.name, copied.name)
    launch(monkeypatch, original / "study.yaml", "--workers", "1")
    assert trials(original) == trials(whole)


def test_a_renamed_study_goes_on_under_its_new_name(monkeypatch, whole, original):
    renamed = original.rename("studies/c")
    assert load_study(StudyFolder(renamed)).environment["command"] == (
        "mvsearch launch studies/c/study.yaml --set name=c-again"
    )
    said = launch(monkeypatch, renamed / "study.yaml", "--workers", "1")
    assert "mvsearch export c" in said
    assert trials(renamed) == trials(whole)
    assert not Path("studies/a").exists()
    for verb in ("front", "status", "report", "space"):
        argument = "studies/c/study.yaml" if verb == "space" else "c"
        shown = CliRunner().invoke(app, [verb, argument])
        assert shown.exit_code == 0, shown.output
    assert "<title>c" in (renamed / "report.html").read_text()
    listed = CliRunner().invoke(app, ["list"]).output
    assert re.findall(r"^\W*(\w+)", listed, re.MULTILINE)[-1:] == ["c"], listed


def test_inside_its_folder_a_study_is_named_too(monkeypatch, original):
    folder = original.resolve()
    monkeypatch.chdir(folder)
    launch(monkeypatch, "study.yaml", "--workers", "1")
    assert not (folder / "studies").exists()
    assert CliRunner().invoke(app, ["report", "."]).exit_code == 0
    assert yaml.safe_load((folder / "study.yaml").read_text())["name"] == "a"


def test_another_name_begins_a_new_study_and_another_place_is_refused(monkeypatch, original):
    before = content(original)
    done = CliRunner().invoke(app, ["launch", str(original / "study.yaml"), "--studies", "other"])
    assert done.exit_code == 2
    assert "studies: studies/a goes on where it lies, not in other" in done.output.replace("\n", " ")
    launch(monkeypatch, original / "study.yaml", "--set", "name=new", "--workers", "1", "--studies", "other")
    assert load_study(StudyFolder(Path("other/new"))).name == "new"
    assert content(original) == before


def test_a_search_space_that_is_called_study_yaml_is_no_study(tmp_path):
    folder = StudyFolder(tmp_path / "mine")
    folder.path.mkdir()
    folder.config.write_text("layout: {}")
    assert study_of(folder.config) is None
    assert goes_on_in(None, "mine", Path("studies")) == Path("studies")
    folder.ledger.touch()
    assert study_of(folder.config) == folder
    assert study_of(folder.path / "other.yaml") is None
    assert goes_on_in(folder, "mine", Path("studies")) == goes_on_in(folder, "mine", tmp_path) == tmp_path
    assert goes_on_in(folder, "yours", Path("other")) == Path("other")


def test_the_dashboard_finds_a_renamed_study(original):
    pytest.importorskip("optuna_dashboard")
    original.rename("studies/c")

    class Served(Exception):
        pass

    def told(address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dashboard/studies/0", address)
        raise Served

    with pytest.raises(Served):
        open_dashboard(StudyFolder(Path("studies/c")), None, 0, told)


def test_of_several_studies_in_a_journal_the_one_of_the_folders_name_is_meant(tmp_path):
    folder = StudyFolder(tmp_path / "mine")
    folder.path.mkdir()
    opened = open_optuna_study(folder)
    optuna.create_study(storage=opened.storage, study_name="yours", directions=DIRECTIONS)
    assert open_optuna_study(folder).study.study_name == "mine"
    with pytest.raises(StudyError, match=r"journal.log: holds mine, yours, and which is this study is not known"):
        open_optuna_study(StudyFolder(folder.path.rename(tmp_path / "theirs")))


def in_database(url):
    """Numbers of the trials, by the names of the studies."""
    return {
        name: [t.number for t in optuna.load_study(study_name=name, storage=url).get_trials()]
        for name in optuna.get_all_study_names(url)
    }


@pytest.mark.slow
def test_in_a_database_a_copy_has_a_study_of_its_own_and_a_renamed_one_keeps_its(monkeypatch, tmp_path):
    url = f"sqlite:///{tmp_path}/trials.db"
    original, copied = stop(monkeypatch, "--set", f"storage={url}"), Path("studies/b")
    name = (original / "database_name").read_text().strip()
    shutil.copytree(original, copied)
    before, kept = content(original), in_database(url)
    assert list(kept) == [name]
    said = launch(monkeypatch, copied / "study.yaml", "--workers", "1")
    own = (copied / "database_name").read_text().strip()
    assert re.fullmatch(r"b-[0-9a-f]{8}", own)
    assert f"This folder was copied from the study {name} of the database; it is {own} there now." in " ".join(
        said.split()
    )
    assert content(original) == before
    after = in_database(url)
    assert after == kept | {own: after[own]}
    complete = optuna.load_study(study_name=own, storage=url).get_trials(states=[TrialState.COMPLETE])
    assert len(complete) == 13, "what the ledger holds was told too"

    renamed = original.rename("studies/c")
    said = launch(monkeypatch, renamed / "study.yaml", "--workers", "1")
    assert "copied" not in said
    last = in_database(url)
    assert (renamed / "database_name").read_text().strip() == name
    assert last[own] == after[own]
    assert len(last[name]) > len(kept[name])


def test_a_database_from_before_folders_were_noted_is_opened_under_its_name(tmp_path):
    url = f"sqlite:///{tmp_path}/trials.db"
    folder = StudyFolder(tmp_path / "old")
    folder.path.mkdir()
    folder.database_name.write_text("old-0123abcd\n")
    optuna.create_study(storage=url, study_name="old-0123abcd", directions=DIRECTIONS)
    copied = StudyFolder(shutil.copytree(folder.path, tmp_path / "elsewhere" / "old"))
    other = StudyFolder(shutil.copytree(folder.path, tmp_path / "other"))
    said = []
    assert open_optuna_study(other, connect(url), said.append).study.study_name.startswith("other-")
    assert open_optuna_study(folder, connect(url), said.append).study.study_name == "old-0123abcd"
    assert len(said) == 1
    assert open_optuna_study(copied, connect(url)).study.study_name != "old-0123abcd"
    assert open_optuna_study(folder, connect(url)).study.study_name == "old-0123abcd"


def test_a_copy_has_no_page_of_the_original_in_the_dashboard(tmp_path):
    pytest.importorskip("optuna_dashboard")
    url = f"sqlite:///{tmp_path}/trials.db"
    folder = StudyFolder(tmp_path / "a")
    folder.path.mkdir()
    open_optuna_study(folder, connect(url))
    copied = StudyFolder(shutil.copytree(folder.path, tmp_path / "b"))
    with pytest.raises(StudyError, match=r"no memory yet \(no study of its own in the database\)"):
        open_dashboard(copied, url, 0, lambda address: sys.exit(address))


def test_a_study_of_a_later_format_is_left_as_it_is(monkeypatch, original):
    study = StudyFolder(original)
    study.config.write_text(study.config.read_text().replace("format: 1", "format: 2"))
    with study.ledger.open("a") as file:
        file.write("a form that this version takes for torn")
    before = content(original)
    for named in (("stagewise", *SMALL, "--set", "name=a"), (study.config,)):
        done = CliRunner().invoke(app, ["launch", *map(str, named)])
        assert done.exit_code == 2
        assert "studies/a/study.yaml: format: 2 is written by a later version" in " ".join(done.output.split())
    assert {path for path, data in content(original).items() if data != before.get(path)} <= {
        study.lock.relative_to(original)
    }
