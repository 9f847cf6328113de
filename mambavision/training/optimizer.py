"""The optimizer that a training has if it is given none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from timm.optim import param_groups_weight_decay
from torch import nn


def default_optimizer(
    model: nn.Module, *, learning_rate: float = 1e-3, weight_decay: float = 0.05
) -> torch.optim.Optimizer:
    """AdamW, without decay on norms, biases and what the model's ``no_weight_decay()`` names."""
    spared: Callable[[], Iterable[str]] = getattr(model, "no_weight_decay", tuple)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tuple(spared()))
    return torch.optim.AdamW(groups, lr=learning_rate)
