"""The optimizer of a training, and which parameters it lets decay."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn


def default_optimizer(
    model: nn.Module,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """AdamW on the groups of `parameter_groups`.

    Args:
        model: whose parameters it holds.
        learning_rate: 0 or more.
        weight_decay: of the group that decays, 0 or more.
        betas: how much of the averages of the gradient and of its square each update keeps, 0 to below 1.
        fused: torch's fused update; None leaves the choice to torch.
    """
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of a model, first those that never decay, then the rest; each in the model's order.

    Never decay: parameters of one dimension or none (norms, layer scales) and biases, as in timm; and what the class of
    any module inside spares by a method ``no_weight_decay()``, timm's convention, as `ScanMixer` does. It is asked of
    each module that holds such parameters, not of the model as a whole, whose names for them change when it is wrapped.
    """
    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=_spared(model))


def _spared(model: nn.Module) -> set[str]:
    """What the classes of all modules spare, under the names that this very model has for it."""
    names = set()
    for prefix, module in model.named_modules():
        # Of the class: a wrapper may hand on attributes of what is inside it, under names that are not its own.
        spared: Callable[[nn.Module], Iterable[str]] | None = getattr(type(module), "no_weight_decay", None)
        if callable(spared):
            # timm takes names for patterns; those of the modules around are none.
            names |= {f"{glob.escape(prefix)}.{name}" if prefix else name for name in spared(module)}
    return names
