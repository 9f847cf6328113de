"""The format of a study's files, and what it meant that an older one left a key out.

It lies below all folders, because the configuration and a study's folder both ask it.
"""

from __future__ import annotations

import copy
from typing import Any

STUDY_FORMAT = 1
"""Written as ``format`` into study.yaml and onto each line of the ledger. A file or line without it is of format 0."""

CHANGED_DEFAULTS: dict[int, dict[str, Any]] = {}
"""By the format from which on a default is another: dotted keys of study.yaml, with the defaults that they had before.

A study's own study.yaml has every key written out, but for those that came later, and those that are left out while
they stand at null (`fidelity`, `warm_start`, `search.design`) or at conv (`layout.stem`). Whoever changes a default
adds 1 to `STUDY_FORMAT` and enters the old one here; so a study that was made before goes on as it began. A section
that the study lacks is not made for a key in it; where it has to be, the entry is the whole section. Keys of a stage
cannot stand here: a stage has those of its letters, all of them written out.
"""


def unreadable(number: object) -> str | None:
    """Why a file of a format cannot be read, in words that follow its name; None if it can.

    Args:
        number: what stands under ``format``.
    """
    if type(number) is int and 0 <= number <= STUDY_FORMAT:
        return None
    why = "written by a later version of mvsearch" if type(number) is int and number > 0 else "no format there is"
    return (
        f"format: {number!r} is {why}; this version reads formats up to {STUDY_FORMAT}, and files without a format, "
        "which are older"
    )


def of_their_time(settings: dict[str, Any], number: int) -> dict[str, Any]:
    """The settings of a study, with keys that it lacks at the defaults of its time where these have changed since.

    Args:
        settings: of study.yaml, as plain data; not changed.
        number: its format.
    """
    filled = copy.deepcopy(settings)
    for since, defaults in sorted(CHANGED_DEFAULTS.items()):
        if number < since:
            for key, value in defaults.items():
                _fill(filled, key.split("."), value)
    return filled


def _fill(place: Any, parts: list[str], value: Any) -> None:
    name, *rest = parts
    if not isinstance(place, dict):
        return
    if rest:
        _fill(place.get(name), rest, value)
    else:
        place.setdefault(name, copy.deepcopy(value))
