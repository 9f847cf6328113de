"""Which images of a set are chosen: seeded orders whose classes are even, and the three splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambavision.data.checks import check_limit
from mambavision.data.source import FoundSplit, Source

FOLDER_TRAIN_IMAGES = 50_000
FOLDER_TEST_IMAGES = 10_000
VAL_IMAGES = 5_000


@dataclass(frozen=True)
class Selection:
    """Images of one split, before they are decoded or resized.

    Attributes:
        part: what they are taken from.
        index: int64 (n,), their places in it, in the order of use.
        available: images there were for the split before any limit.
    """

    part: FoundSplit
    index: NDArray[Any]
    available: int


def select_splits(
    name: str, source: Source, *, train_images: int | None, val_images: int | None, seed: int
) -> tuple[Selection, Selection, Selection]:
    """Choose the images of the training, the validation and the test split; arguments as for `load_data`.

    Raises:
        DataError: a limit that the data cannot meet.
    """
    train_labels = source.train[1]
    files = isinstance(source.train[0], list)
    rest = np.arange(len(train_labels))
    if source.test is None:
        count = min(len(rest) // 5, FOLDER_TEST_IMAGES)
        test_index = held_out(train_labels, rest, count, 0)
        test = Selection(source.train, test_index, len(test_index))
        rest = np.setdiff1d(rest, test_index)
    else:
        test_available = len(source.test[1])
        count = min(test_available, FOLDER_TEST_IMAGES) if files else test_available
        test = Selection(source.test, even_order(source.test[1], 0)[:count], test_available)
    if source.val is None:
        most = int((np.bincount(train_labels[rest]) // 2).sum())
        count = min(max(len(rest) // 5, len(source.classes)), VAL_IMAGES, most) if val_images is None else val_images
        check_limit(name, "val_images", count, most, "half of each class is kept for training")
        val = Selection(source.train, held_out(train_labels, rest, count, seed), count)
        rest = np.setdiff1d(rest, val.index)
    else:
        val_available = len(source.val[1])
        count = min(val_available, VAL_IMAGES) if val_images is None else val_images
        check_limit(name, "val_images", count, val_available, "there are no more")
        val = Selection(source.val, even_order(source.val[1], seed)[:count], val_available)
    count = (min(len(rest), FOLDER_TRAIN_IMAGES) if files else len(rest)) if train_images is None else train_images
    check_limit(name, "train_images", count, len(rest), f"{len(val.index):,} more are for validation")
    train = Selection(source.train, rest[even_order(train_labels[rest], seed)[:count]], len(rest))
    return train, val, test


def even_order(labels: NDArray[Any], seed: int) -> NDArray[Any]:
    """A seeded order of the images whose every beginning has the classes as even as they can be.

    Each class is shuffled, then the classes are dealt in turns; one that runs out is passed over. Beginnings are
    therefore nested.
    """
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    turn = np.concatenate([np.arange(count) for count in counts]) if len(labels) else by_class
    return by_class[np.argsort(turn, kind="stable")]


def held_out(labels: NDArray[Any], candidates: NDArray[Any], count: int, seed: int) -> NDArray[Any]:
    """Choose `count` of the candidates with even classes, at most half of any class."""
    inside = labels[candidates]
    order = even_order(inside, seed)
    used = np.zeros(int(inside.max()) + 1, dtype=np.int64)
    half = np.bincount(inside) // 2
    chosen: list[int] = []
    for index in order:
        if len(chosen) == count:
            break
        if used[inside[index]] < half[inside[index]]:
            used[inside[index]] += 1
            chosen.append(int(candidates[index]))
    return np.array(chosen, dtype=np.int64)
