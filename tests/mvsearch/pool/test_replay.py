"""The replay pool: recorded and made-up values in virtual time, and the dry run made of it."""

from __future__ import annotations

import time

import pytest
from fakes import MakeFakeWorker
from searches import made_up, replaying, search_in, told
from typer.testing import CliRunner

from mvsearch.cli import app
from mvsearch.pool.job import Done, Started
from mvsearch.pool.replay import MakeReplayWorker, ReplayPool, ReplayWorker
from mvsearch.study.record import COMPLETE, FAILED

RUNGS = ("search.sampler=random", "proxy.epochs=9", "fidelity={eta: 3, rungs: 3}")


def test_a_recorded_study_is_replayed_to_the_same_trials_and_nothing_is_done(tmp_path):
    settings = ("search.sampler=random", "proxy.epochs=9")
    first = search_in(tmp_path, *settings)
    first.run()
    lines = tuple(first.ledger.evaluations)
    again = tmp_path / "again"
    again.mkdir()
    second = search_in(again, *settings, pool=ReplayPool(MakeReplayWorker(lines)))
    second.run()
    assert told(second) == told(first)
    virtual = [line.ended - line.started for line in second.ledger.evaluations]
    assert virtual == pytest.approx([line.ended - line.started for line in lines], abs=1e-6)
    assert second.pool.now() == pytest.approx(sum(virtual))
    more = tmp_path / "more"
    more.mkdir()
    third = search_in(more, *settings, "search.trials=16", pool=ReplayPool(MakeReplayWorker(lines)))
    assert third.run().failed == 2
    assert {record.reason for record in third.records() if record.state == FAILED} == {"time: not recorded"}


def test_days_on_many_devices_take_seconds_and_devices_share_the_time(tmp_path):
    seconds = {}
    for devices in (1, 4):
        path = tmp_path / str(devices)
        path.mkdir()
        pool = replaying(devices, rate=1e5)
        search = search_in(path, "search.sampler=random", "proxy.epochs=9", brief=True, pool=pool)
        began = time.monotonic()
        outcome = search.run()
        assert time.monotonic() - began < 30
        assert outcome.complete == 14
        seconds[devices] = outcome.seconds
        assert outcome.utilisation == pytest.approx(1.0) if devices == 1 else outcome.utilisation > 0.6
    assert seconds[1] > 24 * 3600
    assert 0.25 <= seconds[4] / seconds[1] < 0.45


def test_jobs_end_in_the_order_of_their_lengths(tmp_path):
    from jobs import job

    pool = replaying(2)(search_in(tmp_path).space)
    for number in range(2):
        pool.submit(job(number, cost={"macs": 10**6 * (1 + number), "params": 10**4}))
    assert all(isinstance(event, Started) for event in pool.events(0.0))
    moments = []
    while events := list(pool.events(0.0)):
        moments += [(pool.now(), event.evaluation.ended) for event in events if isinstance(event, Done)]
    assert moments == sorted(moments)
    assert all(now == ended for now, ended in moments)
    with pytest.raises(ValueError, match="devices: 0 is not allowed"):
        ReplayPool(MakeFakeWorker(), devices=0)


def test_the_values_of_a_layout_are_its_own_and_fall_along_the_epochs(tmp_path):
    search = search_in(tmp_path, *RUNGS, "search.trials=10", brief=True, pool=replaying(1))
    search.run()
    complete = [record for record in search.records() if record.state == COMPLETE]
    assert all(record.rungs[0].nlls > record.rungs[1].nlls > record.rungs[2].nlls for record in complete)
    assert len({record.nll for record in complete}) == len({record.ratio for record in complete}) == len(complete)
    early = sorted(complete, key=lambda record: record.rungs[0].nlls)
    assert early != sorted(complete, key=lambda record: record.nll), "an early rung that told all would test nothing"


def test_a_training_that_goes_on_without_its_checkpoint_is_the_drivers_fault(tmp_path):
    from jobs import job

    worker = made_up(search_in(tmp_path).space)("w", "w", 1, None)
    assert isinstance(worker, ReplayWorker)
    with pytest.raises(ValueError, match="without its own checkpoint"):
        list(worker.run(job(0, from_epoch=1, cost={"macs": 1, "params": 1}, checkpoint=b"another")))


def launch(*arguments):
    return CliRunner().invoke(app, ["launch", "stagewise", "--dry-run", *arguments])


def test_a_dry_run_says_what_a_search_would_do_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = [
        part
        for setting in (*RUNGS, "search.trials=9", "proxy.train_images=100", "proxy.val_images=50")
        for part in ("--set", setting)
    ]
    done = launch(*changes, "--workers", "4")
    assert done.exit_code == 0, done.output
    assert "Rungs of 1 / 3 / 9 epochs: about one layout in 3 goes on" in done.output
    assert "9 layouts trained in full" in done.output
    assert "9 to epoch 9." in done.output
    assert "device-hours" in done.output
    assert "on 4 devices" in done.output
    assert "All values are made up" in done.output
    assert list(tmp_path.iterdir()) == []
    for option in (["--address", "auto"], ["--gpus-per-trial", "1"], ["--timings", "x.csv"], ["--workers", "0"]):
        refused = launch(*option)
        assert refused.exit_code == 2
        assert "is not allowed" in refused.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_keeps_to_the_table_of_throughputs_and_to_no_limit_of_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--set", "proxy.train_images=100", "--set", "proxy.val_images=50")
    table = ("--set", "throughput.file=here.csv", "--set", "throughput.others=skip")
    missing = launch(*small, *table)
    assert missing.exit_code == 2
    assert "throughput.file: here.csv is not a file" in missing.output
    space = search_in(tmp_path).space
    layouts = space.baselines().values()
    rows = [f'{one.key},100,1.0,"{one.to_json().replace(chr(34), chr(34) * 2)}"' for one in layouts]
    (tmp_path / "here.csv").write_text("\n".join(["key,images_per_second,ratio,layout", *rows]))
    done = launch(*small, *table, "--set", "search.hours=0.0001", "--set", "search.trials=9")
    assert done.exit_code == 0, done.output
    assert "search.hours left out" in done.output
    assert "5 layouts asked for, 5 layouts trained in full" in done.output
