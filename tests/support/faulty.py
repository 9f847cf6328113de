"""The real worker with faults put in at its boundary, where no GPU is there to bring them about."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mvsearch.evaluate import proxy, throughput
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.evaluate.worker import TrainingWorker
from mvsearch.pool.job import Done, Job, Progress


@dataclass(frozen=True)
class MakeFaultyWorker:
    """Builds workers that train and time for real, but for faults.

    Attributes:
        make: builds the real one.
        faults: by number of the trial: ``"once"`` (a whole batch does not fit), ``"never"`` (nor does half),
            ``"assert"`` (a CUDA device-side assert), ``"nan"`` and ``"kill"`` (SIGKILL) in the third step, ``"kill
            timing"`` (SIGKILL while the device is timed).
    """

    make: MakeWorker
    faults: tuple[tuple[int, str], ...]

    def __call__(self, name: str, device: str, threads: int, data: Any) -> FaultyWorker:
        return FaultyWorker(self.make(name, device, threads, data), dict(self.faults))


class FaultyWorker:
    def __init__(self, worker: TrainingWorker, faults: dict[int, str]) -> None:
        self.worker = worker
        self.faults = faults

    def run(self, job: Job) -> Iterator[Progress | Done]:
        fault = self.faults.get(job.trial)
        step, measure, steps = proxy.train_step, throughput.measure, 0

        def faulty_step(model: Any, batches: Any, *args: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            batches = list(batches)
            if fault == "never" or (fault == "once" and len(batches) == 1):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if fault == "assert":
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            if fault == "nan" and steps == 3:
                return torch.full((), torch.nan)
            if fault == "kill" and steps == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(model, batches, *args, **options)

        def faulty_measure(*args: Any, **options: Any) -> Any:
            if fault == "kill timing":
                os.kill(os.getpid(), signal.SIGKILL)
            return measure(*args, **options)

        proxy.train_step, throughput.measure = faulty_step, faulty_measure
        try:
            yield from self.worker.run(job)
        finally:
            proxy.train_step, throughput.measure = step, measure
