"""The folder of a study: what lies where, and how to read it back without touching it."""

from __future__ import annotations

import difflib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvsearch.front import reference_point
from mvsearch.ledger import RESTORE, StudyError, read_evaluations, write_atomic
from mvsearch.record import COMPLETE, SEARCH, trial_records
from mvsearch.report.data import StudyData
from mvsearch.report.words import plural

# What may be changed when a study goes on: how much to do, never what is measured.
CHANGEABLE = ("search.trials", "search.hours", "search.device_hours", "search.plateau", "search.job_minutes", "storage")


@dataclass(frozen=True)
class StudyFolder:
    """Where a study's files are.

    Attributes:
        path: the folder, ``studies/<name>``.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.path.name

    @property
    def argument(self) -> str:
        """What names the study in a command, quoted for a shell: its name, or its folder where that is elsewhere."""
        return self.name if self.path == Path("studies") / self.name else shlex.quote(str(self.path))

    @property
    def launch_command(self) -> str:
        """The command that goes on with the search, quoted for a shell."""
        among = "" if self.path.parent == Path("studies") else f" --studies {shlex.quote(str(self.path.parent))}"
        return f"mvsearch launch {shlex.quote(str(self.config))}{among}"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "study.yaml"

    @property
    def environment(self) -> Path:
        """Versions, devices and conditions."""
        return self.path / "environment.json"

    @property
    def ledger(self) -> Path:
        """What was measured."""
        return self.path / "evaluations.jsonl"

    @property
    def journal(self) -> Path:
        """The sampler's memory."""
        return self.path / "journal.log"

    @property
    def database_name(self) -> Path:
        """Under which name a database keeps the sampler's memory."""
        return self.path / "database_name"

    @property
    def status(self) -> Path:
        """What the driver last told of its progress."""
        return self.path / "status.json"

    def repeat_status(self, purpose: str) -> Path:
        """What `mvsearch calibrate` or `confirm` last told of its progress."""
        return self.path / f"{purpose}-status.json"

    @property
    def weights(self) -> Path:
        """Weights of the front and the baselines."""
        return self.path / "weights"

    @property
    def confirmed_weights(self) -> Path:
        """Weights of the layouts that `confirm` trained, of its first seed."""
        return self.path / "confirmed"

    @property
    def retrained(self) -> Path:
        """Trainings of `mvsearch export --retrain`, a folder each."""
        return self.path / "retrained"

    @property
    def checkpoints(self) -> Path:
        """Trainings of layouts that wait between rungs."""
        return self.path / "checkpoints"

    @property
    def warm_start(self) -> Path:
        """The layouts that the search began with, if it had a warm start."""
        return self.path / "warm_start.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def check(self, resolved_yaml: str) -> bool:
        """Compare the configuration with the one the study was started with.

        Args:
            resolved_yaml: the resolved configuration as text.

        Returns:
            True if the study is new, that is, nothing was measured yet.

        Raises:
            StudyError: if the study was started with settings that bear on what is measured and are different now.
        """
        new = not self.config.exists() or not self.ledger.exists() or not self.ledger.stat().st_size
        if not new:
            changed = differences(with_defaults(_read_yaml(self.config)), _parse_yaml(resolved_yaml))
            changed = [change for change in changed if not change[0].startswith(CHANGEABLE)]
            if changed:
                key, before, now = changed[0]
                more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
                message = (
                    f"{self.path}: started with {key} = {before!r}, and now it is {now!r}{more}. "
                    f"Results of both cannot be mixed: take the old value, or another name with --set name=…"
                )
                if all(name.partition(".")[0] in ("layout", "budgets") for name, _, _ in changed):
                    message += f"; with --set warm_start={self.path} beside it, what still fits is taken over"
                raise StudyError(message)
        return new

    def begin(self, resolved_yaml: str) -> bool:
        """Write study.yaml after `check`; what an earlier launch left that measured nothing is forgotten.

        Args:
            resolved_yaml: the resolved configuration as text.

        Returns:
            True if the study is new.

        Raises:
            StudyError: see `check`.
        """
        new = self.check(resolved_yaml)
        if new:
            for path in (self.journal, self.database_name, self.environment, self.warm_start):
                path.unlink(missing_ok=True)
        self.weights.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config, resolved_yaml)
        return new

    def record_environment(self, environment: dict[str, Any]) -> None:
        """Write environment.json, keeping one entry a launch.

        Raises:
            StudyError: if the data set is not the one the study was started with.
        """
        launches = []
        if self.environment.exists():
            before = _read_json(self.environment)
            texts = dict.fromkeys(("device", "scan", "data.fingerprint"), str)
            _expect(self.environment, before, {"launches": list, **texts})
            launches = before["launches"]
            if before["data"]["fingerprint"] != environment["data"]["fingerprint"]:
                raise StudyError(
                    f"{self.path}: the data has changed since the study was started (fingerprint "
                    f"{before['data']['fingerprint']} then, {environment['data']['fingerprint']} now); take another "
                    "name with --set name=…"
                )
            for name in ("device", "scan"):
                if before[name] != environment[name]:
                    raise StudyError(
                        f"{self.path}: its throughputs were timed with {name} {before[name]!r}, and here it is "
                        f"{environment[name]!r}; both cannot stand on one front. Take another name with --set name=…"
                    )
        launches.append(environment.pop("launch"))
        write_atomic(self.environment, json.dumps({**environment, "launches": launches}, indent=2) + "\n")


def find_study(name_or_path: str, studies: Path = Path("studies")) -> StudyFolder:
    """The folder of a study, given its name or its path.

    Raises:
        StudyError: if there is none, naming the nearest.
    """
    for path in (studies / name_or_path, Path(name_or_path)):
        if (path / "study.yaml").is_file():
            return StudyFolder(path)
    near = difflib.get_close_matches(name_or_path, [folder.name for folder in list_studies(studies)], n=1)
    among = "" if studies == Path("studies") else f" --studies {shlex.quote(str(studies))}"
    hint = f" Did you mean {near[0]!r}?" if near else f" `mvsearch list{among}` shows what there is."
    raise StudyError(f"study: there is no study {name_or_path!r} in {studies}/.{hint}")


def list_studies(studies: Path = Path("studies")) -> list[StudyFolder]:
    """All studies in a folder, by name."""
    return [StudyFolder(path.parent) for path in sorted(studies.glob("*/study.yaml"))]


def describe_study(folder: StudyFolder) -> str:
    """A study in one line: how far it is, on which data."""
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
    config = _read_yaml(folder.config)
    if not folder.environment.exists() or not folder.ledger.exists():
        raise StudyError(f"{folder.path}: nothing has been measured yet; run `{folder.launch_command}`")
    _expect(
        folder.config,
        config,
        {"proxy.epochs": int, "proxy.seeds": int, "search.trials": int, "objectives.quality": str},
    )
    environment = _read_json(folder.environment)
    _expect(folder.environment, environment, {"data.classes": int, "reference": str, "launches": list})
    evaluations = read_evaluations(folder.ledger)
    records = trial_records(evaluations, epochs=config["proxy"]["epochs"], seeds=config["proxy"]["seeds"])
    classes = environment["data"]["classes"]
    measure = config["objectives"]["quality"]
    baselines = [record for record in records if record.baseline and record.state == COMPLETE]
    return StudyData(
        name=folder.name,
        records=records,
        config=config,
        environment=environment,
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


def write_results(folder: StudyFolder) -> StudyData:
    """Write trials.csv, front.csv and report.html of a study from its ledger."""
    from mvsearch.integrations.importance import with_importance
    from mvsearch.report import write_report, write_tables

    study = with_importance(load_study(folder))
    write_tables(study, folder.path)
    write_report(study, folder.report)
    return study


def _parse_yaml(text: str) -> dict[str, Any]:
    import yaml

    data: dict[str, Any] = yaml.safe_load(text)
    return data


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = _parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from None
    return _mapping(path, data)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from None
    return _mapping(path, data)


def _mapping(path: Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise StudyError(f"{path}: damaged, as it holds no mapping; {RESTORE}")
    return data


def _expect(path: Path, data: Any, types: dict[str, type]) -> None:
    """Refuse a file of a study that lacks what every study has.

    Args:
        path: of the file.
        data: what it holds.
        types: by dotted key; no such value is ever empty or 0.

    Raises:
        StudyError: naming the first that is missing, or of another type.
    """
    for key, kind in types.items():
        found = data
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not found:
            raise StudyError(f"{path}: damaged, as it lacks {key}; {RESTORE}")
        if not isinstance(found, kind):
            raise StudyError(f"{path}: damaged, as {key} is {found!r}; {RESTORE}")


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study, with those that came after it was started at their defaults."""
    from mvsearch.config import StudyConfig

    try:
        return StudyConfig.model_validate(config).resolved()
    except ValueError:  # not valid any more: compared as it stands
        return config


def differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves in which two trees of plain data differ, as (dotted key, before, now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in [*before, *(name for name in now if name not in before)]:
            found += differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        return found
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        found = []
        for number, (left, right) in enumerate(zip(before, now, strict=True)):
            found += differences(left, right, f"{key}.{number}")
        return found
    return [] if before == now else [(key, before, now)]
