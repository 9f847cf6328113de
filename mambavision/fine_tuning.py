"""Training a model of the library on a folder of images: what `mambavision train` does.

torch is imported when a training is prepared, so that options that are not allowed are told at once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.layout import HybridLayout
from mambavision.library import SHIPPED, free_folder, load_entry, save_entry
from mambavision.options import OptionError, check_number, check_whole

if TYPE_CHECKING:
    from mambavision.model import MambaVision
    from mambavision.training import Trainer


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions:
    """How a model of the library is trained on a folder of images.

    Attributes:
        name: of the model.
        data: the folder, see `create_image_loaders`.
        epochs: in all, 1 or more.
        output: folder for checkpoint, log and best weights; None: ``trained/<name>``.
        save_as: name of the entry that the best weights become; None saves none.
        overwrite: replace an entry of that name.
        batch_size: images a batch, 1 or more.
        accumulate: batches an update, 1 or more.
        lr: highest learning rate of AdamW, 0 to 1000.
        weight_decay: 0 to 1000.
        schedule: of the learning rate over the updates, a name of timm's: ``"cosine"``, ``"poly"``, ``"tanh"`` or
            ``"constant"``.
        warmup_epochs: epochs of linear warm-up, 0 or more; None: a tenth, at most 5.
        clip_norm: largest norm of the gradient, 0 to 1000; 0 does not clip.
        image_size: side in pixels, 1 or more; None: the entry's.
        from_scratch: do not start from the entry's weights.
        mixup: alpha of timm's mixup, 0 to 100; 0 for none.
        cutmix: alpha of timm's CutMix, 0 to 100; 0 for none.
        smoothing: of the labels, 0 to 0.999.
        randaugment: a RandAugment of timm; None for none.
        ema: decay of the average of the weights; 0 for none.
        workers: processes that decode images; None: a core each but one, at most 8.
        seed: of a fresh start, of order and augmentation.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        amp: mixed precision on a GPU.
        resume: go on from a checkpoint in `output`.
        checkpoint_every: updates between two checkpoints.
        tensorboard: write event files too.
    """

    name: str
    data: Path
    epochs: int
    output: Path | None = None
    save_as: str | None = None
    overwrite: bool = False
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 5e-4
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_epochs: int | None = None
    clip_norm: float = 5.0
    image_size: int | None = None
    from_scratch: bool = False
    mixup: float = 0.2
    cutmix: float = 0.0
    smoothing: float = 0.1
    randaugment: str | None = "rand-m9-mstd0.5-inc1"  # RANDAUGMENT of mambavision.data, which imports torch
    ema: float = 0.999
    workers: int | None = None
    seed: int = 0
    device: str = "auto"
    amp: bool = True
    resume: bool = True
    checkpoint_every: int = 200
    tensorboard: bool = False

    @property
    def folder(self) -> Path:
        """Where the training writes to."""
        return Path("trained") / self.name if self.output is None else self.output.expanduser()

    def check(self) -> None:
        """See what can be seen before anything is loaded. Nothing is written.

        Raises:
            LibraryError: an unknown or damaged entry, or a name for the new one that is not allowed or taken.
            OptionError: a number or an output that is not allowed.
        """
        load_entry(self.name)
        for field in ("epochs", "batch_size", "image_size"):
            check_whole(field, getattr(self, field))
        for field, top in (("mixup", 100.0), ("cutmix", 100.0), ("smoothing", 0.999)):
            check_number(field, getattr(self, field), 0.0, top)
        for field in ("lr", "weight_decay", "clip_norm"):
            check_number(field, getattr(self, field), 0.0, 1000.0)
        check_whole("warmup_epochs", self.warmup_epochs, least=0)
        if self.save_as is not None:
            free_folder(self.save_as, overwrite=self.overwrite)  # complains before hours of training, not after them
        _check_writable(self.folder)


@dataclass(frozen=True)
class FineTuning:
    """A training that is ready to begin, or to go on.

    Attributes:
        options: it was made from.
        config: of the entry.
        layout: of the entry.
        trainer: trains it; its metrics and best weights are those of the training.
        start: what its weights start from, e.g. ``"from the weights of `small`"``.
        classes: names of the classes.
        batch_size: images a batch, as used.
        train_images: images to train on.
        val_images: images that choose the best epoch.
    """

    options: FineTuneOptions
    config: dict[str, Any]
    layout: HybridLayout
    trainer: Trainer
    start: str
    classes: tuple[str, ...]
    batch_size: int
    train_images: int
    val_images: int

    def save(self, command: str) -> Path:
        """Save the best weights as the entry `options.save_as`, after the training.

        Args:
            command: what a person typed; the card says it.

        Returns:
            The entry's folder.

        Raises:
            LibraryError: see `save_entry`.
        """
        from safetensors.torch import load_file

        from mambavision.card import trained_card
        from mambavision.training import BEST

        options, config = self.options, self.config
        assert options.save_as is not None
        kept = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "drop_path_rate")
        size = config["input_size"][1:] if options.image_size is None else [options.image_size, options.image_size]
        own = {field: config[field] for field in kept if field in config} | {
            "input_size": [config["in_chans"], *size],
            "classes": list(self.classes),
            "weights": "trained on a folder",
            "trained": {
                "train_images": self.train_images,
                "val_images": self.val_images,
                "from": self.start,
                "epochs": options.epochs,
                "best": self.trainer.best,
                "command": command,
            },
        }
        described = own | {"layout": self.layout.to_dict(), "num_classes": len(self.classes)}
        return save_entry(
            options.save_as,
            self.layout,
            load_file(options.folder / BEST),
            num_classes=len(self.classes),
            in_chans=config["in_chans"],
            config=own,
            card=trained_card(options.save_as, described),
            overwrite=options.overwrite,
        )


def prepare(options: FineTuneOptions) -> FineTuning:
    """Find the images and build the model, its optimizer and schedule, and the trainer.

    Raises:
        LibraryError: an entry that cannot be used.
        DataError: a folder without usable images.
        TrainingError: an option that is not allowed.
    """
    import torch
    from timm.data import Mixup
    from timm.scheduler import create_scheduler_v2

    from mambavision.data import create_image_loaders
    from mambavision.training import Trainer, default_optimizer

    config, layout = load_entry(options.name)
    train_loader, val_loader = create_image_loaders(
        options.data,
        config,
        batch_size=options.batch_size,
        image_size=options.image_size,
        randaugment=options.randaugment,
        workers=min(8, (os.cpu_count() or 1) - 1) if options.workers is None else options.workers,
        seed=options.seed,
    )
    train_data: Any = train_loader.dataset
    val_data: Any = val_loader.dataset
    classes: tuple[str, ...] = train_data.classes
    model, start = _start(options, config, classes)
    epochs, lr = options.epochs, options.lr
    optimizer = default_optimizer(model, learning_rate=lr, weight_decay=options.weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        options.schedule,
        num_epochs=epochs,
        warmup_epochs=min(5, epochs // 10) if options.warmup_epochs is None else options.warmup_epochs,
        warmup_lr=lr / 100,
        min_lr=lr / 100,
        step_on_epochs=False,
        updates_per_epoch=math.ceil(len(train_loader) / max(1, options.accumulate)),
    )
    mixup = None
    if options.mixup or options.cutmix:
        mixup = Mixup(options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=len(classes))
    trainer = Trainer(
        model,
        train_loader,
        val_loader,
        criterion=None if mixup else torch.nn.CrossEntropyLoss(label_smoothing=options.smoothing),
        optimizer=optimizer,
        scheduler=scheduler,
        device=options.device,
        use_amp=options.amp,
        ema=options.ema or None,
        clip_norm=options.clip_norm or None,
        accumulate=options.accumulate,
        mixup=mixup,
        output=options.folder,
        tensorboard=options.tensorboard,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        seed=options.seed,
    )
    return FineTuning(
        options=options,
        config=config,
        layout=layout,
        trainer=trainer,
        start=start,
        classes=classes,
        batch_size=train_loader.batch_size or 0,
        train_images=len(train_data),
        val_images=len(val_data),
    )


def _start(options: FineTuneOptions, config: dict[str, Any], classes: tuple[str, ...]) -> tuple[MambaVision, str]:
    """The model as it is before the training, and what its weights start from."""
    import torch

    from mambavision.library import create_model

    pretrained = options.name not in SHIPPED and not options.from_scratch
    torch.manual_seed(options.seed)
    model = create_model(options.name, num_classes=len(classes), pretrained=pretrained)
    if not pretrained:
        return model, "from fresh weights"
    if list(classes) != list(config.get("classes", classes)) and model.num_classes == config["num_classes"]:
        # As many classes, but others: what its classifier has learned is about those.
        model.reset_classifier(len(classes))
    return model, f"from the weights of `{options.name}`"


def _check_writable(folder: Path) -> None:
    """Refuse an output that cannot be, before anything is loaded; makes nothing, as other options may be wrong too."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise OptionError(f"output: {str(folder)!r} cannot be written ({error.strerror})") from None
    if not there.is_dir():
        which = "it" if there == folder.absolute() else repr(str(there))
        raise OptionError(f"output: {str(folder)!r} cannot be written; {which} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"output: {str(folder)!r} cannot be written (no right to write in {str(there)!r})")
