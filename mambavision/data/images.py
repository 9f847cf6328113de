"""Images in memory: one split, and a data set of three."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images with their classes.

    Attributes:
        images: uint8 (N, C, H, W), 0 to 255; C is 1 for grey images and 3 for colour.
        labels: int64 (N,), an index into `ImageData.classes`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set ready for training.

    Attributes:
        name: the name it was loaded by.
        train: images to train on.
        val: images that rank models; no image of it is in `train`.
        test: images for the final figures alone.
        classes: names of the classes.
        mean: mean of the training images over 255, one a channel.
        std: standard deviation of the same, one a channel, above 0.
        fingerprint: 16 hex digits of the SHA-256 of all images and labels in use; equal means the same data.
        available: images there were for each split before any limit; a split taken out of the training images has all
            it was given, and `train` is without it.
        licence: terms of the images.
        augment: what may be done to a training image and keeps its label: ``"none"``, ``"shift"`` (a few pixels)
            or ``"shift_flip"`` (also left-right mirroring).
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    available: dict[str, int]
    licence: str
    augment: str


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, from counts of the 256 values: exact, and no float copy of the images."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance**0.5, 1 / 255))  # a constant image must not divide by zero
    return tuple(means), tuple(stds)


def fingerprint(*splits: Split) -> str:
    """16 hex digits of the SHA-256 of all images and labels, see `ImageData`."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()[:16]


def without_equal_channels(*splits: Split) -> list[Split]:
    """Files are decoded as RGB; a set whose every image is grey keeps one channel."""
    grey = all(bool((split.images[:, :1] == split.images[:, 1:]).all()) for split in splits)
    return [Split(split.images[:, :1].contiguous(), split.labels) if grey else split for split in splits]
