"""What a loader gives at a time."""

from __future__ import annotations

from typing import Any

from timm.data import Mixup
from torch import Tensor, nn

from mambavision.training.errors import TrainingError


def checked_batch(batch: Any, loader: str, model: nn.Module, mixup: Mixup | None) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch, if the model can take them.

    Args:
        batch: what a loader gave.
        loader: its name in messages.
        model: what shall take the images; its ``in_chans`` and ``num_classes`` are looked at where it has them.
        mixup: what shall mix them, None for nothing.

    Returns:
        Float images (B, C, H, W) and int64 labels (B,).

    Raises:
        TrainingError: a batch of another form; names the loader and what is allowed.
    """
    if not (isinstance(batch, (list, tuple)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise TrainingError(f"{loader}: a batch is a {type(batch).__name__}; allowed is a pair of images and labels")
    images, labels = batch
    shape = tuple(images.shape)
    if images.ndim != 4 or not images.is_floating_point():
        raise TrainingError(
            f"{loader}: images are {str(images.dtype).removeprefix('torch.')} {shape}; allowed are floats (B, C, H, W)"
        )
    if not shape[0]:
        raise TrainingError(f"{loader}: a batch holds no images {shape}; allowed is one or more")
    channels = getattr(model, "in_chans", None)
    if isinstance(channels, int) and shape[1] != channels:
        raise TrainingError(f"{loader}: images have {shape[1]} channels {shape}; the model takes {channels}")
    if labels.shape != shape[:1] or labels.is_floating_point():
        raise TrainingError(
            f"{loader}: labels are {str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}; allowed is one "
            f"whole number an image, ({shape[0]},)"
        )
    classes = getattr(model, "num_classes", None)
    # Labels on a GPU are not looked at, because that would wait for it.
    if isinstance(classes, int) and labels.device.type == "cpu" and len(labels):
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise TrainingError(
                f"{loader}: label {wrong} is not allowed; the model has {classes} classes, 0 to {classes - 1}"
            )
    if mixup is not None and shape[0] % 2:
        raise TrainingError(
            f"{loader}: a batch of {shape[0]} images is not allowed with mixup; an even number (drop_last=True leaves "
            "out an incomplete batch)"
        )
    return images, labels.long()
