"""Small folders of images that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cat": (220, 60, 60), "dog": (60, 200, 60), "owl": (60, 60, 220)}


def draw(root: Path, images: int = 8, *, grey: bool = False, classes: dict[str, tuple[int, ...]] = COLOURS) -> Path:
    """ROOT/CLASS/N.png: noise of 20 × 24 px with a square in the class's colour."""
    random = np.random.default_rng(0)
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(0, 90, (20, 24, 3))
            top, left = random.integers(0, 10, 2)
            pixels[top : top + 8, left : left + 8] += np.array(colour) // 2
            image = Image.fromarray(pixels.astype(np.uint8))
            (image.convert("L") if grey else image).save(root / name / f"{number}.png")
    return root
