"""A training with everything random in it, and a program that runs it and is killed at chosen moments.

    python stopped.py OUTPUT [MOMENT …]

Runs it once for each moment, each time in a process of its own, which is then killed, and prints how each ended. MOMENT
is ``loss:N`` (in the Nth forward pass of that run, before its backward pass), ``write:N`` (half way through the Nth
checkpoint written), ``val:N`` (in the Nth validation) or ``never``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layouts import three_stages
from timm.data import Mixup
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mambavision.data import create_synthetic_dataset
from mambavision.model import MambaVision
from mambavision.training import Trainer, default_optimizer
from mambavision.training import trainer as trainer_module

EPOCHS = 2


UPDATES = 5  # an epoch: nine batches in pairs, the last one alone


class Noisy(Dataset[Any]):
    """Images that are changed with all three kinds of generators whenever they are asked for."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.images = create_synthetic_dataset(size, image_size=16, num_classes=4, seed=seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return image + 0.1 * noise.float(), label


def make(output: Path | None, *, workers: int = 0, **changes: Any) -> Trainer:
    """Mixup, drop path, EMA, accumulation, clipping and a schedule of updates."""
    torch.manual_seed(0)
    model = MambaVision(three_stages(), num_classes=4, drop_path_rate=0.3)
    optimizer = default_optimizer(model, learning_rate=3e-3)
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=EPOCHS, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=UPDATES
    )
    loader = DataLoader(Noisy(36), 4, shuffle=True, num_workers=workers)
    options = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "ema": 0.9,
        "clip_norm": 1.0,
        "accumulate": 2,
        "mixup": Mixup(0.4, 0.4, num_classes=4),
        "output": output,
        "checkpoint_every": None if output is None else 2,
        "seed": 7,
        "progress": False,
    }
    return Trainer(model, loader, DataLoader(Noisy(16, seed=1), 8), **(options | changes))


class Counted(nn.Module):
    """Cross entropy that does something in its nth call."""

    def __init__(self, at: int, then: Any) -> None:
        super().__init__()
        self.calls, self.at, self.then = 0, at, then

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            self.then()
        return nn.functional.cross_entropy(logits, targets)


def kill() -> None:
    """What kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def run(output: Path, moment: str) -> None:
    kind, _, number = moment.partition(":")
    at = int(number or 0)
    trainer = make(output, criterion=Counted(at if kind == "loss" else 0, kill))
    save, calls = torch.save, 0

    def torn(state: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        save(state, path)
        if kind == "write" and calls == at:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            kill()

    torch.save = torn  # type: ignore[assignment]
    validate, measured = trainer_module.validate, 0

    def watched(*args: Any) -> tuple[float, float]:
        nonlocal measured
        measured += 1
        if kind == "val" and measured == at:
            kill()
        return validate(*args)

    trainer_module.validate = watched
    trainer.train(num_epochs=EPOCHS)


def main() -> None:
    for moment in sys.argv[2:]:
        # Forked, as importing everything takes far longer than the training; nothing has run yet that a fork breaks.
        child = os.fork()
        if not child:
            run(Path(sys.argv[1]), moment)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
