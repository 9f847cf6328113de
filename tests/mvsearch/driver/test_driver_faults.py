"""What befalls the driver's files: torn, garbled and damaged journals, and a disk that is full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from searches import search_in, told, trials_of
from typer.testing import CliRunner

from mvsearch import cli
from mvsearch.driver.view import View
from mvsearch.study.files import StudyError
from mvsearch.study.ledger import read_evaluations

TRIALS = ("search.trials=12",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    search = search_in(tmp_path_factory.mktemp("whole"), *TRIALS)
    search.run()
    return search


def begun(path):
    """A study of which eight layouts are done."""
    search_in(path, "search.trials=8").run()
    return path / "stagewise" / "journal.log"


@pytest.mark.parametrize("damage", ["cut in a line", "cut after a line", "zeros", "garbage", "half a line more"])
def test_a_journal_that_is_damaged_at_its_end_costs_nothing_that_was_measured(whole, tmp_path, damage):
    journal = begun(tmp_path)
    content = journal.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    journal.write_bytes(
        {
            "cut in a line": content[: last + 9],
            "cut after a line": content[:last],
            "zeros": content + bytes(4096),
            "garbage": content[:-3] + os.urandom(100),
            "half a line more": content + content[last:-20],
        }[damage]
    )
    again = search_in(tmp_path, *TRIALS, repair=True)
    assert journal.with_suffix(".broken").exists() is (damage != "cut after a line")
    again.run()
    assert told(again) == told(whole)
    lines = [line.identity for line in read_evaluations(again.folder.ledger)]
    assert len(lines) == len(set(lines)) == 24
    assert all(trial.state.is_finished() for trial in trials_of(again))


@pytest.mark.parametrize("name", ["journal.log", "evaluations.jsonl"])
def test_damage_in_the_middle_is_refused_with_its_line(tmp_path, name):
    file = begun(tmp_path).with_name(name)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:10] + b"\xff\x00" + lines[4][12:]
    file.write_bytes(b"".join(lines))
    before = file.read_bytes()
    with pytest.raises(StudyError, match=f"{name}, line 5: damaged"):
        search_in(tmp_path, *TRIALS, repair=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"{}", b'{"op_code": 4}', b'{"op_code": "none"}', b'{"op_code": 99, "worker_id": ""}']
)
def test_a_journal_of_lines_that_are_not_optunas_is_refused_and_the_search_goes_on_without_it(whole, tmp_path, line):
    journal = begun(tmp_path)
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[:4], line, *lines[5:]]) + b"\n")
    with pytest.raises(StudyError, match=r"journal\.log: damaged .*or remove it"):
        search_in(tmp_path, *TRIALS, repair=True)
    journal.unlink()
    again = search_in(tmp_path, *TRIALS, repair=True)
    again.run()
    keys = [record.key for record in again.records()]
    assert len(keys) == 12
    assert len(read_evaluations(again.folder.ledger)) == 24


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.strip()})")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class FillTheDisk(View):
    """Fills a disk when the second trial of this launch has ended."""

    def __init__(self, disk):
        self.disk, self.left = disk, 2

    def trial_ended(self, record, state):
        self.left -= 1
        if self.left == 0:
            with (self.disk / "filler").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(1024)):
                        pass
                except OSError:
                    pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluations.jsonl", "journal.log", "weights"])
def test_a_full_disk_ends_the_search_and_it_goes_on_when_there_is_room(whole, small_disk, tmp_path, name):
    file = begun(tmp_path).with_name(name)
    shutil.move(file, small_disk / name)
    file.symlink_to(small_disk / name)
    search = search_in(tmp_path, "search.trials=60", view=FillTheDisk(small_disk))
    with pytest.raises(OSError, match="No space left on device"):
        search.run()
    (small_disk / "filler").unlink()
    again = search_in(tmp_path, "search.trials=60", repair=True)
    assert again.run().complete == 60
    assert told(again)[:12] == told(whole)
    lines = [line.identity for line in read_evaluations(again.folder.ledger)]
    assert len(lines) == len(set(lines)) == 120
    assert all(trial.state.is_finished() for trial in trials_of(again))
    kept = {path.stem for path in again.folder.weights.glob("*.safetensors")}
    assert kept == {r.key for r in again.state().front} | {r.key for r in again.records() if r.baseline}


@pytest.mark.parametrize(("field", "value"), [("values", {}), ("values", None), ("started", "x"), ("trial", None)])
def test_a_line_of_the_ledger_that_is_no_evaluation_is_named(tmp_path, field, value):
    ledger = begun(tmp_path).with_name("evaluations.jsonl")
    lines = ledger.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if json.loads(line)["what"] == "train")
    lines[at] = json.dumps(json.loads(lines[at]) | {field: value})
    ledger.write_text("\n".join(lines) + "\n")
    with pytest.raises(StudyError, match=f"evaluations.jsonl, line {at + 1}: not an evaluation .{field}: "):
        read_evaluations(ledger)


def test_studies_that_are_no_folder_are_bad_input(tmp_path):
    (tmp_path / "file").touch()
    found = CliRunner().invoke(cli.app, ["launch", "stagewise", "--studies", str(tmp_path / "file"), "--workers", "1"])
    assert found.exit_code == 2, found.output
    assert "studies: " in found.output
