"""Training a layout of a study anew and longer, for an entry worth using: `mvsearch export --retrain`.

The search's recipe with a cosine schedule in place of the constant rate, through `mambavision.Trainer`: it goes on
where it was stopped. The weights are those of the best epoch on the validation split; the test split is looked at once,
when the training is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from mambavision.data import ImageData
from mambavision.files import write_atomic
from mambavision.layout import HybridLayout
from mambavision.model import MambaVision
from mambavision.training import BEST, Trainer, autocast_for
from mvsearch.config.sections import StudyConfig
from mvsearch.config.seeds import seeds_for
from mvsearch.evaluate.optimizer import search_optimizer
from mvsearch.evaluate.proxy import EVAL_BATCH, DeviceData, augment, evaluate

RESULT = "result.json"


@dataclass(frozen=True)
class Retrained:
    """A finished training.

    Attributes:
        folder: where its files are: best.safetensors, log.csv, checkpoint.pt, result.json.
        epochs: trained.
        seed: of the training.
        best_epoch: whose weights are kept, chosen on the validation split.
        val_top1: 0 to 1, of those weights.
        val_nll: nats.
        val_images: of the split.
        test_top1: 0 to 1, of those weights, measured once.
        test_nll: nats.
        test_images: of the split.
    """

    folder: Path
    epochs: int
    seed: int
    best_epoch: int
    val_top1: float
    val_nll: float
    val_images: int
    test_top1: float
    test_nll: float
    test_images: int

    def weights(self) -> bytes:
        """The weights, safetensors."""
        return (self.folder / BEST).read_bytes()


class DeviceLoader:
    """Batches of a split that lies on one device: shuffled and augmented for training, in order for validation.

    Args:
        data: the data set.
        batch_size: images a batch; a last smaller batch is left out in training, as in the search.
        kind: augmentation, see `proxy.augment`; None: the validation split as it is.
    """

    def __init__(self, data: DeviceData, batch_size: int, kind: str | None) -> None:
        self.data = data
        self.kind = kind
        self.batch_size = batch_size
        self.images, self.labels = (
            (data.val_images, data.val_labels) if kind is None else (data.train_images, data.train_labels)
        )
        self.dataset = self.labels  # the trainer asks how many images there are

    def __len__(self) -> int:
        count = len(self.labels)
        return max(1, count // self.batch_size if self.kind is not None else -(-count // self.batch_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # All draws come from torch's own generator, which the trainer seeds before each of them.
        count, training = len(self.labels), self.kind is not None
        order = (torch.randperm(count) if training else torch.arange(count)).to(self.labels.device)
        for batch in range(len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = self.images[index]
            if self.kind is not None:
                images = augment(images, self.kind, torch.default_generator)
            yield self.data.normalise(images), self.labels[index]


def retrain(layout: HybridLayout, config: StudyConfig, data: ImageData, epochs: int, folder: Path) -> Retrained:
    """Train a layout on a study's training images, or go on with it.

    Args:
        layout: as deployed; where the proxy has a stem stride of its own, it is trained with that, as in the search.
        config: of the study.
        data: of the study, with its test split.
        epochs: 1 or more.
        folder: for this layout and number of epochs; made if absent. What is finished in it is not done again.

    Raises:
        TrainingError: a checkpoint in the folder that is of another training.
        TrainingDiverged: the loss is no longer a number.
        KeyboardInterrupt, SystemExit: stopped; the same call goes on.
    """
    result = folder / RESULT
    if result.is_file():
        return Retrained(folder=folder, **json.loads(result.read_text(encoding="utf-8")))
    proxy = config.proxy
    (seed,) = seeds_for("retrain", config.search.seed, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device = DeviceData(data, device, test=True)
    assert on_device.test is not None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = MambaVision(
            proxy.as_trained(layout),
            num_classes=on_device.classes,
            in_chans=on_device.channels,
            drop_path_rate=proxy.drop_path,
        )
    kind = data.augment if proxy.augment == "auto" else proxy.augment
    train_loader = DeviceLoader(on_device, min(proxy.batch_size, len(data.train)), kind)
    optimizer = search_optimizer(model, proxy)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=epochs,
        warmup_epochs=min(round(proxy.warmup_epochs), epochs - 1),
        warmup_lr=proxy.learning_rate / 100,
        min_lr=proxy.learning_rate / 100,
        step_on_epochs=False,
        updates_per_epoch=len(train_loader),
    )
    trainer = Trainer(
        model,
        train_loader,
        DeviceLoader(on_device, EVAL_BATCH, None),
        optimizer=optimizer,
        scheduler=scheduler,
        device=device,
        ema=proxy.ema or None,
        clip_norm=proxy.clip_norm,
        output=folder,
        seed=seed,
        **_precision(proxy.dtype, device),
    )
    trainer.train(epochs)
    assert trainer.best is not None
    model.load_state_dict(load_file(folder / BEST, device=str(device)))
    autocast = autocast_for(proxy.dtype, device)
    split = (on_device.val_images, on_device.val_labels)
    val_nll, val_top1 = evaluate(model, on_device.normalise, *split, autocast)
    test_nll, test_top1 = evaluate(model, on_device.normalise, *on_device.test, autocast)
    done = Retrained(
        folder=folder,
        epochs=epochs,
        seed=seed,
        best_epoch=int(trainer.best["epoch"]),
        val_top1=val_top1,
        val_nll=val_nll,
        val_images=len(data.val),
        test_top1=test_top1,
        test_nll=test_nll,
        test_images=len(data.test),
    )
    values = {name: value for name, value in asdict(done).items() if name != "folder"}
    write_atomic(result, json.dumps(values, indent=2) + "\n")
    return done


def _precision(dtype: str, device: torch.device) -> dict[str, Any]:
    """The proxy's precision as a `Trainer` takes it; its "auto" is float32 on a CPU."""
    if dtype == "float32" or (dtype == "auto" and device.type != "cuda"):
        return {}
    return {"use_amp": True, "dtype": dtype}
