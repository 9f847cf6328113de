"""StudyConfig: the YAML of a study, validated before anything starts.

Every field says in its docstring what it means, its unit and its range; `docs/yaml.md` is the same for readers.
In `layout`, a list is searched and a single value is fixed: such fields are tuples here, of one value when fixed.
"""

from __future__ import annotations

import difflib
import importlib.resources
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mambavision.layout import LETTERS, STEMS

T = TypeVar("T")

PLACEMENTS = ("last", "first", "even", "middle", "alternate")
"""Rules that place the attention blocks of a stage; `mvsearch.space.place` says what each of them does."""

DATA_SETS = ("digit_scenes", "digits", "fashion_mnist", "cifar10", "cifar100", "folder")
"""Names of `mambavision.data.DATA_SETS`, repeated so that a configuration is checked without importing torch."""

SAMPLERS = ("known_cost", "tpe", "nsga2", "gp", "random")
"""Samplers by name; `mvsearch.search.make_sampler` says how each is set."""

SAMPLERS_WITH_RUNGS = ("known_cost", "random")
"""Samplers that a study with rungs may use: ours reads what a stopped layout reached, random needs no more than that it
was seen. Optuna's others learn nothing from trials told PRUNED in a study of two objectives."""

MAX_HYBRID_DEPTH = 20
"""Longest stage whose order is searched: its 2^depth patterns are enumerated where they are counted exactly."""


class ConfigError(ValueError):
    """A configuration that cannot be used; one message with the file, the key, the value and what is allowed."""


# -- what a value may be: each check returns the value or raises _wrong ------------------------------------------------


def _wrong(value: object, allowed: str, key: str = "") -> PydanticCustomError:
    """The error for a value; `key` is relative to the place it is raised at."""
    # The braces of a template would be filled in from the context; the context carries the text instead.
    return PydanticCustomError("wrong", "{allowed}", {"key": key, "value": value, "allowed": allowed})


def _whole(low: int, high: int | None = None) -> Callable[[object], int]:
    allowed = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"

    def check(value: object) -> int:
        # 1e3 is a float in YAML and a whole number to people; true is an int in Python and not to people.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or value < low or (high is not None and value > high):
            raise _wrong(value, allowed)
        return value

    return check


def _number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Callable[[object], float]:
    start = f"a number above {low:g}" if above else f"a number, {low:g} or more"
    end = "" if math.isinf(high) else f" and below {high:g}" if below else f" and at most {high:g}"

    def check(value: object) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise _wrong(value, start + end)
        number = float(value)  # type: ignore[arg-type]
        if number < low or (above and number == low) or number > high or (below and number == high):
            raise _wrong(value, start + end)
        return number

    return check


def _word(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise _wrong(value, f"one of {', '.join(words)}.{_did_you_mean(value, words)}")
        return value

    return check


def _or_null(check: Callable[[object], T]) -> Callable[[object], T | None]:
    def check_or_null(value: object) -> T | None:
        if value is None:
            return None
        try:
            return check(value)
        except PydanticCustomError as error:
            raise _wrong(value, f"null or {(error.context or {})['allowed']}") from None

    return check_or_null


def _choices(check: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """A single value (fixed) or a list (searched), as a tuple; numbers in rising order, null first."""

    def check_all(value: object) -> tuple[T, ...]:
        values = [check(item) for item in value] if isinstance(value, (list, tuple)) else [check(value)]
        if not values:
            raise _wrong(value, "one value (fixed), or a list of at least one (searched)")
        if len(set(values)) < len(values):
            raise _wrong(value, "a list in which no value is repeated")
        if not any(isinstance(item, str) for item in values):
            values.sort(key=lambda item: -math.inf if item is None else item)  # type: ignore[arg-type,return-value]
        return tuple(values)

    return check_all


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def _quantity(value: object) -> float:
    """A positive number, or a text with a unit: 1.5M, 64MB (10^6 bytes), 64MiB (2^20)."""
    allowed = "a number above 0, also with a unit: 1.5M, 100M, 64MB (10^6), 64MiB (2^20)"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKMGT]?i?)B?\s*", value)
        try:
            value = float(match[1]) * _UNITS[match[2].upper()] if match else value
        except (ValueError, KeyError):
            raise _wrong(value, allowed) from None
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise _wrong(value, allowed)
    return float(value)  # type: ignore[arg-type]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, "true or false")
    return value


def _auto_or_false(value: object) -> object:
    if value != "auto" and value is not False:
        raise _wrong(value, "auto or false")
    return value


def _study_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise _wrong(
            value,
            "1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or a digit (it names a folder)",
        )
    return value


def _path(value: object) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise _wrong(value, "a path")
    return str(value)


def _letters(value: object) -> str:
    if value not in ("C", "M", "G", "A", "MA", "AM", "GA", "AG"):
        raise _wrong(
            value,
            "the letters to choose from: C (conv), M (all Mamba), G (all gated Mamba), A (all attention), or MA or GA "
            "(both, searched)",
        )
    return str(value)[::-1] if value in ("AM", "AG") else str(value)


def _list_of(value: object) -> object:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 4:
        raise _wrong(value, "a list of one to four stages")
    return value


def _strides(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or any(type(stride) is not int or stride not in (1, 2) for stride in value):
        raise _wrong(value, "null (2 everywhere) or a list with a 1 or a 2 for each gap between stages")
    return tuple(value)


def _stem_stride(value: object) -> int:
    if type(value) is not int or value not in (4, 2, 1):
        raise _wrong(value, "one of 4, 2, 1")
    return value


def _listed(values: Iterable[int]) -> str:
    return " / ".join(str(value) for value in values)


def _as_written(values: tuple[Any, ...]) -> Any:
    """A fixed value alone, a searched one as a list, whole numbers without a point."""
    plain = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    return plain[0] if len(plain) == 1 else plain


_AS_WRITTEN = PlainSerializer(_as_written)
_Whole1 = Annotated[int, BeforeValidator(_whole(1))]
_Dtype = Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(_word("auto", "float32", "bfloat16"))]


class _Section(BaseModel):
    """A mapping of the YAML: frozen, and unknown keys are refused with the nearest right one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, BaseModel):
            return data
        if not isinstance(data, Mapping):
            raise _wrong(data, f"a mapping with keys of: {', '.join(cls.model_fields)}")
        for key in data:
            if key not in cls.model_fields:
                raise PydanticCustomError("unknown", "unknown key", {"key": str(key), "known": list(cls.model_fields)})
        return data


class AttentionConfig(_Section):
    """How many blocks of a stage are attention: a range, or the list of counts that are allowed.

    In YAML: ``{min: 0, max: 4}``, one number (fixed), or a list of counts.
    """

    min: Annotated[int, BeforeValidator(_whole(0, 64))] = 0
    """Fewest attention blocks, 0 or more; at most the shortest depth."""
    max: Annotated[int | None, BeforeValidator(_or_null(_whole(0, 64)))] = None
    """Most attention blocks; null, and whatever is above the depth, means the depth."""
    counts: Annotated[tuple[int, ...] | None, BeforeValidator(_or_null(_choices(_whole(0, 64))))] = None
    """Exactly these counts, instead of a range."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, (Mapping, BaseModel)):
            return data
        try:
            counts = _choices(_whole(0, 64))(data)
        except PydanticCustomError as error:
            allowed = (error.context or {})["allowed"]
            raise _wrong(data, f"{{min: …, max: …}}, a count, or a list of counts, each {allowed}") from None
        return {"min": counts[0], "max": counts[0]} if len(counts) == 1 else {"counts": counts}

    @model_validator(mode="after")
    def _not_empty(self) -> AttentionConfig:
        if self.max is not None and self.max < self.min:
            raise _wrong(
                {"min": self.min, "max": self.max}, "a range whose max is not below its min (this one is empty)"
            )
        if self.counts is not None and {"min", "max"} & self.model_fields_set:
            raise _wrong(self.counts, "counts, or min and max, not both", "counts")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> Any:
        if self.counts is not None:
            return list(self.counts)
        return self.min if self.min == self.max else {"min": self.min, "max": self.max}

    def allowed(self, depth: int) -> tuple[int, ...]:
        """The counts allowed in a stage of `depth` blocks, rising; empty if there are none."""
        counts = self.counts
        if counts is None:
            counts = tuple(range(self.min, (depth if self.max is None else min(self.max, depth)) + 1))
        return tuple(count for count in counts if count <= depth)


# Which letters a key of a stage has an effect on: those of any one of these choices.
_MIXED = ("MA", "GA")
_MAMBA = ("M", "G")
_HYBRID = ("M", "G", "A")
_NEEDS = {
    "attention": _MIXED,
    "placement": _MIXED,
    "flips": _MIXED,
    "state": _MAMBA,
    "conv_kernel": _MAMBA,
    "expand": ("G",),
    "head_dim": ("A",),
    "window": _HYBRID,
    "mlp_ratio": _HYBRID,
}


class StageConfig(_Section):
    """One stage of the layout. A list is searched, a single value is fixed."""

    blocks: Annotated[str, BeforeValidator(_letters)]
    """Letters to choose from: C (residual conv), M (all Mamba), G (all gated Mamba), A (all attention), MA or GA (their
    order is searched)."""
    depth: Annotated[tuple[int, ...], BeforeValidator(_choices(_whole(1, 64))), _AS_WRITTEN]
    """Number of blocks, 1 to 64; at most 20 where the order is searched."""
    dim: Annotated[tuple[float, ...], BeforeValidator(_choices(_number(0, 64, above=True))), _AS_WRITTEN]
    """Channels of the stage as a multiple of `layout.width`; 1 in stage 1."""
    attention: AttentionConfig = AttentionConfig()
    """How many blocks are attention (MA, GA): {min, max}, a number, or a list. Default: from 0 to the depth."""
    placement: Annotated[tuple[str, ...], BeforeValidator(_choices(_word(*PLACEMENTS)))] = PLACEMENTS
    """Rules that place the attention blocks (MA, GA): last, first, even, middle, alternate. Default: all of them."""
    flips: Annotated[int | None, BeforeValidator(_or_null(_whole(0, MAX_HYBRID_DEPTH)))] = None
    """How many single blocks may differ from the rule (MA, GA), 0 to 20. Default (null): half the longest depth, with
    which every order is reached."""
    state: Annotated[tuple[int, ...], BeforeValidator(_choices(_whole(1, 256))), _AS_WRITTEN] = (8,)
    """SSM state size of the Mamba blocks, 1 to 256."""
    window: Annotated[tuple[int | None, ...], BeforeValidator(_choices(_or_null(_whole(1, 1024)))), _AS_WRITTEN] = (
        None,
    )
    """Side of the square windows in tokens, 1 to 1024; null: the whole map."""
    head_dim: Annotated[tuple[int, ...], BeforeValidator(_choices(_whole(1, 1024))), _AS_WRITTEN] = (16,)
    """Channels of one attention head; heads = channels of the stage / head_dim, which must be whole."""
    conv_kernel: Annotated[tuple[int, ...], BeforeValidator(_choices(_whole(1, 15))), _AS_WRITTEN] = (3,)
    """Width of the depthwise convolution in Mamba blocks, 1 to 15."""
    expand: Annotated[tuple[int, ...], BeforeValidator(_choices(_whole(1, 4))), _AS_WRITTEN] = (1,)
    """Channels that gated Mamba blocks scan (G only), as a multiple of the channels of the stage, 1 to 4."""
    mlp_ratio: Annotated[tuple[float, ...], BeforeValidator(_choices(_number(0, 16, above=True))), _AS_WRITTEN] = (4.0,)
    """Hidden width of the MLP over the channels of the stage, above 0, at most 16."""
    layer_scale: Annotated[float | None, BeforeValidator(_or_null(_number(0, 10, above=True)))] = None
    """Initial value of the learned residual scales, above 0, at most 10; null: no scales."""

    @model_validator(mode="after")
    def _fits(self) -> StageConfig:
        for key in _NEEDS:
            if key in self.model_fields_set and not self.has(key):
                allowed = (
                    f"only a stage with {' or '.join(_NEEDS[key])} has it, and the blocks of this one are "
                    f"{self.blocks}; remove it"
                )
                raise _wrong(getattr(self, key), allowed, key)
        if self.mixed:
            if self.depth[-1] > MAX_HYBRID_DEPTH:
                raise _wrong(
                    self.depth[-1], f"at most {MAX_HYBRID_DEPTH} blocks where their order is searched", "depth"
                )
            if not self.attention.allowed(self.depth[0]):
                raise _wrong(
                    self.model_dump()["attention"],
                    f"at least one count of at most {self.depth[0]}, the shortest depth",
                    "attention",
                )
        return self

    @property
    def mamba(self) -> str:
        """The Mamba letter of the stage, M or G; empty where it has none."""
        return next((letter for letter in self.blocks if LETTERS[letter].scans), "")

    @property
    def mixed(self) -> bool:
        """True where each block is Mamba or attention, so that order and ratio are searched."""
        return self.blocks in _MIXED

    def has(self, key: str) -> bool:
        """Whether a key has an effect in a stage of these letters."""
        return key not in _NEEDS or any(letters in self.blocks for letters in _NEEDS[key])

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What has no effect in this stage is refused when read, so it is not written either.
        return {key: value for key, value in handler(self).items() if self.has(key)}


# The keys that have an effect with a stem.
_STEM_KEYS = {"conv": ("in_dim", "stem_stride", "downsample"), "patch": ("patch",)}


class LayoutConfig(_Section):
    """What is searched: the layouts. A list is searched, a single value is fixed."""

    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(_list_of)]
    """One to four stages."""
    width: Annotated[tuple[int, ...], BeforeValidator(_choices(_whole(1, 8192))), _AS_WRITTEN]
    """Channels of stage 1; every other stage is a multiple of it."""
    stem: Annotated[Literal["conv", "patch"], BeforeValidator(_word(*STEMS))] = "conv"
    """conv (two 3x3 convolutions; the hierarchical form) or patch (patches with fixed positions; the columnar form: one
    stage, free of C, its widths multiples of 4)."""
    in_dim: Annotated[int, BeforeValidator(_whole(1, 4096))] = 32
    """Channels between the two convolutions of the conv stem."""
    stem_stride: Annotated[int, BeforeValidator(_stem_stride)] = 4
    """How much the conv stem reduces the image: 4, 2 or 1."""
    downsample: Annotated[tuple[int, ...] | None, BeforeValidator(_strides)] = None
    """Stride, 1 or 2, for each gap between stages (conv stem); null: 2 everywhere."""
    patch: Annotated[int, BeforeValidator(_whole(1, 1024))] = 16
    """Side of a patch in pixels (patch stem), 1 to 1024."""
    qk_norm: Annotated[bool, BeforeValidator(_flag)] = False
    """LayerNorm on the queries and keys of the attention blocks."""

    @model_validator(mode="after")
    def _fits(self) -> LayoutConfig:
        for stem, keys in _STEM_KEYS.items():
            for key in keys:
                if stem != self.stem and key in self.model_fields_set:
                    allowed = f"only the {stem} stem has it, and the stem of this layout is {self.stem}; remove it"
                    raise _wrong(getattr(self, key), allowed, key)
        if self.stem == "patch":
            if len(self.stages) != 1:
                allowed = f"conv, or one stage instead of {len(self.stages)}: the patch stem takes exactly one"
                raise _wrong(self.stem, allowed, "stem")
            if self.stages[0].blocks == "C":
                raise _wrong(
                    "C", "M, G, A, MA or GA, because a stage on the patch stem is free of C", "stages.0.blocks"
                )
            for width in self.width:
                if width % 4:
                    raise _wrong(width, "a multiple of 4, for the positions of the patch stem", "width")
        if self.stages[0].dim != (1.0,):
            raise _wrong(
                self.stages[0].model_dump()["dim"], "1, because layout.width is the width of stage 1", "stages.0.dim"
            )
        gaps = len(self.stages) - 1
        if self.downsample is not None and len(self.downsample) != gaps:
            raise _wrong(
                list(self.downsample), f"a list of {gaps} strides, one for each gap between stages", "downsample"
            )
        return self

    def stem_fields(self) -> dict[str, Any]:
        """The stem and the keys that have an effect with it, as fields of a `HybridLayout`."""
        return {key: getattr(self, key) for key in ("stem", *_STEM_KEYS[self.stem])}

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What has no effect with this stem is refused when read, so it is not written either. Nor is the conv stem: a
        # study started when it was the only one has no such key, and goes on.
        other = {key for stem, keys in _STEM_KEYS.items() if stem != self.stem for key in keys}
        left_out = other | ({"stem"} if self.stem == "conv" else set())
        return {key: value for key, value in handler(self).items() if key not in left_out}


class BudgetConfig(_Section):
    """Bounds of one cost; numbers, also with a unit (1.5M, 64MB)."""

    min: Annotated[float | None, BeforeValidator(_or_null(_quantity))] = None
    """Least that is allowed, above 0; null: no bound."""
    max: Annotated[float | None, BeforeValidator(_or_null(_quantity))] = None
    """Most that is allowed, above 0; null: no bound."""

    @model_validator(mode="after")
    def _not_empty(self) -> BudgetConfig:
        if self.min is not None and self.max is not None and self.max < self.min:
            raise _wrong(
                {"min": self.min, "max": self.max}, "a range whose max is not below its min (this one is empty)"
            )
        return self


class BudgetsConfig(_Section):
    """What a layout may cost as deployed, at `timing.image_size` and `timing.batch_size`; checked before training."""

    params: BudgetConfig = BudgetConfig()
    """Number of parameters."""
    macs: BudgetConfig = BudgetConfig()
    """Multiply-accumulates an image (convolutions, linear layers, attention products; not the scan)."""
    memory: BudgetConfig = BudgetConfig()
    """Bytes at inference in float32: weights and the peak of the activations at the deployment batch."""


class ProxyConfig(_Section):
    """The short training that stands for the long one."""

    data: Annotated[str, BeforeValidator(_word(*DATA_SETS))] = "digit_scenes"
    """Data set: digit_scenes, digits, fashion_mnist, cifar10, cifar100, or folder (images of one's own)."""
    root: Annotated[str | None, BeforeValidator(_or_null(_path))] = None
    """Where the data lies; for folder (needed there): one folder a class in it, or train, val and test of these."""
    image_size: Annotated[int, BeforeValidator(_whole(4, 1024))] = 32
    """Side of the training images in pixels, 4 to 1024."""
    train_images: Annotated[int | None, BeforeValidator(_or_null(_whole(1)))] = None
    """How many training images, balanced over the classes; null: all there are (folder: at most 50,000)."""
    val_images: Annotated[int | None, BeforeValidator(_or_null(_whole(1)))] = None
    """How many validation images, taken out of the training set; null: a fifth, at most 5,000."""
    epochs: _Whole1 = 6
    """Epochs of a training."""
    batch_size: _Whole1 = 64
    """Images a training step."""
    seeds: Annotated[int, BeforeValidator(_whole(1, 100))] = 1
    """Trainings a layout, each with a seed of its own; error bars need 2 or more."""
    learning_rate: Annotated[float, BeforeValidator(_number(0, 10, above=True))] = 0.002
    """AdamW's learning rate, constant after the warm-up."""
    weight_decay: Annotated[float, BeforeValidator(_number(0, 10))] = 0.05
    """AdamW's weight decay."""
    warmup_epochs: Annotated[float, BeforeValidator(_number(0))] = 1.0
    """Epochs over which the learning rate rises linearly from 0."""
    ema: Annotated[float, BeforeValidator(_number(0, 1, below=True))] = 0.99
    """Decay a step of the moving average of the weights, which is what is validated; 0: none."""
    clip_norm: Annotated[float | None, BeforeValidator(_or_null(_number(0, above=True)))] = 5.0
    """Largest norm of the gradient; null: no clipping."""
    augment: Annotated[
        Literal["auto", "none", "shift", "shift_flip"], BeforeValidator(_word("auto", "none", "shift", "shift_flip"))
    ] = "auto"
    """Augmentation; auto: what keeps the labels of the data set."""
    drop_path: Annotated[float, BeforeValidator(_number(0, 1, below=True))] = 0.0
    """Stochastic depth rate of the last block, 0 to below 1; rises linearly over the blocks."""
    dtype: _Dtype = "auto"
    """Precision of the training; auto: bfloat16 on CUDA devices that have it, else float32."""
    stem_stride: Annotated[int | None, BeforeValidator(_or_null(_stem_stride))] = None
    """Stride of the conv stem while training, to keep the token count at fewer pixels: 4, 2 or 1; null: the layout's
    own."""

    @model_validator(mode="after")
    def _fits(self) -> ProxyConfig:
        if self.data == "folder" and self.root is None:
            raise _wrong(None, "data 'folder' needs the path of the folder that holds one folder a class", "root")
        if self.warmup_epochs > self.epochs:
            raise _wrong(self.warmup_epochs, f"at most proxy.epochs, {self.epochs}", "warmup_epochs")
        return self


class FidelityConfig(_Section):
    """Nested rungs: a layout is trained to the end of one rung, and only the promising go on to the next."""

    eta: Annotated[int, BeforeValidator(_whole(2, 100))] = 3
    """How much longer each rung is than the one before it; of eta layouts on a rung, one goes on. 2 to 100."""
    rungs: Annotated[int, BeforeValidator(_whole(2, 10))] = 3
    """How many rungs, 2 to 10. The last one ends at proxy.epochs, the one before it at proxy.epochs / eta, and so on,
    rounded."""


def _fidelity(value: object) -> object:
    if value is None or value == "none":
        return None
    if not isinstance(value, (Mapping, FidelityConfig)):
        raise _wrong(value, "none (every layout is trained in full), or a mapping such as {eta: 3, rungs: 3}")
    return value


class ObjectivesConfig(_Section):
    """What is optimised: this quality, and throughput."""

    quality: Annotated[Literal["nll", "top1"], BeforeValidator(_word("nll", "top1"))] = "nll"
    """Quality on the validation split: nll (negative log-likelihood, separates layouts better) or top1 (accuracy)."""


class PlateauConfig(_Section):
    """When a search has stopped paying."""

    trials: Annotated[int, BeforeValidator(_whole(1))] = 20
    """Over so many layouts trained in full, the last ones, …"""
    gain: Annotated[float, BeforeValidator(_number(0, 1, below=True))] = 0.01
    """… the hypervolume has grown by no more than this share of itself, 0 to below 1."""


def _plateau(value: object) -> object:
    if value is not None and not isinstance(value, (Mapping, PlateauConfig)):
        raise _wrong(value, "null (no such rule), or a mapping such as {trials: 20, gain: 0.01}")
    return value


class SearchConfig(_Section):
    """How the search goes."""

    sampler: Annotated[Literal["known_cost", "tpe", "nsga2", "gp", "random"], BeforeValidator(_word(*SAMPLERS))] = (
        "known_cost"
    )
    """Which sampler proposes layouts: known_cost (our own), or Optuna's tpe (multivariate), nsga2, gp or random."""
    trials: _Whole1 = 26
    """Layouts trained in full, the hand-made baselines among them."""
    hours: Annotated[float | None, BeforeValidator(_or_null(_number(0, above=True)))] = None
    """Ends the asking after this many hours of one launch, whichever comes first; null: no limit."""
    device_hours: Annotated[float | None, BeforeValidator(_or_null(_number(0, above=True)))] = None
    """Ends the asking when the workers have worked this many hours, all of them and all launches together; null: no
    limit."""
    plateau: Annotated[PlateauConfig | None, BeforeValidator(_plateau)] = None
    """Ends the asking when the hypervolume has stopped growing: {trials: 20, gain: 0.01}; null: no such rule."""
    job_minutes: Annotated[float | None, BeforeValidator(_or_null(_number(0, above=True)))] = None
    """Longest that one job (a timing, or one training to the end of its rung) may take; whatever takes longer has
    failed. In calibrate and confirm an epoch may take as long as one of the search's longest training. null: no
    limit."""
    seed: Annotated[int, BeforeValidator(_whole(0, 2**31 - 1))] = 0
    """Seed of the search and of the trainings; the data subset is always the same."""
    baselines: Annotated[bool, BeforeValidator(_flag)] = True
    """Whether the hand-made layouts (all Mamba, all attention, last half, …) run first."""
    design: Annotated[Literal["placement"] | None, BeforeValidator(_or_null(_word("placement")))] = None
    """null (search for the front), or placement: train exactly the layouts that tell ratios and placements apart, at
    one width. `mvsearch launch SPACE --design placement` sets it, with the number of trials and at least 3 seeds."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A study started before there were designs has no such key, and goes on.
        return {key: value for key, value in handler(self).items() if key != "design" or value is not None}


class TimingConfig(_Section):
    """How throughput is measured: as deployed."""

    image_size: Annotated[int | None, BeforeValidator(_or_null(_whole(1, 4096)))] = None
    """Side of the deployed images in pixels; null: the proxy's."""
    batch_size: _Whole1 = 64
    """Images a batch, as deployed."""
    window_s: Annotated[float, BeforeValidator(_number(0, 60, above=True))] = 0.5
    """Seconds of one timing window, above 0, at most 60."""
    windows: Annotated[int, BeforeValidator(_whole(1, 100))] = 5
    """Timing windows; the median counts."""
    dtype: _Dtype = "auto"
    """Precision of the deployed model; auto: bfloat16 on CUDA devices that have it, else float32."""
    threads: Annotated[int, BeforeValidator(_whole(1, 4096))] = 1
    """CPU threads of a timing. More than one makes it fragile: a neighbour on one core then stalls all threads."""
    cuda_graph: Annotated[Literal["auto", False], BeforeValidator(_auto_or_false)] = "auto"
    """auto: on CUDA models are timed as CUDA graphs, without the time that the CPU takes to launch each kernel, or
    eagerly where that fails; false: always eagerly."""
    latency: Annotated[bool, BeforeValidator(_flag)] = False
    """Whether single images are timed as well, for latency_ms in trials.csv."""


class ThroughputConfig(_Section):
    """Throughputs measured elsewhere."""

    file: Annotated[str | None, BeforeValidator(_or_null(_path))] = None
    """A table of throughputs to take instead of measuring: an evaluations.jsonl, a trials.csv, or what `mvsearch bench
    --format csv` printed."""
    others: Annotated[Literal["measure", "skip"], BeforeValidator(_word("measure", "skip"))] = "measure"
    """Layouts that are not in the table: measure (here, so only where the table is of this device), or skip (they are
    never tried; for a table of another device)."""

    @model_validator(mode="after")
    def _fits(self) -> ThroughputConfig:
        if self.others == "skip" and self.file is None:
            raise _wrong(self.others, "measure where throughput.file is null: every layout would be skipped", "others")
        return self


def _names(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise _wrong(value, "the name of a model of the library, or a list of them, such as [mambavision_t]")
    if len(set(names)) < len(names):
        raise _wrong(value, "a list in which no name is repeated")
    return tuple(names)


def _weights(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        raise _wrong(value, "a mapping from placement rules to weights, such as {last: 3, first: 1}")
    found = {_word(*PLACEMENTS)(rule): _number(0)(weight) for rule, weight in value.items()}
    if not sum(found.values()):
        raise _wrong(dict(value), "weights of which at least one is above 0")
    return found


class WarmStartConfig(_Section):
    """What a search begins with beside its hand-made layouts. In YAML also a study alone: ``warm_start: studies/x``."""

    study: Annotated[str | None, BeforeValidator(_or_null(_path))] = None
    """Name or folder of a study. What it measured under the same conditions is taken over; null: none."""
    layouts: _Whole1 = 10
    """How many of its layouts, the best first, are trained again where their trainings cannot be taken over."""
    known: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Models of the library whose layouts are scaled into the space: mambavision_t, mambavision_s, one's own."""
    placement: Annotated[dict[str, float] | None, BeforeValidator(_or_null(_weights))] = None
    """Weights of placement rules, such as {last: 3, first: 1}, with which `draws` layouts are drawn; null: none."""
    draws: _Whole1 = 10
    """How many layouts are drawn with the weights of `placement`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"study": str(data)} if isinstance(data, (str, Path)) else data

    @model_validator(mode="after")
    def _fits(self) -> WarmStartConfig:
        for key, needed in _WARM_NEEDS.items():
            if key in self.model_fields_set and getattr(self, needed) is None:
                raise _wrong(getattr(self, key), f"only with {needed}; add it, or remove {key}", key)
        if self.study is None and not self.known and self.placement is None:
            raise _wrong({}, "null, a study, or a mapping with at least one of study, known and placement")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What has no effect is refused when read, so it is not written either.
        idle = {key for key, needed in _WARM_NEEDS.items() if getattr(self, needed) is None}
        return {key: value for key, value in handler(self).items() if value not in (None, [], ()) and key not in idle}


# Keys of a warm start that mean something only beside another.
_WARM_NEEDS = {"layouts": "study", "draws": "placement"}


def _warm_start(value: object) -> object:
    if value is None or (value and isinstance(value, (str, Path, Mapping, WarmStartConfig))):
        return value
    raise _wrong(value, "null, a study (studies/x), or a mapping with study, known or placement")


def _storage(value: object) -> object:
    if value is None:
        return None
    match = re.fullmatch(r"([a-z][a-z0-9+_]*)://(.*)", value) if isinstance(value, str) else None
    if not match:
        raise _wrong(value, "null (a journal in the study's folder), or a database URL such as postgresql://HOST/NAME")
    if re.match(r"[^/@]*:[^/@]*@", match[2]):
        # The value is left out of the message.
        raise _wrong(
            "a URL with a password",
            "a URL without one, as it is written into study.yaml; PostgreSQL takes it from ~/.pgpass or PGPASSWORD",
        )
    return value


class StudyConfig(_Section):
    """One study: what `mvsearch launch FILE` reads."""

    name: Annotated[str, BeforeValidator(_study_name)]
    """Names the folder of the results, studies/<name>; default: the name of the file."""
    layout: LayoutConfig
    """What is searched."""
    budgets: BudgetsConfig = BudgetsConfig()
    """What a layout may cost."""
    proxy: ProxyConfig = ProxyConfig()
    """The short training."""
    fidelity: Annotated[FidelityConfig | None, BeforeValidator(_fidelity)] = None
    """none (every layout is trained in full), or rungs: {eta: 3, rungs: 3}."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    """What is optimised."""
    search: SearchConfig = SearchConfig()
    """How the search goes."""
    timing: TimingConfig = TimingConfig()
    """How throughput is measured."""
    storage: Annotated[str | None, BeforeValidator(_storage)] = None
    """Where the sampler's memory is kept: null (a journal in the study's folder), or the URL of a database, such as
    postgresql://HOST/NAME."""
    throughput: ThroughputConfig = ThroughputConfig()
    """Where throughputs come from, if they are not measured."""
    warm_start: Annotated[WarmStartConfig | None, BeforeValidator(_warm_start)] = None
    """null, a study (studies/x) or a mapping: what the search begins with beside the hand-made layouts."""

    @model_validator(mode="after")
    def _fits(self) -> StudyConfig:
        if self.layout.stem == "patch":
            if self.proxy.stem_stride is not None:
                allowed = "only the conv stem has it, and layout.stem is patch; remove it"
                raise _wrong(self.proxy.stem_stride, allowed, "proxy.stem_stride")
            for section in ("proxy", "timing"):
                size = getattr(self, section).image_size
                if size is not None and size < self.layout.patch:
                    raise _wrong(size, f"at least layout.patch, {self.layout.patch}", f"{section}.image_size")
        if self.fidelity is not None:
            self._check_rungs(self.fidelity)
        return self

    def _check_rungs(self, fidelity: FidelityConfig) -> None:
        rungs = self.rung_epochs
        if len(set(rungs)) < len(rungs):
            allowed = (
                f"fewer rungs, or more than proxy.epochs = {self.proxy.epochs}: with fidelity.eta = {fidelity.eta} "
                f"they would end after {_listed(rungs)} epochs, and each must be longer than the one before it"
            )
            raise _wrong(fidelity.rungs, allowed, "fidelity.rungs")
        if self.proxy.warmup_epochs > rungs[0]:
            allowed = f"at most {rungs[0]}, the epochs of the first rung of {_listed(rungs)}, so that rungs compare"
            raise _wrong(self.proxy.warmup_epochs, allowed, "proxy.warmup_epochs")
        if self.search.sampler not in SAMPLERS_WITH_RUNGS:
            allowed = (
                f"{' or '.join(SAMPLERS_WITH_RUNGS)} where fidelity is not none: Optuna teaches this sampler nothing "
                "from layouts that were stopped early, so it would search worse than random"
            )
            raise _wrong(self.search.sampler, allowed, "search.sampler")

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A study started before there were rungs or warm starts has no such key, and goes on.
        later = ("fidelity", "warm_start")
        return {key: value for key, value in handler(self).items() if key not in later or value is not None}

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        """Epochs after which each rung ends, rising; the last is `proxy.epochs`. One rung without `fidelity`."""
        epochs, fidelity = self.proxy.epochs, self.fidelity
        if fidelity is None:
            return (epochs,)
        earlier = (max(1, round(epochs / fidelity.eta**k)) for k in range(fidelity.rungs - 1, 0, -1))
        return (*earlier, epochs)

    @property
    def epoch_limit_s(self) -> float | None:
        """Seconds that `search.job_minutes` leaves for an epoch of the longest training that is one job; None: any."""
        if self.search.job_minutes is None:
            return None
        longest = max(end - start for start, end in itertools.pairwise((0, *self.rung_epochs)))
        return 60 * self.search.job_minutes / longest

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """Seeds of a layout's trainings, the same for every layout."""
        return tuple(self.search.seed * 1000 + number for number in range(self.proxy.seeds))

    @property
    def deployed_image_size(self) -> int:
        """Side in pixels of the images that budgets and timings are about."""
        return self.timing.image_size or self.proxy.image_size

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in."""
        return self.model_dump(mode="json")

    def resolved_yaml(self) -> str:
        """The study as YAML with every default filled in; `load_config` reads it back to an equal value."""
        return yaml.dump(self.resolved(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes a list of plain values on one line."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        plain = not any(isinstance(item, (list, dict)) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _Dumper.represent_list)


# -- reading -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e6 as a number and refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, wants a dot and a signed exponent in 1.0e+6.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def shipped() -> dict[str, Traversable]:
    """The search spaces that come with the package: name to file."""
    try:
        folder: Traversable = importlib.resources.files("mvsearch.search_spaces")
    except ModuleNotFoundError:  # a checkout that is not installed
        folder = Path(__file__).parent.parent / "search_spaces"
    if not folder.is_dir():
        return {}
    files = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return dict(sorted(files.items()))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read and validate a study.

    Args:
        source: a YAML file, or the name of a shipped search space (``"stagewise"``).
        overrides: ``"search.trials=12"``: dotted keys, lists by index counted from 0
            (``"layout.stages.1.depth=[2, 3]"``), values read as YAML.

    Raises:
        ConfigError: one message that names the file, the key, the value and what is allowed.
    """
    label, text = _read(source)
    data = _parse(text, label)
    if data is None:
        raise ConfigError(f"{label}: is empty; a study starts with a key such as 'layout:'")
    if not isinstance(data, dict):
        raise ConfigError(
            f"{label}: holds {_short(data)}; a study is a mapping that starts with a key such as 'layout:'"
        )
    data.setdefault("name", Path(label).stem)
    for override in overrides:
        _override(data, override)
    try:
        return StudyConfig.model_validate(data)
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
    near = _did_you_mean(str(source), spaces)
    raise ConfigError(f"{path}: no such file, and no shipped search space (these are {', '.join(spaces)}).{near}")


def _parse(text: str, label: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{label}{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{label}: not YAML: {str(error).splitlines()[0]}") from None


def _override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key of `data` in place; mappings that are not there yet are made."""
    key, sign, text = override.partition("=")
    label = f"--set {override}"
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError(f"{label}: must read KEY=VALUE, such as search.trials=12")
    value = _parse(text, label)
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
            raise ConfigError(f"{label}: {path} is {_short(place)}, which has no keys of its own")
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
        near = _did_you_mean(context["key"], known) or _elsewhere(context["key"])
        text = f"unknown key {where}; allowed here are {', '.join(known)}.{near}"
    elif problem["type"] == "missing":
        text = f"{where}: missing"
    else:
        value = context.get("value", problem["input"])
        text = f"{where}: {_short(value)} is not allowed; {context.get('allowed', problem['msg'])}"
    others = len(problems) - 1
    return start + text + (f" (and {others} more problem{'s' if others > 1 else ''})" if others else "")


def _did_you_mean(word: object, known: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


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


def _short(value: object) -> str:
    """The value as YAML readers would write it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(value)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
