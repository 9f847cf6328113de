"""The files of a study: written whole or not at all, held by one driver, mended where a writer was killed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = "driver.lock"
RESTORE = "restore it from a copy, or start a new study with --set name=…"


class StudyError(ValueError):
    """A study's files cannot be used as they are; the message names the file and what to do."""


class StudyBusy(StudyError):
    """Another driver runs this study."""


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
    _, good = parse_lines(path, mend)
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


def parse_lines(path: Path, mend: str = RESTORE) -> tuple[list[tuple[int, Any]], int]:
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
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
