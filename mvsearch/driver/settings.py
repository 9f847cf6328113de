"""The settings that a study was started with, against those of now."""

from __future__ import annotations

from typing import Any

from mvsearch import formats
from mvsearch.config.reading import load_config
from mvsearch.config.sections import StudyConfig
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder, read_settings

# What may be changed when a study goes on: how much to do, never what is measured.
CHANGEABLE = ("search.trials", "search.hours", "search.device_hours", "search.plateau", "search.job_minutes", "storage")


def study_config(folder: StudyFolder) -> StudyConfig:
    """The configuration of a study, under the name of the folder that it lies in.

    Raises:
        ConfigError: if its study.yaml is no configuration.
    """
    return load_config(folder.config, folder=folder.name)


def check_settings(folder: StudyFolder, config: StudyConfig) -> None:
    """Refuse to go on with a study under other settings, as far as they bear on what is measured.

    Args:
        folder: of the study.
        config: the resolved configuration of now.

    Raises:
        StudyError: naming the first setting that differs; nothing is raised for a study that is new.
    """
    if folder.is_new:
        return
    changed = differences(with_defaults(read_settings(folder)), config.resolved())
    changed = [
        change for change in changed if change[0] not in ("name", "format") and not change[0].startswith(CHANGEABLE)
    ]
    if not changed:
        return
    key, before, now = changed[0]
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    message = (
        f"{folder.path}: started with {key} = {before!r}, and now it is {now!r}{more}. "
        f"Results of both cannot be mixed: take the old value, or another name with --set name=…"
    )
    if all(name.partition(".")[0] in ("layout", "budgets") for name, _, _ in changed):
        message += f"; with --set warm_start={folder.path} beside it, what still fits is taken over"
    raise StudyError(message)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study, as `read_settings` gives them, with those that came after it at their defaults."""
    try:
        data = config | {"format": formats.STUDY_FORMAT}
        return StudyConfig.model_validate(data, context={"folder": config.get("name")}).resolved()
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
