"""Designs: the layouts that answer one question, instead of a search for the front.

A search trains what looks promising, so placements and ratios come in unequal numbers and with other things changed.
The design `placement` trains each once for every seed, with everything else held at the reference layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mambavision.layout import HybridLayout, StageLayout
from mvsearch.config.layout_section import StageConfig
from mvsearch.config.letters import MIXED
from mvsearch.config.sections import StudyConfig
from mvsearch.config.values import ConfigError, either
from mvsearch.space.published import PUBLISHED_PATTERNS, published_blocks
from mvsearch.space.space import SearchSpace
from mvsearch.space.stage import place

SEEDS = 3
"""Trainings a layout at least: fewer leave no noise to judge by."""


RULES = ("last", "first", "middle", "alternate")


def design_layouts(space: SearchSpace) -> list[HybridLayout]:
    """The layouts of a study's `search.design`, the hand-made ones first; empty without a design.

    Of `placement`: for each stage whose order is searched, in turn, none, a quarter, half, three quarters and all of
    its blocks as attention (or the letter in its part), each placed last, first, in the middle and alternating, while
    the others stay as in the reference layout; and the published patterns in all stages at once. Depth, width, states
    and the rest are those of the reference. What the space or its budgets do not hold is left out.

    Raises:
        ConfigError: for a space in which no order is searched, or of which nothing but the reference is left.
    """
    if space.config.search.design is None:
        return []
    reference = space.reference()
    mixed = {number: stage for number, stage in enumerate(space.config.layout.stages) if stage.mixed}
    if not mixed:
        raise ConfigError(
            f"search.design: 'placement' is not allowed; it needs a stage whose blocks are {either(MIXED)}, and this "
            "space has none"
        )
    found: dict[str, HybridLayout] = {layout.key: layout for layout in space.baselines().values()}
    for blocks in _candidates(reference, mixed):
        layout = _with_blocks(space, reference, blocks)
        if layout is not None and not space.excess(layout):
            found.setdefault(layout.key, layout)
    if len(found) < 2:
        raise ConfigError(
            "search.design: 'placement' is not allowed; the space and its budgets hold the reference layout alone"
        )
    return list(found.values())


def with_design(config: StudyConfig, design: str, *, name: str | None, classes: int, channels: int) -> StudyConfig:
    """The configuration of a study that runs a design of its space.

    Args:
        config: of the space.
        design: ``"placement"``.
        name: of the study; None: the space's with the design behind it.
        classes: of the data.
        channels: of its images.

    Raises:
        ConfigError, SpaceError: if the space holds no such design.
    """
    if config.fidelity is not None:
        raise ConfigError(
            "fidelity: rungs are not allowed with --design, which trains every layout in full; --set fidelity=none"
        )
    seeds = max(config.proxy.seeds, SEEDS)
    changed = config.model_copy(
        update={
            "name": name or f"{config.name}-{design}",
            "proxy": config.proxy.model_copy(update={"seeds": seeds}),
            "search": config.search.model_copy(update={"design": design}),
        }
    )
    layouts = design_layouts(SearchSpace(changed, num_classes=classes, in_chans=channels))
    search = changed.search.model_copy(update={"trials": len(layouts)})
    # The space may be of a study whose folder has a name that nobody could choose.
    designed = changed.model_copy(update={"search": search})
    return StudyConfig.model_validate(designed.resolved(), context={"folder": designed.name})


def stage_patterns(depth: int, base: str, placed: str) -> list[str]:
    """Every ratio in quarters, each placed by every rule, each pattern once."""
    counts = sorted({0, round(depth / 4), depth // 2, depth - round(depth / 4), depth})
    return list(dict.fromkeys(place(rule, depth, count, base, placed) for count in counts for rule in RULES))


def _candidates(reference: HybridLayout, mixed: Mapping[int, StageConfig]) -> list[dict[int, str]]:
    """Blocks by stage (counted from 0): the published patterns in all stages, then one stage at a time."""
    found = []
    for name in PUBLISHED_PATTERNS:
        blocks = {
            at: published_blocks(name, len(reference.stages[at].blocks), stage.base, stage.placed)
            for at, stage in mixed.items()
        }
        if all(blocks.values()):
            found.append({at: pattern for at, pattern in blocks.items() if pattern})
    for at, stage in mixed.items():
        depth = len(reference.stages[at].blocks)
        found += [{at: pattern} for pattern in stage_patterns(depth, stage.base, stage.placed)]
    return found


def _with_blocks(space: SearchSpace, reference: HybridLayout, blocks: dict[int, str]) -> HybridLayout | None:
    """The reference with other blocks in some stages, in the canonical form of the space; None if it is not in it."""
    stages: list[StageLayout] = list(reference.stages)
    for at, pattern in blocks.items():
        # A stage without attention has no heads of its own to go by.
        choices = space.config.layout.stages[at].head_dim
        heads = stages[at].heads if stages[at].attends else stages[at].dim // choices[(len(choices) - 1) // 2]
        stages[at] = dataclasses.replace(stages[at], blocks=pattern, heads=heads)
    layout = dataclasses.replace(reference, stages=tuple(stages))
    return space.decode(space.encode(layout)) if layout in space else None
