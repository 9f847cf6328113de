"""The images of a study."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mambavision.data import DataError, ImageData, Split, load_data
from mvsearch.config.sections import StudyConfig


def load_study_data(config: StudyConfig, *, test: bool = False) -> ImageData:
    """The data set of a study: always the same images for the same configuration.

    Args:
        config: of the study.
        test: with the test split, which is only for `confirm` and the final figures of an export; without, it is empty.
    """
    proxy = config.proxy
    data = load_data(
        proxy.data,
        root=proxy.root,
        image_size=proxy.image_size,
        train_images=proxy.train_images,
        val_images=proxy.val_images,
    )
    if test:
        return data
    return dataclasses.replace(data, test=Split(data.test.images[:0].clone(), data.test.labels[:0].clone()))


def data_shape(config: StudyConfig) -> tuple[int, int, str | None]:
    """Classes and channels of a study's data, and a notice where they had to be assumed.

    An image folder is not decoded for this: its classes are counted, and three channels assumed.
    """
    if config.proxy.data != "folder":
        try:
            data = load_study_data(config)
        except DataError as error:
            return 1000, 3, f"Costs assume 1,000 classes and 3 channels, because the data is not here: {error}"
        return len(data.classes), data.train.images.shape[1], None
    root = Path(config.proxy.root or "").expanduser()
    root = root / "train" if (root / "train").is_dir() else root
    classes = sum(path.is_dir() for path in root.iterdir()) if root.is_dir() else 0
    if not classes:
        return 1000, 3, f"Costs assume 1,000 classes, because {root} holds no folders of images."
    return classes, 3, None
