"""Training a classifier: `Trainer`, and the one step that it shares with the search's proxy.

A training that is killed at any moment and started again ends with the same weights, bit for bit on a CPU: whatever is
drawn at random (data order, augmentation, mixup, drop path) depends on the seed, the epoch and the step alone, and a
checkpoint says which step comes next.
"""

from __future__ import annotations

import csv
import functools
import inspect
import math
import os
import pickle
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import param_groups_weight_decay
from timm.scheduler.scheduler import Scheduler as TimmScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mambavision.progress import TrainingProgress
from mambavision.released import misfit

DTYPES = ("auto", "bfloat16", "float16", "float32")
CHECKPOINT = "checkpoint.pt"
BEST = "best.safetensors"
LOG = "log.csv"
LOOK_EVERY = 50
"""Updates between two looks at the loss on a GPU, where each look waits for the device. On a CPU every loss is seen."""

Metrics = dict[str, list[float]]
"""A list for each measured quantity, one value an epoch: plain, and what `pandas.DataFrame` takes."""

Autocast = Callable[[], AbstractContextManager[Any]]


class Loss(Protocol):
    """What a criterion is: float32 logits (B, classes) and targets to a mean loss."""

    def __call__(self, logits: Tensor, targets: Tensor, /) -> Tensor: ...


class TrainingError(ValueError):
    """A setting, a loader or a checkpoint that cannot be used; the message names it and what is allowed."""


class OtherTraining(TrainingError):
    """A checkpoint of other settings.

    Attributes:
        field: the setting that differs, e.g. ``"scheduler.t_initial"``.
    """

    def __init__(self, path: Path, field: str, there: object, here: object) -> None:
        self.field = field
        why = ": the scheduler differs, and it belongs to its number of epochs" if field.startswith("scheduler") else ""
        super().__init__(
            f"{path}: is of another training ({field}: {_shown(there)} there, {_shown(here)} here{why}); repeat its "
            "settings, choose another output, or begin anew (resume=False, --no-resume)"
        )


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def autocast_for(dtype: str, device: torch.device) -> Autocast:
    """The autocast context of a dtype name; ``"auto"`` is bfloat16 on CUDA devices that have it, else float32."""
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=getattr(torch, dtype))


def train_step(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, float]],
    criterion: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    autocast: Autocast = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float | None = None,
    ema: ModelEmaV3 | None = None,
    step: int = 0,
) -> Tensor:
    """One update of a model's weights: forward, loss, backward, clipping, optimizer, EMA.

    Args:
        model: in training mode.
        batches: inputs, targets and share of the loss of each batch in the update; shares add up to 1. One batch, or
            several whose gradients are accumulated.
        criterion: mean loss of float32 logits and targets.
        optimizer: of the model's parameters.
        autocast: around forward and loss.
        scaler: for float16; None without.
        clip_norm: largest norm of the gradient; None does not clip.
        ema: average of the weights to update; None for none.
        step: number of this update, counted from 1; the EMA's warm-up depends on it.

    Returns:
        The loss, detached and on the device, so that nothing waits for it.
    """
    total: Tensor | None = None
    for inputs, targets, share in batches:
        with autocast():
            loss = criterion(model(inputs).float(), targets)
            if share != 1:
                loss = loss * share
        if total is None:
            optimizer.zero_grad(set_to_none=True)
        (loss if scaler is None else scaler.scale(loss)).backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None, "an update needs a batch"
    if clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    if ema is not None:
        ema.update(model, step=step)
    return total


def default_optimizer(
    model: nn.Module, *, learning_rate: float = 1e-3, weight_decay: float = 0.05
) -> torch.optim.Optimizer:
    """AdamW, without decay on norms, biases and what the model's ``no_weight_decay()`` names."""
    spared: Callable[[], Iterable[str]] = getattr(model, "no_weight_decay", tuple)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tuple(spared()))
    return torch.optim.AdamW(groups, lr=learning_rate)


class _Pending(NamedTuple):
    """An update whose loss has not been looked at yet."""

    step: int
    loss: Tensor
    images: int
    rate: float


class Trainer:
    """Trains a classifier, measures it after each epoch, and goes on exactly where it was stopped.

    With `output`, running the same program again goes on from the last checkpoint. On a CPU it ends with the very bits
    of a training that was never stopped, because before every update the generators of torch, NumPy and Python are
    seeded from (`seed`, epoch, update), and the batches already seen are drawn again and dropped. This holds for any
    `DataLoader`: one with a generator of its own has it seeded each epoch, and its workers derive their seeds from it.
    Only ``persistent_workers=True`` keeps generators that nothing can reach, and is refused together with `output`.
    The generators are put back as they were when `train` ends.

    Args:
        model: takes float images (B, C, H, W), gives logits (B, classes). Moved to `device`.
        train_loader: gives batches of float images (B, C, H, W) and int64 labels (B,) each time it is gone through; a
            `DataLoader` as a rule.
        val_loader: likewise, measured after each epoch; None measures nothing.
        criterion: mean loss of logits and targets; default cross entropy. With `mixup` the targets are soft, (B,
            classes). The validation loss is plain cross entropy, whatever this is.
        optimizer: of the model's parameters; default `default_optimizer`.
        scheduler: a torch scheduler, stepped after each epoch (after each update with `scheduler_per`), a
            `ReduceLROnPlateau` with the validation loss; or a timm scheduler, told of each update and each epoch, so
            that its own ``t_in_epochs`` decides.
        scheduler_per: ``"epoch"``, or ``"update"`` for torch schedulers such as `OneCycleLR`.
        device: ``"auto"`` is the GPU if there is one, else the CPU.
        use_amp: mixed precision, of `dtype`.
        dtype: ``"auto"``: bfloat16 on GPUs that have it, float16 with a gradient scaler on others, and float32 on a
            CPU; or one of ``"bfloat16"``, ``"float16"`` (GPU only), ``"float32"``.
        ema: decay, 0 to 1, of an average of the weights that is measured beside them; None for none.
        clip_norm: largest norm of the gradient, above 0; None does not clip.
        accumulate: batches an update, 1 or more; the last update of an epoch takes what is left.
        mixup: a `timm.data.Mixup`; needs batches of an even size.
        output: folder for ``checkpoint.pt``, ``log.csv`` and ``best.safetensors`` (the weights, or their average, with
            the best validation top-1; the latest without `val_loader`); None writes nothing.
        tensorboard: also write event files to `output`; needs the extra ``tensorboard``.
        checkpoint_every: updates between two checkpoints, 1 or more; None writes one after each epoch only.
        resume: go on from a checkpoint in `output`; False begins anew and replaces it.
        seed: of everything drawn while training, 0 or more. The initialisation happened before.
        progress: show it: a bar on a terminal, else a line an epoch.

    Attributes:
        metrics: what `train` returns, so far.
        ema_model: the averaged model, None without `ema`.
        step: updates done.
        best: of the best weights so far: ``epoch``, ``ema`` (whether the average), ``val_top1`` and ``val_loss``.

    Raises:
        TrainingError: a setting that is not allowed; names it, its value, and what is.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        *,
        criterion: Loss | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | TimmScheduler | None = None,
        scheduler_per: str = "epoch",
        device: str | torch.device = "auto",
        use_amp: bool = False,
        dtype: str = "auto",
        ema: float | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        mixup: Mixup | None = None,
        output: str | Path | None = None,
        tensorboard: bool = False,
        checkpoint_every: int | None = None,
        resume: bool = True,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        _check("accumulate", accumulate, type(accumulate) is int and accumulate >= 1, "a whole number, 1 or more")
        _check("seed", seed, type(seed) is int and seed >= 0, "a whole number, 0 or more")
        every = checkpoint_every
        _check("checkpoint_every", every, every is None or (type(every) is int and every >= 1), "1 or more, or None")
        _check("clip_norm", clip_norm, clip_norm is None or _within(clip_norm, 0), "a number above 0, or None")
        _check("ema", ema, ema is None or _within(ema, 0, 1), "a number between 0 and 1, or None")
        _check("scheduler_per", scheduler_per, scheduler_per in ("epoch", "update"), "'epoch' or 'update'")
        _check("dtype", dtype, dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        kinds = (LRScheduler, TimmScheduler, type(None))
        _check("scheduler", scheduler, isinstance(scheduler, kinds), "a torch LRScheduler or a timm Scheduler")
        _check_types(model=model, criterion=criterion, optimizer=optimizer, mixup=mixup, output=output)
        flags = {"use_amp": use_amp, "tensorboard": tensorboard, "resume": resume, "progress": progress}
        for field, flag in flags.items():
            _check(field, flag, type(flag) is bool, "True or False")
        _check_loader("train_loader", train_loader)
        if val_loader is not None:
            _check_loader("val_loader", val_loader)
        if dtype != "auto" and not use_amp:
            raise TrainingError(f"dtype: {dtype!r} has no effect without use_amp=True")
        if output is None and (tensorboard or checkpoint_every is not None):
            raise TrainingError("output: missing; tensorboard and checkpoint_every need a folder to write to")
        if getattr(model, "num_classes", None) == 0:
            raise TrainingError("model: has no classifier (num_classes=0); build it with one or more classes")
        if output is not None and getattr(train_loader, "persistent_workers", False):
            raise TrainingError(
                "train_loader: persistent_workers=True is not allowed with output; such workers keep random "
                "generators that no checkpoint can hold"
            )
        if mixup is not None and getattr(model, "num_classes", mixup.num_classes) != mixup.num_classes:
            raise TrainingError(
                f"mixup: num_classes {mixup.num_classes} is not allowed; the model has {model.num_classes}"
            )
        self.device = _device(device)
        if use_amp and dtype == "auto":
            gpu = self.device.type == "cuda"
            dtype = "float32" if not gpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        if dtype == "float16" and self.device.type != "cuda":
            raise TrainingError(f"dtype: 'float16' is not allowed on device {self.device.type}; bfloat16 or float32")
        dtype = dtype if use_amp else "float32"
        self._autocast = autocast_for(dtype, self.device)
        self._scaler = torch.amp.GradScaler("cuda") if dtype == "float16" else None

        self.model = model.to(self.device)
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.criterion: Loss = nn.CrossEntropyLoss() if criterion is None else criterion
        self.optimizer = default_optimizer(model) if optimizer is None else optimizer
        trained = {id(param) for param in model.parameters()}
        if not any(id(param) in trained for group in self.optimizer.param_groups for param in group["params"]):
            raise TrainingError("optimizer: holds none of the model's parameters; build it from model.parameters()")
        if scheduler is not None and getattr(scheduler, "optimizer", self.optimizer) is not self.optimizer:
            raise TrainingError("scheduler: is of another optimizer; build it from the one given here")
        self.scheduler = scheduler
        self.scheduler_per = scheduler_per
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.mixup = mixup
        self.output = None if output is None else Path(output).expanduser()
        self.checkpoint_every = checkpoint_every
        self.resume = resume
        self.seed = seed
        self.progress = progress
        self._ema = None if ema is None else ModelEmaV3(model, decay=ema, use_warmup=True)
        self._event_writer = _event_writer() if tensorboard else None
        self._events: Any = None
        self._settings = {
            "seed": seed,
            "accumulate": accumulate,
            "ema": ema,
            "clip_norm": clip_norm,
            "dtype": dtype,
            "scheduler_per": scheduler_per,
            **_told_loader(train_loader),
            "batches": _length(train_loader),
            "images": _length(getattr(train_loader, "dataset", None)),
            "val_loader": None if val_loader is None else "given",
            "val_images": _length(getattr(val_loader, "dataset", None)),
            **_told_criterion(self.criterion),
            **_told("optimizer", self.optimizer, self.optimizer.defaults),
            **_told_groups(self.optimizer),
            **_told("scheduler", scheduler, {} if scheduler is None else scheduler.state_dict()),
            **_told("mixup", mixup, {} if mixup is None else vars(mixup)),
        }

        self.metrics: Metrics = {}
        self.step = 0
        self._epochs = 0  # done
        self._updates = 0  # done in the epoch after those
        self._loss_sum = 0.0
        self._images = 0
        self._seconds = 0.0
        self._rate = 0.0
        self.best: dict[str, Any] | None = None
        self._shape: list[int] | None = None  # of every training image so far; empty if they differ
        self._shape_checked = False
        self._pending: list[_Pending] = []
        self._started = False
        self._proven = False
        self._stop: int | None = None

    @property
    def ema_model(self) -> nn.Module | None:
        """The averaged model, in evaluation mode; None without `ema`."""
        return None if self._ema is None else self._ema.module

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, num_epochs: int) -> Metrics:
        """Train until `num_epochs` epochs are done, those before a resume or an earlier call included.

        Ctrl-C ends the update under way, writes a checkpoint to `output`, and then raises `KeyboardInterrupt` (SIGTERM:
        `SystemExit`); a second one does not wait.

        Args:
            num_epochs: 1 or more.

        Returns:
            A list for each quantity, one value an epoch: ``epoch``, ``train_loss``, ``val_loss`` (nats), ``val_top1``
            (0 to 1), ``ema_val_loss`` and ``ema_val_top1`` with `ema`, ``learning_rate`` (of the epoch's last update),
            ``seconds`` (validation included) and ``images_per_second`` (of the training part).

        Raises:
            TrainingError: `num_epochs` or a loader that is not allowed, an `output` that cannot be written, or a
                checkpoint that cannot be used.
            TrainingDiverged: the loss is NaN or infinite; names epoch, update and learning rate.
            OSError: a file that cannot be written later on, such as on a full disk; names it.
        """
        _check("num_epochs", num_epochs, type(num_epochs) is int and num_epochs >= 1, "a whole number, 1 or more")
        with ExitStack() as stack:
            stack.enter_context(_generators_kept(self.device))
            if not self._started:
                self._start()
            out = TrainingProgress(self.progress, num_epochs, self._updates_in_epoch(), self.step)
            stack.enter_context(out)
            if self._epochs >= num_epochs:
                out.line(f"all {num_epochs} epochs were done before")
            elif self.step:
                out.line(f"going on after update {self.step} ({self._epochs} of {num_epochs} epochs done)")
            stack.enter_context(self._signals())
            for epoch in range(self._epochs + 1, num_epochs + 1):
                try:
                    self._train_epoch(epoch, out)
                except RuntimeError:
                    # Ctrl-C reaches a loader's workers too, and torch complains about those that went.
                    if self._stop is not None:
                        self._stop_if_asked()
                    raise
                row = self._measure(epoch)
                self._keep_best(row)
                self._epochs, self._updates = epoch, 0
                self._loss_sum, self._images, self._seconds = 0.0, 0, 0.0
                self._write_log()  # first, as a resume writes it anew from the checkpoint, but event files go on
                self._write_checkpoint()
                out.epoch(row)
                self._stop_if_asked()
        return {name: list(values) for name, values in self.metrics.items()}

    def _train_epoch(self, epoch: int, out: TrainingProgress) -> None:
        self.model.train()
        _reseed(self.seed, epoch, 0, self.train_loader)
        batches = iter(self.train_loader)
        seen = 0
        began = time.perf_counter()
        while True:
            # Before the batch is drawn: a loader without workers augments inside next().
            _reseed(self.seed, epoch, seen + 1)
            group = list(islice(batches, self.accumulate))
            if not group:
                break
            seen += 1
            if not self._shape_checked:
                self._check_shape(group[0])
            if seen <= self._updates:
                began = time.perf_counter()  # batches drawn again are no training time
                continue
            self._update(epoch, group)
            if len(self._pending) >= (1 if self.device.type == "cpu" else LOOK_EVERY):
                self._look(epoch)
            self._seconds += time.perf_counter() - began
            began = time.perf_counter()
            if self.checkpoint_every and self.step % self.checkpoint_every == 0:
                self._look(epoch)
                self._write_checkpoint()
            out.update(epoch, self.step, self._loss_sum / max(1, self._images), self._images / self._seconds)
            self._stop_if_asked(epoch)
        self._look(epoch)
        self._seconds += time.perf_counter() - began
        if not seen:
            raise TrainingError("train_loader: gives no batches; it needs at least one (drop_last, or too few images?)")

    def _check_shape(self, batch: Any) -> None:
        """Refuse to go on with images of another size than those before, where all of those had one."""
        images, _ = _checked(batch, "train_loader", self.model, self.mixup)
        shape = list(images.shape[1:])
        if self._shape and shape != self._shape and self.output is not None:
            raise OtherTraining(self.output / CHECKPOINT, "train_loader.image_shape", self._shape, shape)
        self._shape_checked = True

    def _update(self, epoch: int, group: list[Any]) -> None:
        checked = [_checked(batch, "train_loader", self.model, self.mixup) for batch in group]
        images = sum(len(labels) for _, labels in checked)
        for inputs, _ in checked:
            shape = list(inputs.shape[1:])
            if self._shape is None:
                self._shape = shape
            elif shape != self._shape:
                self._shape = []

        def batches() -> Iterator[tuple[Tensor, Tensor, float]]:
            for inputs, labels in checked:
                share = len(labels) / images
                inputs, labels = (part.to(self.device, non_blocking=True) for part in (inputs, labels))
                if self.mixup is not None:
                    inputs, labels = self.mixup(inputs, labels)
                yield inputs, labels, share

        rate = self.optimizer.param_groups[0]["lr"]
        try:
            loss = train_step(
                self.model,
                batches(),
                self.criterion,
                self.optimizer,
                autocast=self._autocast,
                scaler=self._scaler,
                clip_norm=self.clip_norm,
                ema=self._ema,
                step=self.step + 1,
            )
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            shapes = " and ".join(sorted({str(tuple(inputs.shape)) for inputs, _ in checked}))
            raise TrainingError(
                f"train_loader: a batch of shape {shapes} leaves batch norm a single value a channel; allowed are "
                "larger images, or two or more in every batch (drop_last=True leaves out an incomplete batch)"
            ) from None
        self.step += 1
        self._updates += 1
        self._pending.append(_Pending(self._updates, loss, images, rate))
        if isinstance(self.scheduler, TimmScheduler):
            self.scheduler.step_update(num_updates=self.step)
        elif self.scheduler is not None and self.scheduler_per == "update":
            self.scheduler.step()

    def _look(self, epoch: int) -> None:
        """Wait for the losses of the last updates and add them up; one that is no number ends the training."""
        if not self._pending:
            return
        losses = torch.stack([one.loss for one in self._pending]).tolist()
        for one, loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                self._pending.clear()
                raise TrainingDiverged(
                    f"loss became {loss} in epoch {epoch}, update {one.step} (learning rate {one.rate:g})"
                )
            self._loss_sum += loss * one.images
            self._images += one.images
            self._rate = one.rate
        self._pending.clear()

    def _measure(self, epoch: int) -> dict[str, float]:
        """Validate, step the schedule of epochs, and add the epoch's row to the metrics."""
        began = time.perf_counter()
        row: dict[str, float] = {"epoch": epoch, "train_loss": self._loss_sum / self._images}
        if self.val_loader is not None:
            for prefix, model in (("", self.model), ("ema_", self.ema_model)):
                if model is not None:
                    _reseed(self.seed, epoch, 0, self.val_loader)
                    loss, top1 = self._evaluate(model)
                    if not math.isfinite(loss):
                        raise TrainingDiverged(
                            f"validation loss is {loss} after epoch {epoch} (learning rate {self._rate:g})"
                        )
                    row |= {f"{prefix}val_loss": loss, f"{prefix}val_top1": top1}
        self.model.eval()
        row["learning_rate"] = self._rate
        row["seconds"] = self._seconds + time.perf_counter() - began
        row["images_per_second"] = self._images / max(self._seconds, 1e-9)
        if isinstance(self.scheduler, TimmScheduler):
            self.scheduler.step(epoch, metric=row.get("val_top1"))
        elif isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(row.get("val_loss", row["train_loss"]))
        elif self.scheduler is not None and self.scheduler_per == "epoch":
            self.scheduler.step()
        for name, value in row.items():
            self.metrics.setdefault(name, []).append(value)
        return row

    @torch.inference_mode()
    def _evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Mean cross entropy (nats) and top-1 (0 to 1) on the validation loader."""
        model.eval()
        assert self.val_loader is not None
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        images = 0
        for batch in self.val_loader:
            inputs, labels = _checked(batch, "val_loader", self.model, None)
            inputs, labels = (part.to(self.device, non_blocking=True) for part in (inputs, labels))
            with self._autocast():
                logits = model(inputs)
            loss += F.cross_entropy(logits.float(), labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            images += len(labels)
        if not images:
            raise TrainingError("val_loader: gives no batches; it needs at least one, or None to measure nothing")
        return loss.item() / images, correct.item() / images

    def _updates_in_epoch(self) -> int | None:
        batches = _length(self.train_loader)
        return None if batches is None else math.ceil(batches / self.accumulate)

    # -- stopping and going on ---------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait for the end of an update, where there is a checkpoint to write."""
        self._stop = None
        if self.output is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum: int, frame: Any) -> None:
            if self._stop is not None:
                raise KeyboardInterrupt
            self._stop = signum

        before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _stop_if_asked(self, epoch: int | None = None) -> None:
        if self._stop is None:
            return
        if epoch is not None:
            self._look(epoch)
            self._write_checkpoint()
        if self._stop == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _start(self) -> None:
        if self.output is not None:
            path = self.output / CHECKPOINT
            _check_output(self.output)
            if self.resume and path.exists():
                self._load(path)
            if not self.resume:
                path.unlink(missing_ok=True)  # else the next resume would go on with the old training
            if self._event_writer is not None:
                self._events = self._event_writer(str(self.output), purge_step=self._epochs + 1)
        self._started = True

    def _load(self, path: Path) -> None:
        state = read_checkpoint(path)
        known = state["settings"]
        differ = [name for name in {**known, **self._settings} if known.get(name) != self._settings.get(name)]
        # Another model has other parameters in its groups, and is told of as such.
        plain = [name for name in differ if not name.endswith("].params")]
        problem = None if plain else misfit(self.model, state["model"])
        if problem:
            raise TrainingError(f"{path}: {problem}")
        for name in plain or differ:
            raise OtherTraining(path, name, known.get(name), self._settings.get(name))
        try:
            self.model.load_state_dict(state["model"])
            if self._ema is not None:
                self._ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            if self._scaler is not None:
                self._scaler.load_state_dict(state["scaler"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(_damaged(path, error)) from None
        for name in _PROGRESS:
            setattr(self, name, state[name.lstrip("_")])
        self._write_log()

    def _write_checkpoint(self) -> None:
        if self.output is None:
            return
        state = {
            "format": _FORMAT,
            "settings": self._settings,
            "model": self.model.state_dict(),
            "ema": None if self._ema is None else self._ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            **{name.lstrip("_"): getattr(self, name) for name in _PROGRESS},
        }
        with _replacing(self.output / CHECKPOINT) as scratch:
            try:
                torch.save(state, scratch)
            except RuntimeError as error:  # what torch's own writer raises on a full disk
                raise OSError(_reason(error)) from error
            if not self._proven:
                # Better now than after the kill: a scheduler of one's own may hold what cannot be read back.
                read_checkpoint(scratch)
                self._proven = True

    def _keep_best(self, row: Mapping[str, float]) -> None:
        """Write the weights, or their average, if they are better than all before."""
        found = [
            {"epoch": row["epoch"], "ema": bool(prefix)}
            | {name: row[prefix + name] for name in ("val_top1", "val_loss")}
            for prefix in ("", "ema_")
            if f"{prefix}val_top1" in row
        ]
        # Without validation the latest are the best we know of.
        new = max(found, key=_rank) if found else {"epoch": row["epoch"], "ema": self._ema is not None}
        if found and self.best is not None and _rank(new) <= _rank(self.best):
            return
        self.best = new
        if self.output is not None:
            from safetensors.torch import save

            weights = (self._ema.module if new["ema"] and self._ema is not None else self.model).state_dict()
            tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            with _replacing(self.output / BEST) as scratch:
                # Not save_file, whose files only their owner may read.
                scratch.write_bytes(save(tensors, metadata={"format": "pt"}))

    def _write_log(self) -> None:
        if self.output is None or not self.metrics:
            return
        with (
            _replacing(self.output / LOG) as scratch,
            open(scratch, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(self.metrics)
            writer.writerows(zip(*self.metrics.values(), strict=True))
        if self._events is not None:
            for name, values in self.metrics.items():
                if name != "epoch":
                    self._events.add_scalar(name, values[-1], int(self.metrics["epoch"][-1]))
            self._events.flush()


def _rank(found: Mapping[str, float]) -> tuple[float, float]:
    return found["val_top1"], -found["val_loss"]


_FORMAT = "mambavision training 2"
_PROGRESS = ("metrics", "step", "_epochs", "_updates", "_loss_sum", "_images", "_seconds", "_rate", "best", "_shape")
"""Attributes of a `Trainer` that a checkpoint holds as they are."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a `Trainer` wrote, on the CPU. Nothing is unpickled.

    Raises:
        TrainingError: a file that cannot be read, that is damaged, that needs unpickling, or that no `Trainer` wrote.
    """
    path = Path(path)
    foreign = f"{path}: is no checkpoint of a Trainer"
    allowed = "allowed is a file that Trainer(output=…) wrote; choose another output, or begin anew (resume=False, "
    allowed += "--no-resume)"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({_reason(error)})") from None
    if not start:
        raise TrainingError(_damaged(path, "it is empty"))
    # A zip of torch.save, or a bare pickle; torch takes anything else for a pickle too.
    if start != b"PK\x03\x04" and start[:1] != b"\x80":
        raise TrainingError(f"{foreign}; {allowed}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise TrainingError(
            f"{path}: is not read, as it needs unpickling, which could run code from the file; allowed are tensors, "
            "numbers, texts, lists and dicts (what torch.load reads with weights_only=True), and weights as safetensors"
        ) from None
    except (
        *(AssertionError, AttributeError, EOFError, LookupError),
        *(OSError, RuntimeError, TypeError, ValueError),
    ) as error:
        raise TrainingError(_damaged(path, error)) from None
    version = state.get("format") if isinstance(state, dict) else None
    if version != _FORMAT:
        if isinstance(version, str) and version.startswith(_FORMAT[:-1]):
            raise TrainingError(
                f"{path}: is of another version of mambavision ({version!r}, not {_FORMAT!r}); {allowed}"
            )
        raise TrainingError(f"{foreign}; {allowed}")
    parts = ("settings", "model", "ema", "optimizer", "scheduler", "scaler", *(name.lstrip("_") for name in _PROGRESS))
    missing = [name for name in parts if name not in state]
    missing += [name for name in ("settings", "model") if not isinstance(state.get(name, {}), dict)]
    if missing:
        raise TrainingError(f"{foreign} (without {', '.join(missing)}); {allowed}")
    return state


def _damaged(path: Path, error: object) -> str:
    return f"{path}: is damaged ({_reason(error)}); remove it or begin anew (resume=False, --no-resume)"


def _reason(error: object) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or repr(error)).splitlines()[0]


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(field: str, value: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise TrainingError(f"{field}: {_shown(value)} is not allowed; {allowed}")


def _within(value: object, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low < float(value) < high


def _check_types(*, model: Any, criterion: Any, optimizer: Any, mixup: Any, output: Any) -> None:
    _check("model", model, isinstance(model, nn.Module), "a torch.nn.Module")
    _check(
        "criterion", criterion, criterion is None or callable(criterion), "a function of logits and targets, or None"
    )
    kinds = (torch.optim.Optimizer, type(None))
    _check("optimizer", optimizer, isinstance(optimizer, kinds), "a torch.optim.Optimizer, or None")
    _check("mixup", mixup, isinstance(mixup, (Mixup, type(None))), "a timm.data.Mixup, or None")
    _check("output", output, isinstance(output, (str, Path, type(None))), "the path of a folder, or None")


def _check_loader(name: str, loader: Any) -> None:
    fine = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")
    allowed = "a DataLoader, or what else gives batches each time it is gone through"
    _check(name, loader, fine, allowed)
    if isinstance(loader, Iterator):
        raise TrainingError(f"{name}: a {type(loader).__name__} can be gone through only once; allowed is {allowed}")


def _check_output(folder: Path) -> None:
    """Make the folder and write to it, now rather than after the first epoch."""
    try:
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"output: {str(folder)!r} is not a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"output")
    except OSError as error:
        raise TrainingError(
            f"output: {str(folder)!r} cannot be written ({_reason(error)}); allowed is a folder that can be made and "
            "written to"
        ) from None


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise TrainingError(f"device: {device!r} is not allowed; auto, cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device: {str(device)!r} is not allowed; there is no GPU that torch can use. auto or cpu")
    return found


def _checked(batch: Any, loader: str, model: nn.Module, mixup: Mixup | None) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch, if the model can take them."""
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


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except TypeError:
        return None


def _told(name: str, thing: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Class and plain settings of an object, as they are before training."""
    return {name: None if thing is None else type(thing).__name__} | _plain(name, state)


def _plain(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, texts and lists of them, as ``name.field``."""
    told: dict[str, Any] = {}
    for field, value in state.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if all(one is None or isinstance(one, (bool, int, float, str)) for one in values):
            told[f"{name}.{field}"] = list(value) if isinstance(value, tuple) else value
    return told


def _told_loader(loader: Any) -> dict[str, Any]:
    """How a loader makes batches, and what its data set tells of itself in ``settings``."""
    batches = getattr(loader, "batch_sampler", None)
    # One's own batch sampler knows what the loader then does not.
    sampler = getattr(batches, "sampler", getattr(loader, "sampler", None))
    told = {field: getattr(batches, field, getattr(loader, field, None)) for field in ("batch_size", "drop_last")}
    for field, part in (("sampler", sampler), ("batch_sampler", batches)):
        told[field] = None if part is None else type(part).__name__
    told = _plain("train_loader", told)
    settings = getattr(getattr(loader, "dataset", None), "settings", None)
    return told | (_plain("train_data", settings) if isinstance(settings, Mapping) else {})


def _told_criterion(criterion: Any) -> dict[str, Any]:
    """Name, plain attributes and buffers (weights of the classes) of a criterion."""
    if isinstance(criterion, functools.partial):
        return _told_criterion(criterion.func) | _plain("criterion", criterion.keywords)
    if inspect.isroutine(criterion):
        return {"criterion": criterion.__name__}
    try:
        given = list(inspect.signature(type(criterion)).parameters.values())
    except (TypeError, ValueError):  # classes written in C
        given = []
    options = {one.name for one in given if one.default is not one.empty} | set(getattr(criterion, "__constants__", ()))
    state = {
        field: value
        for field, value in getattr(criterion, "__dict__", {}).items()
        # Whole numbers that are no option of its constructor are counters more often than settings.
        if field[0] != "_" and field != "training" and (type(value) is not int or field in options)
    }
    if isinstance(criterion, nn.Module):
        state |= {field: value.flatten().tolist() for field, value in criterion.named_buffers(recurse=False)}
    return _told("criterion", criterion, state)


def _told_groups(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Options of each group of parameters, with the learning rate that a schedule begins from."""
    told: dict[str, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        options = {field: value for field, value in group.items() if field not in ("params", "initial_lr")}
        options |= {"lr": group.get("initial_lr", group.get("lr")), "params": len(group["params"])}
        told |= _plain(f"optimizer.param_groups[{number}]", options)
    return told


def _shown(value: object) -> str:
    text = repr(value)
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= 80 else f"{text[:77]}…"


def _event_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError(
            'tensorboard: is not installed; pip install "mvsearch[tensorboard]", or leave it out'
        ) from None
    return SummaryWriter


# -- random numbers and files -----------------------------------------------------------------------------------------


def _reseed(seed: int, epoch: int, update: int, loader: Any = None) -> None:
    """Seed the process's generators, and a loader's own, from where the training stands."""
    words = [int(word) for word in np.random.SeedSequence((seed, epoch, update)).generate_state(3)]
    torch.manual_seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 (timm's Mixup and many transforms draw from this one)
    random.seed(words[2])
    if loader is None:
        return
    for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(words[0])
        if callable(set_epoch := getattr(owner, "set_epoch", None)):
            set_epoch(epoch)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Put the process's generators back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when it is whole; whoever is killed before leaves the old one."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        failed = OSError(f"{path}: cannot be written ({_reason(error)})")
        failed.errno = error.errno
        raise failed from error
    finally:
        scratch.unlink(missing_ok=True)
