"""What a value of a study's YAML may be: each check returns the value, or raises an error that says what is allowed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from mvsearch import formats

_T = TypeVar("_T")
PLACEMENT_RULES = ("last", "first", "even", "middle", "alternate")
"""Rules that place the attention blocks of a stage; `mvsearch.space.stage.place` says what each of them does."""


class ConfigError(ValueError):
    """A configuration that cannot be used; one message with the file, the key, the value and what is allowed."""


def wrong(value: object, allowed: str, key: str = "") -> PydanticCustomError:
    """The error for a value; `key` is relative to the place it is raised at."""
    # The braces of a template would be filled in from the context; the context carries the text instead.
    return PydanticCustomError("wrong", "{allowed}", {"key": key, "value": value, "allowed": allowed})


def whole(low: int, high: int | None = None) -> Callable[[object], int]:
    allowed = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"

    def check(value: object) -> int:
        # 1e3 is a float in YAML and a whole number to people; true is an int in Python and not to people.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or value < low or (high is not None and value > high):
            raise wrong(value, allowed)
        return value

    return check


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Callable[[object], float]:
    start = f"a number above {low:g}" if above else f"a number, {low:g} or more"
    end = "" if math.isinf(high) else f" and below {high:g}" if below else f" and at most {high:g}"

    def check(value: object) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise wrong(value, start + end)
        number = float(value)  # type: ignore[arg-type]
        if number < low or (above and number == low) or number > high or (below and number == high):
            raise wrong(value, start + end)
        return number

    return check


def word(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise wrong(value, f"one of {', '.join(words)}.{did_you_mean(value, words)}")
        return value

    return check


def or_null(check: Callable[[object], _T]) -> Callable[[object], _T | None]:
    def check_or_null(value: object) -> _T | None:
        if value is None:
            return None
        try:
            return check(value)
        except PydanticCustomError as error:
            raise wrong(value, f"null or {(error.context or {})['allowed']}") from None

    return check_or_null


def choices(check: Callable[[object], _T]) -> Callable[[object], tuple[_T, ...]]:
    """A single value (fixed) or a list (searched), as a tuple; numbers in rising order, null first."""

    def check_all(value: object) -> tuple[_T, ...]:
        values = [check(item) for item in value] if isinstance(value, (list, tuple)) else [check(value)]
        if not values:
            raise wrong(value, "one value (fixed), or a list of at least one (searched)")
        if len(set(values)) < len(values):
            raise wrong(value, "a list in which no value is repeated")
        if not any(isinstance(item, str) for item in values):
            values.sort(key=lambda item: -math.inf if item is None else item)  # type: ignore[arg-type,return-value]
        return tuple(values)

    return check_all


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def quantity(value: object) -> float:
    """A positive number, or a text with a unit: 1.5M, 64MB (10^6 bytes), 64MiB (2^20)."""
    allowed = "a number above 0, also with a unit: 1.5M, 100M, 64MB (10^6), 64MiB (2^20)"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKMGT]?i?)B?\s*", value)
        try:
            value = float(match[1]) * _UNITS[match[2].upper()] if match else value
        except (ValueError, KeyError):
            raise wrong(value, allowed) from None
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise wrong(value, allowed)
    return float(value)  # type: ignore[arg-type]


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong(value, "true or false")
    return value


def auto_or_false(value: object) -> object:
    if value != "auto" and value is not False:
        raise wrong(value, "auto or false")
    return value


def study_name(value: object, info: ValidationInfo) -> str:
    """A name that can be chosen; the name of the folder that a study lies in, ``folder`` in the context, may be any."""
    if info.context is not None and value == info.context.get("folder"):
        return str(value)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise wrong(
            value,
            "1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or a digit (it names a folder)",
        )
    return value


def format_number(value: object) -> object:
    if formats.unreadable(value):
        raise wrong(value, f"a whole number from 0 to {formats.STUDY_FORMAT}")
    return value


def path_text(value: object) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise wrong(value, "a path")
    return str(value)


def list_of_stages(value: object) -> object:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 4:
        raise wrong(value, "a list of one to four stages")
    return value


def strides(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or any(type(stride) is not int or stride not in (1, 2) for stride in value):
        raise wrong(value, "null (2 everywhere) or a list with a 1 or a 2 for each gap between stages")
    return tuple(value)


def stem_stride_of(value: object) -> int:
    if type(value) is not int or value not in (4, 2, 1):
        raise wrong(value, "one of 4, 2, 1")
    return value


def either(words: Sequence[str]) -> str:
    """``"a"``, ``"a or b"``, ``"a, b or c"``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def slashed(values: Iterable[int]) -> str:
    return " / ".join(str(value) for value in values)


def _as_written(values: tuple[Any, ...]) -> Any:
    """A fixed value alone, a searched one as a list, whole numbers without a point."""
    plain = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    return plain[0] if len(plain) == 1 else plain


AS_WRITTEN = PlainSerializer(_as_written)


WholeFrom1 = Annotated[int, BeforeValidator(whole(1))]


Dtype = Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(word("auto", "float32", "bfloat16"))]


class Section(BaseModel):
    """A mapping of the YAML: frozen, and unknown keys are refused with the nearest right one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, BaseModel):
            return data
        if not isinstance(data, Mapping):
            raise wrong(data, f"a mapping with keys of: {', '.join(cls.model_fields)}")
        for key in data:
            if key not in cls.model_fields:
                raise PydanticCustomError("unknown", "unknown key", {"key": str(key), "known": list(cls.model_fields)})
        return data


def model_names(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise wrong(value, "the name of a model of the library, or a list of them, such as [mambavision_t]")
    if len(set(names)) < len(names):
        raise wrong(value, "a list in which no name is repeated")
    return tuple(names)


def rule_weights(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        raise wrong(value, "a mapping from placement rules to weights, such as {last: 3, first: 1}")
    found = {word(*PLACEMENT_RULES)(rule): number(0)(weight) for rule, weight in value.items()}
    if not sum(found.values()):
        raise wrong(dict(value), "weights of which at least one is above 0")
    return found


def storage_url(value: object) -> object:
    if value is None:
        return None
    match = re.fullmatch(r"([a-z][a-z0-9+_]*)://(.*)", value) if isinstance(value, str) else None
    if not match:
        raise wrong(value, "null (a journal in the study's folder), or a database URL such as postgresql://HOST/NAME")
    if re.match(r"[^/@]*:[^/@]*@", match[2]):
        # The value is left out of the message.
        raise wrong(
            "a URL with a password",
            "a URL without one, as it is written into study.yaml; PostgreSQL takes it from ~/.pgpass or PGPASSWORD",
        )
    return value


def did_you_mean(word: object, known: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def short(value: object) -> str:
    """The value as YAML readers would write it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(value)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
