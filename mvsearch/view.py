"""What a launch tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass

from mvsearch.record import TrialRecord


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
        remaining: estimated seconds left; None before the first trial has ended.
        waiting: layouts that wait between rungs.
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


class View:
    """What a launch tells a person; this one is silent. `mvsearch.terminal` has the one people see."""

    def notice(self, text: str) -> None:
        """Something worth a line."""

    def trial_ended(self, record: TrialRecord, state: LaunchState) -> None:
        """A trial is complete, has failed, or has left its layout waiting at the end of a rung."""

    def repeated(self, record: TrialRecord, nll: float, reason: str | None, state: LaunchState) -> None:
        """`calibrate` or `confirm` is done with a layout: its mean validation NLL now, or why a training failed."""

    def update(self, state: LaunchState) -> None:
        """Something moved."""
