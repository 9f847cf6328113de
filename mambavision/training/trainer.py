"""The `Trainer`: epochs, updates and what stands between them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mambavision.progress import TrainingProgress
from mambavision.training.batch import checked_batch
from mambavision.training.checkpoint import Parts, checkpoint_content, load_checkpoint
from mambavision.training.errors import OtherTraining, TrainingDiverged, TrainingError
from mambavision.training.evaluation import validate
from mambavision.training.generators import generators_kept, seed_update
from mambavision.training.optimizer import default_optimizer
from mambavision.training.options import check_loader, check_optimizer, check_options, check_together, chosen_device
from mambavision.training.output import OutputFolder
from mambavision.training.precision import autocast_for, resolved_dtype
from mambavision.training.schedule import Scheduler, step_after_epoch, step_after_update
from mambavision.training.settings import length, training_settings
from mambavision.training.state import Metrics, TrainingState
from mambavision.training.step import Loss, train_step
from mambavision.training.stop import StopRequest

LOOK_EVERY = 50
"""Updates between two looks at the loss on a GPU, where each look waits for the device. On a CPU every loss is seen."""


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
        scheduler: Scheduler | None = None,
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
        check_options(
            accumulate=accumulate,
            seed=seed,
            checkpoint_every=checkpoint_every,
            clip_norm=clip_norm,
            ema=ema,
            scheduler_per=scheduler_per,
            dtype=dtype,
            scheduler=scheduler,
            model=model,
            criterion=criterion,
            optimizer=optimizer,
            mixup=mixup,
            output=output,
            use_amp=use_amp,
            tensorboard=tensorboard,
            resume=resume,
            progress=progress,
        )
        check_loader("train_loader", train_loader)
        if val_loader is not None:
            check_loader("val_loader", val_loader)
        check_together(
            model=model,
            train_loader=train_loader,
            use_amp=use_amp,
            dtype=dtype,
            mixup=mixup,
            output=output,
            tensorboard=tensorboard,
            checkpoint_every=checkpoint_every,
        )
        self.device = chosen_device(device)
        dtype = resolved_dtype(use_amp, dtype, self.device)
        self._autocast = autocast_for(dtype, self.device)
        self._scaler = torch.amp.GradScaler("cuda") if dtype == "float16" else None

        self.model = model.to(self.device)
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.criterion: Loss = nn.CrossEntropyLoss() if criterion is None else criterion
        self.optimizer = default_optimizer(model) if optimizer is None else optimizer
        check_optimizer(self.optimizer, scheduler, model)
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
        self._folder = None if self.output is None else OutputFolder(self.output, tensorboard=tensorboard)
        self._settings = training_settings(
            seed=seed,
            accumulate=accumulate,
            ema=ema,
            clip_norm=clip_norm,
            dtype=dtype,
            scheduler_per=scheduler_per,
            train_loader=train_loader,
            val_loader=val_loader,
            criterion=self.criterion,
            optimizer=self.optimizer,
            scheduler=scheduler,
            mixup=mixup,
        )
        self._state = TrainingState()
        self._shape_checked = False
        self._pending: list[_Pending] = []
        self._started = False
        self._stop = StopRequest()

    @property
    def metrics(self) -> Metrics:
        """What `train` returns, so far."""
        return self._state.metrics

    @property
    def step(self) -> int:
        """Updates done."""
        return self._state.step

    @property
    def best(self) -> dict[str, Any] | None:
        """Of the best weights so far; None before the first epoch's end."""
        return self._state.best

    @property
    def ema_model(self) -> nn.Module | None:
        """The averaged model, in evaluation mode; None without `ema`."""
        return None if self._ema is None else self._ema.module

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
        check_options(num_epochs=num_epochs)
        with ExitStack() as stack:
            stack.enter_context(generators_kept(self.device))
            if not self._started:
                self._start()
            state = self._state
            out = TrainingProgress(self.progress, num_epochs, self._updates_in_epoch(), state.step)
            stack.enter_context(out)
            if state.epochs >= num_epochs:
                out.line(f"all {num_epochs} epochs were done before")
            elif state.step:
                out.line(f"going on after update {state.step} ({state.epochs} of {num_epochs} epochs done)")
            # Without a folder there is nothing to write before the end.
            stack.enter_context(self._stop.awaited(self._folder is not None))
            for epoch in range(state.epochs + 1, num_epochs + 1):
                try:
                    self._train_epoch(epoch, out)
                except RuntimeError:
                    # Ctrl-C reaches a loader's workers too, and torch complains about those that went.
                    self._stop.obey()
                    raise
                row = self._measure(epoch)
                if state.keep_better(row, ema=self._ema is not None):
                    self._write_best()
                state.end_epoch(epoch)
                # First, as a resume writes it anew from the checkpoint, but event files go on.
                if self._folder is not None:
                    self._folder.write_log(state.metrics)
                self._write_checkpoint()
                out.epoch(row)
                self._stop.obey()
        return {name: list(values) for name, values in state.metrics.items()}

    def _start(self) -> None:
        """Prepare the folder, and go on from its checkpoint if there is one."""
        if self._folder is not None:
            path = self._folder.checkpoint
            self._folder.prepare()
            if self.resume and path.exists():
                self._state = load_checkpoint(path, self._settings, self._parts())
                self._folder.write_log(self._state.metrics)
            if not self.resume:
                path.unlink(missing_ok=True)  # else the next resume would go on with the old training
            self._folder.open_events(self._state.epochs)
        self._started = True

    def _train_epoch(self, epoch: int, out: TrainingProgress) -> None:
        state = self._state
        self.model.train()
        seed_update(self.seed, epoch, 0, self.train_loader)
        batches = iter(self.train_loader)
        seen = 0
        began = time.perf_counter()
        while True:
            # Before the batch is drawn: a loader without workers augments inside next().
            seed_update(self.seed, epoch, seen + 1)
            group = list(islice(batches, self.accumulate))
            if not group:
                break
            seen += 1
            if not self._shape_checked:
                self._check_shape(group[0])
            if seen <= state.updates:
                began = time.perf_counter()  # batches drawn again are no training time
                continue
            self._update(epoch, group)
            if len(self._pending) >= (1 if self.device.type == "cpu" else LOOK_EVERY):
                self._look(epoch)
            state.seconds += time.perf_counter() - began
            began = time.perf_counter()
            if self.checkpoint_every and state.step % self.checkpoint_every == 0:
                self._look(epoch)
                self._write_checkpoint()
            out.update(epoch, state.step, state.loss_sum / max(1, state.images), state.images / state.seconds)
            if self._stop.signum is not None:
                self._look(epoch)
                self._write_checkpoint()
                self._stop.obey()
        self._look(epoch)
        state.seconds += time.perf_counter() - began
        if not seen:
            raise TrainingError("train_loader: gives no batches; it needs at least one (drop_last, or too few images?)")

    def _check_shape(self, batch: Any) -> None:
        """Refuse to go on with images of another size than those before, where all of those had one."""
        images, _ = checked_batch(batch, "train_loader", self.model, self.mixup)
        shape, before = list(images.shape[1:]), self._state.shape
        if before and shape != before and self._folder is not None:
            raise OtherTraining(self._folder.checkpoint, "train_loader.image_shape", before, shape)
        self._shape_checked = True

    def _update(self, epoch: int, group: list[Any]) -> None:
        state = self._state
        checked = [checked_batch(batch, "train_loader", self.model, self.mixup) for batch in group]
        images = sum(len(labels) for _, labels in checked)
        for inputs, _ in checked:
            state.see(list(inputs.shape[1:]))

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
                step=state.step + 1,
            )
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            shapes = " and ".join(sorted({str(tuple(inputs.shape)) for inputs, _ in checked}))
            raise TrainingError(
                f"train_loader: a batch of shape {shapes} leaves batch norm a single value a channel; allowed are "
                "larger images, or two or more in every batch (drop_last=True leaves out an incomplete batch)"
            ) from None
        state.step += 1
        state.updates += 1
        self._pending.append(_Pending(state.updates, loss, images, rate))
        step_after_update(self.scheduler, self.scheduler_per, state.step)

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
            self._state.add_loss(loss, one.images, one.rate)
        self._pending.clear()

    def _measure(self, epoch: int) -> dict[str, float]:
        """Validate, step the schedule of epochs, and add the epoch's row to the metrics."""
        state = self._state
        began = time.perf_counter()
        row: dict[str, float] = {"epoch": epoch, "train_loss": state.loss_sum / state.images}
        if self.val_loader is not None:
            for prefix, model in (("", self.model), ("ema_", self.ema_model)):
                if model is not None:
                    seed_update(self.seed, epoch, 0, self.val_loader)
                    loss, top1 = validate(model, self.val_loader, self.device, self._autocast)
                    if not math.isfinite(loss):
                        raise TrainingDiverged(
                            f"validation loss is {loss} after epoch {epoch} (learning rate {state.rate:g})"
                        )
                    row |= {f"{prefix}val_loss": loss, f"{prefix}val_top1": top1}
        self.model.eval()
        row["learning_rate"] = state.rate
        row["seconds"] = state.seconds + time.perf_counter() - began
        row["images_per_second"] = state.images / max(state.seconds, 1e-9)
        step_after_epoch(self.scheduler, self.scheduler_per, epoch, row)
        state.add_row(row)
        return row

    def _updates_in_epoch(self) -> int | None:
        batches = length(self.train_loader)
        return None if batches is None else math.ceil(batches / self.accumulate)

    def _parts(self) -> Parts:
        return {
            "model": self.model,
            "ema": self.ema_model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self._scaler,
        }

    def _write_checkpoint(self) -> None:
        if self._folder is not None:
            self._folder.write_checkpoint(checkpoint_content(self._settings, self._parts(), self._state))

    def _write_best(self) -> None:
        if self._folder is not None:
            assert self.best is not None
            model = self._ema.module if self.best["ema"] and self._ema is not None else self.model
            self._folder.write_best(model.state_dict())
