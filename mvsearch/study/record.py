"""What was measured, as plain frozen values: evaluations (lines of the ledger) and the trial records made of them.

Nothing outside the standard library is imported here, so that reports and tables never wait for torch.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mvsearch.study.measure import Measure

TIME = "time"
TRAIN = "train"
FAIL = "fail"
SEARCH = "search"
CALIBRATE = "calibrate"
CONFIRM = "confirm"
COMPLETE = "COMPLETE"
FAILED = "FAIL"
WAITING = "WAITING"
PARTIAL = "PARTIAL"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One thing measured: a timing, a training from one epoch to another with one seed, or the end of a failed trial.

    Attributes:
        what: ``"time"``, ``"train"`` or ``"fail"``.
        key: `HybridLayout.key` of the deployed layout.
        layout: `HybridLayout.to_dict()` of the deployed layout.
        trial: number of the Optuna trial that asked for it.
        baseline: name of the hand-made baseline ("last half", …), or None.
        warm_start: where a layout came from that the search began with ("old, trial 12", "mambavision_t"), or None.
        cost: ``params``, ``macs``, ``macs_attention``, ``macs_scan`` (per image) and ``memory`` (bytes at the
            deployment batch), from `mambavision.cost`.
        seed: seed of the training; None for a timing.
        from_epoch: epochs already done when this training began.
        to_epoch: epochs done when it ended.
        values: of a timing: ``images_per_second``, ``ratio`` (to the reference layout), ``iqr`` (relative, of the
            windows), ``windows`` (img/s of each), ``reference_windows`` (img/s of each, before and after), ``repeats``,
            ``drift``, and where asked for ``latency_ms`` and ``latency_ratio`` (of one image);
            of a training: ``nll`` (nats), ``top1`` (0 to 1), ``images_seen``, ``train_seconds``, ``val_images``,
            ``peak_memory`` (bytes), ``curve`` (a list of {epoch, train_loss}); of one of ``confirm`` also
            ``test_nll``, ``test_top1`` and ``test_images``, of the test split;
            of a failure: nothing.
        reason: of a failure: why, in one sentence; else None.
        started: Unix time, seconds.
        ended: Unix time, seconds.
        worker: name of the worker that did it.
        device: name of the device it ran on ("cpu", "cuda:0 NVIDIA H100", …).
        conditions: everything else that bears on the numbers (threads, dtype, batch size, image size, source, …). What
            was taken over from another study has its ``source`` here: the study and its trial.
        purpose: what it was measured for: ``"search"``, ``"calibrate"`` or ``"confirm"``. Only lines of ``"search"``
            make trial records; the others lie in the same ledger and change nothing of the search.
    """

    what: str
    key: str
    layout: dict[str, Any]
    trial: int
    baseline: str | None = None
    cost: dict[str, int] = field(default_factory=dict)
    seed: int | None = None
    from_epoch: int = 0
    to_epoch: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    started: float = 0.0
    ended: float = 0.0
    worker: str = ""
    device: str = ""
    conditions: dict[str, Any] = field(default_factory=dict)
    purpose: str = SEARCH
    warm_start: str | None = None

    @property
    def identity(self) -> tuple[str, str, str, int | None, int, int]:
        """What makes two lines the same evaluation; the ledger holds each identity once."""
        return (self.purpose, self.what, self.key, self.seed, self.from_epoch, self.to_epoch)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, one JSON line of the ledger."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """Read a line of the ledger; unknown fields (of a later version) are left out.

        Raises:
            TypeError: if a required field is missing.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


@dataclass(frozen=True)
class RungRecord:
    """What a layout reached at one rung, with every seed.

    Attributes:
        epoch: epochs trained at its end.
        nlls: validation NLL of each seed, nats.
        top1s: validation top-1 of each seed, 0 to 1.
    """

    epoch: int
    nlls: tuple[float, ...]
    top1s: tuple[float, ...]

    def qualities(self, measure: str) -> tuple[float, ...]:
        """The quality of each seed, larger is better: minus the NLL for ``"nll"``, top-1 for ``"top1"``."""
        own = Measure(measure)
        return tuple(own.quality(value) for value in own.choose(nll=self.nlls, top1=self.top1s))

    def quality(self, measure: str) -> float:
        """Mean of `qualities`."""
        return statistics.fmean(self.qualities(measure))


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One layout with everything measured of it. A trial is a key; seeds are replicates inside it.

    Attributes:
        number: number of the Optuna trial that first asked for the layout.
        warm_start: where it came from, if the search began with it.
        state: ``"COMPLETE"`` (timed, and trained in full with every seed), ``"FAIL"``, ``"WAITING"`` (trained with
            every seed to the end of a rung that is not the last: it may go on), or ``"PARTIAL"`` (on its way).
        nll: mean validation NLL over seeds, nats; None until trained in full.
        nll_se: standard error of that mean; None with one seed.
        top1: mean validation top-1 over seeds, 0 to 1.
        top1_se: standard error of that mean; None with one seed.
        images_per_second: median throughput of the timing windows.
        ratio: throughput over the reference layout's, taken in the same minute.
        ratio_iqr: interquartile range of the windows over their median.
        epochs: epochs of the longest finished training.
        images_seen: training images seen, all seeds.
        train_seconds: training seconds, all seeds.
        rungs: what it reached at each rung that was trained with every seed, rising.
        evaluations: the ledger lines it was made of.
    """

    number: int
    key: str
    layout: dict[str, Any]
    state: str
    baseline: str | None = None
    warm_start: str | None = None
    params: int | None = None
    macs: int | None = None
    macs_attention: int | None = None
    macs_scan: int | None = None
    memory: int | None = None
    nll: float | None = None
    nll_se: float | None = None
    top1: float | None = None
    top1_se: float | None = None
    seeds: tuple[int, ...] = ()
    images_per_second: float | None = None
    ratio: float | None = None
    ratio_iqr: float | None = None
    windows: tuple[float, ...] = ()
    reference_windows: tuple[float, ...] = ()
    epochs: int = 0
    images_seen: int = 0
    train_seconds: float = 0.0
    started: float | None = None
    ended: float | None = None
    reason: str | None = None
    rungs: tuple[RungRecord, ...] = field(default=(), repr=False)
    evaluations: tuple[Evaluation, ...] = field(default=(), repr=False)

    @property
    def pattern(self) -> str:
        """Block letters of all stages, separated by ``|``."""
        return "|".join(stage["blocks"] for stage in self.layout["stages"])

    @property
    def taken_over(self) -> bool:
        """Whether it was trained in another study, from which a warm start took it over."""
        trainings = [line for line in self.evaluations if line.what == TRAIN]
        return self.warm_start is not None and bool(trainings) and all("source" in t.conditions for t in trainings)

    @property
    def nll_sd(self) -> float | None:
        """Standard deviation of the NLL between seeds, nats; None with one seed."""
        return None if self.nll_se is None else self.nll_se * math.sqrt(len(self.seeds))

    @property
    def top1_sd(self) -> float | None:
        """Standard deviation of top-1 between seeds; None with one seed."""
        return None if self.top1_se is None else self.top1_se * math.sqrt(len(self.seeds))

    @property
    def log2_ratio(self) -> float | None:
        """The throughput objective; None until timed."""
        return None if self.ratio is None else math.log2(self.ratio)

    def quality(self, measure: str) -> float | None:
        """The quality objective, larger is better: minus the NLL for ``"nll"``, top-1 for ``"top1"``."""
        own = Measure(measure)
        value = own.choose(nll=self.nll, top1=self.top1)
        return None if value is None else own.quality(value)

    def quality_se(self, measure: str) -> float | None:
        """Standard error of `quality`; None with one seed."""
        return Measure(measure).choose(nll=self.nll_se, top1=self.top1_se)


def trial_records(evaluations: Iterable[Evaluation], *, epochs: int, seeds: int) -> list[TrialRecord]:
    """Gather ledger lines into one record a layout, in the order in which layouts were first asked for.

    Args:
        evaluations: lines of one ledger; those that were not measured for the search are passed over.
        epochs: epochs of a full training; a layout trained for fewer is not COMPLETE.
        seeds: how many seeds a layout is trained with.
    """
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.purpose == SEARCH:
            groups.setdefault(evaluation.key, []).append(evaluation)
    records = [_record(lines, epochs, seeds) for lines in groups.values()]
    return sorted(records, key=lambda record: record.number)


def _record(lines: list[Evaluation], epochs: int, seeds: int) -> TrialRecord:
    first = lines[0]
    full = [line for line in lines if line.what == TRAIN and line.to_epoch >= epochs]
    trainings = [line for line in lines if line.what == TRAIN]
    timing = next((line for line in lines if line.what == TIME), None)
    failure = next((line for line in lines if line.what == FAIL), None)
    trained = len(full) >= seeds
    # The layout's cost is the same on every line; a failure before any measurement carries it too.
    cost = next((line.cost for line in lines if line.cost), {})
    rungs = _rungs(trainings, seeds)
    longest = max((line.to_epoch for line in trainings), default=0)
    if failure:
        state = FAILED
    elif trained and timing:
        state = COMPLETE
    elif timing and rungs and rungs[-1].epoch == longest < epochs:
        state = WAITING
    else:
        state = PARTIAL
    nll = [line.values["nll"] for line in full]
    top1 = [line.values["top1"] for line in full]
    return TrialRecord(
        number=min(line.trial for line in lines),
        key=first.key,
        layout=first.layout,
        state=state,
        baseline=next((line.baseline for line in lines if line.baseline), None),
        warm_start=next((line.warm_start for line in lines if line.warm_start), None),
        params=cost.get("params"),
        macs=cost.get("macs"),
        macs_attention=cost.get("macs_attention"),
        macs_scan=cost.get("macs_scan"),
        memory=cost.get("memory"),
        nll=statistics.fmean(nll) if trained else None,
        nll_se=_standard_error(nll) if trained else None,
        top1=statistics.fmean(top1) if trained else None,
        top1_se=_standard_error(top1) if trained else None,
        seeds=tuple(line.seed for line in full if line.seed is not None),
        images_per_second=timing.values["images_per_second"] if timing else None,
        ratio=timing.values["ratio"] if timing else None,
        ratio_iqr=timing.values.get("iqr") if timing else None,
        windows=tuple(timing.values.get("windows", ())) if timing else (),
        reference_windows=tuple(timing.values.get("reference_windows", ())) if timing else (),
        epochs=longest,
        images_seen=sum(line.values["images_seen"] for line in trainings),
        train_seconds=sum(line.values["train_seconds"] for line in trainings),
        started=min((line.started for line in lines if line.started), default=None),
        ended=max((line.ended for line in lines if line.ended), default=None),
        reason=failure.reason if failure else None,
        rungs=rungs,
        evaluations=tuple(lines),
    )


def _rungs(trainings: list[Evaluation], seeds: int) -> tuple[RungRecord, ...]:
    by_epoch: dict[int, dict[int | None, Evaluation]] = {}
    for line in trainings:
        by_epoch.setdefault(line.to_epoch, {}).setdefault(line.seed, line)
    return tuple(
        RungRecord(
            epoch,
            tuple(line.values["nll"] for line in lines.values()),
            tuple(line.values["top1"] for line in lines.values()),
        )
        for epoch, lines in sorted(by_epoch.items())
        if len(lines) >= seeds
    )


def _standard_error(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
