"""The folder of a study: what lies where, and how to read it back without touching it."""

from __future__ import annotations

import difflib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambavision.files import write_atomic
from mvsearch.formats import of_their_time, unreadable
from mvsearch.study.files import LOCK, RESTORE, StudyError


@dataclass(frozen=True)
class StudyFolder:
    """Where a study's files lie, whether they are there or not.

    Attributes:
        path: the folder, ``studies/<name>``.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the study: that of the folder, whatever name its files were written under."""
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
    def again_command(self) -> str:
        """The command that runs the same search anew, quoted for a shell."""
        return f"mvsearch launch {shlex.quote(str(self.config))} --set {shlex.quote(f'name={self.name}-again')}"

    @property
    def config(self) -> Path:
        """study.yaml: the resolved configuration."""
        return self.path / "study.yaml"

    @property
    def environment(self) -> Path:
        """environment.json: versions, devices, data and conditions."""
        return self.path / "environment.json"

    @property
    def ledger(self) -> Path:
        """evaluations.jsonl: what was measured, a line each."""
        return self.path / "evaluations.jsonl"

    @property
    def journal(self) -> Path:
        """journal.log: Optuna's trials, the sampler's memory."""
        return self.path / "journal.log"

    @property
    def database_name(self) -> Path:
        """Under which name a database keeps the sampler's memory."""
        return self.path / "database_name"

    @property
    def lock(self) -> Path:
        """Held by the driver."""
        return self.path / LOCK

    @property
    def status(self) -> Path:
        """status.json: how far the search was when its driver last wrote it."""
        return self.path / "status.json"

    def repeat_status(self, purpose: str) -> Path:
        """How far `mvsearch calibrate` or `confirm` was when its driver last wrote it."""
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
    def importance(self) -> Path:
        """Which factors matter most, by Optuna, and of how many layouts that was computed."""
        return self.path / "importance.json"

    @property
    def report(self) -> Path:
        """report.html: the page."""
        return self.path / "report.html"

    @property
    def is_new(self) -> bool:
        """True if nothing was measured yet."""
        return not self.config.exists() or not self.ledger.exists() or not self.ledger.stat().st_size

    def begin(self, resolved_yaml: str) -> None:
        """Write study.yaml; what an earlier launch left that measured nothing is forgotten.

        Args:
            resolved_yaml: the resolved configuration as text.
        """
        if self.is_new:
            for path in (self.journal, self.database_name, self.environment, self.warm_start):
                path.unlink(missing_ok=True)
        self.weights.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config, resolved_yaml)

    def record_environment(self, environment: dict[str, Any]) -> None:
        """Write environment.json, keeping one entry a launch.

        Raises:
            StudyError: if the data set is not the one the study was started with.
        """
        launches = []
        if self.environment.exists():
            before = read_json(self.environment)
            texts = dict.fromkeys(("device", "scan", "data.fingerprint"), str)
            expect(self.environment, before, {"launches": list, **texts})
            launches = before["launches"]
            same_data(str(self.path), before["data"]["fingerprint"], environment["data"]["fingerprint"])
            for name in ("device", "scan"):
                if before[name] != environment[name]:
                    raise StudyError(
                        f"{self.path}: its throughputs were timed with {name} {before[name]!r}, and here it is "
                        f"{environment[name]!r}; both cannot stand on one front. Take another name with --set name=…"
                    )
        launches.append(environment.pop("launch"))
        write_atomic(self.environment, json.dumps({**environment, "launches": launches}, indent=2) + "\n")


def same_data(study: str, before: str | None, now: str) -> None:
    """Refuse data that are not those a study was started with.

    Args:
        study: its name or folder, for the message.
        before: fingerprint of the data it was started with; None where that is not known.
        now: fingerprint of the data that is there now.

    Raises:
        StudyError: naming both fingerprints.
    """
    if before != now:
        raise StudyError(
            f"{study}: the data has changed since the study was started (fingerprint {before} then, {now} now); what "
            "is trained on it now cannot be compared. Restore the data, or start another study with --set name=…"
        )


def find_study(name_or_path: str, studies: Path = Path("studies")) -> StudyFolder:
    """The folder of a study, given its name or its path.

    Raises:
        StudyError: if there is none, naming the nearest.
    """
    for path in (studies / name_or_path, Path(name_or_path)):
        if (path / "study.yaml").is_file():
            return _at(path)
    near = difflib.get_close_matches(name_or_path, [folder.name for folder in list_studies(studies)], n=1)
    among = "" if studies == Path("studies") else f" --studies {shlex.quote(str(studies))}"
    hint = f" Did you mean {near[0]!r}?" if near else f" `mvsearch list{among}` shows what there is."
    raise StudyError(f"study: there is no study {name_or_path!r} in {studies}/.{hint}")


def study_of(file: Path) -> StudyFolder | None:
    """The study that a YAML file is the study.yaml of; None if it is none's, as a search space of one's own.

    Args:
        file: any path. A study is known by what a launch leaves beside its study.yaml.
    """
    folder = _at(file.parent)
    left = (folder.ledger, folder.environment, folder.lock)
    return folder if file.name == folder.config.name and file.is_file() and any(map(Path.exists, left)) else None


def goes_on_in(home: StudyFolder | None, name: str, studies: Path) -> Path:
    """The folder of all studies in which a launch finds or makes its own.

    Args:
        home: the study whose study.yaml is launched, if it is one's.
        name: of the study that is launched; another than the home's begins a new one.
        studies: where new ones are.

    Raises:
        StudyError: if a study is to go on elsewhere than where it lies.
    """
    if home is None or name != home.name:
        return studies
    if studies != Path("studies") and studies.resolve() != home.path.parent.resolve():
        raise StudyError(
            f"studies: {home.path} goes on where it lies, not in {studies}; leave --studies out, or begin a new study "
            "with --set name=…"
        )
    return home.path.parent


def _at(path: Path) -> StudyFolder:
    """The study in a folder, also one that is given as ``.``, which is no name."""
    return StudyFolder(path if path.name not in ("", "..") else path.resolve())


def list_studies(studies: Path = Path("studies")) -> list[StudyFolder]:
    """All studies in a folder, by name."""
    return [StudyFolder(path.parent) for path in sorted(studies.glob("*/study.yaml"))]


def read_settings(folder: StudyFolder) -> dict[str, Any]:
    """What study.yaml says, as plain data: under the folder's name, and with the defaults of its time.

    Raises:
        StudyError: if it cannot be read, or is of a later format.
    """
    settings = read_yaml(folder.config)
    number = settings.get("format", 0)
    if why := unreadable(number):
        raise StudyError(f"{folder.config}: {why}")
    return of_their_time(settings, number) | {"name": folder.name}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        StudyError: if it cannot be read or holds anything else.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from None
    return _mapping(path, data)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        StudyError: if it cannot be read or holds anything else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from None
    return _mapping(path, data)


def _mapping(path: Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise StudyError(f"{path}: damaged, as it holds no mapping; {RESTORE}")
    return data


def expect(path: Path, data: Any, types: dict[str, type]) -> None:
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
