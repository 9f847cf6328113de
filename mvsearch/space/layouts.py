"""The layouts of a space: the way between a layout and the parameters a sampler sees, drawing, counting, cost.

The truth is the pattern string of each stage. A sampler sees it as a number of attention blocks, a rule that places
them, and flip slots, each of which may turn one block around. All parameters are suggested always, with static ranges,
so that a sampler can draw them jointly; what does not apply to a layout has no effect on it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from mambavision.cost import Cost, cost
from mambavision.layout import HybridLayout, StageLayout
from mvsearch.config.letters import keys_of
from mvsearch.config.sections import StudyConfig
from mvsearch.space.stage import Choice, Numbers, SpaceError, StageSpace, param

_ENUMERABLE = 20_000
EXACT_SHARE = 5_000


class LayoutSpace:
    """All layouts of a study, as `SearchSpace` without what a search starts from.

    Layouts of a space are equal exactly if their keys are: what has no effect on the network (the state of a stage
    without Mamba, the heads of one without attention) is set to one fixed value.

    Attributes:
        width: widths of stage 1.
        stages: of the space, in order.
        listed: the layouts that `limit_to` left, by key; None: all.

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
        self.width = Choice("width", config.layout.width)
        self.stages = [StageSpace(number, stage) for number, stage in enumerate(config.layout.stages, start=1)]
        self._costs: dict[str, Cost] = {}
        self.listed: dict[str, HybridLayout] | None = None

    def limit_to(self, layouts: Iterable[HybridLayout]) -> None:
        """From now on only these layouts, as far as the space holds them, are within its budgets.

        Raises:
            SpaceError: if the space holds none of them within its budgets.
        """
        listed = {layout.key: layout for layout in layouts if layout in self and not self.excess(layout)}
        if not listed:
            raise SpaceError("throughput.file: the space holds none of the layouts of the table")
        self.listed = listed

    # -- parameters ---------------------------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> dict[str, tuple[Any, ...]]:
        """What a sampler is asked for and the values allowed: ``width``, ``stage2.depth``, ``stage2.flip1``, …

        Ranges are static and every parameter always applies; keys with a single value are left out. A flip slot runs
        from 1 - D to D for a longest depth of D: v above 0 turns block v around, anything else nothing.
        """
        width = {"width": self.width.values} if self.width.searched else {}
        return width | {name: values for stage in self.stages for name, values in stage.parameters().items()}

    def decode(self, params: Mapping[str, Any]) -> HybridLayout:
        """The layout of parameters; all values of `parameters` together give one.

        Raises:
            SpaceError: for a parameter that is missing, unknown or out of its range.
        """
        known = self.parameters
        for name in params:
            if name not in known:
                raise SpaceError(f"{name}: not a parameter of this space; these are {', '.join(known)}")
        width = self.width.read(params)
        stages = []
        for stage in self.stages:
            depth = stage.depth.read(params)
            blocks = stage.config.blocks * depth
            if stage.mixed:
                flips = []
                for name in stage.flip_names:
                    flip = param(params, name)
                    low, high = 1 - stage.longest, stage.longest
                    if type(flip) is not int or not low <= flip <= high:
                        raise SpaceError(f"{name}: {flip!r} is not in the space; a whole number from {low} to {high}")
                    flips.append(flip)
                blocks = stage.decode_pattern(depth, stage.attention.read(params), stage.placement.read(params), flips)
            numbers = {key: choice.read(params) for key, choice in stage.numbers.items()}
            stages.append(stage.build(width, blocks, numbers))
        return self.layout_of(stages)

    def encode(self, layout: HybridLayout) -> dict[str, Any]:
        """Parameters of a layout: ``decode(encode(layout))`` has its key, and equals it if it is canonical.

        The rule and the attention count are those that need the fewest flips; slots that are not needed hold 0.

        Raises:
            SpaceError: for a layout outside the space; names what does not fit.
        """
        width, genes = self._genes(layout)
        params: dict[str, Any] = {"width": width}
        for stage, (blocks, numbers) in zip(self.stages, genes, strict=True):
            params[stage.depth.name] = len(blocks)
            if stage.mixed:
                attention, rule, flips = stage.encode_pattern(blocks)
                params |= {stage.attention.name: attention, stage.placement.name: rule}
                params |= dict(zip(stage.flip_names, flips, strict=True))
            params |= {choice.name: numbers[key] for key, choice in stage.numbers.items()}
        return {name: params[name] for name in self.parameters}

    def __contains__(self, layout: HybridLayout) -> bool:
        try:
            self._genes(layout)
        except SpaceError:
            return False
        return True

    def _genes(self, layout: HybridLayout) -> tuple[int, list[tuple[str, Numbers]]]:
        """Width, and the blocks and numbers of each stage. Raises SpaceError for a layout outside the space."""
        if len(layout.stages) != len(self.stages):
            raise SpaceError(f"stages: {len(layout.stages)} are not in the space; only {len(self.stages)}")
        fixed = self.config.layout.stem_fields()
        if "downsample" in fixed:
            fixed["downsample"] = fixed["downsample"] or (2,) * (len(layout.stages) - 1)
        if any(stage.attends for stage in layout.stages):
            fixed["qk_norm"] = self.config.layout.qk_norm
        for name, value in fixed.items():
            Choice(name, (value,)).check(getattr(layout, name))
        width = self.width.check(layout.stages[0].dim)
        return width, [stage.read(width, part) for stage, part in zip(self.stages, layout.stages, strict=True)]

    def layout_of(self, stages: Sequence[StageLayout]) -> HybridLayout:
        """The layout of these stages, with all that the space fixes."""
        fixed = self.config.layout
        return HybridLayout(stages=tuple(stages), qk_norm=fixed.qk_norm, **fixed.stem_fields())

    # -- drawing, changing and counting -------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> HybridLayout:
        """One layout, each of the distinct ones as likely as any other, budgets aside."""
        width = rng.choices(self.width.values, self._sizes)[0]
        return self.layout_of([stage.draw(width, rng) for stage in self.stages])

    def mutate(self, layout: HybridLayout, rng: random.Random) -> HybridLayout:
        """A layout of the space that is one change away: a block flipped, two swapped, another rule, depth, state, …

        Differs from `layout` unless the space holds no other. Budgets are not looked at.

        Raises:
            SpaceError: for a layout outside the space.
        """
        width, genes = self._genes(layout)
        # In their canonical form, layouts are equal where their keys are; a key takes longer to compute.
        parent = self.layout_of([stage.build(width, *gene) for stage, gene in zip(self.stages, genes, strict=True)])
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
        moves: list[tuple[str, int]] = [("width", 0)] if self.width.searched else []
        for i, stage in enumerate(self.stages):
            moves += [(key, i) for key, choice in stage.numbers.items() if choice.searched]
            moves += [("depth", i)] if stage.depth.searched else []
            moves += [("flip", i), ("swap", i), ("rule", i)] if stage.mixed else []
        if not moves:
            return None
        kind, i = rng.choice(moves)
        blocks, numbers = genes[i]
        stage = self.stages[i]
        if kind == "width":
            width = rng.choice([value for value in self.width.values if value != width])
        elif kind == "flip":
            blocks = stage.flip(blocks, {rng.randrange(len(blocks))})
        elif kind == "swap":
            base, placed = ([j for j, c in enumerate(blocks) if c == letter] for letter in stage.config.blocks)
            if not base or not placed:
                return None
            blocks = stage.flip(blocks, {rng.choice(base), rng.choice(placed)})
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
        # What bears on a letter that was not there, and on none that was, had no value yet.
        before, after = ({key for letter in letters for key in keys_of(letter)} for letters in (genes[i][0], blocks))
        drawn = [key for key in stage.numbers if key in after - before]
        numbers |= {key: rng.choice(stage.numbers[key].values) for key in drawn}
        if not stage.contains(blocks):
            return None
        changed = [*genes[:i], (blocks, numbers), *genes[i + 1 :]]
        return self.layout_of([stage.build(width, *gene) for stage, gene in zip(self.stages, changed, strict=True)])

    @cached_property
    def _sizes(self) -> list[int]:
        """Number of distinct layouts at each width; stage 1 is as wide as the width, so no layout has two widths."""
        return [math.prod(stage.size(width) for stage in self.stages) for width in self.width.values]

    def count(self) -> int:
        """Number of distinct layouts (keys), budgets aside; exact."""
        return sum(self._sizes)

    def layouts(self) -> Iterator[HybridLayout]:
        """Every distinct layout once, budgets aside; meant for spaces that `count` says are small."""
        for width in self.width.values:
            for stages in itertools.product(*(stage.stages(width) for stage in self.stages)):
                yield self.layout_of(stages)

    def uniform_unseen(self, seen: set[str], rng: random.Random) -> HybridLayout | None:
        """A layout within budget whose key is not in `seen`, each as likely as any other; None if there is none.

        Spaces of up to 20,000 layouts are enumerated; of larger ones, 20,000 draws are tried before giving up.
        """
        if self.listed is not None or self.count() <= _ENUMERABLE:
            everything = self.everything if self.listed is None else list(self.listed.values())
            drawn: Iterator[HybridLayout] = iter(rng.sample(everything, len(everything)))
        else:
            drawn = (self.sample(rng) for _ in range(_ENUMERABLE))
        return next((layout for layout in drawn if layout.key not in seen and not self.excess(layout)), None)

    @cached_property
    def everything(self) -> list[HybridLayout]:
        """Every distinct layout, as a list."""
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
        """By how much a layout leaves its budgets, relative to the bound, above 0; empty if it is within them.

        A layout that the space was not limited to (`limit_to`) leaves ``throughput.file``.
        """
        found = self.over_budget(layout)
        if self.listed is not None and layout.key not in self.listed:
            found["throughput.file"] = 1.0
        return found

    def over_budget(self, layout: HybridLayout) -> dict[str, float]:
        """As `excess`, of the budgets alone, whatever the space was limited to."""
        found: dict[str, float] = {}
        for name, low, high in self.budgets:
            value = getattr(self.cost(layout), name)
            if high is not None and value > high:
                found[name] = value / high - 1
            elif low is not None and value < low:
                found[name] = 1 - value / low
        return found

    @cached_property
    def budgets(self) -> list[tuple[str, float | None, float | None]]:
        """Cost, least and most, of each cost that is bounded."""
        budgets = self.config.budgets
        bounds = [("params", budgets.params), ("macs", budgets.macs), ("memory", budgets.memory)]
        return [(name, b.min, b.max) for name, b in bounds if b.min is not None or b.max is not None]

    def share_within_budget(self, draws: int = 2000, seed: int = 0) -> float:
        """Share of the layouts within budget, 0 to 1: exact up to 5,000 layouts, else of `draws` uniform ones."""
        if not self.budgets and self.listed is None:
            return 1.0
        if self.count() <= EXACT_SHARE:
            layouts: Sequence[HybridLayout] = self.everything
        else:
            rng = random.Random(seed)
            layouts = [self.sample(rng) for _ in range(draws)]
        return sum(not self.excess(layout) for layout in layouts) / len(layouts)

    def corners_and_draws(self, draws: int = 2000) -> Iterator[HybridLayout]:
        """The smallest and largest layouts, then all of a small space, else so many draws."""
        for width in sorted({self.width.values[0], self.width.values[-1]}):
            for stages in itertools.product(*(stage.extremes(width) for stage in self.stages)):
                yield self.layout_of(stages)
        if self.count() <= EXACT_SHARE:
            yield from self.everything
        else:
            rng = random.Random(0)
            yield from (self.sample(rng) for _ in range(draws))

    # -- what it holds ------------------------------------------------------------------------------------------------

    def searched(self) -> dict[str, tuple[Any, ...]]:
        """The searched keys with their values; flip slots aside."""
        choices = [self.width] if self.width.searched else []
        choices += [choice for stage in self.stages for choice in stage.choices()]
        return {choice.name: choice.values for choice in choices}
