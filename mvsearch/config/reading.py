"""Reading a study: a YAML file or a shipped space, changed by ``--set``, into a `StudyConfig`."""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mvsearch import formats
from mvsearch.config.sections import StudyConfig
from mvsearch.config.values import ConfigError, did_you_mean, short
from mvsearch.config.yaml_dialect import parse_yaml


def shipped() -> dict[str, Traversable]:
    """The search spaces that come with the package: name to file."""
    try:
        folder: Traversable = importlib.resources.files("mvsearch.search_spaces")
    except ModuleNotFoundError:  # a checkout that is not installed
        folder = Path(__file__).parents[2] / "search_spaces"
    if not folder.is_dir():
        return {}
    files = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return dict(sorted(files.items()))


def load_config(source: str | Path, overrides: Sequence[str] = (), *, folder: str | None = None) -> StudyConfig:
    """Read and validate a study.

    A key that is not there has today's default, or that of the ``format`` that stands there.

    Args:
        source: a YAML file, or the name of a shipped search space (``"stagewise"``).
        overrides: ``"search.trials=12"``: dotted keys, lists by index counted from 0
            (``"layout.stages.1.depth=[2, 3]"``), values read as YAML.
        folder: name of the folder that `source` is the study.yaml of: the study's name, whatever the file says. The
            file is then of format 0 if it says nothing else.

    Raises:
        ConfigError: one message that names the file, the key, the value and what is allowed.
    """
    label, text = _read(source)
    data = parse_yaml(text, label)
    if data is None:
        raise ConfigError(f"{label}: is empty; a study starts with a key such as 'layout:'")
    if not isinstance(data, dict):
        raise ConfigError(
            f"{label}: holds {short(data)}; a study is a mapping that starts with a key such as 'layout:'"
        )
    if folder is not None:
        data["name"] = folder
    data.setdefault("name", Path(label).stem)
    for override in overrides:
        _override(data, override)
    number = data.get("format", formats.STUDY_FORMAT if folder is None else 0)
    if why := formats.unreadable(number):
        raise ConfigError(f"{label}: {why}")
    data = formats.of_their_time(data, number) | {"format": formats.STUDY_FORMAT}
    try:
        return StudyConfig.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(_message(error, label, overrides)) from None


def _read(source: str | Path) -> tuple[str, str]:
    """The label of a source (its path, or the name of a shipped file) and its text."""
    path = Path(source)
    try:
        if path.is_file():
            return str(path), path.read_text(encoding="utf-8")
        spaces = shipped()
        if str(source) in spaces:
            return f"{source}.yaml", spaces[str(source)].read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8, so not YAML") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if path.is_dir():
        raise ConfigError(
            f"{path}: is a folder; a YAML file, or one of the shipped spaces {', '.join(spaces)}, is needed"
        )
    near = did_you_mean(str(source), spaces)
    raise ConfigError(f"{path}: no such file, and no shipped search space (these are {', '.join(spaces)}).{near}")


def _override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key of `data` in place; mappings that are not there yet are made."""
    key, sign, text = override.partition("=")
    label = f"--set {override}"
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError(f"{label}: must read KEY=VALUE, such as search.trials=12")
    value = parse_yaml(text, label)
    place: Any = data
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        last = depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ConfigError(f"{label}: {path} is a list; {part!r} is not an index from 0 to {len(place) - 1}")
            index: Any = int(part)
        elif isinstance(place, dict):
            index = part
            if not last and place.get(part) is None:
                place[part] = {}
        else:
            raise ConfigError(f"{label}: {path} is {short(place)}, which has no keys of its own")
        if last:
            place[index] = value
        else:
            place = place[index]


def _message(error: ValidationError, label: str, overrides: Sequence[str]) -> str:
    """One message for what pydantic found: of several problems an unknown key first, as it often causes the others."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "unknown"), problems[0])
    context = problem.get("ctx", {})
    key = ".".join(str(part) for part in (*problem["loc"], context.get("key", "")) if part != "")
    stage = re.match(r"layout\.stages\.(\d+)\.", key)
    where = f"{key} (stage {int(stage[1]) + 1})" if stage else key
    culprit = next(
        (text for text in reversed(overrides) if (key + ".").startswith(text.split("=")[0].strip() + ".")), None
    )
    start = f"{label}{'' if culprit is None else f', --set {culprit}'}: "
    if problem["type"] == "unknown":
        known = context["known"]
        near = did_you_mean(context["key"], known) or _elsewhere(context["key"])
        text = f"unknown key {where}; allowed here are {', '.join(known)}.{near}"
    elif problem["type"] == "missing":
        text = f"{where}: missing"
    else:
        value = context.get("value", problem["input"])
        text = f"{where}: {short(value)} is not allowed; {context.get('allowed', problem['msg'])}"
    others = len(problems) - 1
    return start + text + (f" (and {others} more problem{'s' if others > 1 else ''})" if others else "")


def _elsewhere(word: str) -> str:
    """A hint for a key that stands in the wrong section."""
    keys = {key.rpartition(".")[2]: key for key in reversed(config_keys())}
    near = difflib.get_close_matches(word, list(keys), n=1)
    return f" Did you mean {keys[near[0]]!r}?" if near else ""


def config_keys() -> list[str]:
    """Every dotted key a study may have; ``layout.stages.N`` stands for each stage."""

    def walk(section: type[BaseModel], prefix: str) -> list[str]:
        keys: list[str] = []
        for name, field in section.model_fields.items():
            inner = [field.annotation, *get_args(field.annotation)]
            sections = [item for item in inner if isinstance(item, type) and issubclass(item, BaseModel)]
            keys.append(f"{prefix}{name}")
            if sections:
                keys += walk(sections[0], f"{prefix}{name}." + ("N." if get_origin(field.annotation) is tuple else ""))
        return keys

    return walk(StudyConfig, "")
