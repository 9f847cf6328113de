"""The format of a study's files: what is written, what an older one means, and that a later one is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mvsearch import formats
from mvsearch.config.reading import load_config
from mvsearch.config.values import ConfigError
from mvsearch.driver.results import write_results
from mvsearch.driver.settings import check_settings, study_config
from mvsearch.formats import CHANGED_DEFAULTS, STUDY_FORMAT, of_their_time, unreadable
from mvsearch.study.data import describe_study, load_study
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder, read_settings
from mvsearch.study.ledger import Ledger, read_evaluations
from mvsearch.study.timings import read_timings

REFERENCE = Path(__file__).parents[2] / "studies" / "reference"
BARE = """
name: bare
layout: {width: 16, stages: [{blocks: MA, depth: 4, dim: 1}, {blocks: C, depth: 1, dim: 2}]}
"""


@pytest.fixture
def old(tmp_path):
    """A study of before there were formats."""
    return StudyFolder(Path(shutil.copytree(REFERENCE / "stagewise", tmp_path / "old")))


def test_what_is_written_now_says_its_format(old):
    assert STUDY_FORMAT == 1
    assert load_config("stagewise").resolved_yaml().startswith("format: 1\n")
    lines = read_evaluations(old.ledger)
    ledger = Ledger(old.path / "new.jsonl")
    for line in lines[:3]:
        ledger.append(line)
    written = ledger.path.read_text().splitlines()
    assert [json.loads(line)["format"] for line in written] == [1, 1, 1]
    assert read_evaluations(ledger.path) == lines[:3]
    with ledger.path.open("a") as file:  # a ledger that was begun before, and a table put together of several
        file.write("".join(old.ledger.read_text().splitlines(keepends=True)[3:]))
    assert read_evaluations(ledger.path) == lines
    assert read_timings(ledger.path).keys() == read_timings(old.ledger).keys()


@pytest.mark.parametrize("name", ["stagewise", "fashion_mnist"])
def test_a_study_without_a_format_gives_the_tables_that_it_gave(tmp_path, name):
    folder = StudyFolder(Path(shutil.copytree(REFERENCE / name, tmp_path / name)))
    assert "format" not in yaml.safe_load(folder.config.read_text())
    for table in ("trials.csv", "front.csv"):
        (folder.path / table).unlink()
    write_results(folder)
    for table in ("trials.csv", "front.csv"):
        assert (folder.path / table).read_bytes() == (REFERENCE / name / table).read_bytes()


def test_a_later_format_is_refused_by_whoever_reads_it(old):
    text = old.config.read_text()
    old.config.write_text(f"format: 2\nlater: {{key: 1}}\n{text}")
    says = r"study.yaml: format: 2 is written by a later version of mvsearch; this version reads formats up to 1"
    for read in (load_study, study_config, lambda folder: check_settings(folder, load_config("stagewise"))):
        with pytest.raises((StudyError, ConfigError), match=says):
            read(old)
    with pytest.raises(ConfigError, match=says):
        load_config(old.config)
    assert "format: 2" in describe_study(old)
    old.config.write_text(text)
    line = json.loads(old.ledger.read_text().splitlines()[0])
    with old.ledger.open("a") as file:
        file.write(json.dumps({**line, "format": 2, "purpose": "other"}) + "\n")
    with pytest.raises(StudyError, match=r"evaluations.jsonl, line \d+: format: 2 .* reads formats up to 1"):
        load_study(old)
    with pytest.raises(StudyError, match=r"evaluations.jsonl, line \d+: format: 2"):
        read_timings(old.ledger)


@pytest.mark.parametrize("number", ["1", 1.0, True, None, -1, [1]])
def test_a_format_that_is_no_number_is_refused(number):
    assert "is no format there is" in unreadable(number)
    assert unreadable(0) is unreadable(STUDY_FORMAT) is None


@pytest.fixture
def changed(monkeypatch):
    """As if some defaults had been others in formats 1 and 2."""
    table = {
        2: {"proxy.ema": 0.9, "layout.qk_norm": True, "fidelity.eta": 2, "search.baselines": False},
        3: {"proxy.ema": 0.95, "proxy.drop_path": 0.1},
    }
    monkeypatch.setattr(formats, "STUDY_FORMAT", 3)
    monkeypatch.setattr(formats, "CHANGED_DEFAULTS", table)


def bare(folder, number, **sections):
    folder.path.mkdir(exist_ok=True)
    data = yaml.safe_load(BARE) | {"proxy": {"epochs": 7}, "search": {"seed": 3}} | sections
    folder.config.write_text(yaml.dump(data if number is None else data | {"format": number}))
    return folder


@pytest.mark.parametrize(
    ("number", "ema", "drop_path"), [(None, 0.9, 0.1), (1, 0.9, 0.1), (2, 0.95, 0.1), (3, 0.99, 0)]
)
def test_a_default_that_changes_leaves_studies_of_before_as_they_were(tmp_path, changed, number, ema, drop_path):
    folder = bare(StudyFolder(tmp_path / "s"), number)
    config, settings = study_config(folder), read_settings(folder)
    assert (config.proxy.ema, config.proxy.drop_path, config.proxy.epochs) == (ema, drop_path, 7)
    assert settings["proxy"].get("ema", 0.99) == ema
    assert config.layout.qk_norm is (number in (None, 1))
    assert config.search.baselines is (number not in (None, 1))
    assert config.fidelity is None, "no section is made for a key in it"
    again = load_config(folder.config, folder="s")  # as a launch that goes on reads it
    folder.config.write_text(again.resolved_yaml())
    assert study_config(folder) == config


def test_what_a_study_says_itself_counts_and_a_new_one_has_the_defaults_of_today(tmp_path, changed):
    folder = bare(StudyFolder(tmp_path / "s"), None, proxy={"ema": 0.5}, fidelity={"rungs": 2})
    config = study_config(folder)
    assert (config.proxy.ema, config.fidelity.eta) == (0.5, 2)
    space = tmp_path / "space.yaml"
    space.write_text(BARE)
    assert load_config(space).proxy.ema == 0.99


def test_settings_are_filled_in_beside_what_is_given():
    given = {"search": {"seed": 1}, "fidelity": None}
    assert of_their_time(given, 0) == given
    with pytest.MonkeyPatch.context() as patch:
        defaults = {"search.seed": 8, "search.trials": 9, "fidelity.eta": 2, "timing.windows": 3, "new": {"a": 1}}
        patch.setattr(formats, "CHANGED_DEFAULTS", {1: defaults})
        assert of_their_time(given, 0) == {"search": {"seed": 1, "trials": 9}, "fidelity": None, "new": {"a": 1}}
        assert of_their_time(given, 1) == given
    assert given == {"search": {"seed": 1}, "fidelity": None}


def test_no_default_has_changed_without_a_new_format(tmp_path):
    """Whoever changes one enters the old one in `CHANGED_DEFAULTS`, and then this study of format 1 is as it was."""
    then = yaml.safe_load(Path(__file__).with_name("defaults_of_format_1.yaml").read_text())
    sections = {name: {} for name, section in then.items() if isinstance(section, dict)}
    config = study_config(bare(StudyFolder(tmp_path / "bare"), 1, **sections))
    assert {name: config.resolved()[name] for name in then} == then
    # What is left out at these values.
    assert config.layout.stem == "conv"
    assert config.fidelity is config.warm_start is config.search.design is None
    assert CHANGED_DEFAULTS.keys() == set(range(2, STUDY_FORMAT + 1))
