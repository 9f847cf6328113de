"""What is found of a data set before any limit and resizing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mambavision.data.checks import DataError

FoundSplit = tuple[Tensor | list[Path], NDArray[Any]]
"""Images, as an uint8 tensor (N, C, H, W) or files to decode, and their classes, int64 (N,)."""


class Source(NamedTuple):
    """A data set as it is found, before limits and resizing.

    Attributes:
        classes: names of the classes.
        train: training images.
        val: validation images; None: they are taken out of the training images.
        test: test images; None: likewise.
        licence: terms of the images.
        augment: see `ImageData`.
    """

    classes: tuple[str, ...]
    train: FoundSplit
    val: FoundSplit | None
    test: FoundSplit | None
    licence: str
    augment: str


def check_classes(name: str, source: Source, held_out: int) -> None:
    """Each class needs an image to train on and one more for each split that is taken out of the training images.

    Args:
        name: of the data set, for the message.
        source: what was found.
        held_out: how many splits will be taken out of the training images, 0 to 2.

    Raises:
        DataError: names the class with too few images.
    """
    counts = np.bincount(source.train[1], minlength=len(source.classes))
    # Splits taken out leave at least half of a class behind, so n splits need 2**n images.
    need = 2**held_out
    if counts.min() < need:
        few = int(counts.argmin())
        raise DataError(
            f"data {name}: class {source.classes[few]!r} has too few images to train on, {counts[few]}; "
            f"every class needs at least {need}"
        )
