"""StudyData: what lies in a study's folder, as plain frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mambavision.words import plural
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder, expect, read_json, read_settings
from mvsearch.study.front import complete_records, front_records, reference_point
from mvsearch.study.ledger import read_evaluations
from mvsearch.study.measure import Measure
from mvsearch.study.record import (
    COMPLETE,
    FAILED,
    PARTIAL,
    SEARCH,
    TIME,
    WAITING,
    Evaluation,
    TrialRecord,
    trial_records,
)


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """What lies in a study's folder.

    Attributes:
        name: the study's name.
        records: one for each layout, in any order.
        config: the resolved YAML as plain data, its ``name`` that of the folder.
        environment: what the study ran on, as plain data. ``device``, ``scan`` and ``command`` are read from it;
            everything in it is shown; the command names the study where it lies now.
        reference_point: (quality, log2 ratio) from which hypervolume is measured.
        reference_key: key of the layout that throughput is a ratio to.
        classes: classes of the data set.
        started: Unix time of the search's first evaluation, seconds.
        ended: Unix time of its last, seconds.
        workers: how many workers trained at once.
        evaluations: every line of the ledger, whatever it was measured for (`Evaluation.purpose`).
        importance: of each outcome (``"quality"``, ``"throughput"``, ``"both"``), the share of each factor, adding up
            to 1; None where it was not computed for these layouts. By `mvsearch.driver.importance`.
    """

    name: str
    records: list[TrialRecord]
    config: dict[str, Any]
    environment: dict[str, Any]
    reference_point: tuple[float, float]
    reference_key: str
    classes: int
    started: float
    ended: float
    workers: int = 1
    evaluations: tuple[Evaluation, ...] = field(default=(), repr=False)
    importance: Mapping[str, Mapping[str, float]] | None = None

    def setting(self, *path: str, default: Any = None) -> Any:
        """A value of the config, e.g. ``study.setting("proxy", "epochs")``; the default where it is absent."""
        value: Any = self.config
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                return default
            value = value[name]
        return value

    @property
    def measure(self) -> Measure:
        """What the study measures quality by."""
        return Measure(self.setting("objectives", "quality", default=Measure.NLL))

    @property
    def fingerprint(self) -> str | None:
        """Of the data that the study was started with; None where its environment does not say."""
        data = self.environment.get("data")
        return data.get("fingerprint") if isinstance(data, Mapping) else None

    @property
    def deployed_image_size(self) -> int:
        """Side in pixels of the images that costs and timings are about."""
        return deployed_image_size(self.config)

    def trained_stride(self, layout: Mapping[str, Any]) -> int:
        """`stem_stride` with which the proxy trained a deployed layout, given as `HybridLayout.to_dict()`."""
        stride: int = self.setting("proxy", "stem_stride") or layout["stem_stride"]
        return stride

    @cached_property
    def complete(self) -> list[TrialRecord]:
        """Layouts timed, and trained in full with every seed."""
        return complete_records(self.records, self.measure)

    @cached_property
    def baselines(self) -> list[TrialRecord]:
        """Complete hand-made layouts."""
        return [record for record in self.complete if record.baseline]

    @cached_property
    def front(self) -> list[TrialRecord]:
        """Complete layouts that no other dominates, slowest first."""
        return front_records(self.records, self.measure)

    @property
    def failed(self) -> list[TrialRecord]:
        """Layouts whose trial ended as FAIL."""
        return [record for record in self.records if record.state == FAILED]

    @property
    def partial(self) -> list[TrialRecord]:
        """Layouts of which something was measured, that have neither failed nor come to the end of a rung."""
        return [record for record in self.records if record.state == PARTIAL]

    @property
    def waiting(self) -> list[TrialRecord]:
        """Layouts that were trained to the end of a rung that is not the last, and no further yet."""
        return [record for record in self.records if record.state == WAITING]

    @property
    def seeds(self) -> int:
        """Trainings behind the least trained complete layout; what the config asks for where none is complete."""
        asked = self.setting("proxy", "seeds", default=1)
        return min((len(record.seeds) for record in self.complete), default=asked if isinstance(asked, int) else 1)

    @property
    def scan(self) -> str:
        """The scan path that was timed, as the timings (else the environment) say it."""
        paths = {
            str(line.conditions["scan"])
            for record in self.records
            for line in record.evaluations
            if line.what == TIME and "scan" in line.conditions
        }
        return ", ".join(sorted(paths)) or str(self.environment.get("scan", "unknown"))

    @property
    def device(self) -> str:
        """The device that was timed, as the environment (else the timings) say it."""
        named = self.environment.get("device")
        lines = {line.device for record in self.records for line in record.evaluations if line.what == TIME}
        if any("cuda" in device for device in lines) or "not recorded" in lines:
            named = None  # timings taken elsewhere, or on a cluster: the launching machine says nothing about them
        return str(named or ", ".join(sorted(filter(None, lines))) or "unknown device")

    @property
    def on_cpu(self) -> bool:
        """True if throughput was timed on a CPU."""
        lines = {line.device for record in self.records for line in record.evaluations if line.what == "time"}
        return all(device.lower().startswith("cpu") for device in filter(None, lines or {self.device}))


def deployed_image_size(config: Mapping[str, Any]) -> int:
    """`StudyConfig.deployed_image_size` of a stored study's resolved configuration."""
    size: int = config["timing"].get("image_size") or config["proxy"]["image_size"]
    return size


def describe_study(folder: StudyFolder) -> str:
    """A study in one line: how far it is and on which data; what is wrong with its files where they cannot be read."""
    try:
        study = load_study(folder)
    except StudyError as error:
        return str(error)
    proxy = study.config["proxy"]
    failed = f", {len(study.failed)} failed" if study.failed else ""
    wanted = study.config["search"]["trials"] + sum(record.taken_over for record in study.records)
    return (
        f"{len(study.complete)} of {wanted} layouts{failed}, "
        f"{len(study.front)} on the front; {proxy['data']}, {plural(proxy['epochs'], 'epoch')}"
    )


def load_study(folder: StudyFolder) -> StudyData:
    """Read a study for reports and tables; nothing is changed, and a running search is not disturbed.

    Raises:
        StudyError: if its files are damaged or nothing was measured yet.
    """
    config = read_settings(folder)
    if not folder.environment.exists() or not folder.ledger.exists():
        raise StudyError(f"{folder.path}: nothing has been measured yet; run `{folder.launch_command}`")
    expect(
        folder.config,
        config,
        {"proxy.epochs": int, "proxy.seeds": int, "search.trials": int, "objectives.quality": str},
    )
    environment = read_json(folder.environment)
    expect(folder.environment, environment, {"data.classes": int, "reference": str, "launches": list})
    evaluations = read_evaluations(folder.ledger)
    records = trial_records(evaluations, epochs=config["proxy"]["epochs"], seeds=config["proxy"]["seeds"])
    classes = environment["data"]["classes"]
    measure = config["objectives"]["quality"]
    baselines = [record for record in records if record.baseline and record.state == COMPLETE]
    study = StudyData(
        name=folder.name,
        records=records,
        config=config,
        environment=environment | {"command": folder.again_command},
        reference_point=reference_point(
            baselines or [record for record in records if record.state == COMPLETE], classes, measure
        ),
        reference_key=environment["reference"],
        classes=classes,
        started=min((line.started for line in evaluations if line.started and line.purpose == SEARCH), default=0.0),
        ended=max((line.ended for line in evaluations if line.purpose == SEARCH), default=0.0),
        workers=environment["launches"][-1]["workers"],
        evaluations=tuple(evaluations),
    )
    return dataclasses.replace(study, importance=_importance(folder, len(study.complete)))


def _importance(folder: StudyFolder, layouts: int) -> Mapping[str, Mapping[str, float]] | None:
    """What the folder says of importance; None where that is of another number of complete layouts."""
    with suppress(StudyError):
        kept = read_json(folder.importance)
        if kept.get("layouts") == layouts:
            return kept.get("importance")
    return None
