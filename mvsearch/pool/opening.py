"""Where the work of a launch runs: this process, or Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mambavision.data import ImageData
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.job import WorkerFactory
from mvsearch.pool.pool import Pool, PoolError


@dataclass(frozen=True)
class Resources:
    """Where the work runs.

    Attributes:
        workers: how many; None: one a GPU, or one a core where there is none. 1 without `address` is this process.
        gpus_per_trial: share of a GPU for a worker; None: a whole one where there are GPUs.
        address: of a running Ray cluster; None: this machine.
    """

    workers: int | None = None
    gpus_per_trial: float | None = None
    address: str | None = None


def open_pool(make_worker: WorkerFactory, data: ImageData, resources: Resources) -> Pool:
    """The pool that fits: this process for one local worker, else Ray.

    Raises:
        PoolError: if what is asked for is not there.
    """
    import torch

    gpus = torch.cuda.device_count()
    if resources.workers is not None and resources.workers < 1:
        raise PoolError(f"workers: {resources.workers} is not allowed; 1 or more")
    if resources.gpus_per_trial is not None and not resources.gpus_per_trial >= 0:
        raise PoolError(f"gpus-per-trial: {resources.gpus_per_trial:g} is not allowed; 0 or more")
    cores = len(os.sched_getaffinity(0))
    if resources.address is None and (resources.workers == 1 or (resources.workers is None and max(gpus, cores) == 1)):
        if resources.gpus_per_trial and not gpus:
            raise PoolError(f"gpus-per-trial: {resources.gpus_per_trial:g} asked for, and there is no GPU here")
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        threads = int(asked) if asked.isdigit() and int(asked) else cores
        return InlinePool(make_worker, data, device="cuda:0" if on_gpu(resources) else "cpu", threads=threads)
    from mvsearch.pool.ray_pool import RayPool

    return RayPool(
        make_worker,
        data,
        workers=resources.workers,
        gpus_per_trial=resources.gpus_per_trial,
        address=resources.address,
    )


def on_gpu(resources: Resources) -> bool:
    import torch

    return torch.cuda.device_count() > 0 and resources.gpus_per_trial != 0
