"""How far a running search, `calibrate` or `confirm` is, told from another terminal.

Each driver writes a small file of its own; whoever asks only reads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mambavision.files import write_atomic
from mvsearch.analysis.findings import Findings
from mvsearch.driver.view import LaunchState
from mvsearch.study.data import load_study
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder
from mvsearch.study.record import CALIBRATE, CONFIRM, TrialRecord

if TYPE_CHECKING:
    from mvsearch.analysis.calibration import Calibration
    from mvsearch.analysis.confirmation import Confirmation


EVERY_S = 2.0
SILENT_S = 30.0


class StatusWriter:
    """Writes the status of one driver, at most every `EVERY_S` seconds.

    Args:
        path: of its file, in the study's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = -EVERY_S

    def write(self, state: LaunchState, *, ended: bool = False) -> None:
        """Tell where the driver stands. A status that cannot be written is no reason to stop it."""
        now = time.monotonic()
        if now - self._last < EVERY_S and not ended:
            return
        self._last = now
        told = {field.name: getattr(state, field.name) for field in fields(state) if field.name != "front"}
        told |= {"pid": os.getpid(), "host": platform.node(), "updated": time.time(), "ended": ended}
        with suppress(OSError):
            write_atomic(self.path, json.dumps(told) + "\n")


@dataclass(frozen=True)
class Status:
    """Where a driver stands.

    Attributes:
        state: as the driver last told it, with the front as the ledger has it now.
        running: whether a driver is at work: it has told something in the last `SILENT_S` seconds, or is a living
            process of this machine.
        age: seconds since the driver told something.
        host: machine of the driver.
        pid: process of the driver.
        repeats: `calibrate` and `confirm`, as far as they were begun.
    """

    state: LaunchState
    running: bool
    age: float
    host: str
    pid: int
    repeats: tuple[RepeatStatus, ...] = ()


@dataclass(frozen=True)
class RepeatStatus:
    """Where `calibrate` or `confirm` of a study stands.

    Attributes:
        purpose: ``"calibrate"`` or ``"confirm"``.
        driver: of its last run; None if its file is gone.
        result: what the ledger says so far; None before any line of it.
    """

    purpose: str
    driver: Status | None
    result: Calibration | Confirmation | None


def read_status(folder: StudyFolder) -> Status:
    """Read how far a study is, without touching it.

    Raises:
        StudyError: if it was not launched yet, or its files are damaged.
    """
    findings = Findings(load_study(folder))
    repeats = []
    for purpose, result in ((CALIBRATE, findings.calibration), (CONFIRM, findings.confirmation)):
        path = folder.repeat_status(purpose)
        driver = _read(path, []) if path.exists() else None
        if driver or result:
            repeats.append(RepeatStatus(purpose, driver, result))
    try:
        found = _read(folder.status, findings.study.front)
    except FileNotFoundError:
        raise StudyError(f"{folder.path}: no driver has told anything of it (no {folder.status.name})") from None
    return dataclasses.replace(found, repeats=tuple(repeats))


def _read(path: Path, front: list[TrialRecord]) -> Status:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        age = max(0.0, time.time() - told.pop("updated"))
        host, pid, ended = told.pop("host"), told.pop("pid"), told.pop("ended")
        state = LaunchState(**told | {"front": front})
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise StudyError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    alive = age < SILENT_S or (host == platform.node() and _lives(pid))
    return Status(state, alive and not ended, age, host, pid)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
