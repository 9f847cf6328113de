"""A folder of one's own images, one sub-folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mambavision.data.checks import DataError
from mambavision.data.source import FoundSplit, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


def folder_source(root: Path | None) -> Source:
    """The files under ROOT/CLASS, or under ROOT/train/CLASS with what ROOT/val and ROOT/test hold.

    A validation split without a test split beside it becomes the test split.

    Raises:
        DataError: no folder, no sub-folders, no images, or a class that has none for training.
    """
    if root is None:
        raise DataError("data folder: root is missing; give the folder that holds the images")
    if not root.is_dir():
        raise DataError(f"data folder: root {str(root)!r} is not a folder")
    top = root / "train" if (root / "train").is_dir() else root
    classes = tuple(sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not classes:
        raise DataError(
            f"data folder: {str(top)!r} has no sub-folders; one for each class is needed: {top}/CLASS/*.jpg"
        )
    train = _image_files(top, classes)
    test = val = None
    if top != root:
        # A folder of images without classes (a challenge's test set, say) is of no use here.
        labelled = {
            name: any(entry.is_dir() for entry in (root / name).iterdir()) if (root / name).is_dir() else False
            for name in ("val", "test")
        }
        val = _image_files(root / "val", classes) if labelled["val"] else None
        test = _image_files(root / "test", classes) if labelled["test"] else None
        if test is None:
            # A published validation split is what people report on; ours comes out of the training images.
            test, val = val, None
    return Source(classes, train, val, test, "Not known: images of your own.", "shift")


def _image_files(folder: Path, classes: tuple[str, ...]) -> FoundSplit:
    """Image files under folder/CLASS in order of name, and their classes."""
    unknown = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."} - set(classes)
    if unknown:
        raise DataError(
            f"data folder: {str(folder)!r} has a class without training images: {', '.join(sorted(unknown))}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"data folder: no images in {str(folder)!r}; endings read are {', '.join(IMAGE_SUFFIXES)}")
    return files, np.array(labels, dtype=np.int64)
