"""The section ``layout`` of a study: what is searched. A list is searched, a single value is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from mambavision.layout import LETTERS, STEMS
from mvsearch.config.letters import MIXED, base_of, placed_of, with_key
from mvsearch.config.values import (
    AS_WRITTEN,
    PLACEMENT_RULES,
    Section,
    choices,
    either,
    flag,
    list_of_stages,
    number,
    or_null,
    stem_stride_of,
    strides,
    whole,
    word,
    wrong,
)

MAX_HYBRID_DEPTH = 20
"""Longest stage whose order is searched: its 2^depth patterns are enumerated where they are counted exactly."""


class AttentionConfig(Section):
    """How many blocks of a stage have attention: a range, or the list of counts that are allowed.

    In YAML: ``{min: 0, max: 4}``, one number (fixed), or a list of counts.
    """

    min: Annotated[int, BeforeValidator(whole(0, 64))] = 0
    """Fewest attention blocks, 0 or more; at most the shortest depth."""
    max: Annotated[int | None, BeforeValidator(or_null(whole(0, 64)))] = None
    """Most attention blocks; null, and whatever is above the depth, means the depth."""
    counts: Annotated[tuple[int, ...] | None, BeforeValidator(or_null(choices(whole(0, 64))))] = None
    """Exactly these counts, instead of a range."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, (Mapping, BaseModel)):
            return data
        try:
            counts = choices(whole(0, 64))(data)
        except PydanticCustomError as error:
            allowed = (error.context or {})["allowed"]
            raise wrong(data, f"{{min: …, max: …}}, a count, or a list of counts, each {allowed}") from None
        return {"min": counts[0], "max": counts[0]} if len(counts) == 1 else {"counts": counts}

    @model_validator(mode="after")
    def _not_empty(self) -> AttentionConfig:
        if self.max is not None and self.max < self.min:
            raise wrong(
                {"min": self.min, "max": self.max}, "a range whose max is not below its min (this one is empty)"
            )
        if self.counts is not None and {"min", "max"} & self.model_fields_set:
            raise wrong(self.counts, "counts, or min and max, not both", "counts")
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


def _letters_to_choose(value: object) -> str:
    """One letter, or a pair of `MIXED` in either order, as the pair. Raises the error for anything else."""
    alone = {letter: letter for letter in LETTERS}
    pairs = {written: pair for pair in MIXED for written in (pair, pair[::-1])}
    found = (alone | pairs).get(value) if isinstance(value, str) else None
    if found is None:
        named = ", ".join(f"{letter} ({kind.name})" for letter, kind in LETTERS.items())
        raise wrong(value, f"the letters to choose from: {named}, or {either(MIXED)} (both, searched)")
    return found


# Which letters a key of a stage has an effect on: those of any one of these choices.
_NEEDS = dict.fromkeys(("attention", "placement", "flips"), MIXED) | {
    key: with_key(key) for key in ("state", "conv_kernel", "expand", "head_dim", "window", "mlp_ratio")
}


class StageConfig(Section):
    """One stage of the layout. A list is searched, a single value is fixed."""

    blocks: Annotated[str, BeforeValidator(_letters_to_choose)]
    """Letters to choose from: one for all blocks, such as C, M or A; or one that only scans and one with attention,
    such as MA or GA (their order is searched)."""
    depth: Annotated[tuple[int, ...], BeforeValidator(choices(whole(1, 64))), AS_WRITTEN]
    """Number of blocks, 1 to 64; at most 20 where the order is searched."""
    dim: Annotated[tuple[float, ...], BeforeValidator(choices(number(0, 64, above=True))), AS_WRITTEN]
    """Channels of the stage as a multiple of `layout.width`; 1 in stage 1."""
    attention: AttentionConfig = AttentionConfig()
    """How many blocks have attention (two letters): {min, max}, a number, or a list. Default: from 0 to the depth."""
    placement: Annotated[tuple[str, ...], BeforeValidator(choices(word(*PLACEMENT_RULES)))] = PLACEMENT_RULES
    """Rules that place the blocks with attention (two letters): last, first, even, middle, alternate. Default: all of
    them."""
    flips: Annotated[int | None, BeforeValidator(or_null(whole(0, MAX_HYBRID_DEPTH)))] = None
    """How many single blocks may differ from the rule (two letters), 0 to 20. Default (null): half the longest depth,
    with which every order is reached."""
    state: Annotated[tuple[int, ...], BeforeValidator(choices(whole(1, 256))), AS_WRITTEN] = (8,)
    """SSM state size of the blocks that scan, 1 to 256."""
    window: Annotated[tuple[int | None, ...], BeforeValidator(choices(or_null(whole(1, 1024)))), AS_WRITTEN] = (None,)
    """Side of the square windows in tokens, 1 to 1024; null: the whole map."""
    head_dim: Annotated[tuple[int, ...], BeforeValidator(choices(whole(1, 1024))), AS_WRITTEN] = (16,)
    """Channels of one attention head; heads = channels of the stage / head_dim, which must be whole."""
    conv_kernel: Annotated[tuple[int, ...], BeforeValidator(choices(whole(1, 15))), AS_WRITTEN] = (3,)
    """Width of the depthwise convolution in blocks that scan, 1 to 15."""
    expand: Annotated[tuple[int, ...], BeforeValidator(choices(whole(1, 4))), AS_WRITTEN] = (1,)
    """Channels that gated Mamba blocks scan, as a multiple of the channels of the stage, 1 to 4."""
    mlp_ratio: Annotated[tuple[float, ...], BeforeValidator(choices(number(0, 16, above=True))), AS_WRITTEN] = (4.0,)
    """Hidden width of the MLP over the channels of the stage, above 0, at most 16."""
    layer_scale: Annotated[float | None, BeforeValidator(or_null(number(0, 10, above=True)))] = None
    """Initial value of the learned residual scales, above 0, at most 10; null: no scales."""

    @model_validator(mode="after")
    def _fits(self) -> StageConfig:
        for key in _NEEDS:
            if key in self.model_fields_set and not self.has(key):
                allowed = (
                    f"only a stage with {either(_NEEDS[key])} has it, and the blocks of this one are "
                    f"{self.blocks}; remove it"
                )
                raise wrong(getattr(self, key), allowed, key)
        if self.mixed:
            if self.depth[-1] > MAX_HYBRID_DEPTH:
                raise wrong(self.depth[-1], f"at most {MAX_HYBRID_DEPTH} blocks where their order is searched", "depth")
            if not self.attention.allowed(self.depth[0]):
                raise wrong(
                    self.model_dump()["attention"],
                    f"at least one count of at most {self.depth[0]}, the shortest depth",
                    "attention",
                )
        return self

    @property
    def base(self) -> str:
        """The letter of the blocks among which others are placed, such as M; empty where the stage has none."""
        return base_of(self.blocks)

    @property
    def placed(self) -> str:
        """The letter whose number and places are searched in a mixed stage, such as A; empty where it has none."""
        return placed_of(self.blocks)

    @property
    def mixed(self) -> bool:
        """True where each block is one of two letters, so that order and ratio are searched."""
        return self.blocks in MIXED

    @property
    def hybrid(self) -> bool:
        """True where the blocks mix tokens; False for a convolutional stage."""
        return all(LETTERS[letter].mixes_tokens for letter in self.blocks)

    def has(self, key: str) -> bool:
        """Whether a key has an effect in a stage of these letters."""
        return key not in _NEEDS or any(letters in self.blocks for letters in _NEEDS[key])

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What has no effect in this stage is refused when read, so it is not written either.
        return {key: value for key, value in handler(self).items() if self.has(key)}


# The keys that have an effect with a stem.
_STEM_KEYS = {"conv": ("in_dim", "stem_stride", "downsample"), "patch": ("patch",)}


class LayoutConfig(Section):
    """What is searched: the layouts. A list is searched, a single value is fixed."""

    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(list_of_stages)]
    """One to four stages."""
    width: Annotated[tuple[int, ...], BeforeValidator(choices(whole(1, 8192))), AS_WRITTEN]
    """Channels of stage 1; every other stage is a multiple of it."""
    stem: Annotated[Literal["conv", "patch"], BeforeValidator(word(*STEMS))] = "conv"
    """conv (two 3x3 convolutions; the hierarchical form) or patch (patches with fixed positions; the columnar form: one
    stage, free of C, its widths multiples of 4)."""
    in_dim: Annotated[int, BeforeValidator(whole(1, 4096))] = 32
    """Channels between the two convolutions of the conv stem."""
    stem_stride: Annotated[int, BeforeValidator(stem_stride_of)] = 4
    """How much the conv stem reduces the image: 4, 2 or 1."""
    downsample: Annotated[tuple[int, ...] | None, BeforeValidator(strides)] = None
    """Stride, 1 or 2, for each gap between stages (conv stem); null: 2 everywhere."""
    patch: Annotated[int, BeforeValidator(whole(1, 1024))] = 16
    """Side of a patch in pixels (patch stem), 1 to 1024."""
    qk_norm: Annotated[bool, BeforeValidator(flag)] = False
    """LayerNorm on the queries and keys of the attention blocks."""

    @model_validator(mode="after")
    def _fits(self) -> LayoutConfig:
        for stem, keys in _STEM_KEYS.items():
            for key in keys:
                if stem != self.stem and key in self.model_fields_set:
                    allowed = f"only the {stem} stem has it, and the stem of this layout is {self.stem}; remove it"
                    raise wrong(getattr(self, key), allowed, key)
        if self.stem == "patch":
            if len(self.stages) != 1:
                allowed = f"conv, or one stage instead of {len(self.stages)}: the patch stem takes exactly one"
                raise wrong(self.stem, allowed, "stem")
            if not self.stages[0].hybrid:
                conv, hybrid = self.stages[0].blocks, either([*with_key("window"), *MIXED])
                raise wrong(conv, f"{hybrid}, because a stage on the patch stem is free of {conv}", "stages.0.blocks")
            for width in self.width:
                if width % 4:
                    raise wrong(width, "a multiple of 4, for the positions of the patch stem", "width")
        if self.stages[0].dim != (1.0,):
            raise wrong(
                self.stages[0].model_dump()["dim"], "1, because layout.width is the width of stage 1", "stages.0.dim"
            )
        gaps = len(self.stages) - 1
        if self.downsample is not None and len(self.downsample) != gaps:
            raise wrong(
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
