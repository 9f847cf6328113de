"""What a launch tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass

from mvsearch.study.record import TrialRecord


@dataclass(frozen=True)
class LaunchState:
    """What a view shows while a search runs.

    Attributes:
        finished: layouts trained in full.
        failed: layouts that failed.
        wanted: layouts to train in full.
        running: worker and what it does.
        front: records of the present front, by throughput.
        hypervolume: as a multiple of the baselines' hypervolume; None until all baselines have ended.
        utilisation: busy share of the workers' time since the first job, 0 to 1.
        elapsed: seconds since the first job of this launch.
        remaining: estimated seconds left; None before enough trainings have ended.
        waiting: layouts that wait between rungs.
        device_hours: hours of work so far, all workers and launches together.
        estimated: seconds and device-hours that this launch takes, as estimated after its first trainings; None before.
        stopping: why nothing more is begun, once that is so.
    """

    finished: int
    failed: int
    wanted: int
    running: dict[str, str]
    front: list[TrialRecord]
    hypervolume: float | None
    utilisation: float
    elapsed: float
    remaining: float | None
    waiting: int = 0
    device_hours: float = 0.0
    estimated: tuple[float, float] | None = None
    stopping: str | None = None


class View:
    """What a launch tells a person; this one is silent. `mvsearch.terminal` has the one people see."""

    def notice(self, text: str) -> None:
        """Something worth a line."""

    def estimated(self, seconds: float, device_hours: float) -> None:
        """What the launch will take in all, by its first trainings."""

    def trial_ended(self, record: TrialRecord, state: LaunchState) -> None:
        """A trial is complete, has failed, or has left its layout waiting at the end of a rung."""

    def repeated(self, record: TrialRecord, nll: float, reason: str | None, state: LaunchState) -> None:
        """`calibrate` or `confirm` is done with a layout: its mean validation NLL now, or why a training failed."""

    def update(self, state: LaunchState) -> None:
        """Something moved."""
