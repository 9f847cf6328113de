"""The proxy: one short training of one layout with one seed.

Constant learning rate after a linear warm-up and EMA weights, so that a training may stop and go on at any epoch and
stay comparable (a cosine schedule cut short is not). Common random numbers: the order of the data and the augmentation
depend on the seed and the epoch alone, and a module's initialisation on the seed and its place, so layouts are compared
on the same draws wherever they are alike.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from timm.utils import ModelEmaV3
from torch import Tensor

from mambavision.data import ImageData
from mambavision.layout import HybridLayout
from mambavision.model import MambaVision
from mambavision.training import TrainingDiverged, autocast_for, train_step
from mvsearch.config.seeds import epoch_seed
from mvsearch.evaluate.memory import peak_memory, reset_peak_memory
from mvsearch.evaluate.optimizer import search_optimizer

EVAL_BATCH = 256


@dataclass(frozen=True)
class EpochDone:
    """Progress: an epoch has ended. `train_loss` is its mean over the batches, nats."""

    epoch: int
    epochs: int
    train_loss: float


@dataclass(frozen=True)
class ProxyResult:
    """What a training gives back.

    Attributes:
        values: ``nll`` (nats) and ``top1`` (0 to 1) of the EMA weights on the validation split, ``images_seen``,
            ``train_seconds`` (steps only, without waiting for the device), ``val_images``, ``peak_memory`` (bytes, see
            `mvsearch.evaluate.memory`), ``curve`` (the training loss of each epoch); where the data holds the test
            split also ``test_nll``, ``test_top1`` and ``test_images``.
        weights: the EMA weights as safetensors.
        checkpoint: everything needed to go on from here; None unless asked for.
    """

    values: dict[str, Any]
    weights: bytes
    checkpoint: bytes | None


class DeviceData:
    """A data set on one device: uint8 images and labels of the training and validation splits.

    Args:
        data: the data set.
        device: where to hold it.
        test: hold the test split too; without it nothing can look at it.
    """

    def __init__(self, data: ImageData, device: torch.device, *, test: bool = False) -> None:
        self.train_images = data.train.images.to(device)
        self.train_labels = data.train.labels.to(device)
        self.val_images = data.val.images.to(device)
        self.val_labels = data.val.labels.to(device)
        self.test = (data.test.images.to(device), data.test.labels.to(device)) if test else None
        self.classes = len(data.classes)
        self.channels = self.train_images.shape[1]
        self.augment = data.augment
        self.mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, -1, 1, 1)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to float32 with mean 0 and standard deviation 1."""
        return (images_BCHW.float() / 255 - self.mean) / self.std


def augment(images_BCHW: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Shift (and flip) each image of a batch on its device.

    Args:
        images_BCHW: uint8 images (B, C, H, W).
        kind: ``"none"``, ``"shift"`` (up to an eighth of the side, zero padded) or ``"shift_flip"`` (also mirrored).
        generator: CPU generator, so that the draws are the same on every device.
    """
    if kind == "none":
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    pad = max(1, height // 8)
    device = images_BCHW.device
    offsets = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator).to(device)
    rows = offsets[0, :, None] + torch.arange(height, device=device)
    columns = offsets[1, :, None] + torch.arange(width, device=device)
    if kind == "shift_flip":
        mirrored = (torch.rand(batch, generator=generator) < 0.5).to(device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded_BHWC = F.pad(images_BCHW, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    index = torch.arange(batch, device=device)[:, None, None]
    return padded_BHWC[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def train(
    layout: HybridLayout,
    data: DeviceData,
    settings: Any,
    *,
    seed: int,
    to_epoch: int,
    from_epoch: int = 0,
    checkpoint: bytes | None = None,
    keep_checkpoint: bool = False,
    parts: int = 1,
    step_gate: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[EpochDone | ProxyResult]:
    """Train a layout, yielding `EpochDone` after each epoch and at last a `ProxyResult`.

    Args:
        layout: what to train, as the proxy sees it.
        data: the data set on the device to train on.
        settings: the ``proxy`` section of the configuration.
        seed: of initialisation, data order, augmentation and drop path.
        to_epoch: epochs done at the end.
        from_epoch: epochs already done; `checkpoint` must be theirs.
        checkpoint: what a training to `from_epoch` gave back.
        keep_checkpoint: whether to return one.
        parts: passes that a batch is cut into; their gradients add up to one step of the whole batch, with less memory.
            Only batch normalisation sees the difference.
        step_gate: held around every step; see `DeviceGate.read`.

    Raises:
        TrainingDiverged: if the loss becomes NaN or infinite, naming the epoch and the learning rate.
        ValueError: if `from_epoch` is not 0 and there is no checkpoint.
    """
    if from_epoch and checkpoint is None:
        raise ValueError(f"from_epoch: {from_epoch} needs the checkpoint of a training to that epoch")
    device = data.train_images.device
    autocast = autocast_for(settings.dtype, device)
    kind = data.augment if settings.augment == "auto" else settings.augment
    # The generators of the process are put back afterwards: a worker in the driver's process must not disturb it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = MambaVision(layout, num_classes=data.classes, in_chans=data.channels, drop_path_rate=settings.drop_path)
        model.reset_parameters(seed)
        model = model.to(device)
        optimizer = search_optimizer(model, settings)
        ema = ModelEmaV3(model, decay=settings.ema, use_warmup=True)
        step = 0
        if checkpoint is not None:
            state = torch.load(io.BytesIO(checkpoint), map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            ema.module.load_state_dict(state["ema"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        images = len(data.train_images)
        steps_per_epoch = max(1, images // settings.batch_size)
        warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
        reset_peak_memory(device)
        curve: list[dict[str, float]] = []
        train_seconds = 0.0
        for epoch in range(from_epoch + 1, to_epoch + 1):
            torch.manual_seed(epoch_seed(seed, epoch))  # drop path draws from the process's generator
            generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
            order = torch.randperm(images, generator=generator).to(device)
            total = torch.zeros((), device=device)
            model.train()
            for batch in range(steps_per_epoch):
                with step_gate():
                    began = time.perf_counter()
                    step += 1
                    rate = settings.learning_rate * min(1.0, step / max(1, warmup_steps))
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    index = order[batch * settings.batch_size : (batch + 1) * settings.batch_size]
                    inputs = data.normalise(augment(data.train_images[index], kind, generator))
                    cut = zip(inputs.chunk(parts), data.train_labels[index].chunk(parts), strict=True)
                    total += train_step(
                        model,
                        [(part, labels, len(part) / len(inputs)) for part, labels in cut],
                        F.cross_entropy,
                        optimizer,
                        autocast=autocast,
                        clip_norm=settings.clip_norm,
                        ema=ema,
                        step=step,
                    )
                    train_seconds += time.perf_counter() - began
            mean_loss = total.item() / steps_per_epoch
            if not math.isfinite(mean_loss):
                raise TrainingDiverged(f"loss became {mean_loss} in epoch {epoch} (learning rate {rate:g})")
            curve.append({"epoch": epoch, "train_loss": mean_loss})
            yield EpochDone(epoch, to_epoch, mean_loss)
        nll, top1 = evaluate(ema.module, data.normalise, data.val_images, data.val_labels, autocast, step_gate, parts)
        if not math.isfinite(nll):
            raise TrainingDiverged(f"validation loss is {nll} after epoch {to_epoch}")
        on_test: dict[str, Any] = {}
        if data.test is not None:
            test_nll, test_top1 = evaluate(ema.module, data.normalise, *data.test, autocast, step_gate)
            on_test = {"test_nll": test_nll, "test_top1": test_top1, "test_images": len(data.test[1])}
        kept = None
        if keep_checkpoint:
            buffer = io.BytesIO()
            state = {
                "model": model.state_dict(),
                "ema": ema.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            torch.save(state, buffer)
            kept = buffer.getvalue()
        weights = save({name: value.detach().cpu().contiguous() for name, value in ema.module.state_dict().items()})
    yield ProxyResult(
        values={
            "nll": nll,
            "top1": top1,
            "val_images": len(data.val_labels),
            "images_seen": (to_epoch - from_epoch) * steps_per_epoch * min(settings.batch_size, images),
            "train_seconds": train_seconds,
            "peak_memory": peak_memory(device),
            "curve": curve,
            **on_test,
        },
        weights=weights,
        checkpoint=kept,
    )


def used_dtype(dtype: str, device: torch.device) -> str:
    """The precision that a setting, ``"auto"`` among them, means on a device."""
    with autocast_for(dtype, device)():
        lowered = torch.is_autocast_enabled(device.type)
        used = torch.get_autocast_dtype(device.type) if lowered else torch.float32
    return str(used).removeprefix("torch.")


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    step_gate: Callable[[], AbstractContextManager[Any]] = nullcontext,
    parts: int = 1,
) -> tuple[float, float]:
    """Mean NLL (nats) and top-1 (0 to 1) of a model on uint8 images, in batches of `EVAL_BATCH` over `parts`."""
    batch = EVAL_BATCH // parts
    model.eval()
    nll = 0.0
    correct = 0
    for start in range(0, len(images), batch):
        with step_gate():
            batch_labels = labels[start : start + batch]
            with autocast():
                logits = model(normalise(images[start : start + batch]))
            nll += F.cross_entropy(logits.float(), batch_labels, reduction="sum").item()
            correct += int((logits.argmax(1) == batch_labels).sum())
    return nll / len(images), correct / len(images)
