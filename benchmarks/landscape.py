"""What `samplers.py` replays: a synthetic landscape that can be enumerated, and tables of trained layouts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mambavision.layout import HybridLayout
from mvsearch.config.reading import load_config
from mvsearch.space.space import SearchSpace
from mvsearch.study.front import Point, hypervolume

HERE = Path(__file__).parent


def _bits(pattern: str) -> list[int]:
    return [int(letter == "A") for letter in pattern]


@dataclass(frozen=True)
class Synthetic:
    """Quality and cost in closed form over 8 + 4 blocks, two states, five widths and two MLP ratios.

    Attributes:
        landscape: seed of the pairwise terms between blocks. They are no feature of any model here.
        noise: standard deviation of one measured quality.
        throughput_noise: relative standard deviation of one measured throughput.
    """

    landscape: int = 0
    noise: float = 0.25
    throughput_noise: float = 0.005

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace(load_config(HERE / "synthetic.yaml"), num_classes=10, in_chans=1)

    @cached_property
    def _pairs(self) -> np.ndarray:
        upper = np.triu(np.random.default_rng(self.landscape).standard_normal((12, 12)), k=1)
        signs = 2 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1) - 1
        return upper * 0.30 / (0.5 * np.einsum("ni,ij,nj->n", signs, upper, signs)).std()

    def values(
        self, b3: np.ndarray, b4: np.ndarray, n3: np.ndarray, n4: np.ndarray, w: np.ndarray, m: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """True quality and log2 throughput; bits (…, 8) and (…, 4), the others (…)."""
        p3, p4 = (np.arange(1, 9) / 8) ** 1.5, (np.arange(1, 5) / 4) ** 1.5
        k3, k4, mean3, mean4 = b3.sum(-1), b4.sum(-1), b3.mean(-1), b4.mean(-1)
        signs = 2 * np.concatenate([b3, b4], axis=-1) - 1
        quality = 76 + 1.6 * (1 - np.exp(-1.1 * (b3 @ p3))) + 1.0 * (1 - np.exp(-1.2 * (b4 @ p4)))
        quality = quality - 1.3 * mean3**3 - 0.35 * mean4**3 + 0.5 * ((signs @ self._pairs) * signs).sum(-1)
        quality = quality + 0.28 * np.log2(n3 / 4) * np.sqrt(1 - mean3) + 0.15 * np.log2(n4 / 4) * (1 - mean4)
        quality = quality + 6 * np.log(w) + 0.8 * (m - 3)
        cost = 1.25 * k3 + (8 - k3) * (0.85 + 0.014 * n3) + 0.7 * k4 + (4 - k4) * (0.7 + 0.008 * n4)
        cost = w**1.8 * (cost + 1.5 * (m - 3) + 3)
        return quality, -np.log2(cost)

    @cached_property
    def _enumerated(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw quality and log2 throughput of all 655,360 settings."""
        patterns = (np.arange(4096)[:, None] >> np.arange(12)) & 1
        grid = np.meshgrid([4, 8, 16, 32], [4, 8, 16, 32], [0.75, 0.875, 1, 1.125, 1.25], [3, 4], indexing="ij")
        numbers = [part.ravel()[:, None] for part in grid]
        quality, throughput = self.values(patterns[:, :8][None], patterns[:, 8:][None], *numbers)
        return quality.ravel(), throughput.ravel()

    @cached_property
    def _ranges(self) -> tuple[float, float, float, float]:
        quality, throughput = self._enumerated
        return quality.min(), np.ptp(quality), throughput.min(), np.ptp(throughput)

    @property
    def octaves(self) -> float:
        """log2 of the fastest layout's throughput over the slowest's."""
        return float(self._ranges[3])

    def raw(self, layout: HybridLayout) -> tuple[float, float]:
        first, second = layout.stages
        quality, throughput = self.values(
            np.array(_bits(first.blocks)),
            np.array(_bits(second.blocks)),
            np.float64(first.state),
            np.float64(second.state),
            np.float64(first.dim / 64),
            np.float64(first.mlp_ratio),
        )
        return float(quality), float(throughput)

    def true(self, layout: HybridLayout) -> tuple[float, float]:
        """Quality and log2 throughput, each from 0 to 1 over the enumerated range."""
        low, span, slow, octaves = self._ranges
        quality, throughput = self.raw(layout)
        return (quality - low) / span, (throughput - slow) / octaves

    def measure(self, layout: HybridLayout, rng: np.random.Generator) -> tuple[float, float]:
        """`true`, with the noise of one measurement."""
        quality, throughput = self.true(layout)
        _, span, _, octaves = self._ranges
        quality += self.noise / span * rng.standard_normal()
        return quality, throughput + math.log2(1 + self.throughput_noise * rng.standard_normal()) / octaves

    @property
    def reference(self) -> tuple[float, float]:
        """(quality, throughput) of the corner from which hypervolume is measured."""
        return 0.3, 0.0

    @cached_property
    def best(self) -> float:
        """Hypervolume of the true front."""
        low, span, slow, octaves = self._ranges
        quality, throughput = self._enumerated
        order = np.argsort(-throughput, kind="stable")
        top = np.maximum.accumulate(quality[order])
        new = np.r_[True, top[1:] > top[:-1]]
        front = order[new]
        points = [Point("", (quality[i] - low) / span, (throughput[i] - slow) / octaves) for i in front]
        return hypervolume(points, self.reference)


class Table:
    """Layouts that were all trained and timed: what `tabular/train.py` wrote.

    A layout's true quality is minus the NLL at the last rung, the mean over its seeds; that is what a trial is told.

    Args:
        path: the CSV; the space lies beside it under the name in its header.
    """

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            conditions = json.loads(file.readline().lstrip("# "))
        rows = pd.read_csv(path, comment="#")
        self.conditions = conditions
        self.space = SearchSpace(
            load_config(path.parent / conditions["space"]), num_classes=conditions["classes"], in_chans=1
        )
        self.rungs = sorted(int(epoch) for epoch in rows.epoch.unique())
        layouts = {layout.key: layout for layout in self.space.layouts()}
        self.layouts = [layouts[key] for key in rows.key.unique()]
        first = rows.groupby("key").first()
        self.throughput = {str(key): math.log2(ratio) for key, ratio in first.ratio.items()}
        by_rung = rows.groupby(["key", "epoch", "seed"])
        self._nll = {index: float(nll) for index, nll in by_rung.nll.first().items()}
        self._seconds = {index: float(cost) for index, cost in by_rung[_cost_column(rows)].first().items()}
        self.seeds = sorted(int(seed) for seed in rows.seed.unique())
        baselines = [self.throughput[layout.key] for layout in self.space.baselines().values()]
        self.reference = (-math.log(conditions["classes"]), min(baselines) - 1)
        points = [Point(layout.key, *self.true(layout)) for layout in self.layouts]
        self.best = hypervolume(points, self.reference)

    def qualities(self, layout: HybridLayout, rung: int) -> tuple[float, ...]:
        """Minus the NLL of each seed at a rung, from 0."""
        return tuple(-self._nll[layout.key, self.rungs[rung], seed] for seed in self.seeds)

    def true(self, layout: HybridLayout) -> tuple[float, float]:
        qualities = self.qualities(layout, len(self.rungs) - 1)
        return sum(qualities) / len(qualities), self.throughput[layout.key]

    def measure(self, layout: HybridLayout, rng: np.random.Generator) -> tuple[float, float]:
        """What a trial is told: `true`."""
        return self.true(layout)

    def seconds(self, layout: HybridLayout, rung: int | None = None) -> float:
        """Training seconds of all seeds from the start to the end of a rung; None: of the last."""
        epoch = self.rungs[-1 if rung is None else rung]
        return sum(self._seconds[layout.key, epoch, seed] for seed in self.seeds)


def _cost_column(rows: pd.DataFrame) -> str:
    return "cpu_seconds" if "cpu_seconds" in rows else "train_seconds"
