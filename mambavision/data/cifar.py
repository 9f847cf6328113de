"""CIFAR-10 and CIFAR-100, through torchvision."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mambavision.data.downloads import download_root, from_torchvision
from mambavision.data.source import Source


def cifar10_source(root: Path | None) -> Source:
    """CIFAR-10 of a torchvision root, or downloaded. Raises DataError if it cannot be had."""
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, root)


def cifar100_source(root: Path | None) -> Source:
    """CIFAR-100 of a torchvision root, or downloaded. Raises DataError if it cannot be had."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, root)


def _cifar(name: str, dataset: Any, root: Path | None) -> Source:
    folder, download = (download_root(), True) if root is None else (root, False)
    hint = "give the root of a torchvision copy" if root is None else "leave out root to download it"
    train, test = (
        from_torchvision(name, functools.partial(dataset, str(folder), part, download=download), hint)
        for part in (True, False)
    )
    parts = [
        (torch.from_numpy(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, dtype=np.int64))
        for part in (train, test)
    ]
    licence = "CIFAR, A. Krizhevsky 2009, University of Toronto; no licence stated, citation asked for."
    return Source(tuple(train.classes), parts[0], None, parts[1], licence, "shift_flip")
