"""How long a search takes: what there is to do, what it took so far, and what it will take in all."""

from __future__ import annotations

from dataclasses import dataclass

from mvsearch.config.sections import StudyConfig
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
