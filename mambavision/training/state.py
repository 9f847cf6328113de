"""Where a training stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Metrics = dict[str, list[float]]
"""A list for each measured quantity, one value an epoch: plain, and what `pandas.DataFrame` takes."""


@dataclass
class TrainingState:
    """Where a training stands; a checkpoint holds each attribute under its name.

    Attributes:
        metrics: of the epochs done.
        step: updates done.
        epochs: epochs done.
        updates: updates done in the epoch after those.
        loss_sum: sum of the losses of that epoch's images, as far as the losses were looked at.
        images: number of those images.
        seconds: time that those updates took.
        rate: learning rate of the last of them.
        best: of the best weights so far: ``epoch``, ``ema`` (whether the average), ``val_top1`` and ``val_loss``; None
            before the first epoch's end.
        shape: (C, H, W) of every training image so far; empty if they differ, None before the first.
    """

    metrics: Metrics = field(default_factory=dict)
    step: int = 0
    epochs: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    best: dict[str, Any] | None = None
    shape: list[int] | None = None

    def see(self, shape: list[int]) -> None:
        """Take note of the shape (C, H, W) of images that are trained on."""
        if self.shape is None:
            self.shape = shape
        elif shape != self.shape:
            self.shape = []

    def add_loss(self, loss: float, images: int, rate: float) -> None:
        """Add the mean loss of an update over its images."""
        self.loss_sum += loss * images
        self.images += images
        self.rate = rate

    def add_row(self, row: Mapping[str, float]) -> None:
        """Add an epoch to the metrics."""
        for name, value in row.items():
            self.metrics.setdefault(name, []).append(value)

    def end_epoch(self, epoch: int) -> None:
        """Count the epoch as done, and begin the next."""
        self.epochs, self.updates = epoch, 0
        self.loss_sum, self.images, self.seconds = 0.0, 0, 0.0

    def keep_better(self, row: Mapping[str, float], ema: bool) -> bool:
        """Whether the epoch of this row of the metrics left weights better than all before; then it is the `best`.

        Args:
            row: of the epoch.
            ema: whether there is an average of the weights.
        """
        found = [
            {"epoch": row["epoch"], "ema": bool(prefix)}
            | {name: row[prefix + name] for name in ("val_top1", "val_loss")}
            for prefix in ("", "ema_")
            if f"{prefix}val_top1" in row
        ]
        # Without validation the latest are the best we know of.
        new = max(found, key=_rank) if found else {"epoch": row["epoch"], "ema": ema}
        if found and self.best is not None and _rank(new) <= _rank(self.best):
            return False
        self.best = new
        return True


def _rank(found: Mapping[str, float]) -> tuple[float, float]:
    return found["val_top1"], -found["val_loss"]
