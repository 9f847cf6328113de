"""The ledger: `evaluations.jsonl`, one line for each thing measured, append-only. It is the truth of a study."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mvsearch.formats import STUDY_FORMAT, unreadable
from mvsearch.study.files import RESTORE, StudyError, parse_lines
from mvsearch.study.measure import Measure
from mvsearch.study.record import SEARCH, TRAIN, Evaluation


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
        data = {"format": STUDY_FORMAT, **evaluation.to_dict()}
        line = json.dumps(data, separators=(",", ":"), allow_nan=True) + "\n"
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

    Every line has its format, so that a ledger may be begun by one version and gone on with by another.

    Raises:
        StudyError: for damage before the last line that parses, and for a line of a later format.
    """
    lines, _ = parse_lines(path)
    evaluations = []
    for number, data in lines:
        if why := unreadable(data.get("format", 0)):
            raise StudyError(f"{path}, line {number}: {why}")
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
    for name in Measure if line.what == TRAIN else ():
        if not isinstance(line.values, dict) or not isinstance(line.values.get(name), int | float):
            raise TypeError(f"values: {line.values!r} lacks a number {name}")
