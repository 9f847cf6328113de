"""The messages between the driver and its workers; plain values that travel between processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mambavision.layout import HybridLayout
from mvsearch.study.record import SEARCH, Evaluation

TRIES_FOR_A_LOST_PROCESS = 2
TRIES_FOR_A_LOST_MACHINE = 10


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to be measured on one device.

    Attributes:
        id: number of the job, unique in a launch.
        what: ``"time"`` or ``"train"``.
        layout: the deployed layout.
        trial: number of the Optuna trial that asks for it.
        baseline: name of the hand-made baseline, or None.
        warm_start: what goes into `Evaluation.warm_start`.
        cost: what goes into `Evaluation.cost`.
        seed: of a training.
        from_epoch: epochs done before; `checkpoint` is theirs.
        to_epoch: epochs done at the end.
        checkpoint: what an earlier training to `from_epoch` gave back.
        keep_checkpoint: whether a training gives one back.
        purpose: what goes into `Evaluation.purpose`.
        limit_s: seconds after which the job is given up as failed; None: none.
    """

    id: int
    what: str
    layout: HybridLayout
    trial: int
    baseline: str | None = None
    warm_start: str | None = None
    cost: dict[str, int] = field(default_factory=dict)
    seed: int | None = None
    from_epoch: int = 0
    to_epoch: int = 0
    checkpoint: bytes | None = None
    keep_checkpoint: bool = False
    purpose: str = SEARCH
    limit_s: float | None = None

    def evaluation(self, **measured: Any) -> Evaluation:
        """The ledger line of this job, with what was measured filled in."""
        return Evaluation(
            **{
                "what": self.what,
                "key": self.layout.key,
                "layout": self.layout.to_dict(),
                "trial": self.trial,
                "baseline": self.baseline,
                "warm_start": self.warm_start,
                "cost": self.cost,
                "seed": self.seed,
                "from_epoch": self.from_epoch,
                "to_epoch": self.to_epoch,
                "purpose": self.purpose,
                **measured,
            }
        )

    @property
    def over_limit(self) -> str:
        """Why the job failed if it took longer than `limit_s`."""
        minutes = f"{(self.limit_s or 0) / 60:g}"
        if self.purpose != SEARCH:  # longer trainings than the search's have a longer limit
            epochs = self.to_epoch - self.from_epoch
            return f"{self.what}: took longer than search.job_minutes allows for {epochs} epochs, {minutes}"
        return f"{self.what}: took longer than search.job_minutes, {minutes}"


@dataclass(frozen=True)
class Started:
    """A worker has begun the job."""

    job: int
    worker: str


@dataclass(frozen=True)
class Progress:
    """An epoch of the job has ended."""

    job: int
    epoch: int
    epochs: int
    train_loss: float


@dataclass(frozen=True)
class Done:
    """The job has ended; `evaluation.what` is ``"fail"`` if it raised.

    Attributes:
        weights: of a training, safetensors bytes.
        checkpoint: of a training that was asked to keep one.
    """

    job: int
    evaluation: Evaluation
    weights: bytes | None = field(default=None, repr=False)
    checkpoint: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Lost:
    """The process that ran the job is gone; nothing is known of the job.

    Attributes:
        reason: in one sentence.
        with_node: True if the whole machine went away, which is no fault of the job's.
    """

    job: int
    reason: str
    with_node: bool = False

    @property
    def tries(self) -> int:
        """How often a job may be lost like this before its layout has failed."""
        return TRIES_FOR_A_LOST_MACHINE if self.with_node else TRIES_FOR_A_LOST_PROCESS


@dataclass(frozen=True)
class Notice:
    """Something a person should know of the pool itself; no job's event."""

    text: str
    job: int = -1


Event = Started | Progress | Done | Lost | Notice


class DeviceBroken(RuntimeError):
    """The device is in an error state that a process cannot leave; only a new process may use it again."""


class Worker(Protocol):
    """Does jobs on one device, one at a time."""

    def run(self, job: Job) -> Iterator[Progress | Done]:
        """Do a job, yielding progress and at last a `Done`.

        An exception is the worker's own fault, not the job's: the worker is not used again.
        """
        ...


class WorkerFactory(Protocol):
    """Builds the worker of one slot in the process that will run it. Must be picklable."""

    def __call__(self, name: str, device: str, threads: int, data: Any) -> Worker:
        """Args: name of the worker; device, "cpu" or "cuda:N"; threads it may use; the data set."""
        ...
