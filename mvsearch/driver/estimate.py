"""How long a search takes: what there is to do, what it took so far, what it may take, and what it will take in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mvsearch.config.sections import SearchConfig, StudyConfig
from mvsearch.study.record import SEARCH, TIME, TRAIN, Evaluation

TRAININGS_TO_ESTIMATE = 3
"""Trainings (of a rung, where there are rungs) that must have ended before the rest is estimated from them."""


@dataclass(frozen=True)
class Estimate:
    """What a launch takes.

    Attributes:
        seconds: from its first job to its last result.
        device_hours: hours of work, all workers together.
    """

    seconds: float
    device_hours: float


def planned(config: StudyConfig, trials: int, baselines: int) -> tuple[int, float]:
    """How many layouts a study times, and how many epochs it trains, every seed, until so many are trained in full.

    With rungs, of eta layouts on a rung one goes on, and the hand-made layouts climb all of them.

    Args:
        config: of the study.
        trials: layouts trained in full.
        baselines: how many of them are trained in full from the start, such as the hand-made ones.
    """
    baselines = min(baselines, trials)
    others, rungs = trials - baselines, config.rung_epochs
    eta = config.fidelity.eta if config.fidelity else 1
    trained = [others * eta ** (len(rungs) - 1 - number) for number in range(len(rungs))]
    starts = (0, *rungs[:-1])
    epochs = sum(count * (end - start) for count, start, end in zip(trained, starts, rungs, strict=True))
    return trained[0] + baselines, config.proxy.seeds * (epochs + baselines * rungs[-1])


class Effort:
    """The work of one study, added up as its evaluations come in.

    Args:
        config: of the study.
        trials: layouts it trains in full.
        baselines: how many of them are trained in full from the start.
        workers: that share the work.

    Attributes:
        device_seconds: of all evaluations, all workers together, all launches.
    """

    def __init__(self, config: StudyConfig, trials: int, baselines: int, workers: int) -> None:
        self._timings, self._epochs = planned(config, trials, baselines)
        self._workers = workers
        self.device_seconds = 0.0
        self._timed = 0
        self._timing_seconds = 0.0
        self._trainings = 0
        self._trained = 0
        self._training_seconds = 0.0

    def add(self, line: Evaluation) -> None:
        """Take one line of the ledger."""
        if line.purpose != SEARCH or (line.warm_start is not None and "source" in line.conditions):
            return  # the latter was done for another study
        seconds = max(0.0, line.ended - line.started) if line.worker else 0.0  # else it was taken from a table
        self.device_seconds += seconds
        if line.what == TIME:
            self._timed += 1
            self._timing_seconds += seconds
        elif line.what == TRAIN:
            self._trainings += 1
            self._trained += line.to_epoch - line.from_epoch
            self._training_seconds += seconds

    @property
    def trial_seconds(self) -> float:
        """Mean seconds of work between two asks: a timing and a training, or a training on a later rung."""
        return self.device_seconds / self._trainings if self._trainings else 0.0

    def left(self) -> Estimate | None:
        """What is left to do, by the mean of what was done so far; None before there is enough of it.

        At the end workers run out of work one after the other: on average each waits for half a training.
        """
        if self._trainings < TRAININGS_TO_ESTIMATE:
            return None
        timing = self._timing_seconds / max(1, self._timed)
        epoch = self._training_seconds / self._trained
        work = timing * max(0, self._timings - self._timed) + epoch * max(0.0, self._epochs - self._trained)
        end = 0.5 * self._training_seconds / self._trainings * (self._workers - 1) / self._workers if work else 0.0
        return Estimate(work / self._workers + end, work / 3600)


class LaunchTime:
    """The time of one launch: what it has used, what ends it, and what it will take.

    Args:
        search: the rules.
        effort: of the study; the work of earlier launches is in it already.
        now: gives the time in seconds, from any beginning.

    Attributes:
        stopping: the rule of `search` that was met, in one sentence; None before.
        estimate: what the launch takes in all, as estimated after its first trainings; None before.
    """

    def __init__(self, search: SearchConfig, effort: Effort, now: Callable[[], float]) -> None:
        self._search = search
        self._effort = effort
        self._now = now
        self._began = now()
        self._worked_before = effort.device_seconds
        self.stopping: str | None = None
        self.estimate: Estimate | None = None

    def begin(self) -> None:
        """The launch begins now; of a study that goes on, there may be an estimate at once."""
        self._began = self._now()
        self.estimate = self.left()

    @property
    def device_hours(self) -> float:
        """Hours of work of this launch, all workers together."""
        return (self._effort.device_seconds - self._worked_before) / 3600

    def why_stop(self, gain: Callable[[int], float | None]) -> str | None:
        """The rule of `search` that ends the asking now; once one is met, it stays so.

        Args:
            gain: by what share the hypervolume grew over the last so many layouts; None before there are enough.
        """
        search = self._search
        if self.stopping is None:
            if search.hours is not None and self._now() - self._began > search.hours * 3600:
                self.stopping = f"search.hours = {search.hours:g} are over"
            elif search.device_hours is not None and self._effort.device_seconds >= search.device_hours * 3600:
                self.stopping = f"search.device_hours = {search.device_hours:g} are used"
            elif search.plateau is not None:
                grown = gain(search.plateau.trials)
                if grown is not None and grown <= search.plateau.gain:
                    self.stopping = (
                        f"the hypervolume grew by {grown:.2%} over the last {search.plateau.trials} layouts "
                        f"(search.plateau: at most {search.plateau.gain:.2%})"
                    )
        return self.stopping

    def left(self) -> Estimate | None:
        """What is left of this launch: until all is trained, or a limit of `search` on time ends it before.

        None before enough trainings have ended.
        """
        left = self._effort.left()
        if left is None or not left.device_hours:
            return left
        search, share = self._search, 1.0
        if search.hours is not None:
            share = min(share, (search.hours * 3600 - (self._now() - self._began)) / left.seconds)
        if search.device_hours is not None:
            share = min(share, (search.device_hours - self._effort.device_seconds / 3600) / left.device_hours)
        share = max(0.0, share)
        return Estimate(left.seconds * share, left.device_hours * share)

    def estimate_now(self, first_job: float | None) -> Estimate | None:
        """Make the estimate, if there is none yet and enough trainings have ended.

        Args:
            first_job: when the first job began; None before.

        Returns:
            The estimate if it was made now, else None.
        """
        if self.estimate is not None or (left := self.left()) is None:
            return None
        elapsed = self._now() - (self._began if first_job is None else first_job)
        self.estimate = Estimate(elapsed + left.seconds, self.device_hours + left.device_hours)
        return self.estimate
