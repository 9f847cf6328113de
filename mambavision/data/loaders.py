"""Loaders of image files for a `Trainer`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mambavision.data.checks import DataError, check_count
from mambavision.data.decoding import eight_bits
from mambavision.data.folder import folder_source
from mambavision.data.randaugment import RANDAUGMENT, check_randaugment, keep_a_bit
from mambavision.data.selection import held_out
from mambavision.data.source import check_classes


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their classes, decoded and transformed when asked for.

    Args:
        files: images.
        labels: class of each, an index into `classes`.
        classes: names of the classes.
        transform: PIL image to tensor.
        mode: of the PIL image, ``"RGB"`` or ``"L"``.
        settings: plain values that describe files and transform; a `Trainer` goes on only where they are the same.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        classes: tuple[str, ...],
        transform: Callable[[Any], Tensor],
        mode: str = "RGB",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.files = files
        self.labels = labels
        self.classes = classes
        self.transform = transform
        self.mode = mode
        self.settings = dict(settings or {})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image as the transform gives it, and its class.

        Raises:
            DataError: names a file that cannot be read.
        """
        from PIL import Image

        try:
            with Image.open(self.files[index]) as file:
                image = eight_bits(file).convert(self.mode)
        except Exception as error:  # Pillow raises many kinds for files that are no whole image, or far too large
            raise DataError(f"data: cannot read {self.files[index]} ({error}); repair or remove it") from None
        return self.transform(image), self.labels[index]


def create_image_loaders(
    root: str | Path,
    entry: str | Mapping[str, Any],
    *,
    batch_size: int = 64,
    image_size: int | None = None,
    randaugment: str | None = RANDAUGMENT,
    workers: int = 0,
    seed: int = 0,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of a folder of images for training a model of the library further.

    Training images are cut at random, mirrored, and changed by RandAugment; validation images are resized and cut in
    the middle. Both are normalised as the entry says.

    Args:
        root: ``ROOT/train/CLASS/*.jpg`` and ``ROOT/val/CLASS/*.jpg`` (or ``test``), or ``ROOT/CLASS/*.jpg``: then a
            fifth of the images, with even classes, is kept for validation.
        entry: name of a model in the library, or its configuration (`load_entry_config`).
        batch_size: images a batch, 2 or more; made even and no larger than the training set.
        image_size: side in pixels, 1 to 4096; None takes the entry's.
        randaugment: a RandAugment of timm, e.g. ``"rand-m9-mstd0.5-inc1"``; None for none.
        workers: processes that decode images; 0 decodes in this one.
        seed: which images are kept for validation.

    Returns:
        The training loader (shuffled, without an incomplete batch) and the validation loader. The names of the classes
        are ``loader.dataset.classes``.

    Raises:
        DataError: a folder without usable images, or a value that is not allowed.
        LibraryError: an unknown entry.
    """
    from timm.data import create_transform

    from mambavision.library import load_entry_config

    check_count("batch_size", batch_size, 2, 2**20)
    check_count("image_size", image_size, 1, 4096)
    check_count("workers", workers, 0, 1024)
    config = load_entry_config(entry) if isinstance(entry, str) else entry
    channels = config["in_chans"]
    if channels not in (1, 3):
        raise DataError(f"data folder: the model takes {channels} channels; image files have 1 or 3")
    train, val, classes = _train_and_val(Path(root).expanduser(), seed)
    size = list(config["input_size"][1:]) if image_size is None else [image_size, image_size]
    prepared = {
        "input_size": (channels, *size),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config.get("interpolation", "bilinear"),
    }
    if randaugment is not None:
        check_randaugment(randaugment)
    training = create_transform(**prepared, is_training=True, auto_augment=randaugment)
    keep_a_bit(training)
    fixed = create_transform(**prepared, crop_pct=config.get("crop_pct"), crop_mode=config.get("crop_mode"))
    mode = "L" if channels == 1 else "RGB"
    described = {
        "files": _names_digest(Path(root).expanduser(), train[0]),
        **prepared,
        "randaugment": randaugment,
    }
    even = min(batch_size, len(train[0])) // 2 * 2
    if not even:
        raise DataError(f"data folder: {len(train[0])} training image in {root}; two or more are needed")
    common: dict[str, Any] = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
    return (
        DataLoader(
            ImageFiles(*train, classes, training, mode, described), even, shuffle=True, drop_last=True, **common
        ),
        DataLoader(ImageFiles(*val, classes, fixed, mode), batch_size, **common),
    )


def _names_digest(root: Path, files: Sequence[Path]) -> str:
    """Tells sets of files apart by their names; their contents are not read."""
    names = "\n".join(file.relative_to(root).as_posix() for file in files)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:12]


_Files = tuple[list[Path], list[int]]


def _train_and_val(root: Path, seed: int) -> tuple[_Files, _Files, tuple[str, ...]]:
    source = folder_source(root)
    files, labels = source.train
    assert isinstance(files, list)
    if len(source.classes) < 2:
        raise DataError(f"data folder: only one class, {source.classes[0]!r}, in {root}; two or more are needed")
    given = source.val or source.test
    check_classes("folder", source, held_out=given is None)
    if given is not None:
        assert isinstance(given[0], list)
        return (files, labels.tolist()), (given[0], given[1].tolist()), source.classes
    everything = np.arange(len(labels))
    chosen = held_out(labels, everything, max(len(labels) // 5, len(source.classes)), seed)
    rest = np.setdiff1d(everything, chosen)
    train, val = (([files[i] for i in index], labels[index].tolist()) for index in (rest, np.sort(chosen)))
    return train, val, source.classes
