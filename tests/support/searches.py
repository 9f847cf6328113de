"""Searches of the test suite: small, with fake workers, stopped or killed at will."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import optuna
from fakes import MakeFakeWorker

from mvsearch.config.reading import load_config
from mvsearch.driver.search import Search
from mvsearch.driver.settings import check_settings
from mvsearch.driver.trials import brief_optuna_study, connect, open_optuna_study
from mvsearch.driver.view import View
from mvsearch.driver.warm_start import plan_warm_start, read_warm_start, source_study
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.replay import MakeReplayWorker, ReplayPool, Synthetic
from mvsearch.space.space import SearchSpace
from mvsearch.study.files import repair_tail
from mvsearch.study.folder import StudyFolder


def made_up(space, **more):
    cost = space.cost(space.reference())
    reference = {"params": cost.params, "macs": cost.macs}
    return MakeReplayWorker(synthetic=Synthetic(classes=10, reference_cost=reference, epochs=9, **more))


def replaying(devices, make=ReplayPool, **more):
    """Makes a pool of made-up values for a space."""
    return lambda space: make(made_up(space, **more), devices=devices)


def search_in(path, *overrides, make=None, timings=None, view=None, pool=None, brief=False, repair=False):
    """A search that is about to run; `pool` may be a function that makes it, given the space."""
    config = load_config("stagewise", ["search.trials=14", "search.sampler=tpe", *overrides])
    space = SearchSpace(config, num_classes=10, in_chans=1)
    folder = StudyFolder(path / config.name)
    folder.path.mkdir(exist_ok=True)
    for file in (folder.ledger, folder.journal) if repair else ():
        repair_tail(file)
    folder.begin(config.resolved_yaml())
    pool = pool(space) if callable(pool) else pool or InlinePool(make or MakeFakeWorker(), None)
    study = brief_optuna_study(folder) if brief else None
    if config.storage:
        study = open_optuna_study(folder, connect(config.storage))
    return Search(config, space, folder, pool, timings=timings, view=view, study=study)


def trials_of(search):
    return search.study.get_trials(deepcopy=False)


def told(search):
    """Key and values of complete trials, in order."""
    complete = [trial for trial in trials_of(search) if trial.state == optuna.trial.TrialState.COMPLETE]
    return [(trial.user_attrs["key"], trial.values) for trial in complete]


class StopAfter(View):
    """Sends this process a signal while the n-th progress is shown."""

    def __init__(self, count, signum):
        self.left, self.signum = count, signum

    def update(self, state):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.signum)


KILLED_SEARCH = """
import os, sys, traceback
from pathlib import Path
import fakes
import mvsearch.samplers.tpe  # before the fork: scikit-learn takes a second
from mvsearch.driver.trials import _Journal
from searches import search_in
moment = torn = count = 0
def kill_when_due(path=None):
    global count
    count += 1
    if count == moment:
        if torn and path is not None:  # the end of what was written did not reach the disk
            os.truncate(path, max(0, os.stat(path).st_size - 3))
        os.kill(os.getpid(), 9)
def fsync(descriptor):
    kill_when_due(descriptor)
    real_fsync(descriptor)
    kill_when_due()
def append_logs(self, logs):
    kill_when_due()
    real_append(self, logs)
    kill_when_due(self._file_path)
real_fsync, os.fsync = os.fsync, fsync
real_append, _Journal.append_logs = _Journal.append_logs, append_logs
for moment, torn in {moments!r}:
    child = os.fork()
    if not child:
        try:
            make = fakes.MakeFakeWorker(log=Path({path!r}) / "jobs")
            search_in(Path({path!r}), *{overrides!r}, make=make, repair=True).run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def drive(path, *moments, overrides=("search.trials=16",)):
    """Drivers of one study, one after the other: each is killed at a write, before or after it reaches the disk.

    Args:
        path: of the studies.
        moments: at which write each dies, and whether its end is then torn off; (0, False): not at all.
        overrides: of the configuration.

    Returns:
        How each of them ended.
    """
    code = KILLED_SEARCH.format(path=str(path), moments=moments, overrides=overrides)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return [int(line) for line in ended.stdout.split()]


def kill_twenty_times(path, last, overrides):
    """A study whose driver is killed at 20 random writes, a third of them torn, then runs to its end."""
    rng = random.Random(1)
    moments = [(rng.randint(1, last), rng.random() < 1 / 3) for _ in range(20)]
    assert drive(path, *moments, (0, False), overrides=overrides) == [-signal.SIGKILL] * 20 + [0]


THREE_RUNGS = ("search.sampler=random", "proxy.epochs=9", "fidelity={eta: 3, rungs: 3}", "search.trials=9")


def study_in(path, *overrides, **options):
    """A search of 14 trials, with the little that reports need to know of its environment."""
    search = search_in(path, *overrides, **options)
    environment = {"data": {"classes": 10}, "reference": search.space.reference().key, "launches": [{"workers": 1}]}
    (search.folder.path / "environment.json").write_text(json.dumps(environment))
    return search


MACHINE = {
    "device": "CPU (made up)",
    "scan": "loop",
    "versions": {"torch": "2.14.1", "mvsearch": "0.1.0"},
    "data": {"fingerprint": "f00d", "classes": 10, "channels": 1},
    "launch": {"workers": 1},
}


def warm_search(studies, name, *overrides, make=None, journal=False, **machine):
    """As a launch does it, with a worker that measures nothing. With a journal, called again, the study goes on."""
    config = load_config("stagewise", [f"name={name}", "search.sampler=random", "search.trials=8", *overrides])
    space = SearchSpace(config, num_classes=10, in_chans=1)
    folder = StudyFolder(studies / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    environment = {**MACHINE, **machine, "reference": space.reference().key}
    check_settings(folder, config)
    new = folder.is_new
    source = source_study(config, folder) if new else None
    plan = plan_warm_start(config, space, source, environment) if new else read_warm_start(config, folder)
    folder.begin(config.resolved_yaml())
    folder.record_environment(dict(environment))
    if new and config.warm_start is not None:
        plan.write(folder, source)
    study = None if journal else brief_optuna_study(folder)
    search = Search(config, space, folder, InlinePool(make or MakeFakeWorker(), None), study=study, warm_start=plan)
    search.plan = plan
    return search


def search_with(url, path, *overrides, **more):
    """A search whose memory is in a database."""
    path.mkdir(exist_ok=True)
    return search_in(path, f"storage={url}", *overrides, **more)
