"""Settings of a training, which a checkpoint holds so that only the same training goes on from it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def training_settings(
    *,
    train_loader: Any,
    val_loader: Any,
    criterion: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    mixup: Any,
    **plain: Any,
) -> dict[str, Any]:
    """Names to plain values (numbers, texts, lists of them, None) of everything that decides how a training goes.

    Args:
        train_loader: how it makes batches, and what its data set tells of itself.
        val_loader: whether there is one, and of how many images.
        criterion: its name and plain attributes.
        optimizer: its options, before the first update.
        scheduler: likewise, None for none.
        mixup: likewise.
        **plain: settings that are plain values already.
    """
    return {
        **plain,
        **_told_loader(train_loader),
        "batches": length(train_loader),
        "images": length(getattr(train_loader, "dataset", None)),
        "val_loader": None if val_loader is None else "given",
        "val_images": length(getattr(val_loader, "dataset", None)),
        **_told_criterion(criterion),
        **_told("optimizer", optimizer, optimizer.defaults),
        **_told_groups(optimizer),
        **_told("scheduler", scheduler, {} if scheduler is None else scheduler.state_dict()),
        **_told("mixup", mixup, {} if mixup is None else vars(mixup)),
    }


def length(thing: Any) -> int | None:
    """Its `len`; None where it has none."""
    try:
        return len(thing)
    except TypeError:
        return None


def _told(name: str, thing: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Class and plain settings of an object, as they are before training."""
    return {name: None if thing is None else type(thing).__name__} | _plain(name, state)


def _plain(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, texts and lists of them, as ``name.field``."""
    told: dict[str, Any] = {}
    for field, value in state.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if all(one is None or isinstance(one, (bool, int, float, str)) for one in values):
            told[f"{name}.{field}"] = list(value) if isinstance(value, tuple) else value
    return told


def _told_loader(loader: Any) -> dict[str, Any]:
    """How a loader makes batches, and what its data set tells of itself in ``settings``."""
    batches = getattr(loader, "batch_sampler", None)
    # One's own batch sampler knows what the loader then does not.
    sampler = getattr(batches, "sampler", getattr(loader, "sampler", None))
    told = {field: getattr(batches, field, getattr(loader, field, None)) for field in ("batch_size", "drop_last")}
    for field, part in (("sampler", sampler), ("batch_sampler", batches)):
        told[field] = None if part is None else type(part).__name__
    told = _plain("train_loader", told)
    settings = getattr(getattr(loader, "dataset", None), "settings", None)
    return told | (_plain("train_data", settings) if isinstance(settings, Mapping) else {})


def _told_criterion(criterion: Any) -> dict[str, Any]:
    """Name, plain attributes and buffers (weights of the classes) of a criterion."""
    if isinstance(criterion, functools.partial):
        return _told_criterion(criterion.func) | _plain("criterion", criterion.keywords)
    if inspect.isroutine(criterion):
        return {"criterion": criterion.__name__}
    try:
        given = list(inspect.signature(type(criterion)).parameters.values())
    except (TypeError, ValueError):  # classes written in C
        given = []
    options = {one.name for one in given if one.default is not one.empty} | set(getattr(criterion, "__constants__", ()))
    state = {
        field: value
        for field, value in getattr(criterion, "__dict__", {}).items()
        # Whole numbers that are no option of its constructor are counters more often than settings.
        if field[0] != "_" and field != "training" and (type(value) is not int or field in options)
    }
    if isinstance(criterion, nn.Module):
        state |= {field: value.flatten().tolist() for field, value in criterion.named_buffers(recurse=False)}
    return _told("criterion", criterion, state)


def _told_groups(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Options of each group of parameters, with the learning rate that a schedule begins from."""
    told: dict[str, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        options = {field: value for field, value in group.items() if field not in ("params", "initial_lr")}
        options |= {"lr": group.get("initial_lr", group.get("lr")), "params": len(group["params"])}
        told |= _plain(f"optimizer.param_groups[{number}]", options)
    return told
