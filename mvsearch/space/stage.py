"""One stage of a space: its patterns, its numbers, and the way between them and a `StageLayout`."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mambavision.layout import LETTERS, LayoutError, StageLayout
from mvsearch.config.layout_section import StageConfig
from mvsearch.config.letters import base_of, keys_of, placed_of

# What of a stage besides its depth and its widths; searched, it needs tokens to mean anything.
_MIXING = ("window", "state", "conv_kernel", "head_dim")


# The numbers of a stage, in the order of their parameters.
_NUMBERS = ("dim", "window", "state", "conv_kernel", "expand", "head_dim", "mlp_ratio")


Numbers = dict[str, Any]
"""The values of a stage beside its blocks, by their key in the YAML: dim (a multiple of width), window, …"""


class SpaceError(ValueError):
    """A layout or parameters outside the space, or a space that cannot be searched; the message says what."""


def usual_order(depth: int, base: str, placed: str) -> str:
    """The order that a base letter is known by, half of the blocks and then the others: MMMAA, but GGAAA."""
    own = depth - depth // 2 if LETTERS[base].larger_half else depth // 2
    return base * own + placed * (depth - own)


def place(rule: str, depth: int, attention: int, base: str, placed: str) -> str:
    """The pattern with `attention` blocks of a letter with attention among `depth`, placed by a rule.

    Args:
        rule: ``last`` (MMMAAA), ``first`` (AAAMMM), ``even`` (spread evenly), ``middle`` (MAAM), or ``alternate``
            (MAMA from the end; past half, the blocks between them from the end).
        depth: number of blocks.
        attention: number of blocks with attention, 0 to `depth`.
        base: the letter of the others.
        placed: the letter with attention.
    """
    odd_then_even = [*range(1, depth, 2)][::-1] + [*range(0, depth, 2)][::-1]
    start = {"last": depth - attention, "first": 0, "middle": (depth - attention + 1) // 2}
    if rule == "even":
        chosen = {(2 * i + 1) * depth // (2 * attention) for i in range(attention)}
    elif rule == "alternate":
        chosen = set(odd_then_even[:attention])
    else:
        chosen = set(range(start[rule], start[rule] + attention))
    return "".join(placed if i in chosen else base for i in range(depth))


@dataclass(frozen=True)
class Choice:
    """One key of the layout: the values it may take; of one value, it is fixed and no parameter."""

    name: str
    values: tuple[Any, ...]

    @property
    def searched(self) -> bool:
        return len(self.values) > 1

    @property
    def middle(self) -> Any:
        return self.values[(len(self.values) - 1) // 2]

    def nearest(self, value: Any) -> Any:
        """The value where it is allowed; else null where that is; else the nearest as a ratio, to null the largest."""
        if value in self.values:
            return self.check(value)
        if None in self.values:
            return None
        return self.values[-1] if value is None else min(self.values, key=lambda own: abs(math.log(own / value)))

    def check(self, value: Any) -> Any:
        if value not in self.values:
            raise SpaceError(f"{self.name}: {value!r} is not in the space; {_listed(self.values)}")
        return self.values[self.values.index(value)]

    def read(self, params: Mapping[str, Any]) -> Any:
        if not self.searched:
            return self.values[0]
        return self.check(param(params, self.name))


def param(params: Mapping[str, Any], name: str) -> Any:
    if name not in params:
        raise SpaceError(f"{name}: missing from the parameters {dict(params)}")
    return params[name]


def _listed(values: Sequence[Any]) -> str:
    texts = ["null" if value is None else str(value) for value in values]
    return f"only {texts[0]}" if len(texts) == 1 else f"one of {', '.join(texts)}"


class StageSpace:
    """One stage of the space."""

    def __init__(self, number: int, config: StageConfig) -> None:
        self.number = number
        self.config = config
        self.name = f"stage{number}"
        self.mixed = config.mixed
        self.base = config.base
        self.placed = config.placed
        self.longest = config.depth[-1]
        self.depth = self._choice("depth", config.depth)
        self.numbers = {key: self._choice(key, getattr(config, key)) for key in _NUMBERS if config.has(key)}
        self.attention = self._choice("attention", config.attention.allowed(self.longest) if self.mixed else (0,))
        self.placement = self._choice("placement", config.placement)
        self.flips = 0
        if self.mixed:
            self.flips = self.longest // 2 if config.flips is None else min(config.flips, self.longest)
        self._encoded: dict[str, tuple[int, str]] = {}
        self._groups: dict[int, list[tuple[list[str], list[Numbers]]]] = {}

    def _choice(self, key: str, values: tuple[Any, ...]) -> Choice:
        return Choice(f"{self.name}.{key}", values)

    @property
    def flip_names(self) -> list[str]:
        return [f"{self.name}.flip{slot}" for slot in range(1, self.flips + 1)]

    def choices(self) -> list[Choice]:
        order = [self.attention, self.placement] if self.mixed else []
        return [choice for choice in (self.depth, *order, *self.numbers.values()) if choice.searched]

    def parameters(self) -> dict[str, tuple[Any, ...]]:
        """What a sampler is asked for of this stage, with the values allowed."""
        found = {choice.name: choice.values for choice in self.choices()}
        # Half of the range, 0 and below, flips nothing: most layouts a sampler starts from are close to a rule.
        slot = tuple(range(1 - self.longest, self.longest + 1))
        return found | dict.fromkeys(self.flip_names, slot)

    # -- patterns: strings of letters; where they are enumerated, bits (1 is the placed letter, the last block bit 0) --

    def place(self, rule: str, depth: int, attention: int) -> str:
        """The pattern of a rule, in the letters of this stage."""
        return place(rule, depth, attention, self.base, self.placed)

    def flip(self, pattern: str, blocks: set[int]) -> str:
        """The pattern with some blocks (counted from 0) turned around."""
        turned = {self.base: self.placed, self.placed: self.base}
        return "".join(turned[c] if i in blocks else c for i, c in enumerate(pattern))

    def rules(self, depth: int) -> dict[str, tuple[int, str]]:
        """The patterns that a rule alone makes, with the number of attention blocks and the rule."""
        found: dict[str, tuple[int, str]] = {}
        for attention in self.config.attention.allowed(depth):
            for rule in self.placement.values:
                found.setdefault(self.place(rule, depth, attention), (attention, rule))
        return found

    def decode_pattern(self, depth: int, attention: int, rule: str, flips: Sequence[int]) -> str:
        """A pattern from parameters; flips that would leave the allowed attention counts are undone, the last first."""
        allowed = self.config.attention.allowed(depth)
        base = self.place(rule, depth, max(count for count in allowed if count <= max(attention, allowed[0])))
        for used in range(len(flips), -1, -1):
            pattern = self.flip(base, {flip - 1 for flip in flips[:used] if 1 <= flip <= depth})
            if pattern.count(self.placed) in allowed:
                return pattern
        return base

    def encode_pattern(self, pattern: str) -> tuple[int, str, list[int]]:
        """Attention count, rule and flips (with 0 in the slots that are not needed) that decode to the pattern."""
        if pattern not in self._encoded:
            self._encoded[pattern] = self._nearest(pattern)
        attention, rule = self._encoded[pattern]
        base = self.place(rule, len(pattern), attention)
        flips = [i for i, (a, b) in enumerate(zip(base, pattern, strict=True), start=1) if a != b]
        return attention, rule, flips + [0] * (self.flips - len(flips))

    def _nearest(self, pattern: str) -> tuple[int, str]:
        """Attention count and rule that need the fewest flips. Raises SpaceError for a pattern outside the space."""
        depth, count = len(pattern), pattern.count(self.placed)
        allowed = self.config.attention.allowed(depth)
        if count not in allowed:
            raise SpaceError(f"{self.name}.attention: {count} of {pattern} is not in the space; {_listed(allowed)}")
        best: tuple[int, int, int, str] | None = None
        for base, (attention, rule) in self.rules(depth).items():
            distance = sum(a != b for a, b in zip(base, pattern, strict=True))
            rank = (distance, abs(attention - count))
            if best is None or rank < best[:2]:
                best = (*rank, attention, rule)
        assert best is not None  # every depth allows a count (checked by the configuration), so there is a rule pattern
        if best[0] > self.flips:
            raise SpaceError(
                f"{self.name}.flips: {pattern} is not in the space; it is {best[0]} flips away from the nearest "
                f"placement, and {self.flips} are allowed"
            )
        return best[2], best[3]

    def contains(self, pattern: str) -> bool:
        if len(pattern) not in self.depth.values or not set(pattern) <= set(self.config.blocks):
            return False
        if self.mixed and pattern not in self._encoded:
            try:
                self._encoded[pattern] = self._nearest(pattern)
            except SpaceError:
                return False
        return True

    @cached_property
    def patterns(self) -> dict[str, list[str]]:
        """Every pattern of the stage, by the letters that occur in it."""
        groups: dict[str, list[str]] = {}
        for depth in self.depth.values:
            patterns = self._reachable(depth) if self.mixed else [self.config.blocks * depth]
            for pattern in patterns:
                groups.setdefault("".join(sorted(set(pattern))), []).append(pattern)
        return groups

    def _reachable(self, depth: int) -> list[str]:
        allowed = set(self.config.attention.allowed(depth))
        bits = str.maketrans(self.base + self.placed, "01")
        rules = [int(pattern.translate(bits), 2) for pattern in self.rules(depth)]
        ball = sum(math.comb(depth, flips) for flips in range(min(self.flips, depth) + 1))
        found: list[int] = []
        if len(rules) * ball < 2**depth:
            masks = [
                sum(1 << i for i in blocks)
                for flips in range(min(self.flips, depth) + 1)
                for blocks in itertools.combinations(range(depth), flips)
            ]
            found = sorted({one for rule in rules for mask in masks if (one := rule ^ mask).bit_count() in allowed})
        else:
            for one in range(2**depth):
                if one.bit_count() in allowed and any((one ^ rule).bit_count() <= self.flips for rule in rules):
                    found.append(one)
        letters = str.maketrans("01", self.base + self.placed)
        return [format(one, f"0{depth}b").translate(letters) for one in found]

    # -- from values to a StageLayout and back ------------------------------------------------------------------------

    def build(self, width: int, blocks: str, numbers: Numbers) -> StageLayout:
        """A stage in its canonical form: what has no effect takes the first value allowed, so equal keys are equal."""
        config = self.config
        exact = channels(width, numbers["dim"])
        if not exact.is_integer():
            raise SpaceError(f"{self.name}.dim: width {width} × {numbers['dim']:g} is {exact:g}; channels are whole")
        dim = int(exact)
        fields: Numbers = {"blocks": blocks, "dim": dim, "layer_scale": config.layer_scale}
        used = {key for letter in blocks for key in keys_of(letter)}
        for key, choice in self.numbers.items():
            if key not in ("dim", "head_dim", "mlp_ratio"):
                fields[key] = numbers[key] if key in used else choice.values[0]
        if "mlp_ratio" in used:
            hidden = int(dim * numbers["mlp_ratio"])
            fields["mlp_ratio"] = next(r for r in self.numbers["mlp_ratio"].values if int(dim * r) == hidden)
        if "head_dim" in used:
            head_dim = numbers["head_dim"]
            if dim % head_dim:
                raise SpaceError(
                    f"{self.name}.head_dim: {head_dim} does not divide the {dim} channels of width {width}"
                )
            fields["heads"] = dim // head_dim
        try:
            return StageLayout(**fields)
        except LayoutError as error:
            raise SpaceError(str(error).replace("stage: ", f"{self.name}.", 1)) from None

    def read(self, width: int, stage: StageLayout) -> tuple[str, Numbers]:
        """The blocks and numbers of a stage of the space.

        Raises:
            SpaceError: names what is not in the space.
        """
        blocks = stage.blocks
        if not set(blocks) <= set(self.config.blocks):
            raise SpaceError(f"{self.name}.blocks: {blocks} is not in the space; letters are {self.config.blocks}")
        self.depth.check(len(blocks))
        if self.mixed and not self.contains(blocks):
            self._nearest(blocks)  # says why
        Choice(f"{self.name}.layer_scale", (self.config.layer_scale,)).check(stage.layer_scale)
        values: Numbers = {"dim": stage.dim / width}
        for name in {name for letter in blocks for name in LETTERS[letter].fields}:
            values[name] = getattr(stage, name)
        if "mlp_ratio" in values:
            ratios = self.numbers["mlp_ratio"].values
            same = (ratio for ratio in ratios if int(stage.dim * ratio) == stage.mlp_hidden)
            values["mlp_ratio"] = next(same, stage.mlp_ratio)
        if "heads" in values:
            head_dim = stage.dim / values.pop("heads")
            values["head_dim"] = int(head_dim) if head_dim.is_integer() else head_dim
        # What has no effect in this stage is not looked at.
        given = {key: values.get(key, choice.values[0]) for key, choice in self.numbers.items()}
        return blocks, {key: self.numbers[key].check(value) for key, value in given.items()}

    def groups(self, width: int) -> list[tuple[list[str], list[Numbers]]]:
        """Patterns, and the numbers that make distinct stages of each of them."""
        if width not in self._groups:
            self._groups[width] = [(group, self._combinations(width, key)) for key, group in self.patterns.items()]
        return self._groups[width]

    def _combinations(self, width: int, letters: str) -> list[Numbers]:
        found: dict[StageLayout, Numbers] = {}
        for values in itertools.product(*(choice.values for choice in self.numbers.values())):
            numbers = dict(zip(self.numbers, values, strict=True))
            found.setdefault(self.build(width, letters, numbers), numbers)
        return list(found.values())

    def size(self, width: int) -> int:
        """Number of distinct stages at a width."""
        return sum(len(patterns) * len(numbers) for patterns, numbers in self.groups(width))

    def draw(self, width: int, rng: random.Random) -> StageLayout:
        """One of the distinct stages, each as likely as any other."""
        groups = self.groups(width)
        weights = [len(patterns) * len(numbers) for patterns, numbers in groups]
        patterns, numbers = rng.choices(groups, weights)[0]
        return self.build(width, rng.choice(patterns), rng.choice(numbers))

    def stages(self, width: int) -> list[StageLayout]:
        """Every distinct stage at a width."""
        return [
            self.build(width, pattern, numbers)
            for patterns, combinations in self.groups(width)
            for numbers in combinations
            for pattern in patterns
        ]

    def draw_placed(self, width: int, weights: Mapping[str, float], rng: random.Random) -> StageLayout:
        """A stage by a rule that is drawn with the weights; depth, attention count and numbers are drawn evenly."""
        depth = rng.choice(self.depth.values)
        blocks = self.config.blocks * depth
        if self.mixed:
            allowed = self.config.attention.allowed(depth)
            # With none or all of the blocks attention there is nothing to place.
            count = rng.choice([count for count in allowed if 0 < count < depth] or allowed)
            rules = [rule for rule in self.placement.values if weights.get(rule)]
            if not rules:
                named = " and ".join(weights)
                raise SpaceError(
                    f"{self.placement.name}: {named} is not in the space; {_listed(self.placement.values)}"
                )
            blocks = self.place(rng.choices(rules, [weights[rule] for rule in rules])[0], depth, count)
        return self.build(width, blocks, {key: rng.choice(choice.values) for key, choice in self.numbers.items()})

    def scaled(self, width: int, model: StageLayout, model_width: int) -> StageLayout:
        """The stage most like a stage of a model that need not be in the space; see `SearchSpace.scaled`."""
        depth = self.depth.nearest(len(model.blocks))
        blocks = self.config.blocks * depth
        if self.mixed:
            base = base_of(model.blocks)
            if base and model.blocks == usual_order(len(model.blocks), base, placed_of(model.blocks)):
                blocks = usual_order(depth, self.base, self.placed)
            else:
                sources = (int((i + 0.5) * len(model.blocks) / depth) for i in range(depth))
                blocks = "".join(self.placed if LETTERS[model.blocks[i]].attends else self.base for i in sources)
            if not self.contains(blocks):
                blocks = min(self.rules(depth), key=lambda rule: sum(a != b for a, b in zip(rule, blocks, strict=True)))
        wanted: Numbers = {key: getattr(model, key) for key in self.numbers if key not in ("dim", "head_dim")}
        wanted |= {"dim": model.dim / model_width, "head_dim": model.dim / (model.heads or 1)}
        return self.build(width, blocks, {key: choice.nearest(wanted[key]) for key, choice in self.numbers.items()})

    def extremes(self, width: int) -> list[StageLayout]:
        """The shortest stage with the smallest numbers and the longest with the largest; least and most attention."""
        found = []
        for end in (0, -1):
            numbers = {key: choice.values[end] for key, choice in self.numbers.items()}
            depth = self.depth.values[end]
            patterns = {self.config.blocks * depth}
            if self.mixed:
                allowed = self.config.attention.allowed(depth)
                patterns = {self.place(self.placement.values[0], depth, count) for count in (allowed[0], allowed[-1])}
            found += [self.build(width, pattern, numbers) for pattern in sorted(patterns)]
        return found

    def mixing_keys(self) -> list[str]:
        """The searched keys that are neither depth nor width."""
        lengths = [len(pattern) for patterns in self.patterns.values() for pattern in patterns]
        ordered = len(set(lengths)) < len(lengths)
        ratios = any(len(self.config.attention.allowed(depth)) > 1 for depth in self.depth.values)
        found = ["order"] * ordered + ["ratio"] * (ordered and ratios)
        return found + [key for key in _MIXING if key in self.numbers and self.numbers[key].searched]


def channels(width: int, multiple: float) -> float:
    return round(width * multiple, 6)  # 10 × 1.1 is 11
