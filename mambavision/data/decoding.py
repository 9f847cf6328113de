"""Pixels out of image files, and their cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambavision.data.checks import DataError
from mambavision.files import replacing

log = logging.getLogger(__name__)


def decode(files: Sequence[Path], image_size: int) -> Tensor:
    """Images of files as uint8 (N, 3, image_size, image_size), from the cache if they were decoded before.

    Raises:
        DataError: names the files that cannot be read.
    """
    import platformdirs

    digest = hashlib.sha256(f"square {image_size}".encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    cache = Path(platformdirs.user_cache_dir("mvsearch")) / "images" / f"{digest.hexdigest()[:32]}.npy"
    if cache.is_file():
        return torch.from_numpy(np.load(cache))
    log.info("decoding %s images at %d px", f"{len(files):,}", image_size)
    pixels = np.empty((len(files), 3, image_size, image_size), dtype=np.uint8)
    broken: list[str] = []

    def decode_one(number: int) -> None:
        try:
            pixels[number] = _read_image(files[number], image_size)
        except Exception as error:  # Pillow raises many kinds for files that are no whole image, or far too large
            broken.append(f"{files[number]} ({error})")

    with ThreadPoolExecutor() as threads:
        list(threads.map(decode_one, range(len(files))))
    if broken:
        more = f" and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        raise DataError(f"data folder: cannot read {', '.join(sorted(broken)[:5])}{more}; repair or remove them")
    _save(cache, pixels)
    return torch.from_numpy(pixels)


def _read_image(file: Path, image_size: int) -> NDArray[Any]:
    """The central square of an image file as uint8 (3, image_size, image_size)."""
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize

    with Image.open(file) as image:
        image.draft("RGB", (2 * image_size, 2 * image_size))  # lets JPEG skip detail that resizing drops anyway
        if image.mode[0] in "IF":
            # 16 and 32 bits a pixel; a conversion would clip them to white.
            raise ValueError(f"mode {image.mode}, more than 8 bits a channel; convert it to 8 bits first")
        small = center_crop(resize(image.convert("RGB"), [image_size]), [image_size])
    return np.asarray(small).transpose(2, 0, 1)


def eight_bits(image: Any) -> Any:
    """An image of at most 8 bits a channel: grey ones of 16 bits are scaled, as a conversion would clip them to white.

    Raises:
        ValueError: an image of 32 bits or floats, whose range is not known.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Rounded value / 257, which takes 65,535 to 255.
        return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}, more than 16 bits a channel; convert it to 8 bits first")
    return image


def _save(path: Path, pixels: NDArray[Any]) -> None:
    """Write the cache; without room or rights for it the images are simply decoded again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It can be made again, so it is not worth waiting for the disk.
        with replacing(path, sync=False) as scratch, open(scratch, "wb") as file:
            np.save(file, pixels)
    except OSError as error:
        log.warning("cannot keep the decoded images in %s: %s", path.parent, error)
