"""When a scheduler is stepped, and with what."""

from __future__ import annotations

from collections.abc import Mapping

from timm.scheduler.scheduler import Scheduler as TimmScheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Scheduler = LRScheduler | TimmScheduler
"""A torch scheduler is stepped after each update or each epoch; a timm scheduler is told of both."""


def step_after_update(scheduler: Scheduler | None, per: str, step: int) -> None:
    """Step a scheduler after update number `step` of the training, counted from 1; `per` is ``"update"`` or not."""
    if isinstance(scheduler, TimmScheduler):
        scheduler.step_update(num_updates=step)
    elif scheduler is not None and per == "update":
        scheduler.step()


def step_after_epoch(scheduler: Scheduler | None, per: str, epoch: int, row: Mapping[str, float]) -> None:
    """Step a scheduler after an epoch, counted from 1, with the epoch's row of the metrics."""
    if isinstance(scheduler, TimmScheduler):
        scheduler.step(epoch, metric=row.get("val_top1"))
    elif isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(row.get("val_loss", row["train_loss"]))
    elif scheduler is not None and per == "epoch":
        scheduler.step()
