"""Scenes of several digits, of which a mark says the one that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambavision.data.digits import UCI_DIGITS, read_digits
from mambavision.data.selection import even_order
from mambavision.data.source import FoundSplit, Source

SCENES = {"train": 10_000, "val": 2_000, "test": 2_000}
SCENE_SIZE = 32
SCENE_GRID = 2
SCENE_DIGIT = 14
SCENE_MARK = 2
SCENE_NOISE = 20
SCENE_FAINTEST = 0.8


def digit_scenes_source(root: Path | None) -> Source:
    """Scenes of three splits from disjoint digits; see `draw_scenes` for what is in one."""
    digits, classes = read_digits()
    order = even_order(classes, 0)
    parts: list[FoundSplit] = []
    for number, (chosen, count) in enumerate(zip(np.split(order, [1200, 1500]), SCENES.values(), strict=True)):
        images, labels = draw_scenes(digits[chosen], classes[chosen], count, seed=number)
        parts.append((torch.from_numpy(images)[:, None], labels))
    names = tuple(str(digit) for digit in range(10))
    return Source(names, parts[0], parts[1], parts[2], f"Made from {UCI_DIGITS}.", "none")


def draw_scenes(
    digits: NDArray[Any], classes: NDArray[Any], count: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw scenes: four digits in a square, one marked; the label is the one after it in reading order.

    After the last digit comes the first. So a layout has to read digits, find the bar at the left edge of one cell, and
    relate two places whose offset depends on where the bar is.

    Args:
        digits: uint8 (S, 8, 8), what the scenes are made of.
        classes: int64 (S,), the digits' values, every value among them.
        count: how many scenes.
        seed: of the generator.

    Returns:
        uint8 (count, SCENE_SIZE, SCENE_SIZE) images and int64 (count,) labels, which go round 0 to 9.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    cells = SCENE_GRID**2
    cell = SCENE_SIZE // SCENE_GRID
    scene = np.arange(count)
    labels = scene % 10
    marked = generator.integers(0, cells, count)
    answer = (marked + 1) % cells
    source = generator.integers(0, len(digits), (count, cells))
    for value in range(10):
        rows = np.flatnonzero(labels == value)
        source[rows, answer[rows]] = generator.choice(np.flatnonzero(classes == value), len(rows))
    brightness = generator.uniform(SCENE_FAINTEST, 1, (count, cells))
    images = generator.integers(0, SCENE_NOISE + 1, (count, SCENE_SIZE, SCENE_SIZE)).astype(np.uint8)
    large = enlarge(digits, SCENE_DIGIT)
    shift = generator.integers(0, cell - SCENE_DIGIT + 1, (2, count, cells))
    for number in range(cells):
        top = number // SCENE_GRID * cell + shift[0, :, number]
        left = number % SCENE_GRID * cell + shift[1, :, number]
        rows = top[:, None, None] + np.arange(SCENE_DIGIT)[:, None]
        columns = left[:, None, None] + np.arange(SCENE_DIGIT)
        place = (scene[:, None, None], rows, columns)
        drawn = (large[source[:, number]] * brightness[:, number, None, None]).astype(np.uint8)
        images[place] = np.maximum(images[place], drawn)
    rows = marked[:, None, None] // SCENE_GRID * cell + np.arange(cell)[:, None]
    columns = marked[:, None, None] % SCENE_GRID * cell + np.arange(SCENE_MARK)
    images[scene[:, None, None], rows, columns] = 255
    return images, labels


def enlarge(images: NDArray[Any], side: int) -> NDArray[Any]:
    """Bilinear enlargement of square uint8 images (N, H, H) to (N, side, side).

    In whole numbers, because resizing in floats (or by a library) may round otherwise on another processor.
    """
    small = images.shape[1]
    # Pixel i has its centre at (i + 1/2) * small / side - 1/2 in the small image; all of it times 2 * side.
    centre = (2 * np.arange(side) + 1) * small - side
    below, fraction = np.divmod(centre, 2 * side)
    weights = np.zeros((side, small), dtype=np.int64)
    np.add.at(weights, (np.arange(side), np.clip(below, 0, small - 1)), 2 * side - fraction)
    np.add.at(weights, (np.arange(side), np.clip(below + 1, 0, small - 1)), fraction)
    return (weights @ images.astype(np.int64) @ weights.T // (2 * side) ** 2).astype(np.uint8)
