"""The data sets by name: `load_data`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mambavision.data.checks import DataError, check_count
from mambavision.data.cifar import cifar10_source, cifar100_source
from mambavision.data.decoding import decode
from mambavision.data.digit_scenes import digit_scenes_source
from mambavision.data.digits import digits_source
from mambavision.data.fashion_mnist import fashion_mnist_source
from mambavision.data.folder import folder_source
from mambavision.data.images import ImageData, Split, channel_statistics, fingerprint, without_equal_channels
from mambavision.data.selection import Selection, select_splits
from mambavision.data.source import Source, check_classes

DATA_SETS: dict[str, str] = {
    "digit_scenes": "made from scikit-learn's digits: 32 px scenes of several; a mark says which counts",
    "digits": "scikit-learn's 1,797 handwritten digits of 8 px; every model solves it, for smoke tests",
    "fashion_mnist": "70,000 grey 28 px images of clothes (Debian package dataset-fashion-mnist or download)",
    "cifar10": "60,000 colour 32 px images in 10 classes (through torchvision)",
    "cifar100": "60,000 colour 32 px images in 100 classes (through torchvision)",
    "folder": "a folder of one's own, one sub-folder of images a class: ROOT/CLASS/*.jpg or ROOT/train/CLASS/*.jpg",
}
"""The names `load_data` takes, each with a line that says what it is."""

SOURCES: dict[str, Callable[[Path | None], Source]] = {
    "digit_scenes": digit_scenes_source,
    "digits": digits_source,
    "fashion_mnist": fashion_mnist_source,
    "cifar10": cifar10_source,
    "cifar100": cifar100_source,
    "folder": folder_source,
}
"""How each of them is found, from the root that was given."""

FOLDER_IMAGE_SIZE = 224


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
    val_images: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Load a data set into memory.

    The same arguments give the same images in the same order everywhere. A smaller `train_images` gives a subset of a
    larger one, both with the classes as even as the data allow.

    Args:
        name: one of `DATA_SETS`.
        root: where the files are. Required for ``folder``; for ``fashion_mnist`` the Debian package's folder or a
            torchvision root, for CIFAR a torchvision root. Without it fashion_mnist looks for the Debian package, then
            it and CIFAR are downloaded by torchvision. The digits sets need none.
        image_size: side in pixels, 1 to 4096; images are resized to it (bilinear, antialiased; files of ``folder`` are
            first cut to their central square). None keeps the size they have, 224 for ``folder``.
        train_images: how many training images to use; None means all, for ``folder`` at most 50,000.
        val_images: how many validation images to use; None means a fifth of the training images, at most 5,000.
        seed: which images are chosen, for training and validation. The test split does not depend on it.

    Raises:
        DataError: unknown name, missing files (says how to get them), unreadable images (named), a limit that the data
            cannot meet, fewer than two classes, or a class with too few images to be in every split.
    """
    if name not in DATA_SETS:
        near = difflib.get_close_matches(str(name), DATA_SETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data: {name!r} is not a data set; allowed are {', '.join(DATA_SETS)}.{hint}")
    check_count("image_size", image_size, 1, 4096)
    check_count("train_images", train_images, 1, 2**31)
    check_count("val_images", val_images, 1, 2**31)
    check_count("seed", seed, 0, 2**31)

    source = SOURCES[name](None if root is None else Path(root).expanduser())
    if len(source.classes) < 2:
        raise DataError(f"data {name}: only one class, {source.classes[0]!r}; two or more are needed")
    files = isinstance(source.train[0], list)
    if files and image_size is None:
        image_size = FOLDER_IMAGE_SIZE
    check_classes(name, source, held_out=(source.val is None) + (source.test is None))
    chosen = select_splits(name, source, train_images=train_images, val_images=val_images, seed=seed)
    train, val, test = (_split(one, image_size) for one in chosen)
    if files:
        train, val, test = without_equal_channels(train, val, test)
    mean, std = channel_statistics(train.images)
    return ImageData(
        name=name,
        train=train,
        val=val,
        test=test,
        classes=source.classes,
        mean=mean,
        std=std,
        fingerprint=fingerprint(train, val, test),
        available={split: one.available for split, one in zip(("train", "val", "test"), chosen, strict=True)},
        licence=source.licence,
        augment=source.augment,
    )


def _split(chosen: Selection, image_size: int | None) -> Split:
    images, labels = chosen.part
    if isinstance(images, list):
        assert image_size is not None
        pixels = decode([images[i] for i in chosen.index], image_size)
    else:
        pixels = _resized(images[torch.from_numpy(chosen.index)], image_size)
    return Split(images=pixels, labels=torch.from_numpy(labels[chosen.index].astype(np.int64)))


def _resized(images: Tensor, image_size: int | None) -> Tensor:
    if image_size is None or images.shape[-2:] == (image_size, image_size) or not len(images):
        return images.contiguous()
    from torchvision.transforms.functional import resize

    # In parts: resizing goes through float32, four times the memory.
    return torch.cat([resize(part, [image_size, image_size], antialias=True) for part in images.split(4096)])
