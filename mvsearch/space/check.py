"""Whether a space is worth searching."""

from __future__ import annotations

import dataclasses
import itertools
import math

from mambavision.layout import LETTERS, HybridLayout
from mvsearch.space.layouts import LayoutSpace
from mvsearch.space.stage import SpaceError, channels

MIN_TOKENS = 16
"""Fewest tokens a window at which the choice between Mamba and attention means anything."""


def check_space(space: LayoutSpace) -> None:
    """Refuse a space that cannot be searched, or where the search would mean nothing.

    Raises:
        SpaceError: for channels that the heads or the halves (of M) do not divide; for a stage whose order, ratio,
            state, window, … is searched at fewer than 16 tokens a window, at the proxy's image size or deployed;
            for a budget that no layout satisfies.
    """
    _check_channels(space)
    _check_tokens(space)
    _check_budgets(space)


def _check_channels(space: LayoutSpace) -> None:
    for stage in space.stages:
        dims = stage.numbers["dim"].values
        heads = stage.numbers["head_dim"].values if "head_dim" in stage.numbers else (1,)
        halving = next((letter for letter in stage.config.blocks if LETTERS[letter].halves), None)
        for width, multiple, head_dim in itertools.product(space.width.values, dims, heads):
            dim = channels(width, multiple)
            start = f"stage {stage.number}: {dim:g} channels (width {width} × dim {multiple:g})"
            if dim != int(dim) or dim > 8192:
                raise SpaceError(f"{start} are not allowed; channels are whole, at most 8192")
            if halving and dim % 2:
                raise SpaceError(
                    f"{start} are odd; {halving} splits them in two halves, so choose widths that make them even"
                )
            if dim % head_dim:
                raise SpaceError(
                    f"{start} cannot be split into heads of head_dim {head_dim}; head_dim "
                    f"{math.gcd(int(dim), head_dim)} divides them, or choose widths that make them multiples of "
                    f"{head_dim}"
                )


def _check_tokens(space: LayoutSpace) -> None:
    config = space.config
    width = space.width.values[0]
    layout = space.layout_of([stage.extremes(width)[0] for stage in space.stages])
    # The key that says into how many tokens the stem cuts an image.
    grain = "stem_stride" if layout.stem == "conv" else "patch"
    proxy_grain = f"layout.{grain}" if config.proxy.stem_stride is None else "proxy.stem_stride"
    deployed_size = "proxy.image_size" if config.timing.image_size is None else "timing.image_size"
    for stage in space.stages:
        keys = stage.mixing_keys()
        if not keys:
            continue
        listed = " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))
        i = stage.number - 1
        for when, size, seen, grain_key, size_key in (
            ("the proxy's", config.proxy.image_size, config.proxy.as_trained(layout), proxy_grain, "proxy.image_size"),
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


def _check_budgets(space: LayoutSpace) -> None:
    if not space.budgets:
        return
    best: dict[str, float] = {}
    values: dict[str, list[float]] = {name: [] for name, _, _ in space.budgets}
    for layout in space.corners_and_draws():
        excess = space.excess(layout)
        if not excess:
            return
        if not best or sum(excess.values()) < sum(best.values()):
            best = excess
        for name, seen in values.items():
            seen.append(getattr(space.cost(layout), name))
    for name, low, high in space.budgets:
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
