"""scikit-learn's handwritten digits."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambavision.data.source import Source

UCI_DIGITS = "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), UCI repository, CC BY 4.0"


def read_digits() -> tuple[NDArray[Any], NDArray[Any]]:
    """scikit-learn's digits as uint8 (1797, 8, 8) from 0 to 255, and their classes."""
    # Read from its file, because importing scikit-learn takes longer than all the rest.
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return (table[:, :-1].reshape(-1, 8, 8) * 255 // 16).astype(np.uint8), table[:, -1]


def digits_source(root: Path | None) -> Source:
    """The digits as they are; they come with scikit-learn and need no root."""
    images, labels = read_digits()
    classes = tuple(str(digit) for digit in range(10))
    pixels = torch.from_numpy(images)[:, None]
    return Source(classes, (pixels, labels), None, None, f"{UCI_DIGITS}.", "shift")
