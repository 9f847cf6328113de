"""A worker that measures nothing: values are functions of the layout, so a whole search takes a second."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mambavision.layout import HybridLayout
from mvsearch.pool.job import DeviceBroken, Done, Job, Progress
from mvsearch.study.record import FAIL, TIME


def noise(*parts: object) -> float:
    """A number from 0 to 1 that depends on its arguments alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def attention_share(layout: HybridLayout) -> float:
    blocks = "".join(stage.blocks for stage in layout.stages if stage.hybrid)
    return blocks.count("A") / len(blocks)


def true_nll(layout: HybridLayout, seed: int) -> float:
    share = attention_share(layout)
    width = layout.stages[0].dim
    return 2.0 - 0.02 * width + (share - 0.5) ** 2 + 0.01 * noise(layout.key, seed)


def early_nll(layout: HybridLayout, seed: int, epoch: int) -> float:
    """At the end of a rung that is not the last: worse, and not quite in the order of the end."""
    return true_nll(layout, seed) + (0.5 + 0.1 * noise("early", layout.key, seed)) / epoch


def checkpoint(layout: HybridLayout, seed: int, epoch: int) -> bytes:
    return f"{layout.key} {seed} {epoch}".encode()


def true_ratio(layout: HybridLayout) -> float:
    return 24 / layout.stages[0].dim * (1 + 0.3 * attention_share(layout)) * (1 + 0.01 * noise(layout.key))


@dataclass(frozen=True)
class MakeFakeWorker:
    """Builds fake workers.

    Attributes:
        faults: what goes wrong, by layout key or by ``"*"``: ``"raise"``, ``"die"`` (SIGKILL to its own process),
            ``"die once"`` (the first time; leaves a mark in `marks`), ``"no start"`` (the worker cannot be built),
            ``"raise late"`` (where a training goes on), ``"break"`` (an exception of the worker's own),
            ``"break the device"``, ``"hang"``.
        marks: a folder for marks.
        seconds: how long a job takes.
        log: a file to which a line is appended for each job begun.
    """

    faults: tuple[tuple[str, str], ...] = ()
    marks: Path | None = None
    seconds: float = 0.0
    log: Path | None = None

    def __call__(self, name: str, device: str, threads: int, data: Any) -> FakeWorker:
        if dict(self.faults).get("*") == "no start":
            raise RuntimeError("the device is gone")
        return FakeWorker(self, name, device)


class FakeWorker:
    def __init__(self, make: MakeFakeWorker, name: str, device: str) -> None:
        self.make = make
        self.name = name
        self.device = device

    def run(self, job: Job) -> Iterator[Progress | Done]:
        started = time.time()
        if self.make.log is not None:
            with self.make.log.open("a") as file:
                file.write(f"{job.what} {job.layout.key} {job.seed} {job.from_epoch} {job.to_epoch}\n")
        faults = dict(self.make.faults)
        fault = faults.get(job.layout.key, faults.get("*"))
        if fault == "die" or (fault == "die once" and self._first(job)):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "break":
            raise RuntimeError("the device takes no more work")
        if fault == "break the device":
            raise DeviceBroken("device-side assert")
        if fault == "hang":
            time.sleep(3600)
        where = {"worker": self.name, "device": self.device, "started": started}
        where["conditions"] = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if fault == "raise" or (fault == "raise late" and job.from_epoch):
            yield Done(job.id, job.evaluation(what=FAIL, reason=f"{job.what}: it broke", ended=time.time(), **where))
            return
        time.sleep(self.make.seconds)
        if job.what == TIME:
            ratio = true_ratio(job.layout)
            values = {"images_per_second": 1000 * ratio, "ratio": ratio, "iqr": 0.01, "windows": [1000 * ratio]}
            yield Done(job.id, job.evaluation(values=values, ended=time.time(), **where))
            return
        assert job.seed is not None
        if job.from_epoch:
            assert job.checkpoint == checkpoint(job.layout, job.seed, job.from_epoch)
        yield Progress(job.id, job.from_epoch + 1, job.to_epoch, 2.0)
        early = job.keep_checkpoint
        nll = early_nll(job.layout, job.seed, job.to_epoch) if early else true_nll(job.layout, job.seed)
        epochs = job.to_epoch - job.from_epoch
        values = {"nll": nll, "top1": 1 / nll / 2, "images_seen": 64 * epochs, "train_seconds": 0.5}
        if job.purpose == "confirm":
            values |= {"test_nll": nll + 0.1, "test_top1": 1 / (nll + 0.1) / 2, "test_images": 64, "val_images": 32}
        weights = save({"weight": np.ones(2, dtype=np.float32)})
        kept = checkpoint(job.layout, job.seed, job.to_epoch) if early else None
        yield Done(job.id, job.evaluation(values=values, ended=time.time(), **where), weights, kept)

    def _first(self, job: Job) -> bool:
        assert self.make.marks is not None
        mark = self.make.marks / f"{job.layout.key}-{job.what}"
        if mark.exists():
            return False
        mark.touch()
        return True


FEW_LAYOUTS = (
    "layout.width=16",
    "layout.stages.1.depth=2",
    "layout.stages.1.flips=0",
    "layout.stages.1.state=8",
    "layout.stages.1.attention={min: 0, max: 2}",
    "layout.stages.2.depth=1",
    "layout.stages.2.state=8",
    "layout.stages.2.attention={min: 0, max: 1}",
    "search.trials=100",
)
"""Settings of `stagewise` that leave fewer layouts than trials."""
