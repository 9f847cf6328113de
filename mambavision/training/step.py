"""One update of a model's weights, which the `Trainer` and the search's proxy share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mambavision.training.precision import Autocast


class Loss(Protocol):
    """What a criterion is: float32 logits (B, classes) and targets to a mean loss."""

    def __call__(self, logits: Tensor, targets: Tensor, /) -> Tensor: ...


def train_step(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, float]],
    criterion: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    autocast: Autocast = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float | None = None,
    ema: ModelEmaV3 | None = None,
    step: int = 0,
) -> Tensor:
    """One update of a model's weights: forward, loss, backward, clipping, optimizer, EMA.

    Args:
        model: in training mode.
        batches: inputs, targets and share of the loss of each batch in the update; shares add up to 1. One batch, or
            several whose gradients are accumulated.
        criterion: mean loss of float32 logits and targets.
        optimizer: of the model's parameters.
        autocast: around forward and loss.
        scaler: for float16; None without.
        clip_norm: largest norm of the gradient; None does not clip.
        ema: average of the weights to update; None for none.
        step: number of this update, counted from 1; the EMA's warm-up depends on it.

    Returns:
        The loss, detached and on the device, so that nothing waits for it.
    """
    total: Tensor | None = None
    for inputs, targets, share in batches:
        with autocast():
            loss = criterion(model(inputs).float(), targets)
            if share != 1:
                loss = loss * share
        if total is None:
            optimizer.zero_grad(set_to_none=True)
        (loss if scaler is None else scaler.scale(loss)).backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None, "an update needs a batch"
    if clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    if ema is not None:
        ema.update(model, step=step)
    return total
