"""Weights and checkpoints in a study's folder: which are written, found and deleted."""

from __future__ import annotations

import pytest

from mambavision.layout import HybridLayout, StageLayout
from mvsearch.driver.crew import JobEnd
from mvsearch.driver.kept_files import KeptFiles
from mvsearch.pool.job import Job

LAYOUT = HybridLayout(stages=(StageLayout(blocks="MA", dim=16),))


KEY = LAYOUT.key


@pytest.fixture
def files(tmp_path):
    return KeptFiles(tmp_path / "checkpoints", tmp_path / "weights", seeds=(7, 8), stops=(1, 3, 9))


def end(seed, to_epoch, *, checkpoint=b"c"):
    job = Job(id=0, what="train", layout=LAYOUT, trial=0, seed=seed, to_epoch=to_epoch)
    return JobEnd(job, job.evaluation(), weights=f"{seed} {to_epoch}".encode(), checkpoint=checkpoint)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else None


def test_only_the_weights_of_the_first_seed_at_the_end_are_kept(files, tmp_path):
    for seed in (8, 7):
        for epoch in (1, 3, 9):
            files.keep(end(seed, epoch, checkpoint=None))
    assert {path.name: path.read_bytes() for path in (tmp_path / "weights").iterdir()} == {f"{KEY}.safetensors": b"7 9"}
    assert names(tmp_path / "checkpoints") is None
    KeptFiles(tmp_path / "checkpoints", None, seeds=(7,), stops=(9,)).keep(end(7, 9))
    assert names(tmp_path) == ["checkpoints", "weights"]


def test_the_first_checkpoint_that_is_there_is_found(files):
    files.keep(end(7, 1, checkpoint=b"one"))
    files.keep(end(8, 3, checkpoint=b"three"))
    assert files.checkpoint(KEY, 7, (3, 1)) == (1, b"one")
    assert files.checkpoint(KEY, 8, (3, 1)) == (3, b"three")
    assert files.checkpoint(KEY, 8, (1,)) == (0, None)


def test_checkpoints_go_by_seed_and_epoch_and_with_their_layout(files, tmp_path):
    folder = tmp_path / "checkpoints"
    for seed in (7, 8):
        for epoch in (1, 3):
            files.keep(end(seed, epoch))
    files.drop_checkpoints(KEY, seed=7, before=3)
    assert names(folder) == [f"{KEY}.seed7.epoch3.pt", f"{KEY}.seed8.epoch1.pt", f"{KEY}.seed8.epoch3.pt"]
    files.sweep_checkpoints(["another"])
    assert len(names(folder)) == 3
    files.sweep_checkpoints([KEY])
    assert names(folder) == []
    files.drop_all_checkpoints()
    assert names(folder) is None
    files.sweep_checkpoints([KEY])


def test_weights_that_are_not_wanted_and_all_of_a_layout_that_failed_are_deleted(files, tmp_path):
    files.keep(end(7, 9))
    (tmp_path / "weights" / "another.safetensors").touch()
    files.drop_weights(lambda key: key == KEY)
    assert names(tmp_path / "weights") == [f"{KEY}.safetensors"]
    files.keep(end(7, 3))
    files.drop(KEY)
    assert names(tmp_path / "weights") == []
    assert f"{KEY}.seed7.epoch3.pt" not in names(tmp_path / "checkpoints")
