"""The conformance suite: all pools behave alike, and RayPool survives the death of a worker."""

from __future__ import annotations

import math
import os
import time

import pytest
from fakes import MakeFakeWorker, checkpoint, true_nll, true_ratio
from faulty import MakeFaultyWorker
from jobs import drain, job, layout
from trainings import LAYOUT, settings, stripes

from mvsearch.config.sections import TimingConfig
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.pool import ray_pool
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.job import Done, Job, Lost, Progress, Started
from mvsearch.pool.pool import PoolError, PoolFailed
from mvsearch.pool.ray_pool import RayPool, _gpu_room, _plan, connecting
from mvsearch.pool.replay import ReplayPool


def inline(make):
    return InlinePool(make, None)


def on_ray(make):
    return RayPool(make, None, workers=2)


def replayed(make):
    return ReplayPool(make, None, devices=2)


@pytest.fixture(params=[inline, on_ray, replayed], ids=["inline", "ray", "replay"])
def open_pool(request):
    pools = []

    def opened(make):
        pools.append(request.param(make))
        return pools[-1]

    yield opened
    for pool in pools:
        pool.close()


def test_conformance(open_pool):
    pool = open_pool(MakeFakeWorker())
    assert pool.idle() == pool.workers
    assert list(pool.events(0.0)) == []
    kinds = ["time", "train", "train", "time", "train"]
    for number, what in enumerate(kinds):
        pool.submit(job(number, what, layout=layout(16 + 2 * number)))
    assert pool.idle() == 0
    events = drain(pool, len(kinds))
    for number, what in enumerate(kinds):
        own = [event for event in events if event.job == number]
        assert isinstance(own[0], Started)
        assert isinstance(own[-1], Done)
        assert sum(isinstance(event, Done) for event in own) == 1
        assert all(isinstance(event, Progress) for event in own[1:-1])
        done = own[-1].evaluation
        assert (done.what, done.trial, done.key) == (what, number, layout(16 + 2 * number).key)
        if what == "time":
            assert done.values["ratio"] == true_ratio(layout(16 + 2 * number))
            assert own[-1].weights is None
        else:
            assert len(own) == 3
            assert done.values["nll"] == true_nll(layout(16 + 2 * number), 0)
            assert own[-1].weights
    # Each worker has one job at a time: it never starts one before its last has ended.
    running: dict[str, int] = {}
    for event in events:
        if isinstance(event, Started):
            assert event.worker not in running
            running[event.worker] = event.job
        elif isinstance(event, Done):
            running = {worker: number for worker, number in running.items() if number != event.job}
    assert pool.idle() == pool.workers
    assert list(pool.events(0.0)) == []


def test_a_job_that_raises_is_done_with_its_reason_and_the_worker_goes_on(open_pool):
    bad = layout(blocks="MM")
    pool = open_pool(MakeFakeWorker(faults=((bad.key, "raise"),)))
    pool.submit(job(0, layout=bad))
    pool.submit(job(1))
    ended = {event.job: event.evaluation for event in drain(pool, 2) if isinstance(event, Done)}
    assert (ended[0].what, ended[0].reason) == ("fail", "train: it broke")
    assert ended[1].what == "train"


def test_a_cancelled_job_gives_no_more_events(open_pool):
    pool = open_pool(MakeFakeWorker(seconds=0.2))
    for number in range(4):
        pool.submit(job(number, layout=layout(16 + 2 * number)))
    pool.cancel(3)
    seen = []
    for event in pool.events(5.0):
        seen.append(event)
        break
    first = seen[0].job
    pool.cancel(first)
    events = drain(pool, 2)
    assert {event.job for event in events} == {0, 1, 2} - {first}
    assert pool.idle() == pool.workers


def test_a_checkpoint_travels_both_ways_and_any_worker_goes_on_from_it(open_pool):
    pool = open_pool(MakeFakeWorker(seconds=0.01))
    began = pool.now()
    checkpoints, ends = {}, {}
    for step in ({"to_epoch": 1}, {"from_epoch": 1, "to_epoch": 3}):
        for number in range(4):
            fields = {"layout": layout(16 + 2 * number), "keep_checkpoint": True, "checkpoint": checkpoints.get(number)}
            pool.submit(job(number, **step | fields))
        for event in drain(pool, 4):
            assert not isinstance(event, Lost), event
            if isinstance(event, Done):
                assert event.evaluation.what == "train"
                checkpoints[event.job] = event.checkpoint
                ends[event.job] = (event.evaluation.from_epoch, event.evaluation.to_epoch)
    assert ends == dict.fromkeys(range(4), (1, 3))
    assert 0.04 <= pool.now() - began < 60
    assert all(checkpoints[number] == checkpoint(layout(16 + 2 * number), 0, 3) for number in range(4))


def test_the_pool_closes_while_jobs_run(open_pool):
    pool = open_pool(MakeFakeWorker(seconds=0.5))
    for number in range(3):
        pool.submit(job(number))
    next(iter(pool.events(60.0)))
    pool.close()


def test_a_worker_that_dies_breaks_or_hangs_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "HANG_GRACE_S", 0.1)
    killed, broken, hanging = layout(blocks="AA"), layout(blocks="AM"), layout(blocks="AAA")
    faults = ((killed.key, "die once"), (broken.key, "break"), (hanging.key, "hang"))
    pool = on_ray(MakeFakeWorker(faults=faults, marks=tmp_path))
    try:
        pool.submit(job(0, layout=killed))
        pool.submit(job(1))
        ends = {event.job: event for event in drain(pool, 2) if isinstance(event, Done | Lost)}
        assert isinstance(ends[0], Lost)
        assert "died" in ends[0].reason
        assert not ends[0].with_node
        assert isinstance(ends[1], Done)
        assert pool.idle() == pool.workers
        pool.submit(job(2, layout=killed))
        assert isinstance(drain(pool, 1)[-1], Done)

        pool.submit(job(3, "time", layout=killed))
        assert isinstance(drain(pool, 1)[-1], Lost)
        pool.submit(job(4, "time", layout=killed))
        assert isinstance(drain(pool, 1)[-1], Done)

        pool.submit(job(5, layout=broken))
        (lost,) = [event for event in drain(pool, 1) if isinstance(event, Lost)]
        assert "the device takes no more work" in lost.reason

        for number in (6, 7):
            pool.submit(job(number, layout=hanging, limit_s=0.5))
        ends = [event for event in drain(pool, 2) if isinstance(event, Done)]
        assert [event.evaluation.what for event in ends] == ["fail", "fail"]
        assert "took longer than search.job_minutes" in ends[0].evaluation.reason
        assert all(0.4 < end.evaluation.ended - end.evaluation.started < 60 for end in ends), "device-hours are of it"
        pool.submit(job(8))
        assert isinstance(drain(pool, 1)[-1], Done)
        assert pool.idle() == pool.workers == 2
    finally:
        pool.close()


@pytest.mark.slow
def test_a_pool_that_nobody_listened_to_for_long_still_takes_jobs(monkeypatch):
    monkeypatch.setattr(ray_pool, "PLACE_S", 0.5)
    pool = on_ray(MakeFakeWorker())
    try:
        time.sleep(5)
        assert pool.idle() == pool.workers == 2
        pool.submit(job(0))
        assert isinstance(drain(pool, 1)[-1], Done)
        assert pool.idle() == pool.workers == 2
    finally:
        pool.close()


def test_a_job_that_ended_in_time_has_not_hung_though_nobody_listened(monkeypatch):
    monkeypatch.setattr(ray_pool, "HANG_GRACE_S", 0.1)
    pool = on_ray(MakeFakeWorker(seconds=0.1))
    try:
        pool.submit(job(0))
        drain(pool, 1)
        pool.submit(job(1, limit_s=1.0))
        time.sleep(3)
        (end,) = [event for event in drain(pool, 1) if isinstance(event, Done)]
        assert end.evaluation.what == "train"
    finally:
        pool.close()


@pytest.mark.parametrize("opened", [inline, on_ray])
def test_workers_that_cannot_start_are_no_fault_of_the_jobs(opened):
    pool = opened(MakeFakeWorker(faults=(("*", "no start"),)))
    try:
        pool.submit(job(0))
        with pytest.raises(PoolFailed, match=r"could not start.*the device is gone"):
            drain(pool, 1)
        assert pool.workers == 1, "a search that ends for it still tells its utilisation"
    finally:
        pool.close()


def test_in_this_process_a_worker_that_breaks_is_replaced_but_a_broken_device_ends_the_search():
    broken, dead = layout(blocks="AM"), layout(blocks="MM")
    pool = inline(MakeFakeWorker(faults=((broken.key, "break"), (dead.key, "break the device"))))
    pool.submit(job(0, layout=broken))
    (lost,) = [event for event in pool.events(0.0) if isinstance(event, Lost)]
    assert "RuntimeError: the device takes no more work" in lost.reason
    pool.submit(job(1))
    assert isinstance(drain(pool, 1)[-1], Done)
    pool.submit(job(2, layout=dead))
    with pytest.raises(PoolFailed, match=r"device-side assert.* without --workers 1"):
        drain(pool, 1)


def test_what_is_not_there_is_refused():
    with pytest.raises(PoolError, match="no GPU"):
        RayPool(MakeFakeWorker(), None, gpus_per_trial=0.5)
    with pytest.raises(PoolError, match="not supported"):
        RayPool(MakeFakeWorker(), None, address="ray://127.0.0.1:10001")
    assert [_gpu_room(free, share) for free, share in ((2, 0.6), (2, 0.4), (1, 0.25), (4, 2), (0, 1))] == [
        2,
        4,
        4,
        2,
        0,
    ]
    with pytest.raises(PoolError, match="no Ray cluster can be reached"):
        RayPool(MakeFakeWorker(), None, address="127.0.0.1:1")


def test_workers_divide_the_cores_and_pack_on_gpus():
    def plan(workers, share, *, local, **there):
        return _plan(there, there, workers, share, local=local)

    assert plan(None, None, local=True, CPU=8.0) == (8, 1.0, 0.0)
    assert plan(2, None, local=True, CPU=9.0) == (2, 4.0, 0.0)
    assert plan(3, None, local=False, CPU=8.0) == (3, 1.0, 0.0)
    assert plan(None, None, local=True, CPU=8.0, GPU=2.0) == (2, 1.0, 1.0)
    assert plan(None, 0.0, local=True, CPU=8.0, GPU=2.0) == (8, 1.0, 0.0)
    # Four on each of eight GPUs, though there are fewer cores than that.
    assert plan(None, 0.25, local=True, CPU=16.0, GPU=8.0) == (32, 0.5, 0.25)
    for workers, share, there, message in (
        (None, None, {"CPU": 0.0}, "no free capacity, 0 of 0 CPUs"),
        (None, None, {"CPU": 8.0, "GPU": 0.5}, "no free capacity, 0.5 of 0.5 GPUs"),
        (9, 0.25, {"CPU": 8.0, "GPU": 2.0}, "9 workers with 0.25 GPU each do not fit 2 free of 2 GPUs; 8 would"),
        (None, 1.5, {"CPU": 8.0, "GPU": 2.0}, "gpus-per-trial: 1.5 is not allowed"),
        (None, math.inf, {"CPU": 8.0, "GPU": 2.0}, "gpus-per-trial: inf is not allowed"),
        (None, 1e-9, {"CPU": 8.0, "GPU": 2.0}, "gpus-per-trial: 1e-09 is not allowed; a share from 0.0001 to 1"),
    ):
        with pytest.raises(PoolError, match=message):
            _plan(there, there, workers, share, local=True)


FAULTS = ((1, "once"), (2, "never"), (3, "assert"), (4, "kill"), (5, "kill timing"), (6, "nan"))


@pytest.mark.slow
@pytest.mark.parametrize("on", ["inline", "ray"])
def test_the_real_worker_survives_its_faults(on):
    make = MakeFaultyWorker(
        MakeWorker(settings(epochs=2), TimingConfig(batch_size=8, window_s=0.01, windows=2), LAYOUT), FAULTS
    )
    cores = len(os.sched_getaffinity(0))
    pool = RayPool(make, stripes(), workers=1) if on == "ray" else InlinePool(make, stripes(), threads=cores)

    def run(trial, what="train", **fields):
        fields = {"to_epoch": 2, "seed": 0} | fields if what == "train" else fields
        pool.submit(Job(id=trial, what=what, layout=LAYOUT, trial=trial, **fields))
        return drain(pool, 1)[-1]

    try:
        fine = run(0).evaluation
        assert (fine.what, fine.conditions["threads"]) == ("train", cores)
        halved = run(1).evaluation
        assert halved.conditions["batch_in_parts"] == 2
        assert halved.values["images_seen"] == fine.values["images_seen"]
        assert "in two passes too; the peak was" in run(2).evaluation.reason
        assert "loss became nan in epoch 1" in run(6).evaluation.reason
        assert "search.job_minutes" in run(10, limit_s=1e-6).evaluation.reason
        assert run(11, "time").evaluation.what == "time"
        if on == "ray":
            lost = run(3)
            assert isinstance(lost, Lost)
            assert "device-side assert" in lost.reason
            assert isinstance(run(4), Lost)
            assert isinstance(run(5, "time"), Lost)
            # The gate of the one that was killed while it timed is open again.
            assert run(12).evaluation.values["nll"] == fine.values["nll"]
        else:
            with pytest.raises(PoolFailed, match="device-side assert"):
                run(3)
    finally:
        pool.close()


@pytest.mark.slow
def test_ray_may_be_started_before_the_pool_is_asked_for():
    import ray

    with connecting(2, None):
        pool = RayPool(MakeFakeWorker(), None, workers=2)
        pool.submit(job(0))
        assert isinstance(drain(pool, 1)[-1], Done)
        pool.close()
    with pytest.raises(ValueError, match="no such space"), connecting(2, None):
        raise ValueError("no such space")
    assert not ray.is_initialized()
    with connecting(None, "127.0.0.1:1"), pytest.raises(PoolError, match="no Ray cluster can be reached"):
        RayPool(MakeFakeWorker(), None, address="127.0.0.1:1")
    with connecting(1, None):  # this process: Ray is not needed
        assert not ray.is_initialized()


@pytest.mark.slow
def test_ray_that_this_process_runs_already_is_named_and_left_alone():
    import ray
    from tuners import quiet_ray

    with quiet_ray():
        with pytest.raises(PoolError, match="Ray runs in this process already"):
            RayPool(MakeFakeWorker(), None, workers=2)
        assert ray.is_initialized()


@pytest.mark.slow
def test_a_running_cluster_is_used_and_its_capacity_respected():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        with pytest.raises(PoolError, match=r"workers: 5 need 5 CPU, and 2 of 2 are free"):
            RayPool(MakeFakeWorker(), None, workers=5, address=cluster.address)
        pool = RayPool(MakeFakeWorker(), None, address=cluster.address)
        try:
            assert pool.workers == 2
            for number in range(4):
                pool.submit(job(number, layout=layout(16 + 2 * number)))
            assert sum(isinstance(event, Done) for event in drain(pool, 4)) == 4
        finally:
            pool.close()
    finally:
        cluster.shutdown()
