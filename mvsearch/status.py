"""How far a running search is, told from another terminal: the driver writes a small file, whoever asks only reads."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, fields

from mvsearch.ledger import StudyError, write_atomic
from mvsearch.study import StudyFolder, load_study
from mvsearch.view import LaunchState

EVERY_S = 2.0
SILENT_S = 30.0


class StatusWriter:
    """Writes status.json of a study, at most every `EVERY_S` seconds.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self._last = 0.0

    def write(self, state: LaunchState, *, ended: bool = False) -> None:
        """Tell where the search stands. A status that cannot be written is no reason to stop a search."""
        now = time.monotonic()
        if now - self._last < EVERY_S and not ended:
            return
        self._last = now
        told = {field.name: getattr(state, field.name) for field in fields(state) if field.name != "front"}
        told |= {"pid": os.getpid(), "host": platform.node(), "updated": time.time(), "ended": ended}
        with suppress(OSError):
            write_atomic(self.folder.status, json.dumps(told) + "\n")


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        state: as the driver last told it, with the front as the ledger has it now.
        running: whether a driver is at work: it has told something in the last `SILENT_S` seconds, or is a living
            process of this machine.
        age: seconds since the driver told something.
        host: machine of the driver.
        pid: process of the driver.
    """

    state: LaunchState
    running: bool
    age: float
    host: str
    pid: int


def read_status(folder: StudyFolder) -> Status:
    """Read how far a study is, without touching it.

    Raises:
        StudyError: if it was not launched yet, or its files are damaged.
    """
    study = load_study(folder)
    try:
        told = json.loads(folder.status.read_text(encoding="utf-8"))
        age = max(0.0, time.time() - told.pop("updated"))
        host, pid, ended = told.pop("host"), told.pop("pid"), told.pop("ended")
        state = LaunchState(**told | {"front": study.front})
    except FileNotFoundError:
        raise StudyError(f"{folder.path}: no driver has told anything of it (no {folder.status.name})") from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise StudyError(f"{folder.status}: cannot be read ({error})") from None
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
