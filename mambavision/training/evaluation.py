"""Measuring a classifier on a validation loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mambavision.training.batch import checked_batch
from mambavision.training.errors import TrainingError
from mambavision.training.precision import Autocast


@torch.inference_mode()
def validate(model: nn.Module, loader: Iterable[Any], device: torch.device, autocast: Autocast) -> tuple[float, float]:
    """Mean cross entropy (nats) and top-1 (0 to 1) of a model, which is left in evaluation mode.

    Raises:
        TrainingError: the loader gives no batches, or one that the model cannot take.
    """
    model.eval()
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.long, device=device)
    images = 0
    for batch in loader:
        inputs, labels = checked_batch(batch, "val_loader", model, None)
        inputs, labels = (part.to(device, non_blocking=True) for part in (inputs, labels))
        with autocast():
            logits = model(inputs)
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        images += len(labels)
    if not images:
        raise TrainingError("val_loader: gives no batches; it needs at least one, or None to measure nothing")
    return loss.item() / images, correct.item() / images
