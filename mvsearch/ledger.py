"""The ledger: `evaluations.jsonl`, one line for each thing measured, append-only. It is the truth of a study."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvsearch.record import SEARCH, TRAIN, Evaluation

RESTORE = "restore it from a copy, or start a new study with --set name=…"


class StudyError(ValueError):
    """A study's files cannot be used as they are; the message names the file and what to do."""


class StudyBusy(StudyError):
    """Another driver runs this study."""


class Ledger:
    """The evaluations of one study, in memory and on disk.

    Args:
        path: of the file; made if absent.

    Raises:
        StudyError: if a line before the last good one does not parse (its number is named).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.evaluations: list[Evaluation] = []
        self._identities: set[tuple[str, str, str, int | None, int, int]] = set()
        self._by_key: dict[tuple[str, str], list[Evaluation]] = {}
        for evaluation in read_evaluations(path):
            self._remember(evaluation)

    def append(self, evaluation: Evaluation) -> None:
        """Write one line and flush it to the disk before anything uses it.

        A line whose identity is there already is not written again.

        Raises:
            OSError: if the line cannot be written (a full disk); the file is left as it was.
        """
        if evaluation.identity in self._identities:
            return
        line = json.dumps(evaluation.to_dict(), separators=(",", ":"), allow_nan=True) + "\n"
        size = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, size)
            raise
        self._remember(evaluation)

    def _remember(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)
        self._identities.add(evaluation.identity)
        self._by_key.setdefault((evaluation.purpose, evaluation.key), []).append(evaluation)

    def of(self, key: str, purpose: str = SEARCH) -> list[Evaluation]:
        """All lines about one layout that were measured for one purpose."""
        return self._by_key.get((purpose, key), [])


def read_evaluations(path: Path) -> list[Evaluation]:
    """Read a ledger without changing it. A torn last line is left out.

    Raises:
        StudyError: for damage before the last line that parses.
    """
    lines, _ = _parse(path)
    evaluations = []
    for number, data in lines:
        try:
            line = Evaluation.from_dict(data)
            _check(line)
        except TypeError as error:
            raise StudyError(f"{path}, line {number}: not an evaluation ({error}); {RESTORE}") from None
        evaluations.append(line)
    return evaluations


def _check(line: Evaluation) -> None:
    """Refuse a line without what every reader takes for granted. Raises TypeError naming the field."""
    if type(line.trial) is not int:
        raise TypeError(f"trial: {line.trial!r} is no whole number")
    for name in ("started", "ended"):
        if not isinstance(getattr(line, name), int | float):
            raise TypeError(f"{name}: {getattr(line, name)!r} is no number")
    for name in ("nll", "top1") if line.what == TRAIN else ():
        if not isinstance(line.values, dict) or not isinstance(line.values.get(name), int | float):
            raise TypeError(f"values: {line.values!r} lacks a number {name}")


def repair_tail(path: Path, mend: str = RESTORE) -> str | None:
    """Move whatever follows the last line that parses to a `.broken` file beside it.

    A process that dies while it writes leaves a torn last line. Call it under the study's lock, before anything else
    opens the file.

    Args:
        path: a file of JSON lines; may be absent.
        mend: what to do about damage that is not at the end.

    Returns:
        What was done, as a sentence, or None.

    Raises:
        StudyError: for damage before the last line that parses, naming its line.
    """
    if not path.exists():
        return None
    _, good = _parse(path, mend)
    content = path.read_bytes()
    tail = content[good:]
    if not tail:
        if content and not content.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
        return None
    broken = path.with_suffix(".broken")
    with broken.open("ab") as file:
        file.write(tail + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.truncate(path, good)
    return f"{path.name}: its last {len(tail)} bytes were torn and were moved to {broken.name}"


def _parse(path: Path, mend: str = RESTORE) -> tuple[list[tuple[int, Any]], int]:
    """Lines that parse, with their numbers, and the number of bytes up to the end of the last of them."""
    good: list[tuple[int, Any]] = []
    end = 0
    position = 0
    bad: int | None = None
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        position += len(line)
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError("not an object")
        except ValueError:
            bad = bad or number
            continue
        if bad is not None:
            raise StudyError(
                f"{path}, line {bad}: damaged, and good lines follow it; the file was changed from outside; {mend}"
            )
        good.append((number, data))
        end = position
    return good, end


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Hold a study for one driver. The lock dies with the process, however it ends.

    Raises:
        StudyBusy: if another process holds it.
    """
    descriptor = os.open(folder / "driver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StudyBusy(
                f"{folder} is being run by another driver (process {pid}); wait for it or stop it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
