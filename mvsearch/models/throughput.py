"""The model of throughput: a regression on what a layout is made of."""

from __future__ import annotations

import math

import numpy as np
from sklearn.linear_model import RidgeCV

from mambavision.layout import LETTERS, HybridLayout, StageLayout

_PENALTIES = np.logspace(-6, 3, 19)
_UNKNOWN = 0.5  # octaves; before three layouts were timed
_NOISE = 0.01  # octaves, 0.7 %; no timing is more exact, whatever a regression on a few of them says


def made_of(layout: HybridLayout) -> list[float]:
    """What log throughput is taken to be linear in.

    log2 of the width first; then of each stage the number of blocks that only scan and of the others, log2 of its width
    in widths, its MLP ratio and window, and what bears on some blocks only, times their number: of those that scan, the
    state (as it is and its log2), the convolution and the channels scanned; of those with attention, its heads.
    """
    width = layout.stages[0].dim
    row = [math.log2(width)]
    for stage in layout.stages:
        row += _stage(stage, width)
    return row


def _stage(stage: StageLayout, width: int) -> list[float]:
    kinds = [LETTERS[letter] for letter in stage.blocks]
    scans, attends = sum(kind.scans for kind in kinds), sum(kind.attends for kind in kinds)
    only_scan = sum(kind.scans and not kind.attends for kind in kinds)
    expanded = sum(stage.expand if "expand" in kind.fields else 1 for kind in kinds if kind.scans)
    window = 7.0 if stage.window is None else math.log2(stage.window)
    return [
        only_scan,
        len(kinds) - only_scan,
        math.log2(stage.dim / width),
        stage.mlp_ratio,
        window,
        scans * stage.state,
        scans * math.log2(stage.state),
        scans * stage.conv_kernel,
        expanded,
        attends * math.log2(stage.dim / stage.heads),
    ]


class ThroughputModel:
    """Ridge regression of log2 throughput, in logarithms because the width multiplies what the blocks add up to.

    Of two designs, the parts alone and the parts with their products with the width, the one with the smaller
    leave-one-out error is used; the penalty is chosen by the same error.

    Args:
        rows: `made_of` of the layouts measured, (n, parts).
        values: their log2 ratios, (n,).

    Attributes:
        left_out: root mean square of its leave-one-out errors, octaves; of fewer than three layouts, or of equal ones,
            the standard deviation of their values, at least half an octave.
    """

    def __init__(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._constant = float(values.mean()) if len(values) else 0.0
        self.left_out = max(_UNKNOWN, float(values.std())) if len(values) else _UNKNOWN
        self._model: RidgeCV | None = None
        if len(values) < 3 or not np.ptp(rows, axis=0).any():
            return
        for products in (False, True):
            design = _design(rows, products)
            keep = design.std(axis=0) > 1e-12
            mean, scale = design.mean(axis=0)[keep], design.std(axis=0)[keep]
            design = (design[:, keep] - mean) / scale
            model = RidgeCV(alphas=_PENALTIES).fit(design, values)
            error = math.sqrt(max(0.0, -model.best_score_))
            if self._model is None or error < self.left_out:
                self._model, self.left_out = model, error
                self._products, self._keep, self._mean, self._scale = products, keep, mean, scale
                inverse = np.linalg.inv(design.T @ design + model.alpha_ * np.eye(design.shape[1]))
                self._inverse, self._count = inverse, len(values)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log2 ratios of layouts and their standard deviations, (m,) each, from `made_of`, (m, parts).

        The deviation grows from the leave-one-out error with the distance from what was measured.
        """
        if self._model is None:
            return np.full(len(rows), self._constant), np.full(len(rows), self.left_out)
        design = (_design(rows, self._products)[:, self._keep] - self._mean) / self._scale
        leverage = 1 / self._count + np.einsum("ij,jk,ik->i", design, self._inverse, design, optimize=True)
        return self._model.predict(design), max(self.left_out, _NOISE) * np.sqrt(1 + np.maximum(leverage, 0))


def _design(rows: np.ndarray, products: bool) -> np.ndarray:
    return np.concatenate([rows, rows[:, :1] * rows], axis=1) if products else rows
