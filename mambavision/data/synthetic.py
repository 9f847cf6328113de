"""Images made when asked for, to try out a training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mambavision.data.checks import check_count


class SyntheticImages(Dataset[tuple[Tensor, int]]):
    """Images that a model can learn to tell apart, made when asked for; see `create_synthetic_dataset`."""

    def __init__(self, size: int, image_size: int, num_classes: int, channels: int, seed: int) -> None:
        self.size = size
        self.image_size = image_size
        self.classes = tuple(f"class {number}" for number in range(num_classes))
        self.seed = seed
        self.settings = {"image_size": image_size, "channels": channels, "seed": seed}
        # The same for every seed, so that one made for validation has the classes of one made for training.
        generator = torch.Generator().manual_seed(0)
        self.patterns = torch.randn(num_classes, channels, 4, 4, generator=generator)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A float image (channels, image_size, image_size) with mean near 0 and deviation near 1, and its class."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of {self.size} images")
        label = index % len(self.classes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        side = (self.image_size, self.image_size)
        image = F.interpolate(self.patterns[label, None], side, mode="bicubic", align_corners=False)[0]
        shift = torch.randint(-(self.image_size // 8), self.image_size // 8 + 1, (2,), generator=generator)
        contrast = 0.6 + 0.6 * torch.rand((), generator=generator)
        noise = 0.7 * torch.randn(image.shape, generator=generator)
        return contrast * image.roll(shift.tolist(), (1, 2)) + noise, label


def create_synthetic_dataset(
    size: int = 1000, *, image_size: int = 224, num_classes: int = 10, channels: int = 3, seed: int = 0
) -> SyntheticImages:
    """A data set for trying out a training: each class a blurred pattern of colours, shifted, and hidden in noise.

    Args:
        size: how many images, 1 or more; classes take turns.
        image_size: side in pixels, 8 to 4096.
        num_classes: 2 to 10,000.
        channels: 1 or more.
        seed: of shifts, contrast and noise, 0 or more; another seed gives other images of the same classes.

    Returns:
        A data set of (float image (channels, image_size, image_size), class); the same arguments give the same images.

    Raises:
        DataError: a value that is not allowed.
    """
    check_count("size", size, 1, 2**31)
    check_count("image_size", image_size, 8, 4096)
    check_count("num_classes", num_classes, 2, 10_000)
    check_count("channels", channels, 1, 1024)
    check_count("seed", seed, 0, 2**31)
    return SyntheticImages(size, image_size, num_classes, channels, seed)
