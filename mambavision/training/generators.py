"""Random numbers of a training: they depend on the seed, the epoch and the update alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_update(seed: int, epoch: int, update: int, loader: Any = None) -> None:
    """Seed the process's generators, and a loader's own, from where the training stands.

    Args:
        seed: of the training.
        epoch: counted from 1.
        update: of the epoch, counted from 1; 0 before the first.
        loader: whose own generators are seeded too, and which is told of the epoch; None for none.
    """
    words = [int(word) for word in np.random.SeedSequence((seed, epoch, update)).generate_state(3)]
    torch.manual_seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 (timm's Mixup and many transforms draw from this one)
    random.seed(words[2])
    if loader is None:
        return
    for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(words[0])
        if callable(set_epoch := getattr(owner, "set_epoch", None)):
            set_epoch(epoch)


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Put the process's generators back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
