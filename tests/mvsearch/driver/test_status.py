"""`mvsearch status`: a running, an ended, a dead and a silent search, told from its files alone."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time

import pytest
from fakes import FEW_LAYOUTS, MakeFakeWorker
from searches import study_in
from typer.testing import CliRunner

from mvsearch import cli
from mvsearch.driver import status
from mvsearch.driver.status import read_status
from mvsearch.driver.view import View
from mvsearch.study.files import StudyError


def invoke(path, *arguments):
    return CliRunner().invoke(cli.app, ["status", *arguments, "--studies", str(path)])


class Watcher(View):
    """Asks for the status at each trial's end, as another terminal would."""

    def __init__(self):
        self.folder = None
        self.seen = []

    def trial_ended(self, record, state):
        if self.folder.status.exists():
            before = {p: p.stat().st_mtime_ns for p in self.folder.path.iterdir()}
            self.seen.append(read_status(self.folder))
            assert {p: p.stat().st_mtime_ns for p in self.folder.path.iterdir()} == before


def test_a_running_search_tells_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "EVERY_S", 0.0)
    watcher = Watcher()
    search = study_in(tmp_path, make=MakeFakeWorker(seconds=0.01), view=watcher)
    watcher.folder = search.folder
    search.run()
    assert len(watcher.seen) > 5
    assert all(found.running and found.pid == os.getpid() for found in watcher.seen)
    counts = [found.state.finished for found in watcher.seen]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert watcher.seen[-1].state.front
    ended = read_status(search.folder)
    assert not ended.running
    assert ended.state.finished == 14
    shown = invoke(tmp_path, "stagewise")
    assert shown.exit_code == 0
    assert "14 of 14 layouts" in shown.output
    assert f"Next: mvsearch report {search.folder.path}" in shown.output.replace("\n", "")


def test_a_driver_that_died_is_told_from_one_that_is_slow(tmp_path):
    search = study_in(tmp_path)
    search.run()
    folder = search.folder
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    told = {"finished": 3, "failed": 0, "wanted": 9, "running": {"worker 1": "training"}, "hypervolume": None}
    told |= {"utilisation": 0.9, "elapsed": 60.0, "remaining": 120.0, "ended": False, "host": platform.node()}
    for pid, age, running in ((gone.pid, 1000, False), (gone.pid, 1, True), (os.getpid(), 1000, True)):
        folder.status.write_text(json.dumps({**told, "pid": pid, "updated": time.time() - age}))
        assert read_status(folder).running is running
    folder.status.write_text(json.dumps({**told, "pid": gone.pid, "updated": time.time() - 7200}))
    shown = invoke(tmp_path, folder.name)
    assert "Not running; last sign of life 2 h" in shown.output
    assert f"To go on: mvsearch launch {folder.config}" in shown.output.replace("\n", "")


def test_what_cannot_be_told(tmp_path):
    search = study_in(tmp_path)
    search.run()
    folder = search.folder
    folder.status.unlink()
    with pytest.raises(StudyError, match="no driver has told anything"):
        read_status(folder)
    for damaged in ("{", '"text"', "[]", '{"updated": 0}'):
        folder.status.write_text(damaged)
        shown = invoke(tmp_path, folder.name)
        assert shown.exit_code == 2
        assert "status.json: cannot be read" in shown.output
    assert invoke(tmp_path, "nothing").exit_code == 2


def test_a_search_that_used_up_its_space_has_ended_and_says_why(tmp_path):
    search = study_in(tmp_path, *FEW_LAYOUTS)
    outcome = search.run()
    assert outcome.exhausted
    shown = invoke(tmp_path, "stagewise").output
    assert f"nothing more is begun: {outcome.stopped}" in shown
    assert "Ended; last sign of life" in shown
    assert "To go on: mvsearch launch" in shown
