"""Arguments of a `Trainer`: what is allowed, each by itself and together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler as TimmScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from mambavision.training.errors import TrainingError, shown
from mambavision.training.precision import DTYPES


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


def _between(value: object, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low < float(value) < high


def _flag(value: object) -> bool:
    return type(value) is bool


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "accumulate": (lambda value: _whole(value, 1), "a whole number, 1 or more"),
    "seed": (lambda value: _whole(value, 0), "a whole number, 0 or more"),
    "checkpoint_every": (lambda value: value is None or _whole(value, 1), "1 or more, or None"),
    "clip_norm": (lambda value: value is None or _between(value, 0), "a number above 0, or None"),
    "ema": (lambda value: value is None or _between(value, 0, 1), "a number between 0 and 1, or None"),
    "scheduler_per": (lambda value: value in ("epoch", "update"), "'epoch' or 'update'"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "scheduler": (
        lambda value: isinstance(value, (LRScheduler, TimmScheduler, type(None))),
        "a torch LRScheduler or a timm Scheduler",
    ),
    "model": (lambda value: isinstance(value, nn.Module), "a torch.nn.Module"),
    "criterion": (lambda value: value is None or callable(value), "a function of logits and targets, or None"),
    "optimizer": (
        lambda value: isinstance(value, (torch.optim.Optimizer, type(None))),
        "a torch.optim.Optimizer, or None",
    ),
    "mixup": (lambda value: isinstance(value, (Mixup, type(None))), "a timm.data.Mixup, or None"),
    "output": (lambda value: isinstance(value, (str, Path, type(None))), "the path of a folder, or None"),
    "use_amp": (_flag, "True or False"),
    "tensorboard": (_flag, "True or False"),
    "resume": (_flag, "True or False"),
    "progress": (_flag, "True or False"),
    "num_epochs": (lambda value: _whole(value, 1), "a whole number, 1 or more"),
}
"""For each argument with values of its own: whether one is allowed, and what is, in words."""


def check_options(**options: Any) -> None:
    """Raise TrainingError for the first argument whose value is not in `ALLOWED`."""
    for field, value in options.items():
        fine, allowed = ALLOWED[field]
        if not fine(value):
            raise TrainingError(f"{field}: {shown(value)} is not allowed; {allowed}")


def check_loader(name: str, loader: Any) -> None:
    """Raise TrainingError unless `loader` gives batches each time it is gone through."""
    allowed = "a DataLoader, or what else gives batches each time it is gone through"
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise TrainingError(f"{name}: {shown(loader)} is not allowed; {allowed}")
    if isinstance(loader, Iterator):
        raise TrainingError(f"{name}: a {type(loader).__name__} can be gone through only once; allowed is {allowed}")


def check_together(
    *,
    model: nn.Module,
    train_loader: Any,
    use_amp: bool,
    dtype: str,
    mixup: Mixup | None,
    output: str | Path | None,
    tensorboard: bool,
    checkpoint_every: int | None,
) -> None:
    """Raise TrainingError for arguments that do not go together."""
    if dtype != "auto" and not use_amp:
        raise TrainingError(f"dtype: {dtype!r} has no effect without use_amp=True")
    if output is None and (tensorboard or checkpoint_every is not None):
        raise TrainingError("output: missing; tensorboard and checkpoint_every need a folder to write to")
    if getattr(model, "num_classes", None) == 0:
        raise TrainingError("model: has no classifier (num_classes=0); build it with one or more classes")
    if output is not None and getattr(train_loader, "persistent_workers", False):
        raise TrainingError(
            "train_loader: persistent_workers=True is not allowed with output; such workers keep random "
            "generators that no checkpoint can hold"
        )
    if mixup is not None and getattr(model, "num_classes", mixup.num_classes) != mixup.num_classes:
        raise TrainingError(f"mixup: num_classes {mixup.num_classes} is not allowed; the model has {model.num_classes}")


def check_optimizer(optimizer: torch.optim.Optimizer, scheduler: object, model: nn.Module) -> None:
    """Raise TrainingError unless the optimizer trains the model, and the scheduler steers that optimizer."""
    trained = {id(param) for param in model.parameters()}
    if not any(id(param) in trained for group in optimizer.param_groups for param in group["params"]):
        raise TrainingError("optimizer: holds none of the model's parameters; build it from model.parameters()")
    if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise TrainingError("scheduler: is of another optimizer; build it from the one given here")


def chosen_device(device: str | torch.device) -> torch.device:
    """The device of a name; ``"auto"`` is the GPU if there is one. Raises TrainingError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise TrainingError(f"device: {device!r} is not allowed; auto, cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device: {str(device)!r} is not allowed; there is no GPU that torch can use. auto or cpu")
    return found
