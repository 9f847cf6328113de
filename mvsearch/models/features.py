"""What the two models of `KnownCostSampler` see of a layout: a row of numbers each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mambavision.layout import LETTERS, HybridLayout, StageLayout
from mvsearch.config.letters import PLACED, keys_of
from mvsearch.space.space import SearchSpace

BLOCK, RATIO, CENTRE, ALTERNATION, SIZE, SETTING = 0.35, 2.5, 4.0, 1.0, 2.5, 1.0
"""How far apart two layouts are in the eyes of the quality model, which has one length scale: a block, the ratio of
attention and its centre of mass, alternations, widths and depths (a doubling), and other settings (a doubling)."""


_SETTINGS = ("window", "state", "conv_kernel", "expand", "head_dim", "mlp_ratio")


class Features:
    """Turns layouts of one space into rows; each stage is computed once and kept.

    What a space fixes would be a column of equal numbers and is left out.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        searched = space.searched()
        self._width = "width" in searched
        self._stages = []
        self._letters = [config.blocks for config in space.config.layout.stages]
        for number, config in enumerate(space.config.layout.stages, start=1):
            keys = [key for key in ("depth", "dim", *_SETTINGS) if f"stage{number}.{key}" in searched]
            self._stages.append((config.depth[-1], config.mixed, keys))
        self._quality: dict[tuple[int, StageLayout, int], list[float]] = {}

    def quality(self, layouts: Sequence[HybridLayout]) -> np.ndarray:
        """Rows for the quality model, (layouts, features)."""
        rows = []
        for layout in layouts:
            width = layout.stages[0].dim
            row = [SIZE * math.log2(width)] if self._width else []
            for i, stage in enumerate(layout.stages):
                found = self._quality.get((i, stage, width))
                if found is None:
                    found = self._quality[i, stage, width] = self._stage(i, stage, width)
                row += found
            rows.append(row)
        return np.array(rows, dtype=float).reshape(len(layouts), -1)

    def _stage(self, i: int, stage: StageLayout, width: int) -> list[float]:
        longest, mixed, keys = self._stages[i]
        depth = len(stage.blocks)
        bits = [float(LETTERS[letter].attends) for letter in stage.blocks]
        ratio = sum(bits) / depth
        row = []
        if mixed:
            # Stages of any depth are laid over the longest, block by block, by their relative position.
            row += [BLOCK * bits[(2 * j + 1) * depth // (2 * longest)] for j in range(longest)]
            places = [(j + 0.5) / depth for j, bit in enumerate(bits) if bit]
            row += [RATIO * ratio, CENTRE * (sum(places) / len(places) - 0.5 if places else 0.0)]
            turns = sum(a != b for a, b in itertools.pairwise(bits))
            row.append(ALTERNATION * turns / max(1, depth - 1))
        for key in keys:
            if key == "depth":
                row.append(SIZE * math.log2(depth))
            elif key == "dim":
                row.append(SIZE * math.log2(stage.dim / width))
            else:
                row.append(SETTING * self._setting(i, key, stage, ratio))
        return row

    def _setting(self, i: int, key: str, stage: StageLayout, ratio: float) -> float:
        """log2 of a setting over the geometric middle of its range, by the share of the blocks that it bears on."""
        values = self._space.searched()[f"stage{i + 1}.{key}"]
        logs = [_log(value) for value in values]
        value = stage.dim // stage.heads if key == "head_dim" else getattr(stage, key)
        bears_on = {letter in PLACED for letter in self._letters[i] if key in keys_of(letter)}
        share = ratio * (True in bears_on) + (1 - ratio) * (False in bears_on)
        return (_log(value) - (min(logs) + max(logs)) / 2) * share


def _log(value: float | None) -> float:
    # The whole map, null, is larger than any window.
    return 7.0 if value is None else math.log2(value)
