"""SearchSpace: the layouts of a study, and the way between a layout and the parameters a sampler sees.

The truth is the pattern string of each stage. A sampler sees it as a number of attention blocks, a rule that places
them, and flip slots, each of which may turn one block around. All parameters are suggested always, with static ranges,
so that a sampler can draw them jointly; what does not apply to a layout has no effect on it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from mambavision.cost import Cost, cost
from mambavision.layout import HybridLayout, LayoutError, StageLayout, first_part, last_half
from mvsearch.config import StageConfig, StudyConfig

MIN_TOKENS = 16
"""Fewest tokens a window at which the choice between Mamba and attention means anything."""

_ENUMERABLE = 20_000
_EXACT_SHARE = 5_000
# What of a stage besides its depth and its widths; searched, it needs tokens to mean anything.
_MIXING = ("window", "state", "conv_kernel", "head_dim")
# What only Mamba blocks and only attention blocks have.
_OF_MAMBA = ("state", "conv_kernel", "expand")
_OF_ATTENTION = ("head_dim",)
# The order that each Mamba letter is known by, half of the blocks and then attention; they differ at odd depths.
_USUAL = {"M": last_half, "G": lambda depth: first_part(depth, 0.5)}

Numbers = dict[str, Any]
"""The values of a stage beside its blocks, by their key in the YAML: dim (a multiple of width), window, …"""


class SpaceError(ValueError):
    """A layout or parameters outside the space, or a space that cannot be searched; the message says what."""


def place(rule: str, depth: int, attention: int, mamba: str = "M") -> str:
    """The pattern with `attention` blocks of ``A`` among `depth`, the others `mamba`, placed by a rule.

    Args:
        rule: ``last`` (MMMAAA), ``first`` (AAAMMM), ``even`` (spread evenly), ``middle`` (MAAM), or ``alternate``
            (MAMA from the end; past half, the blocks between them from the end).
        depth: number of blocks.
        attention: number of attention blocks, 0 to `depth`.
        mamba: the letter of the others.
    """
    odd_then_even = [*range(1, depth, 2)][::-1] + [*range(0, depth, 2)][::-1]
    start = {"last": depth - attention, "first": 0, "middle": (depth - attention + 1) // 2}
    if rule == "even":
        chosen = {(2 * i + 1) * depth // (2 * attention) for i in range(attention)}
    elif rule == "alternate":
        chosen = set(odd_then_even[:attention])
    else:
        chosen = set(range(start[rule], start[rule] + attention))
    return "".join("A" if i in chosen else mamba for i in range(depth))


@dataclass(frozen=True)
class _Choice:
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

    def distribution(self) -> BaseDistribution:
        """Evenly spaced whole numbers keep their order for the sampler; anything else is a category."""
        values = self.values
        if all(type(value) is int for value in values) and len({b - a for a, b in itertools.pairwise(values)}) == 1:
            return IntDistribution(values[0], values[-1], step=values[1] - values[0])
        return CategoricalDistribution(values)

    def check(self, value: Any) -> Any:
        if value not in self.values:
            raise SpaceError(f"{self.name}: {value!r} is not in the space; {_listed(self.values)}")
        return self.values[self.values.index(value)]

    def read(self, params: Mapping[str, Any]) -> Any:
        if not self.searched:
            return self.values[0]
        return self.check(_param(params, self.name))


def _param(params: Mapping[str, Any], name: str) -> Any:
    if name not in params:
        raise SpaceError(f"{name}: missing from the parameters {dict(params)}")
    return params[name]


def _listed(values: Sequence[Any]) -> str:
    texts = ["null" if value is None else str(value) for value in values]
    return f"only {texts[0]}" if len(texts) == 1 else f"one of {', '.join(texts)}"


class _Stage:
    """One stage of the space."""

    def __init__(self, number: int, config: StageConfig) -> None:
        self.number = number
        self.config = config
        self.name = f"stage{number}"
        self.mixed = config.mixed
        self.mamba = config.mamba
        self.longest = config.depth[-1]
        self.depth = self._choice("depth", config.depth)
        keys = ("dim", "window", *_OF_MAMBA, *_OF_ATTENTION, "mlp_ratio")
        self.numbers = {key: self._choice(key, getattr(config, key)) for key in keys if config.has(key)}
        self.attention = self._choice("attention", config.attention.allowed(self.longest) if self.mixed else (0,))
        self.placement = self._choice("placement", config.placement)
        self.flips = 0
        if self.mixed:
            self.flips = self.longest // 2 if config.flips is None else min(config.flips, self.longest)
        self._encoded: dict[str, tuple[int, str]] = {}
        self._groups: dict[int, list[tuple[list[str], list[Numbers]]]] = {}

    def _choice(self, key: str, values: tuple[Any, ...]) -> _Choice:
        return _Choice(f"{self.name}.{key}", values)

    @property
    def flip_names(self) -> list[str]:
        return [f"{self.name}.flip{slot}" for slot in range(1, self.flips + 1)]

    def choices(self) -> list[_Choice]:
        order = [self.attention, self.placement] if self.mixed else []
        return [choice for choice in (self.depth, *order, *self.numbers.values()) if choice.searched]

    def distributions(self) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {choice.name: choice.distribution() for choice in self.choices()}
        # Half of the range, 0 and below, flips nothing: most layouts a sampler starts from are close to a rule.
        slot = IntDistribution(1 - self.longest, self.longest)
        return found | dict.fromkeys(self.flip_names, slot)

    # -- patterns: strings of letters; where they are enumerated, bits (1 is A, the last block is bit 0) ---------------

    def place(self, rule: str, depth: int, attention: int) -> str:
        """The pattern of a rule, in the letters of this stage."""
        return place(rule, depth, attention, self.mamba)

    def flip(self, pattern: str, blocks: set[int]) -> str:
        """The pattern with some blocks (counted from 0) turned around."""
        return "".join((self.mamba if c == "A" else "A") if i in blocks else c for i, c in enumerate(pattern))

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
            if pattern.count("A") in allowed:
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
        depth, count = len(pattern), pattern.count("A")
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
        rules = [int(base.replace(self.mamba, "0").replace("A", "1"), 2) for base in self.rules(depth)]
        ball = sum(math.comb(depth, flips) for flips in range(min(self.flips, depth) + 1))
        found: list[int] = []
        if len(rules) * ball < 2**depth:
            masks = [
                sum(1 << i for i in blocks)
                for flips in range(min(self.flips, depth) + 1)
                for blocks in itertools.combinations(range(depth), flips)
            ]
            found = sorted({bits for rule in rules for mask in masks if (bits := rule ^ mask).bit_count() in allowed})
        else:
            for bits in range(2**depth):
                if bits.bit_count() in allowed and any((bits ^ rule).bit_count() <= self.flips for rule in rules):
                    found.append(bits)
        return [format(bits, f"0{depth}b").replace("0", self.mamba).replace("1", "A") for bits in found]

    # -- from values to a StageLayout and back ------------------------------------------------------------------------

    def build(self, width: int, blocks: str, numbers: Numbers) -> StageLayout:
        """A stage in its canonical form: what has no effect takes the first value allowed, so equal keys are equal."""
        config = self.config
        exact = _channels(width, numbers["dim"])
        if not exact.is_integer():
            raise SpaceError(f"{self.name}.dim: width {width} × {numbers['dim']:g} is {exact:g}; channels are whole")
        dim = int(exact)
        fields: Numbers = {"blocks": blocks, "dim": dim, "layer_scale": config.layer_scale}
        if config.blocks != "C":
            ratios = self.numbers["mlp_ratio"].values
            hidden = int(dim * numbers["mlp_ratio"])
            fields |= {"window": numbers["window"], "mlp_ratio": next(r for r in ratios if int(dim * r) == hidden)}
        if self.mamba:
            keys = [key for key in _OF_MAMBA if key in numbers]
            scans = self.mamba in blocks
            fields |= {key: numbers[key] if scans else self.numbers[key].values[0] for key in keys}
        if "A" in blocks:
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
        _Choice(f"{self.name}.layer_scale", (self.config.layer_scale,)).check(stage.layer_scale)
        values: Numbers = {"dim": stage.dim / width}
        if stage.hybrid:
            values["window"] = stage.window
            ratios = self.numbers["mlp_ratio"].values
            same = (ratio for ratio in ratios if int(stage.dim * ratio) == stage.mlp_hidden)
            values["mlp_ratio"] = next(same, stage.mlp_ratio)
        if stage.scans:
            values |= {key: getattr(stage, key) for key in _OF_MAMBA}
        if stage.attends:
            head_dim = stage.dim / stage.heads
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

    def placed(self, width: int, weights: Mapping[str, float], rng: random.Random) -> StageLayout:
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
            letter = next((c for c in model.blocks if c in _USUAL), "M")
            if model.blocks == _USUAL[letter](len(model.blocks)):
                blocks = _USUAL[self.mamba](depth)
            else:
                sources = (int((i + 0.5) * len(model.blocks) / depth) for i in range(depth))
                blocks = "".join("A" if model.blocks[i] == "A" else self.mamba for i in sources)
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


def _channels(width: int, multiple: float) -> float:
    return round(width * multiple, 6)  # 10 × 1.1 is 11


class SearchSpace:
    """All layouts of a study.

    Layouts of a space are equal exactly if their keys are: what has no effect on the network (the state of a stage
    without Mamba, the heads of one without attention) is set to one fixed value.

    Args:
        config: the study.
        num_classes: classes of the data set, 1 or more; it bears on the cost of a layout.
        in_chans: channels of its images, 1 or more.
    """

    def __init__(self, config: StudyConfig, *, num_classes: int, in_chans: int) -> None:
        for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
            if type(value) is not int or value < 1:
                raise SpaceError(f"{name}: {value!r} is not allowed; a whole number, 1 or more")
        self.config = config
        self.num_classes = num_classes
        self.in_chans = in_chans
        self._width = _Choice("width", config.layout.width)
        self._stages = [_Stage(number, stage) for number, stage in enumerate(config.layout.stages, start=1)]
        self._costs: dict[str, Cost] = {}
        self._listed: dict[str, HybridLayout] | None = None
        self._listed_baselines: dict[str, HybridLayout] = {}

    def limit_to(self, layouts: Iterable[HybridLayout]) -> None:
        """From now on only these layouts, as far as the space holds them, are within its budgets.

        Raises:
            SpaceError: if the space holds none of them within its budgets.
        """
        listed = {layout.key: layout for layout in layouts if layout in self and not self.excess(layout)}
        if not listed:
            raise SpaceError("throughput.file: the space holds none of the layouts of the table")
        self._listed_baselines = {name: layout for name, layout in self.baselines().items() if layout.key in listed}
        self._listed = listed

    # -- parameters ---------------------------------------------------------------------------------------------------

    def distributions(self) -> dict[str, BaseDistribution]:
        """What a sampler is asked for, by name: ``width``, ``stage2.depth``, ``stage2.attention``, ``stage2.flip1``, …

        Ranges are static and every parameter always applies; keys with a single value are left out. A flip slot runs
        from 1 - D to D for a longest depth of D: v above 0 turns block v around, anything else nothing.
        """
        return dict(self._distributions)

    @cached_property
    def _distributions(self) -> dict[str, BaseDistribution]:
        width = {"width": self._width.distribution()} if self._width.searched else {}
        return width | {name: value for stage in self._stages for name, value in stage.distributions().items()}

    def suggest(self, trial: optuna.trial.BaseTrial) -> HybridLayout:
        """Ask a trial for every parameter, and build the layout of them."""
        params: dict[str, Any] = {}
        for name, distribution in self._distributions.items():
            if isinstance(distribution, IntDistribution):
                params[name] = trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
            elif isinstance(distribution, CategoricalDistribution):
                params[name] = trial.suggest_categorical(name, distribution.choices)
        return self.decode(params)

    def decode(self, params: Mapping[str, Any]) -> HybridLayout:
        """The layout of parameters; every value of `distributions` gives one.

        Raises:
            SpaceError: for a parameter that is missing, unknown or out of its range.
        """
        known = self._distributions
        for name in params:
            if name not in known:
                raise SpaceError(f"{name}: not a parameter of this space; these are {', '.join(known)}")
        width = self._width.read(params)
        stages = []
        for stage in self._stages:
            depth = stage.depth.read(params)
            blocks = stage.config.blocks * depth
            if stage.mixed:
                flips = []
                for name in stage.flip_names:
                    flip = _param(params, name)
                    low, high = 1 - stage.longest, stage.longest
                    if type(flip) is not int or not low <= flip <= high:
                        raise SpaceError(f"{name}: {flip!r} is not in the space; a whole number from {low} to {high}")
                    flips.append(flip)
                blocks = stage.decode_pattern(depth, stage.attention.read(params), stage.placement.read(params), flips)
            numbers = {key: choice.read(params) for key, choice in stage.numbers.items()}
            stages.append(stage.build(width, blocks, numbers))
        return self._layout(stages)

    def encode(self, layout: HybridLayout) -> dict[str, Any]:
        """Parameters of a layout: ``decode(encode(layout))`` has its key, and equals it if it is canonical.

        The rule and the attention count are those that need the fewest flips; slots that are not needed hold 0.

        Raises:
            SpaceError: for a layout outside the space; names what does not fit.
        """
        width, genes = self._genes(layout)
        params: dict[str, Any] = {"width": width}
        for stage, (blocks, numbers) in zip(self._stages, genes, strict=True):
            params[stage.depth.name] = len(blocks)
            if stage.mixed:
                attention, rule, flips = stage.encode_pattern(blocks)
                params |= {stage.attention.name: attention, stage.placement.name: rule}
                params |= dict(zip(stage.flip_names, flips, strict=True))
            params |= {choice.name: numbers[key] for key, choice in stage.numbers.items()}
        return {name: params[name] for name in self._distributions}

    def __contains__(self, layout: HybridLayout) -> bool:
        try:
            self._genes(layout)
        except SpaceError:
            return False
        return True

    def _genes(self, layout: HybridLayout) -> tuple[int, list[tuple[str, Numbers]]]:
        """Width, and the blocks and numbers of each stage. Raises SpaceError for a layout outside the space."""
        if len(layout.stages) != len(self._stages):
            raise SpaceError(f"stages: {len(layout.stages)} are not in the space; only {len(self._stages)}")
        fixed = self.config.layout.stem_fields()
        if "downsample" in fixed:
            fixed["downsample"] = fixed["downsample"] or (2,) * (len(layout.stages) - 1)
        if any(stage.attends for stage in layout.stages):
            fixed["qk_norm"] = self.config.layout.qk_norm
        for name, value in fixed.items():
            _Choice(name, (value,)).check(getattr(layout, name))
        width = self._width.check(layout.stages[0].dim)
        return width, [stage.read(width, part) for stage, part in zip(self._stages, layout.stages, strict=True)]

    def _layout(self, stages: Sequence[StageLayout]) -> HybridLayout:
        fixed = self.config.layout
        return HybridLayout(stages=tuple(stages), qk_norm=fixed.qk_norm, **fixed.stem_fields())

    # -- drawing, changing and counting -------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> HybridLayout:
        """One layout, each of the distinct ones as likely as any other, budgets aside."""
        width = rng.choices(self._width.values, self._sizes)[0]
        return self._layout([stage.draw(width, rng) for stage in self._stages])

    def mutate(self, layout: HybridLayout, rng: random.Random) -> HybridLayout:
        """A layout of the space that is one change away: a block flipped, two swapped, another rule, depth, state, …

        Differs from `layout` unless the space holds no other. Budgets are not looked at.

        Raises:
            SpaceError: for a layout outside the space.
        """
        width, genes = self._genes(layout)
        # In their canonical form, layouts are equal where their keys are; a key takes longer to compute.
        parent = self._layout([stage.build(width, *gene) for stage, gene in zip(self._stages, genes, strict=True)])
        # Changes may land outside (an attention count that is not allowed) or have no effect (the head size of
        # Mamba blocks), so that several tries are usual; spaces of a handful of layouts may need many.
        for _ in range(100):
            changed = self._change(width, genes, rng)
            if changed is not None and changed != parent:
                return changed
        for _ in range(100):
            changed = self.sample(rng)
            if changed != parent:
                return changed
        return next((other for other in self.layouts() if other != parent), layout)

    def _change(self, width: int, genes: Sequence[tuple[str, Numbers]], rng: random.Random) -> HybridLayout | None:
        """One random change of a layout's width, blocks and numbers; None where it leaves the space."""
        moves: list[tuple[str, int]] = [("width", 0)] if self._width.searched else []
        for i, stage in enumerate(self._stages):
            moves += [(key, i) for key, choice in stage.numbers.items() if choice.searched]
            moves += [("depth", i)] if stage.depth.searched else []
            moves += [("flip", i), ("swap", i), ("rule", i)] if stage.mixed else []
        if not moves:
            return None
        kind, i = rng.choice(moves)
        blocks, numbers = genes[i]
        stage = self._stages[i]
        if kind == "width":
            width = rng.choice([value for value in self._width.values if value != width])
        elif kind == "flip":
            blocks = stage.flip(blocks, {rng.randrange(len(blocks))})
        elif kind == "swap":
            mamba, attention = ([j for j, c in enumerate(blocks) if c == letter] for letter in stage.config.blocks)
            if not mamba or not attention:
                return None
            blocks = stage.flip(blocks, {rng.choice(mamba), rng.choice(attention)})
        elif kind == "rule":  # the one move between counts that are not neighbours
            count = rng.choice(stage.config.attention.allowed(len(blocks)))
            blocks = stage.place(rng.choice(stage.placement.values), len(blocks), count)
        elif kind == "depth":
            depth = rng.choice([value for value in stage.depth.values if value != len(blocks)])
            letters = list(blocks)
            while len(letters) < depth:
                letters.insert(rng.randrange(len(letters) + 1), rng.choice(stage.config.blocks))
            while len(letters) > depth:
                letters.pop(rng.randrange(len(letters)))
            blocks = "".join(letters)
        else:
            numbers = numbers | {kind: rng.choice(stage.numbers[kind].values)}
        # The numbers of a letter that was not there had no value yet.
        for letter in set(blocks) - set(genes[i][0]):
            keys = _OF_ATTENTION if letter == "A" else _OF_MAMBA
            numbers |= {key: rng.choice(stage.numbers[key].values) for key in keys if key in stage.numbers}
        if not stage.contains(blocks):
            return None
        changed = [*genes[:i], (blocks, numbers), *genes[i + 1 :]]
        return self._layout([stage.build(width, *gene) for stage, gene in zip(self._stages, changed, strict=True)])

    @cached_property
    def _sizes(self) -> list[int]:
        """Number of distinct layouts at each width; stage 1 is as wide as the width, so no layout has two widths."""
        return [math.prod(stage.size(width) for stage in self._stages) for width in self._width.values]

    def count(self) -> int:
        """Number of distinct layouts (keys), budgets aside; exact."""
        return sum(self._sizes)

    def layouts(self) -> Iterator[HybridLayout]:
        """Every distinct layout once, budgets aside; meant for spaces that `count` says are small."""
        for width in self._width.values:
            for stages in itertools.product(*(stage.stages(width) for stage in self._stages)):
                yield self._layout(stages)

    def uniform_unseen(self, seen: set[str], rng: random.Random) -> HybridLayout | None:
        """A layout within budget whose key is not in `seen`, each as likely as any other; None if there is none.

        Spaces of up to 20,000 layouts are enumerated; of larger ones, 20,000 draws are tried before giving up.
        """
        if self._listed is not None or self.count() <= _ENUMERABLE:
            everything = self._all if self._listed is None else list(self._listed.values())
            drawn: Iterator[HybridLayout] = iter(rng.sample(everything, len(everything)))
        else:
            drawn = (self.sample(rng) for _ in range(_ENUMERABLE))
        return next((layout for layout in drawn if layout.key not in seen and not self.excess(layout)), None)

    @cached_property
    def _all(self) -> list[HybridLayout]:
        return list(self.layouts())

    # -- cost ---------------------------------------------------------------------------------------------------------

    def cost(self, layout: HybridLayout) -> Cost:
        """Parameters, MACs (an image) and memory (bytes, in float32) as deployed: at the sizes of the timing."""
        key = layout.key
        if key not in self._costs:
            size, batch = self.config.deployed_image_size, self.config.timing.batch_size
            self._costs[key] = cost(layout, size, self.num_classes, self.in_chans, batch)
        return self._costs[key]

    def excess(self, layout: HybridLayout) -> dict[str, float]:
        """By how much a layout leaves its budgets, relative to the bound, above 0; empty if it is within them."""
        found: dict[str, float] = {}
        for name, low, high in self._budgets:
            value = getattr(self.cost(layout), name)
            if high is not None and value > high:
                found[name] = value / high - 1
            elif low is not None and value < low:
                found[name] = 1 - value / low
        if self._listed is not None and layout.key not in self._listed:
            found["throughput.file"] = 1.0
        return found

    @cached_property
    def _budgets(self) -> list[tuple[str, float | None, float | None]]:
        budgets = self.config.budgets
        bounds = [("params", budgets.params), ("macs", budgets.macs), ("memory", budgets.memory)]
        return [(name, b.min, b.max) for name, b in bounds if b.min is not None or b.max is not None]

    def share_within_budget(self, draws: int = 2000, seed: int = 0) -> float:
        """Share of the layouts within budget, 0 to 1: exact up to 5,000 layouts, else of `draws` uniform ones."""
        if not self._budgets and self._listed is None:
            return 1.0
        if self.count() <= _EXACT_SHARE:
            layouts: Sequence[HybridLayout] = self._all
        else:
            rng = random.Random(seed)
            layouts = [self.sample(rng) for _ in range(draws)]
        return sum(not self.excess(layout) for layout in layouts) / len(layouts)

    # -- what a search starts from ------------------------------------------------------------------------------------

    def baselines(self) -> dict[str, HybridLayout]:
        """The hand-made layouts, by name: all Mamba, all attention, last half, first half, alternating.

        "Half" is that of the order a Mamba letter is known by: of an odd depth, M is the larger part, G the smaller.
        All of middle depth, state, … and of one width: the middle one, or where a budget forbids it the nearest
        (narrower ones first) at which the most of them are within budget; the shortest depth if that is not enough.
        What the space does not hold is left out, and so are repetitions. A space that holds none of them has one
        baseline, "middle". Empty if the budgets allow none.
        """
        if self._listed is not None:
            return dict(self._listed_baselines)
        widths = self._width.values
        middle = (len(widths) - 1) // 2
        best: dict[str, HybridLayout] = {}
        for shortest in (False, True):
            for width in (*widths[middle::-1], *widths[middle + 1 :]):
                candidates = self._hand_made(width, shortest)
                found = {name: layout for name, layout in candidates.items() if not self.excess(layout)}
                if len(found) > len(best):
                    best = found
                if len(best) == len(candidates):
                    return best
        return best

    def _hand_made(self, width: int, shortest: bool) -> dict[str, HybridLayout]:
        orders: dict[str, Callable[[int, str], str]] = {
            "all Mamba": lambda depth, mamba: mamba * depth,
            "all attention": lambda depth, _: "A" * depth,
            "last half": lambda depth, mamba: _USUAL[mamba](depth),
            "first half": lambda depth, mamba: _USUAL[mamba](depth)[::-1],
            "alternating": lambda depth, mamba: place("alternate", depth, depth // 2, mamba),
        }
        found: dict[str, HybridLayout] = {}
        for name, order in orders.items():
            stages = []
            for stage in self._stages:
                depth = stage.depth.values[0] if shortest else stage.depth.middle
                blocks = order(depth, stage.mamba) if stage.mixed else stage.config.blocks * depth
                if stage.contains(blocks):
                    numbers = {key: choice.middle for key, choice in stage.numbers.items()}
                    stages.append(stage.build(width, blocks, numbers))
            hybrid = [part for part in stages if part.hybrid]
            scans, attends = any(part.scans for part in hybrid), any(part.attends for part in hybrid)
            # In a stage that is not free to choose, "all Mamba" would be a wrong name for attention, and so on.
            named = (scans, attends) == {"all Mamba": (True, False), "all attention": (False, True)}.get(
                name, (True, True)
            )
            if len(stages) == len(self._stages) and named:
                layout = self._layout(stages)
                if layout.key not in {other.key for other in found.values()}:
                    found[name] = layout
        if not found:
            stages = []
            for stage in self._stages:
                depth = stage.depth.values[0] if shortest else stage.depth.middle
                blocks = stage.config.blocks * depth
                if stage.mixed:
                    allowed = stage.config.attention.allowed(depth)
                    blocks = stage.place(stage.placement.values[0], depth, allowed[(len(allowed) - 1) // 2])
                numbers = {key: choice.middle for key, choice in stage.numbers.items()}
                stages.append(stage.build(width, blocks, numbers))
            found["middle"] = self._layout(stages)
        return found

    def scaled(self, model: HybridLayout) -> HybridLayout | None:
        """The layout of the space that is most like a model outside it, within the budgets; None if they forbid all.

        Stages correspond from the last one backwards; a stage that mixes Mamba and attention whose counterpart does
        neither takes the model's next stage that does. Depth, state, … are the nearest of the space as ratios (a window
        that the space lacks becomes the whole map where it has that). The order stays "last half" (M) or "first half
        gated" (G) where it is that, else the blocks at the same relative depth are taken; where the space lacks the
        order, the nearest that a placement rule makes. The width is the nearest at which the layout is within the
        budgets.
        """
        parts = model.stages
        width = parts[0].dim
        for own in sorted(self._width.values, key=lambda value: abs(math.log(value / width))):
            stages = []
            for number, stage in enumerate(self._stages):
                i = max(0, number + len(parts) - len(self._stages))
                if stage.config.blocks != "C":
                    i = next((j for j in range(i, len(parts)) if parts[j].hybrid), i)
                stages.append(stage.scaled(own, parts[i], width))
            layout = self._layout(stages)
            if not self.excess(layout):
                return layout
        return None

    def placed(self, weights: Mapping[str, float], rng: random.Random) -> HybridLayout:
        """A layout in which a drawn rule places the attention of each stage, without flips; budgets are not looked at.

        Args:
            weights: of the rules, above 0; those that are not named, and those a stage lacks, are not drawn.
            rng: of the draws. Width, depths, attention counts and numbers are drawn evenly, each by itself.

        Raises:
            SpaceError: if a stage has none of the rules, or no stage an order to draw.
        """
        if not any(stage.mixed for stage in self._stages):
            raise SpaceError("placement: no stage of this space has both Mamba and attention, so there is none to draw")
        width = rng.choice(self._width.values)
        return self._layout([stage.placed(width, weights, rng) for stage in self._stages])

    def reference(self) -> HybridLayout:
        """The layout whose throughput is 1: the baseline "last half", or the first one there is.

        Raises:
            SpaceError: if no layout satisfies the budgets.
        """
        baselines = self.baselines()
        for name in ("last half", *baselines):
            if name in baselines:
                return baselines[name]
        layout = self.uniform_unseen(set(), random.Random(0))
        if layout is None:
            raise SpaceError("budgets: no layout of the space satisfies them")
        return layout

    def proxy_layout(self, layout: HybridLayout) -> HybridLayout:
        """The layout as the proxy trains it: with `proxy.stem_stride`. The weights fit both, as strides have none."""
        stride = self.config.proxy.stem_stride
        return layout if stride is None else dataclasses.replace(layout, stem_stride=stride)

    # -- is it worth searching ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse a space that cannot be searched, or where the search would mean nothing.

        Raises:
            SpaceError: for channels that the heads or the halves of M do not divide; for a stage whose order, ratio,
                state, window, … is searched at fewer than 16 tokens a window, at the proxy's image size or deployed;
                for a budget that no layout satisfies.
        """
        self._check_channels()
        self._check_tokens()
        self._check_budgets()

    def _check_channels(self) -> None:
        for stage in self._stages:
            dims = stage.numbers["dim"].values
            heads = stage.numbers["head_dim"].values if "head_dim" in stage.numbers else (1,)
            for width, multiple, head_dim in itertools.product(self._width.values, dims, heads):
                dim = _channels(width, multiple)
                start = f"stage {stage.number}: {dim:g} channels (width {width} × dim {multiple:g})"
                if dim != int(dim) or dim > 8192:
                    raise SpaceError(f"{start} are not allowed; channels are whole, at most 8192")
                if "M" in stage.config.blocks and dim % 2:
                    raise SpaceError(
                        f"{start} are odd; M splits them in two halves, so choose widths that make them even"
                    )
                if dim % head_dim:
                    raise SpaceError(
                        f"{start} cannot be split into heads of head_dim {head_dim}; head_dim "
                        f"{math.gcd(int(dim), head_dim)} divides them, or choose widths that make them multiples of "
                        f"{head_dim}"
                    )

    def _check_tokens(self) -> None:
        config = self.config
        width = self._width.values[0]
        layout = self._layout([stage.extremes(width)[0] for stage in self._stages])
        # The key that says into how many tokens the stem cuts an image.
        grain = "stem_stride" if layout.stem == "conv" else "patch"
        proxy_grain = f"layout.{grain}" if config.proxy.stem_stride is None else "proxy.stem_stride"
        deployed_size = "proxy.image_size" if config.timing.image_size is None else "timing.image_size"
        for stage in self._stages:
            keys = stage.mixing_keys()
            if not keys:
                continue
            listed = " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))
            i = stage.number - 1
            for when, size, seen, grain_key, size_key in (
                ("the proxy's", config.proxy.image_size, self.proxy_layout(layout), proxy_grain, "proxy.image_size"),
                ("the deployed", config.deployed_image_size, layout, f"layout.{grain}", deployed_size),
            ):
                for window in stage.numbers["window"].values:
                    parts = list(seen.stages)
                    parts[i] = dataclasses.replace(parts[i], window=window)
                    tokens = dataclasses.replace(seen, stages=tuple(parts))
                    count = tokens.tokens_per_window(size)[i]
                    if count < MIN_TOKENS:
                        raise SpaceError(
                            f"stage {stage.number}: its {listed} {'is' if len(keys) == 1 else 'are'} "
                            f"searched, but it sees {count} token{'s' if count > 1 else ''} a window at {when} "
                            f"{size} px, and at least {MIN_TOKENS} are needed; "
                            f"{_mend(tokens, i, size, grain_key, size_key)}"
                        )

    def _check_budgets(self) -> None:
        if not self._budgets:
            return
        best: dict[str, float] = {}
        values: dict[str, list[float]] = {name: [] for name, _, _ in self._budgets}
        for layout in self._corners_and_draws():
            excess = self.excess(layout)
            if not excess:
                return
            if not best or sum(excess.values()) < sum(best.values()):
                best = excess
            for name, seen in values.items():
                seen.append(getattr(self.cost(layout), name))
        for name, low, high in self._budgets:
            if high is not None and min(values[name]) > high:
                raise SpaceError(
                    f"budgets.{name}.max: no layout of the space has {high:,.0f} or less; the smallest found has "
                    f"{min(values[name]):,.0f}"
                )
            if low is not None and max(values[name]) < low:
                raise SpaceError(
                    f"budgets.{name}.min: no layout of the space has {low:,.0f} or more; the largest found has "
                    f"{max(values[name]):,.0f}"
                )
        names = ", ".join(f"{name} (by {excess:.1%})" for name, excess in best.items())
        raise SpaceError(f"budgets: no layout was found that satisfies all of them; the nearest leaves {names}")

    def _corners_and_draws(self, draws: int = 2000) -> Iterator[HybridLayout]:
        for width in sorted({self._width.values[0], self._width.values[-1]}):
            for stages in itertools.product(*(stage.extremes(width) for stage in self._stages)):
                yield self._layout(stages)
        if self.count() <= _EXACT_SHARE:
            yield from self._all
        else:
            rng = random.Random(0)
            yield from (self.sample(rng) for _ in range(draws))

    # -- what it holds ------------------------------------------------------------------------------------------------

    def searched(self) -> dict[str, tuple[Any, ...]]:
        """The searched keys with their values; flip slots aside."""
        choices = [self._width] if self._width.searched else []
        choices += [choice for stage in self._stages for choice in stage.choices()]
        return {choice.name: choice.values for choice in choices}


def _mend(layout: HybridLayout, i: int, size: int, grain_key: str, size_key: str) -> str:
    """What gives stage i (counted from 0) enough tokens: a finer stem, larger images, or larger windows."""
    window = layout.stages[i].window
    side = math.isqrt(MIN_TOKENS - 1) + 1
    if window is not None and window < side:
        return f"set layout.stages.{i}.window to {side} or more"
    if layout.stem == "conv":
        stems = {
            stride: dataclasses.replace(layout, stem_stride=stride) for stride in (2, 1) if stride < layout.stem_stride
        }
    else:
        stems = {patch: dataclasses.replace(layout, patch=patch) for patch in range(layout.patch - 1, 0, -1)}
    enough = (grain for grain, finer in stems.items() if finer.tokens_per_window(size)[i] >= MIN_TOKENS)
    ways = [f"{grain_key}: {grain}" for grain in itertools.islice(enough, 1)]
    larger = (pixels for pixels in range(size + 1, 4097) if layout.tokens_per_window(pixels)[i] >= MIN_TOKENS)
    ways += [f"{size_key}: {pixels}" for pixels in itertools.islice(larger, 1)]
    return f"set {' or '.join(ways)}" if ways else "set smaller strides in layout.downsample"


@dataclass(frozen=True)
class SpaceDescription:
    """What `mvsearch space FILE` says.

    Attributes:
        name: of the study.
        count: number of distinct layouts.
        share_within_budget: 0 to 1.
        searched: the searched keys with their values.
        proxy_image_size: pixels.
        deployed_image_size: pixels.
        proxy_tokens: fewest and most tokens a window of each stage while the proxy trains.
        deployed_tokens: the same as deployed.
        cost_range: lowest and highest of params, macs (an image) and memory (bytes) among corners and draws.
        baselines: the hand-made layouts by name.
        samples: a few layouts within budget, drawn uniformly.
    """

    name: str
    count: int
    share_within_budget: float
    searched: dict[str, tuple[Any, ...]]
    proxy_image_size: int
    deployed_image_size: int
    proxy_tokens: tuple[tuple[int, int], ...]
    deployed_tokens: tuple[tuple[int, int], ...]
    cost_range: dict[str, tuple[int, int]]
    baselines: dict[str, HybridLayout]
    samples: tuple[HybridLayout, ...]


def describe(space: SearchSpace, samples: int = 6, seed: int = 0) -> SpaceDescription:
    """What a space holds, for people to look at.

    Args:
        space: one that passes its `check`.
        samples: how many layouts to draw.
        seed: of the draws.
    """
    config = space.config
    drawn = list(itertools.islice(space._corners_and_draws(), 1000))
    costs = [space.cost(layout) for layout in drawn]

    def tokens(size: int, layouts: list[HybridLayout]) -> tuple[tuple[int, int], ...]:
        stages = zip(*(layout.tokens_per_window(size) for layout in layouts), strict=True)
        return tuple((min(stage), max(stage)) for stage in stages)

    rng = random.Random(seed)
    shown: dict[str, HybridLayout] = {}
    while len(shown) < samples:
        layout = space.uniform_unseen(set(shown), rng)
        if layout is None:
            break
        shown[layout.key] = layout
    return SpaceDescription(
        name=config.name,
        count=space.count(),
        share_within_budget=space.share_within_budget(),
        searched=space.searched(),
        proxy_image_size=config.proxy.image_size,
        deployed_image_size=config.deployed_image_size,
        proxy_tokens=tokens(config.proxy.image_size, [space.proxy_layout(layout) for layout in drawn]),
        deployed_tokens=tokens(config.deployed_image_size, drawn),
        cost_range={
            name: (min(getattr(c, name) for c in costs), max(getattr(c, name) for c in costs))
            for name in ("params", "macs", "memory")
        },
        baselines=space.baselines(),
        samples=tuple(shown.values()),
    )
