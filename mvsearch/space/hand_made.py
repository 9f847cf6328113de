"""The layouts that a person would make by hand in a space, and what it makes of other people's models."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from mambavision.layout import LETTERS, HybridLayout
from mvsearch.config.letters import BASES, PLACED
from mvsearch.space.layouts import LayoutSpace
from mvsearch.space.stage import SpaceError, place, usual_order


def baselines(space: LayoutSpace) -> dict[str, HybridLayout]:
    """The hand-made layouts, by name: all Mamba, all attention, last half, first half, alternating.

    "All attention" goes by the words of the letters that stand in its part. "Half" is that of the order a Mamba letter
    is known by: of an odd depth, M is the larger part, G the smaller.
    All of middle depth, state, … and of one width: the middle one, or where a budget forbids it the nearest
    (narrower ones first) at which the most of them are within budget; the shortest depth if that is not enough.
    What the space does not hold is left out, and so are repetitions. A space that holds none of them has one
    baseline, "middle". Empty if the budgets allow none.
    """
    found = _within_budget(space)
    return found if space.listed is None else {name: one for name, one in found.items() if one.key in space.listed}


def _within_budget(space: LayoutSpace) -> dict[str, HybridLayout]:
    """The hand-made layouts at the width at which the most of them are within budget."""
    widths = space.width.values
    middle = (len(widths) - 1) // 2
    best: dict[str, HybridLayout] = {}
    for shortest in (False, True):
        for width in (*widths[middle::-1], *widths[middle + 1 :]):
            candidates = _hand_made(space, width, shortest)
            found = {name: layout for name, layout in candidates.items() if not space.over_budget(layout)}
            if len(found) > len(best):
                best = found
            if len(best) == len(candidates):
                return best
    return best


_ALL_BASE, _ALL_PLACED = "all base", "all placed"


def _hand_made(space: LayoutSpace, width: int, shortest: bool) -> dict[str, HybridLayout]:
    # Of a depth and the two letters; the first two are called by the words of the letters they are made of.
    orders: dict[str, Callable[[int, str, str], str]] = {
        _ALL_BASE: lambda depth, base, _: base * depth,
        _ALL_PLACED: lambda depth, _, placed: placed * depth,
        "last half": usual_order,
        "first half": lambda depth, base, placed: usual_order(depth, base, placed)[::-1],
        "alternating": lambda depth, base, placed: place("alternate", depth, depth // 2, base, placed),
    }
    found: dict[str, HybridLayout] = {}
    for name, order in orders.items():
        stages = []
        for stage in space.stages:
            depth = stage.depth.values[0] if shortest else stage.depth.middle
            blocks = order(depth, stage.base, stage.placed) if stage.mixed else stage.config.blocks * depth
            if stage.contains(blocks):
                numbers = {key: choice.middle for key, choice in stage.numbers.items()}
                stages.append(stage.build(width, blocks, numbers))
        letters = dict.fromkeys(letter for part in stages if part.hybrid for letter in part.blocks)
        has_base, has_placed = any(b in BASES for b in letters), any(p in PLACED for p in letters)
        # In a stage that is not free to choose, "all Mamba" would be a wrong name for attention, and so on.
        named = (has_base, has_placed) == {_ALL_BASE: (True, False), _ALL_PLACED: (False, True)}.get(name, (True, True))
        if len(stages) == len(space.stages) and named:
            layout = space.layout_of(stages)
            if layout.key not in {other.key for other in found.values()}:
                words = dict.fromkeys(LETTERS[letter].word for letter in letters)
                found[f"all {' and '.join(words)}" if name in (_ALL_BASE, _ALL_PLACED) else name] = layout
    if not found:
        stages = []
        for stage in space.stages:
            depth = stage.depth.values[0] if shortest else stage.depth.middle
            blocks = stage.config.blocks * depth
            if stage.mixed:
                allowed = stage.config.attention.allowed(depth)
                blocks = stage.place(stage.placement.values[0], depth, allowed[(len(allowed) - 1) // 2])
            numbers = {key: choice.middle for key, choice in stage.numbers.items()}
            stages.append(stage.build(width, blocks, numbers))
        found["middle"] = space.layout_of(stages)
    return found


def nearest_layout(space: LayoutSpace, model: HybridLayout) -> HybridLayout | None:
    """The layout of the space that is most like a model outside it, within the budgets; None if they forbid all.

    Stages correspond from the last one backwards; a stage that mixes tokens whose counterpart does not takes the
    model's next stage that does. Depth, state, … are the nearest of the space as ratios (a window
    that the space lacks becomes the whole map where it has that). The order stays "last half" (M) or "first half
    gated" (G) where it is that, else the blocks at the same relative depth are taken; where the space lacks the
    order, the nearest that a placement rule makes. The width is the nearest at which the layout is within the
    budgets.
    """
    parts = model.stages
    width = parts[0].dim
    for own in sorted(space.width.values, key=lambda value: abs(math.log(value / width))):
        stages = []
        for number, stage in enumerate(space.stages):
            i = max(0, number + len(parts) - len(space.stages))
            if stage.config.hybrid:
                i = next((j for j in range(i, len(parts)) if parts[j].hybrid), i)
            stages.append(stage.scaled(own, parts[i], width))
        layout = space.layout_of(stages)
        if not space.excess(layout):
            return layout
    return None


def placed(space: LayoutSpace, weights: Mapping[str, float], rng: random.Random) -> HybridLayout:
    """A layout in which a drawn rule places the attention of each stage, without flips; budgets are not looked at.

    Args:
        weights: of the rules, above 0; those that are not named, and those a stage lacks, are not drawn.
        rng: of the draws. Width, depths, attention counts and numbers are drawn evenly, each by itspace.

    Raises:
        SpaceError: if a stage has none of the rules, or no stage an order to draw.
    """
    if not any(stage.mixed for stage in space.stages):
        raise SpaceError("placement: no stage of this space has two letters, so there is none to draw")
    width = rng.choice(space.width.values)
    return space.layout_of([stage.draw_placed(width, weights, rng) for stage in space.stages])


def reference(space: LayoutSpace) -> HybridLayout:
    """The layout whose throughput is 1: the baseline "last half", or the first one there is.

    Raises:
        SpaceError: if no layout satisfies the budgets.
    """
    own = baselines(space)
    for name in ("last half", *own):
        if name in own:
            return own[name]
    layout = space.uniform_unseen(set(), random.Random(0))
    if layout is None:
        raise SpaceError("budgets: no layout of the space satisfies them")
    return layout
