"""Fashion-MNIST, from a Debian package or a torchvision root."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambavision.data.checks import DataError
from mambavision.data.downloads import download_root, from_torchvision
from mambavision.data.source import FoundSplit, Source

FASHION_MNIST_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts its four files."""


def fashion_mnist_source(root: Path | None) -> Source:
    """The four files of a root; without one those of the Debian package, or else downloaded.

    Raises:
        DataError: they are not there, cannot be read, or do not fit each other.
    """
    folders = [FASHION_MNIST_PACKAGE, download_root()] if root is None else [root]
    found = next((found for folder in folders if (found := _idx_folder(folder)) is not None), None)
    if found is None and root is not None:
        raise DataError(
            f"data fashion_mnist: no train-images-idx3-ubyte(.gz) and its three fellows in {root}; give the root of "
            "the Debian package (apt-get install dataset-fashion-mnist) or of torchvision"
        )
    if found is None:
        from torchvision.datasets import FashionMNIST

        hint = "install it with: apt-get install dataset-fashion-mnist; or give the root of a copy"
        from_torchvision("fashion_mnist", lambda: FashionMNIST(str(download_root()), download=True), hint)
        found = _idx_folder(download_root())
        assert found is not None
    parts: list[FoundSplit] = []
    for part in ("train", "t10k"):
        images = _read_idx(found / f"{part}-images-idx3-ubyte", 16)
        labels = _read_idx(found / f"{part}-labels-idx1-ubyte", 8).astype(np.int64)
        if images.size != 784 * len(labels):
            raise DataError(f"data fashion_mnist: {found / part}-*: {len(labels):,} labels do not fit the images")
        parts.append((torch.from_numpy(images.reshape(-1, 1, 28, 28)), labels))
    classes = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    licence = "Fashion-MNIST, (c) 2017 Zalando SE, MIT licence."
    return Source(classes, parts[0], None, parts[1], licence, "shift_flip")


def _idx_folder(folder: Path) -> Path | None:
    """Where the four files are: in the folder itself or where torchvision puts them."""
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for place in (folder, folder / "FashionMNIST" / "raw"):
        if all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in names):
            return place
    return None


def _read_idx(path: Path, header: int) -> NDArray[Any]:
    """The bytes of an IDX file (http://yann.lecun.com/exdb/mnist) after its header, plain or gzipped."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"data fashion_mnist: cannot read {path}(.gz): {error}") from None
    return np.frombuffer(bytearray(data), dtype=np.uint8, offset=header)
