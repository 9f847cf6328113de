"""HybridLayout: the one value that says everything about an architecture.

Search, model, cost, report and export all speak it. This module imports nothing outside the standard library
(PyYAML only when YAML is read or written), so that tools which only look at layouts start quickly.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class LayoutError(ValueError):
    """A layout that cannot be built; the message names the stage, the field, the value and what is allowed."""


@dataclass(frozen=True)
class Letter:
    """One kind of block, as registered in `LETTERS`; what follows from its fields and its name are properties.

    Attributes:
        name: what people call it.
        colour: fill of its cell in strips and figures (Okabe-Ito, with grey for conv).
        block: name of the class in `mambavision.blocks` that builds it.
        word: what many of it are called, as in "all attention" and "attention share".
        fields: fields of `StageLayout` that bear on it, beside `blocks`, `dim` and `layer_scale`, which bear on all.
            A search may vary each of them.
        noun: what is placed where its place is searched, as in "placement of attention"; empty: the `word`.
        halves: True where it splits `dim` in two halves, one of which it scans.
        larger_half: True where it is the larger part of an odd depth in "last half", with blocks that attend behind it.
    """

    name: str
    colour: str
    block: str
    word: str
    fields: tuple[str, ...] = ()
    noun: str = ""
    halves: bool = False
    larger_half: bool = False

    @property
    def mixes_tokens(self) -> bool:
        """False for blocks of a convolutional stage, which sees a map and no windows."""
        return "window" in self.fields

    @property
    def scans(self) -> bool:
        """True where the block runs a selective scan."""
        return "state" in self.fields

    @property
    def attends(self) -> bool:
        """True where the block has attention heads."""
        return "heads" in self.fields


_TOKENS = ("window", "mlp_ratio")
_SCAN = ("state", "conv_kernel")

LETTERS: dict[str, Letter] = {
    "C": Letter("residual conv", "#8A8F98", "ConvBlock", "conv"),
    "M": Letter(
        "MambaVision mixer", "#0072B2", "MambaBlock", "Mamba", (*_TOKENS, *_SCAN), halves=True, larger_half=True
    ),
    "G": Letter("gated Mamba", "#56B4E9", "GatedMambaBlock", "Mamba", (*_TOKENS, *_SCAN, "expand")),
    "A": Letter("self-attention", "#E69F00", "AttentionBlock", "attention", (*_TOKENS, "heads")),
    "P": Letter(
        "Mamba and attention in parallel",
        "#CC79A7",
        "ParallelBlock",
        "parallel",
        (*_TOKENS, *_SCAN, "heads"),
        noun="parallel mixing",
        halves=True,
    ),
}
"""The one place where a block letter is registered; `mambavision.cost` has what its mixer costs."""

STEMS = ("conv", "patch")
STEM_STRIDES = (4, 2, 1)


def _fail(where: str, field: str, value: object, allowed: str) -> LayoutError:
    return LayoutError(f"{where}{field}: {value!r} is not allowed; {allowed}")


def _check_int(where: str, field: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _fail(where, field, value, f"a whole number from {low} to {high}")


def _check_float(where: str, field: str, value: object, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= high:
        raise _fail(where, field, value, f"a number above 0 and at most {high:g}")


def _check_keys(where: str, data: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in data:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise LayoutError(f"{where}unknown field {name!r}; allowed are {', '.join(allowed)}.{hint}")


@dataclass(frozen=True, kw_only=True)
class StageLayout:
    """One stage: a string of block letters and its numbers.

    Attributes:
        blocks: letters of `LETTERS` in order, e.g. ``"MMMMAAAA"``; all ``C``, or free of ``C``.
        dim: channels, 1 to 8192; even in a stage with a letter that splits them in halves (``M``, ``P``).
        heads: attention heads; must divide `dim` in a stage with a letter that attends (``A``, ``P``).
        window: side of the square windows in tokens; None means the whole map; a window larger than the map
            pads it with zeros, as published.
        state: SSM state size N, 1 to 256.
        conv_kernel: width of the mixer's depthwise convolution, 1 to 15.
        expand: channels that ``G`` scans, as a multiple of `dim`, 1 to 4 (``M`` and ``P`` scan half of `dim`).
        mlp_ratio: hidden width of the MLP over `dim`.
        layer_scale: initial value of the learned residual scales; None means no scales.

    Raises:
        LayoutError: if a value is not allowed.
    """

    blocks: str
    dim: int
    heads: int = 1
    window: int | None = None
    state: int = 8
    conv_kernel: int = 3
    expand: int = 1
    mlp_ratio: float = 4.0
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        where = "stage: "
        if not isinstance(self.blocks, str) or not self.blocks:
            raise _fail(where, "blocks", self.blocks, f"one or more of the letters {', '.join(LETTERS)}")
        for letter in self.blocks:
            if letter not in LETTERS:
                known = ", ".join(f"{name} ({kind.name})" for name, kind in LETTERS.items())
                raise _fail(where, "blocks", self.blocks, f"unknown letter {letter!r}; letters are {known}")
        if len({LETTERS[letter].mixes_tokens for letter in self.blocks}) > 1:
            raise _fail(where, "blocks", self.blocks, "a stage is all C, or free of C")
        if len(self.blocks) > 64:
            raise _fail(where, "blocks", self.blocks, "at most 64 blocks")
        _check_int(where, "dim", self.dim, 1, 8192)
        _check_int(where, "heads", self.heads, 1, 1024)
        if self.window is not None:
            _check_int(where, "window", self.window, 1, 1024)
        _check_int(where, "state", self.state, 1, 256)
        _check_int(where, "conv_kernel", self.conv_kernel, 1, 15)
        _check_int(where, "expand", self.expand, 1, 4)
        _check_float(where, "mlp_ratio", self.mlp_ratio, 16)
        if self.layer_scale is not None:
            _check_float(where, "layer_scale", self.layer_scale, 10)
        halving = next((letter for letter in self.blocks if LETTERS[letter].halves), None)
        if halving and self.dim % 2:
            raise _fail(where, "dim", self.dim, f"an even width, because {halving} splits it in two halves")
        if self.attends and self.dim % self.heads:
            raise _fail(where, "heads", self.heads, f"a divisor of dim {self.dim}")

    @property
    def hybrid(self) -> bool:
        """True for a stage whose blocks mix tokens; False for a convolutional one."""
        return LETTERS[self.blocks[0]].mixes_tokens

    @property
    def scans(self) -> bool:
        """True if any block of the stage runs a selective scan."""
        return any(LETTERS[letter].scans for letter in self.blocks)

    @property
    def attends(self) -> bool:
        """True if any block of the stage has attention heads."""
        return any(LETTERS[letter].attends for letter in self.blocks)

    def scanned(self, letter: str) -> int:
        """Channels that a block of this letter scans; 0 where it does not."""
        kind = LETTERS[letter]
        if not kind.scans:
            return 0
        return self.dim // 2 if kind.halves else self.expand * self.dim

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.dim * self.mlp_ratio)

    def canonical(self) -> dict[str, Any]:
        """Only what has an effect on the network."""
        data: dict[str, Any] = {"blocks": self.blocks, "dim": self.dim, "layer_scale": self.layer_scale}
        for name in {name for letter in self.blocks for name in LETTERS[letter].fields}:
            # Ratios that round to one width are one network.
            data |= {"mlp_hidden": self.mlp_hidden} if name == "mlp_ratio" else {name: getattr(self, name)}
        return data


@dataclass(frozen=True, kw_only=True)
class HybridLayout:
    """A whole architecture: stem, one to four stages, and the strides between them.

    Attributes:
        stages: one to four `StageLayout`.
        stem: ``"conv"`` (two 3x3 convolutions, the hierarchical form) or ``"patch"`` (one patch embedding with
            fixed positions, the columnar form; takes exactly one stage, free of C).
        in_dim: channels between the two stem convolutions (conv stem only).
        stem_stride: 4, 2 or 1, how much the conv stem reduces the image.
        downsample: stride, 1 or 2, for each gap between stages; None means 2 everywhere.
        patch: side of a patch in pixels (patch stem only).
        qk_norm: LayerNorm on the queries and keys of every attention block.

    Raises:
        LayoutError: if a value is not allowed.
    """

    stages: tuple[StageLayout, ...]
    stem: str = "conv"
    in_dim: int = 32
    stem_stride: int = 4
    downsample: tuple[int, ...] | None = None
    patch: int = 16
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.stages, (tuple, list)) or not 1 <= len(self.stages) <= 4:
            raise _fail("", "stages", self.stages, "a list of one to four stages")
        for stage in self.stages:
            if not isinstance(stage, StageLayout):
                raise _fail("", "stages", stage, "each stage is a StageLayout")
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.stem not in STEMS:
            raise _fail("", "stem", self.stem, f"one of {', '.join(STEMS)}")
        _check_int("", "in_dim", self.in_dim, 1, 4096)
        if type(self.stem_stride) is not int or self.stem_stride not in STEM_STRIDES:
            raise _fail("", "stem_stride", self.stem_stride, "one of 4, 2, 1")
        gaps = len(self.stages) - 1
        strides = (2,) * gaps if self.downsample is None else self.downsample
        if (
            not isinstance(strides, (tuple, list))
            or len(strides) != gaps
            or any(type(s) is not int or s not in (1, 2) for s in strides)
        ):
            raise _fail("", "downsample", strides, f"a list of {gaps} strides, each 1 or 2 (one for each gap)")
        object.__setattr__(self, "downsample", tuple(strides))
        _check_int("", "patch", self.patch, 1, 1024)
        if not isinstance(self.qk_norm, bool):
            raise _fail("", "qk_norm", self.qk_norm, "true or false")
        if self.stem == "patch":
            if len(self.stages) != 1 or not self.stages[0].hybrid:
                raise _fail("", "stem", self.stem, "the patch stem takes exactly one stage, free of C")
            if self.stages[0].dim % 4:
                raise _fail(
                    "stage 1: ", "dim", self.stages[0].dim, "a multiple of 4, for the positions of the patch stem"
                )

    # -- what it is called ------------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """Canonical name, safe as a file name: a readable prefix and 8 hex digits. Equal keys: the same network."""
        # Not a cached_property: instances are frozen, and hashing a few hundred bytes is cheap.
        text = json.dumps(self.canonical(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        prefix = "-".join(_run_lengths(stage.blocks) for stage in self.stages)[:48].rstrip("-")
        return f"{prefix}-d{self.stages[0].dim}-{digest}".lower()

    @property
    def pattern(self) -> str:
        """The block letters of all stages, separated by ``|``."""
        return "|".join(stage.blocks for stage in self.stages)

    def canonical(self) -> dict[str, Any]:
        """Only what has an effect on the network, as plain data: the key is the hash of this."""
        data: dict[str, Any] = {"stem": self.stem, "stages": [stage.canonical() for stage in self.stages]}
        if self.stem == "conv":
            data |= {"in_dim": self.in_dim, "stem_stride": self.stem_stride, "downsample": self.downsample}
        else:
            data |= {"patch": self.patch}
        if any(stage.attends for stage in self.stages):
            data |= {"qk_norm": self.qk_norm}
        return data

    # -- what it sees -----------------------------------------------------------------------------------------------

    def feature_sizes(self, image_size: int | tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Height and width of each stage's map in tokens, before its downsample, for an image in pixels."""
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        if self.stem == "patch":
            if min(size) < self.patch:
                raise _fail("", "patch", self.patch, f"at most the image size, {min(size)} px here")
            return ((size[0] // self.patch, size[1] // self.patch),)
        for _ in range({4: 2, 2: 1, 1: 0}[self.stem_stride]):
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        sizes = [size]
        for stride in self.downsample or ():
            size = (-(-size[0] // stride), -(-size[1] // stride))
            sizes.append(size)
        return tuple(sizes)

    def tokens_per_window(self, image_size: int | tuple[int, int]) -> tuple[int, ...]:
        """Real (not padded) tokens one window holds in each stage; of a conv stage, the positions of its map."""
        tokens = []
        for stage, (height, width) in zip(self.stages, self.feature_sizes(image_size), strict=True):
            side = stage.window if stage.hybrid and stage.window is not None else max(height, width)
            tokens.append(min(side, height) * min(side, width))
        return tuple(tokens)

    # -- changing and storing it ------------------------------------------------------------------------------------

    def override(self, **changes: Any) -> HybridLayout:
        """The same layout with fields changed.

        Args:
            **changes: fields of the layout, or of its stages: one value for all stages or a list with one a stage.

        Raises:
            LayoutError: for an unknown field, a list of the wrong length, or a value that is not allowed.
        """
        own = [f.name for f in dataclasses.fields(HybridLayout) if f.name != "stages"]
        per_stage = [f.name for f in dataclasses.fields(StageLayout)]
        _check_keys("", changes, own + per_stage)
        stages: list[dict[str, Any]] = [dataclasses.asdict(stage) for stage in self.stages]
        for name in per_stage:
            if name not in changes:
                continue
            value = changes[name]
            values = list(value) if isinstance(value, (list, tuple)) else [value] * len(stages)
            if len(values) != len(stages):
                raise _fail("", name, value, f"one value, or a list of {len(stages)}, one for each stage")
            for stage, new in zip(stages, values, strict=True):
                stage[name] = new
        data = {name: changes.get(name, getattr(self, name)) for name in own}
        return HybridLayout.from_dict({**data, "stages": stages})

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dict, list, str, int, float, bool, None); `from_dict` reads it back."""
        data = dataclasses.asdict(self)
        data["stages"] = list(data["stages"])
        data["downsample"] = list(data["downsample"])
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HybridLayout:
        """Build a layout from plain data.

        Raises:
            LayoutError: names the stage (counted from 1), the field, the value and what is allowed.
        """
        if not isinstance(data, Mapping):
            raise LayoutError(f"layout: {data!r} is not a mapping of fields")
        _check_keys("", data, [f.name for f in dataclasses.fields(cls)])
        raw = data.get("stages")
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise _fail("", "stages", raw, "a list of one to four stages")
        stages = tuple(_stage_from_dict(number, stage) for number, stage in enumerate(raw, start=1))
        rest = {name: value for name, value in data.items() if name != "stages"}
        return cls(stages=stages, **rest)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> HybridLayout:
        """Read `to_json`'s form. Raises LayoutError for text that is not JSON."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise LayoutError(f"layout: not JSON ({error})") from None
        return cls.from_dict(data)

    def to_yaml(self) -> str:
        """The layout as a YAML document."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> HybridLayout:
        """Read `to_yaml`'s form. Raises LayoutError for text that is not YAML."""
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise LayoutError(f"layout: not YAML ({error})") from None
        return cls.from_dict(data)

    def __str__(self) -> str:
        return self.pattern


def last_half(depth: int) -> str:
    """The published order: ceil(depth/2) ``M``, then floor(depth/2) ``A`` (spec, section 4)."""
    return "M" * (depth - depth // 2) + "A" * (depth // 2)


def first_part(depth: int, ratio: float) -> str:
    """The columnar order: the first ``int(depth * ratio)`` blocks ``G``, the rest ``A`` (spec, section 12).

    Raises:
        LayoutError: for a depth below 1 or a ratio outside 0 to 1.
    """
    _check_int("", "depth", depth, 1, 64)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        raise _fail("", "use_mamba_ratio", ratio, "a number from 0 to 1")
    gated = int(depth * ratio)
    return "G" * gated + "A" * (depth - gated)


def _stage_from_dict(number: int, data: object) -> StageLayout:
    where = f"stage {number}: "
    if isinstance(data, StageLayout):
        return data
    if not isinstance(data, Mapping):
        raise LayoutError(f"{where}{data!r} is not a mapping of fields")
    _check_keys(where, data, [f.name for f in dataclasses.fields(StageLayout)])
    for name in ("blocks", "dim"):
        if name not in data:
            raise LayoutError(f"{where}{name}: missing")
    try:
        return StageLayout(**data)
    except LayoutError as error:
        raise LayoutError(str(error).replace("stage: ", where, 1)) from None


def _run_lengths(blocks: str) -> str:
    groups: Iterable[tuple[str, int]] = ((letter, len(list(run))) for letter, run in itertools.groupby(blocks))
    return "".join(letter if count == 1 else f"{letter}{count}" for letter, count in groups)
