"""A Ray cluster of pretended machines: packing, full and shrinking clusters, authentication. Nothing is trained."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from fakes import MakeFakeWorker
from jobs import drain, job
from optuna.trial import TrialState
from ray.cluster_utils import Cluster

from mvsearch.config.reading import load_config
from mvsearch.driver.search import Search
from mvsearch.driver.view import View
from mvsearch.pool import ray_pool
from mvsearch.pool.job import Done, Notice
from mvsearch.pool.ray_pool import RayPool
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


DRIVER = """
import sys
from fakes import MakeFakeWorker
from mvsearch.pool import PoolError
from mvsearch.pool.ray_pool import RayPool
try:
    pool = RayPool(MakeFakeWorker(), None, address=sys.argv[1])
    print(pool.workers, "workers")
    pool.close()
except PoolError as error:
    print(error)
"""


def another_driver(address, **environment):
    """What a driver of its own says: this process is connected already, or has another token."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER, address],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    ).stdout


class Notes(View):
    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


def test_a_machine_that_leaves_in_the_middle_costs_only_what_it_was_doing(cluster, tmp_path):
    nodes = [cluster.add_node(num_cpus=1, num_gpus=4) for _ in range(4)]
    config = load_config("stagewise", ["search.trials=100", "search.sampler=random", "name=cluster"])
    space = SearchSpace(config, num_classes=10, in_chans=1)
    folder = StudyFolder(tmp_path / "cluster")
    folder.begin(config.resolved_yaml())
    pool = RayPool(MakeFakeWorker(seconds=0.5), None, address=cluster.address)
    notes = Notes()
    try:
        assert pool.workers == 16
        search = Search(config, space, folder, pool, view=notes)

        def leave():
            while search.state().finished < 30:
                time.sleep(0.2)
            cluster.remove_node(nodes[1], allow_graceful=False)

        leaving = threading.Thread(target=leave)
        leaving.start()
        outcome = search.run()
        leaving.join()
        assert any("cannot be reached" in text for text in notes.notices), "nothing was lost: the test shows nothing"
    finally:
        pool.close()
    assert (outcome.complete, outcome.failed) == (100, 0)
    trials = search.study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.COMPLETE] == 100
    assert not states[TrialState.RUNNING]
    assert not states[TrialState.WAITING]
    told = [trial.user_attrs["key"] for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(set(told)) == 100
    lines = Counter(line.identity for line in search.ledger.evaluations)
    assert set(lines.values()) == {1}
    assert len(lines) == 200


def test_workers_without_a_place_are_spoken_of_and_keep_nobody_waiting(cluster, monkeypatch):
    monkeypatch.setattr(ray_pool, "PLACE_S", 3.0)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    pool = RayPool(MakeFakeWorker(), None, address=cluster.address)
    try:
        assert pool.workers == 2
        for number in range(2):
            pool.submit(job(number))
        drain(pool, 2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        began, said = time.monotonic(), []
        while not said and time.monotonic() < began + 60:
            for number in range(10, 10 + pool.idle()):
                pool.submit(job(number))
            said = [event.text for event in pool.events(0.5) if isinstance(event, Notice)]
        assert "1 of 2 workers have had no place in the cluster" in said[0]
        assert "each needs 1 CPU, and 0 of " in said[0]
        assert "the search goes on without them" in said[0]
        assert pool.workers == 1
        for number in range(20, 24):
            pool.submit(job(number))
        assert sum(isinstance(event, Done) for event in drain(pool, 4)) >= 4

        cluster.remove_node(nodes[1], allow_graceful=False)
        waits = False
        while not waits and time.monotonic() < began + 120:
            # Again and again: the first may still end on the machine that is about to be gone.
            for number in range(30, 30 + pool.idle()):
                pool.submit(job(number))
            said = [event.text for event in pool.events(0.5) if isinstance(event, Notice)]
            waits = any("2 of 2 workers" in text and "the search waits for them" in text for text in said)
        assert waits
        assert pool.workers == 1, "the utilisation is a share of it"
        cluster.add_node(num_cpus=2)
        assert any(isinstance(event, Done) for event in drain(pool, 1, seconds=90))
        while pool.workers < 2 and time.monotonic() < began + 180:
            list(pool.events(0.5))
        assert pool.workers == 2
    finally:
        pool.close()


def test_a_full_cluster_says_so_at_once(cluster):
    cluster.add_node(num_cpus=2)
    first = RayPool(MakeFakeWorker(), None, address=cluster.address)
    try:
        first.submit(job(0))
        drain(first, 1)
        began = time.monotonic()
        assert "the cluster has no free capacity, 0 of 2 CPUs" in another_driver(cluster.address)
        assert time.monotonic() - began < 60
    finally:
        first.close()


HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def test_a_cluster_with_authentication_wants_its_token(tmp_path):
    # A home of its own, so that a token that lies about helps nobody.
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "one" * 10, "HOME": str(tmp_path)}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        address = next(line for line in head.stdout if ":" in line).strip()
        assert "2 workers" in another_driver(address, **environment)
        said = another_driver(address, **environment | {"RAY_AUTH_TOKEN": "two" * 10})
        assert f"no Ray cluster can be reached at '{address}'" in said
        assert "RAY_AUTH_MODE=token and its token (RAY_AUTH_TOKEN" in said
    finally:
        head.communicate("\n", timeout=60)


def test_four_trials_are_packed_on_each_gpu(cluster):
    cluster.add_node(num_cpus=2, num_gpus=2)
    pool = RayPool(MakeFakeWorker(), None, address=cluster.address, gpus_per_trial=0.25)
    try:
        assert pool.workers == 8
        assert "8 Ray workers, 0.25 GPU each" in pool.description
        gpu_of, until = {}, time.monotonic() + 120
        while len(gpu_of) < 8 and time.monotonic() < until:
            for number in range(pool.idle()):
                pool.submit(job(number, "time"))
            for event in pool.events(0.5):
                if isinstance(event, Done):
                    assert event.evaluation.device == "cuda:0"
                    gpu_of[event.evaluation.worker] = event.evaluation.conditions["gpu"]
        assert Counter(gpu_of.values()) == {"0": 4, "1": 4}
    finally:
        pool.close()
