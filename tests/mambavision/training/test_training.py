"""The Trainer: what it learns, that it goes on exactly where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import stopped
import torch
from layouts import columnar, three_stages
from safetensors.torch import load_file
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from mambavision.data import create_synthetic_dataset
from mambavision.model import MambaVision
from mambavision.training import (
    CHECKPOINT,
    Trainer,
    TrainingDiverged,
    TrainingError,
    default_optimizer,
    read_checkpoint,
    train_step,
)
from mambavision.training.evaluation import validate


def tiny(classes: int = 4, **options: Any) -> MambaVision:
    torch.manual_seed(0)
    return MambaVision(columnar("MA", dim=8), num_classes=classes, **options)


def loader(size: int = 32, batch: int = 8, *, classes: int = 4, shuffle: bool = True, seed: int = 0) -> DataLoader[Any]:
    data = create_synthetic_dataset(size, image_size=16, num_classes=classes, seed=seed)
    return DataLoader(data, batch, shuffle=shuffle)


def quiet(model: nn.Module | None = None, train: Any = None, val: Any = None, **options: Any) -> Trainer:
    return Trainer(model or tiny(), loader() if train is None else train, val, **({"progress": False} | options))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


SLIDES = """
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from mambavision import (
    Trainer,
    create_mambavision_tiny,
    create_synthetic_dataset,
    model_architecture_diagram,
    plot_training_curves,
    visualize_sample_data,
)

model = create_mambavision_tiny(num_classes=10)
train_data = create_synthetic_dataset(size=40, image_size=32)
val_data = create_synthetic_dataset(size=20, image_size=32, seed=1)
train_loader = DataLoader(train_data, batch_size=20, shuffle=True)
val_loader = DataLoader(val_data, batch_size=20)
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
trainer = Trainer(
    model,
    train_loader,
    val_loader,
    criterion=nn.CrossEntropyLoss(),
    optimizer=optimizer,
    scheduler=CosineAnnealingLR(optimizer, T_max=2),
    use_amp=True,
    device="cuda" if torch.cuda.is_available() else "cpu",
)
metrics = trainer.train(num_epochs=2)
curves = plot_training_curves(metrics)
sheet = visualize_sample_data(train_data)
diagram = model_architecture_diagram(model, image_size=32)
"""


def test_the_slides_lines_run() -> None:
    names: dict[str, Any] = {}
    exec(SLIDES, names)
    assert names["metrics"]["epoch"] == [1, 2]
    assert names["metrics"]["learning_rate"] == [1e-3, pytest.approx(5e-4)]
    assert len(names["curves"].data) == 4
    assert len(names["sheet"].data) == 16
    assert "GGGGAAAA" in names["diagram"].layout.title.text


@pytest.mark.slow
def test_the_guides_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[3] / "docs" / "training.md"
    exec(guide.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0], {})
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        *("curves.html", "images.html", "model.html"),
        *("best.safetensors", "checkpoint.pt", "log.csv"),
    }


def test_a_training_learns_and_its_metrics_make_a_table() -> None:
    torch.manual_seed(0)
    model = MambaVision(three_stages(), num_classes=4)
    optimizer = default_optimizer(model, learning_rate=4e-3)
    trainer = quiet(model, loader(128, 8), loader(48, 24, seed=1), optimizer=optimizer, ema=0.8, clip_norm=1.0)
    metrics = trainer.train(num_epochs=3)
    table = pd.DataFrame(metrics)
    assert list(table) == [
        *("epoch", "train_loss", "val_loss", "val_top1", "ema_val_loss", "ema_val_top1"),
        *("learning_rate", "seconds", "images_per_second"),
    ]
    assert metrics["train_loss"][0] > 1
    assert metrics["train_loss"][-1] < 0.7
    assert max(metrics["val_top1"]) > 0.8
    assert max(metrics["ema_val_top1"]) > 0.8
    assert not model.training
    assert trainer.train(num_epochs=3) == metrics, "three epochs in all, and they are done"
    more = trainer.train(num_epochs=4)
    assert more["epoch"] == [1, 2, 3, 4]
    assert len(metrics["epoch"]) == 3, "what was returned does not change any more"


def test_validation_values_are_those_of_the_weights() -> None:
    val = loader(24, 10, seed=1, shuffle=False)
    # Batch norm and drop path are other functions while training.
    trainer = quiet(MambaVision(three_stages(), num_classes=4, drop_path_rate=0.5), val=val, ema=0.5)
    metrics = trainer.train(num_epochs=1)
    images = torch.cat([batch[0] for batch in val])
    labels = torch.cat([batch[1] for batch in val])
    for prefix, model in (("", trainer.model), ("ema_", trainer.ema_model)):
        assert model is not None
        logits = model.eval()(images)
        assert metrics[f"{prefix}val_loss"][0] == pytest.approx(
            nn.functional.cross_entropy(logits, labels).item(), 1e-5
        )
        assert metrics[f"{prefix}val_top1"][0] == (logits.argmax(1) == labels).sum().item() / len(labels)


def test_a_step_is_forward_backward_clip_update_and_average() -> None:
    images, labels = next(iter(loader(8)))
    mine, plain = tiny(), tiny()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (mine, plain)]
    averages = [ModelEmaV3(model, decay=0.5) for model in (mine, plain)]
    for step in (1, 2, 3):
        batch = [(images, labels, 1)]
        got = train_step(
            mine, batch, nn.functional.cross_entropy, optimizers[0], clip_norm=0.1, ema=averages[0], step=step
        )
        loss = nn.functional.cross_entropy(plain(images), labels)
        optimizers[1].zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in plain.parameters() if p.grad is not None))
        assert norm > 0.1
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizers[1].step()
        averages[1].update(plain, step=step)
        assert got.item() == loss.item()
        assert not got.requires_grad
    assert same(mine, plain)
    assert same(averages[0].module, averages[1].module)
    assert not same(mine, averages[0].module)


def test_accumulated_batches_give_the_update_of_one_large_batch() -> None:
    whole, parts = tiny(), tiny()
    images, labels = next(iter(loader(12, 12)))
    uneven = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    sgd = {name: torch.optim.SGD(model.parameters(), lr=1.0) for name, model in (("whole", whole), ("parts", parts))}
    a = quiet(whole, [(images, labels)], optimizer=sgd["whole"]).train(1)
    trainer = quiet(parts, uneven, optimizer=sgd["parts"], accumulate=2)
    b = trainer.train(1)
    assert trainer.step == 1
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert a["train_loss"] == [pytest.approx(b["train_loss"][0])]


def test_the_last_update_of_an_epoch_takes_what_is_left() -> None:
    trainer = quiet(train=loader(20, 4), accumulate=2)
    trainer.train(num_epochs=2)
    assert trainer.step == 6


def test_bfloat16_is_used_where_it_is_asked_for() -> None:
    seen = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(768, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(self.layer(images.flatten(1)).dtype)
            return self.layer(images.flatten(1))

    quiet(Watch(), use_amp=True, dtype="bfloat16", val=loader()).train(1)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    quiet(Watch(), use_amp=True, device="cpu").train(1)
    assert set(seen) == {torch.float32}, "mixed precision by itself is for GPUs"


def rates(make: Any, epochs: int = 3, **options: Any) -> list[float]:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[float] = []

    def criterion(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        return nn.functional.cross_entropy(logits, targets)

    trainer = quiet(
        model, loader(16), loader(8), criterion=criterion, optimizer=optimizer, scheduler=make(optimizer), **options
    )
    metrics = trainer.train(epochs)
    assert metrics["learning_rate"] == seen[1::2]
    return seen


def test_torch_schedulers_step_each_epoch_or_each_update() -> None:
    assert rates(lambda optimizer: MultiStepLR(optimizer, [1, 2])) == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    found = rates(lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30), scheduler_per="update")
    assert found == sorted(found), "six updates of its rise"
    assert len(set(found)) == 6
    plateau = rates(lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=1e6, threshold_mode="abs"))
    assert plateau == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_timm_schedulers_are_told_of_updates_and_of_epochs() -> None:
    by_update = rates(lambda optimizer: CosineLRScheduler(optimizer, 6, t_in_epochs=False))
    assert by_update == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 6)) for i in range(6)])
    by_epoch = rates(lambda optimizer: CosineLRScheduler(optimizer, 3))
    assert by_epoch == pytest.approx([0.05 * (1 + math.cos(math.pi * (i // 2) / 3)) for i in range(6)])


@pytest.fixture(scope="module")
def undisturbed() -> Trainer:
    trainer = stopped.make(None)
    trainer.train(stopped.EPOCHS)
    return trainer


def assert_as_undisturbed(output: Path, undisturbed: Trainer) -> None:
    ended = stopped.make(output)
    metrics = ended.train(stopped.EPOCHS)  # already done: read from the checkpoint
    assert ended.step == undisturbed.step == stopped.EPOCHS * stopped.UPDATES
    assert same(ended.model, undisturbed.model)
    assert ended.ema_model is not None
    assert undisturbed.ema_model is not None
    assert same(ended.ema_model, undisturbed.ema_model)
    for name, values in undisturbed.metrics.items():
        if name not in ("seconds", "images_per_second"):
            assert metrics[name] == values, name
    assert ended.best == undisturbed.best


class Stop(Exception):
    pass


def stop() -> None:
    raise Stop


def test_schedules_with_a_memory_go_on(tmp_path: Path) -> None:
    def make(output: Path, **options: Any) -> Trainer:
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=9)
        options |= {"optimizer": optimizer, "scheduler": scheduler, "scheduler_per": "update", "output": output}
        return quiet(model, loader(24), checkpoint_every=1, **options)

    rates = make(tmp_path / "whole", criterion=stopped.Counted(0, stop)).train(3)["learning_rate"]
    with pytest.raises(Stop):
        make(tmp_path / "stopped", criterion=stopped.Counted(6, stop)).train(3)
    assert make(tmp_path / "stopped", criterion=stopped.Counted(0, stop)).train(3)["learning_rate"] == rates


def test_the_seed_decides_everything(undisturbed: Trainer) -> None:
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    expected = [torch.rand(2).tolist(), np.random.rand(), random.random()]  # noqa: NPY002
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    trainer = stopped.make(None)
    torch.manual_seed(99)
    trainer.train(stopped.EPOCHS)
    assert [torch.rand(2).tolist(), np.random.rand(), random.random()] == expected, "put back as they were"  # noqa: NPY002
    assert same(trainer.model, undisturbed.model)
    other = stopped.make(None, seed=8)
    other.train(1)
    assert other.metrics["train_loss"][0] != undisturbed.metrics["train_loss"][0]


# Nine forward passes an epoch in five updates, a checkpoint after every second update and every epoch.
@pytest.mark.parametrize("moment", [1, 4, 6, 10, 14, 18])
def test_a_stopped_training_ends_with_the_same_bits(moment: int, tmp_path: Path, undisturbed: Trainer) -> None:
    with pytest.raises(Stop):
        stopped.make(tmp_path, criterion=stopped.Counted(moment, stop)).train(stopped.EPOCHS)
    assert (tmp_path / CHECKPOINT).exists() == (moment > 4)
    again = stopped.make(tmp_path, criterion=stopped.Counted(0, None))
    again.train(stopped.EPOCHS)
    done = {1: 0, 4: 0, 6: 4, 10: 9, 14: 11, 18: 15}[moment]
    assert again.criterion.calls == 18 - done, "only what the checkpoint does not hold is trained again"  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="criterion"):
        stopped.make(tmp_path).train(1)
    assert same(again.model, undisturbed.model)
    assert same(again.ema_model, undisturbed.ema_model)  # type: ignore[arg-type]
    assert again.metrics["train_loss"] == undisturbed.metrics["train_loss"]
    assert again.metrics["ema_val_loss"] == undisturbed.metrics["ema_val_loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "checkpoint.pt", "log.csv"]


def test_ctrl_c_waits_for_the_update_and_writes_a_checkpoint(tmp_path: Path, undisturbed: Trainer) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    first = stopped.make(tmp_path, criterion=stopped.Counted(5, interrupt))
    with pytest.raises(KeyboardInterrupt):
        first.train(stopped.EPOCHS)
    assert signal.getsignal(signal.SIGINT) is handler
    state = read_checkpoint(tmp_path / CHECKPOINT)
    assert (state["step"], state["updates"]) == (3, 3)
    again = stopped.make(tmp_path, criterion=stopped.Counted(0, None))
    again.train(stopped.EPOCHS)
    assert same(again.model, undisturbed.model)
    # In the same program, too, without a checkpoint between.
    first.train(stopped.EPOCHS)
    assert same(first.model, undisturbed.model)


def test_a_loader_with_its_own_generator_is_seeded_too(tmp_path: Path) -> None:
    ended = []
    for moment in (0, 7):
        model = tiny()
        data = create_synthetic_dataset(24, image_size=16, num_classes=4)
        criterion = stopped.Counted(moment, lambda: (_ for _ in ()).throw(Stop()))
        for attempt in range(2):
            own = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(31 * moment + attempt))
            try:
                quiet(tiny() if attempt else model, own, output=tmp_path / str(moment), criterion=criterion).train(3)
            except Stop:
                continue
            break
        ended.append(load_file(tmp_path / str(moment) / "best.safetensors"))
    assert all(torch.equal(ended[0][name], value) for name, value in ended[1].items())


def run(output: Path, *moments: str) -> list[int]:
    done = subprocess.run([sys.executable, stopped.__file__, str(output), *moments], check=True, capture_output=True)
    return [int(code) for code in done.stdout.split()]


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, "never") == [0]
    # Before there is a checkpoint, in the middle of an update of two batches, while a checkpoint is half written, in a
    # validation, and in the last epoch.
    moments = ("loss:3", "loss:6", "write:1", "val:1", "loss:9")
    assert run(killed, *moments, "never") == [-signal.SIGKILL] * 5 + [0]
    one, other = (read_checkpoint(folder / CHECKPOINT) for folder in (whole, killed))
    for part in ("model", "ema"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    for mine, its in zip(one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert (whole / "best.safetensors").read_bytes() == (killed / "best.safetensors").read_bytes()
    for folder in (whole, killed):
        assert sorted(path.name for path in folder.iterdir()) == ["best.safetensors", "checkpoint.pt", "log.csv"]


@pytest.mark.slow
def test_resume_is_exact_with_workers(tmp_path: Path) -> None:
    whole = stopped.make(None, workers=2)
    whole.train(stopped.EPOCHS)

    with pytest.raises(Stop):
        stopped.make(tmp_path, workers=2, criterion=stopped.Counted(13, stop)).train(stopped.EPOCHS)
    again = stopped.make(tmp_path, workers=2, criterion=stopped.Counted(0, None))
    again.train(stopped.EPOCHS)
    assert same(whole.model, again.model)


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    quiet(output=tmp_path, clip_norm=1.0).train(1)
    for changes, message in (
        ({"clip_norm": 2.0}, r"clip_norm: 1.0 there, 2.0 here"),
        ({"clip_norm": 1.0, "seed": 3}, r"seed: 0 there, 3 here"),
        ({"clip_norm": 1.0, "train": loader(64)}, r"batches: 4 there, 8 here"),
        ({"clip_norm": 1.0, "mixup": Mixup(num_classes=4)}, r"mixup: None there, 'Mixup' here"),
        ({"clip_norm": 1.0, "model": MambaVision(columnar("MM", dim=8), 4)}, "do not fit the model's layout"),
    ):
        with pytest.raises(TrainingError, match=message):
            quiet(output=tmp_path, **changes).train(2)
    faster = tiny()
    optimizer = default_optimizer(faster, learning_rate=0.5)
    with pytest.raises(TrainingError, match=r"optimizer.lr: 0.001 there, 0.5 here"):
        quiet(faster, output=tmp_path, clip_norm=1.0, optimizer=optimizer).train(2)
    assert quiet(output=tmp_path, seed=3, resume=False).train(1)["epoch"] == [1]
    assert read_checkpoint(tmp_path / CHECKPOINT)["settings"]["seed"] == 3


class Focal(nn.Module):
    def __init__(self, gamma: int = 2, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.gamma, self.calls = gamma, 0
        self.register_buffer("weight", weight)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(logits, targets, self.weight) * self.gamma  # type: ignore[arg-type]


def images(size: int = 32, side: int = 16, seed: int = 0, **options: Any) -> DataLoader[Any]:
    data = create_synthetic_dataset(size, image_size=side, num_classes=4, seed=seed)
    return DataLoader(data, **({"batch_size": 8} | options))


def plain(size: int = 32, side: int = 16, **options: Any) -> DataLoader[Any]:
    """The same from a data set that tells nothing of itself."""
    made = list(create_synthetic_dataset(size, image_size=side, num_classes=4))  # type: ignore[call-overload]
    return DataLoader(made, **({"batch_size": 8} | options))  # type: ignore[arg-type]


def grouped(*rates: float, **options: Any) -> dict[str, Any]:
    model = tiny()
    params = list(model.parameters())
    cut = len(params) // len(rates)
    parts = [params[i * cut : None if i == len(rates) - 1 else (i + 1) * cut] for i in range(len(rates))]
    groups = [{"params": part, "lr": rate} | options for part, rate in zip(parts, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return {"model": model, "optimizer": optimizer, "scheduler": CosineAnnealingLR(optimizer, 5)}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"criterion": nn.CrossEntropyLoss()},
            {"criterion": nn.CrossEntropyLoss(label_smoothing=0.5)},
            r"criterion.label_smoothing: 0.0 there, 0.5 here",
        ),
        ({"criterion": Focal(2)}, {"criterion": Focal(3)}, r"criterion.gamma: 2 there, 3 here"),
        (
            {"criterion": Focal()},
            {"criterion": Focal(weight=torch.tensor([1.0, 2, 3, 4]))},
            r"criterion.weight: None there, \[1.0, 2.0, 3.0, 4.0\] here",
        ),
        (
            {"criterion": functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)},
            {"criterion": functools.partial(nn.functional.cross_entropy, label_smoothing=0.2)},
            r"criterion.label_smoothing: 0.1 there, 0.2 here",
        ),
        ({"train": plain()}, {"train": plain(batch_size=4)}, r"train_loader.batch_size: 8 there, 4 here"),
        ({"train": plain()}, {"train": plain(drop_last=True)}, r"train_loader.drop_last: False there, True here"),
        (
            {"train": plain()},
            {"train": plain(shuffle=True)},
            r"train_loader.sampler: 'SequentialSampler' there, 'RandomSampler' here",
        ),
        (
            {"train": DataLoader(plain().dataset, batch_sampler=BatchSampler(SequentialSampler(range(32)), 8, False))},
            {"train": DataLoader(plain().dataset, batch_sampler=BatchSampler(SequentialSampler(range(32)), 4, False))},
            r"train_loader.batch_size: 8 there, 4 here",
        ),
        ({"train": images()}, {"train": images(seed=1)}, r"train_data.seed: 0 there, 1 here"),
        ({"train": images()}, {"train": images(side=32)}, r"train_data.image_size: 16 there, 32 here"),
        (
            {"train": plain()},
            {"train": plain(side=32)},
            r"train_loader.image_shape: \[3, 16, 16\] there, \[3, 32, 32\] here",
        ),
        (grouped(0.1, 0.2), grouped(0.1, 0.3), r"optimizer.param_groups\[1\].lr: 0.2 there, 0.3 here"),
        (
            grouped(0.1, weight_decay=0.0),
            grouped(0.1, weight_decay=0.5),
            r"optimizer.param_groups\[0\].weight_decay: 0.0 there, 0.5 here",
        ),
        ({"val": plain()}, {}, r"val_loader: 'given' there, None here"),
        ({}, {"val": plain()}, r"val_loader: None there, 'given' here"),
    ],
)
def test_each_setting_holds(before: dict[str, Any], after: dict[str, Any], message: str, tmp_path: Path) -> None:
    quiet(output=tmp_path, **before).train(1)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    trainer = quiet(output=tmp_path, **after)
    with pytest.raises(TrainingError, match=f"is of another training .{message}"):
        trainer.train(2)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    assert trainer.step in (0, 4), "no update"


def test_settings_that_are_the_same_are_gone_on_with(tmp_path: Path) -> None:
    for epochs in (1, 2):
        weight = torch.tensor([1.0, 2, 3, 4])
        trainer = quiet(
            output=tmp_path,
            train=images(shuffle=True, drop_last=True),
            val=plain(),
            criterion=Focal(weight=weight),
            **grouped(0.1, 0.2, weight_decay=0.1),
        )
        assert trainer.train(epochs)["epoch"] == list(range(1, epochs + 1))
        # The learning rate has changed since, but its beginning counts.
        assert trainer.optimizer.param_groups[0]["lr"] < 0.1


def test_images_of_changing_size_are_gone_on_with(tmp_path: Path) -> None:
    sizes = [torch.zeros(4, 3, side, side) for side in (16, 32)]
    for epochs, order in ((1, sizes), (2, sizes[::-1])):
        quiet(train=[(inputs, torch.arange(4)) for inputs in order], output=tmp_path).train(epochs)


def test_another_schedule_says_that_it_belongs_to_the_epochs(tmp_path: Path) -> None:
    for epochs, fine in ((2, True), (3, False)):
        model = tiny()
        optimizer = default_optimizer(model)
        trainer = quiet(model, optimizer=optimizer, scheduler=CosineLRScheduler(optimizer, epochs), output=tmp_path)
        if fine:
            trainer.train(1)
        else:
            with pytest.raises(TrainingError, match=r"scheduler.t_initial: 2 there, 3 here: the scheduler differs"):
                trainer.train(3)


def test_beginning_anew_leaves_no_old_checkpoint_to_go_on_with(tmp_path: Path) -> None:
    quiet(output=tmp_path).train(1)

    with pytest.raises(Stop):
        quiet(output=tmp_path, resume=False, criterion=stopped.Counted(2, stop)).train(1)
    assert not (tmp_path / CHECKPOINT).exists()


def test_files_hold_the_metrics_and_the_best_weights(tmp_path: Path) -> None:
    trainer = quiet(val=loader(16, seed=1), output=tmp_path / "new" / "folder", ema=0.9)
    metrics = trainer.train(3)
    with open(trainer.output / "log.csv", encoding="utf-8") as file:  # type: ignore[operator]
        rows = list(csv.DictReader(file))
    assert {name: [float(row[name]) for row in rows] for name in rows[0]} == metrics
    assert trainer.best is not None
    model = tiny()
    model.load_state_dict(load_file(trainer.output / "best.safetensors"))  # type: ignore[operator]
    prefix = "ema_" if trainer.best["ema"] else ""
    epoch = int(trainer.best["epoch"]) - 1
    assert trainer.best["val_top1"] == metrics[f"{prefix}val_top1"][epoch]
    assert trainer.best["val_top1"] == max(metrics["val_top1"] + metrics["ema_val_top1"])
    found = validate(model, loader(16, seed=1), torch.device("cpu"), nullcontext)
    assert found == (metrics[f"{prefix}val_loss"][epoch], metrics[f"{prefix}val_top1"][epoch])


def test_best_is_kept_when_later_epochs_are_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = quiet(val=loader(16), output=tmp_path)
    found = iter([(0.5, 0.5), (0.4, 0.5), (0.1, 0.4), (0.4, 0.5)])
    monkeypatch.setattr("mambavision.training.trainer.validate", lambda *_: next(found))
    weights = []
    for epoch in range(1, 5):
        trainer.train(epoch)
        weights.append((tmp_path / "best.safetensors").read_bytes())
    assert trainer.best == {"epoch": 2, "ema": False, "val_top1": 0.5, "val_loss": 0.4}
    assert weights[0] != weights[1] == weights[2] == weights[3]


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / CHECKPOINT
    for data in (pickle.dumps(Evil()), _saved({"model": Evil()}), _saved(tiny())):
        path.write_bytes(data)
        with pytest.raises(
            TrainingError, match=r"checkpoint.pt: is not read.*unpickling.*allowed are tensors.*safetensors"
        ):
            quiet(output=tmp_path).train(1)
    assert not (tmp_path / "evil").exists()
    path.write_bytes(_saved({"weights": torch.ones(2)}))
    with pytest.raises(TrainingError, match="is no checkpoint of a Trainer; allowed is"):
        quiet(output=tmp_path).train(1)
    path.write_bytes(_saved({"weights": torch.ones(2)})[:300])
    with pytest.raises(TrainingError, match=r"checkpoint.pt: is damaged .*remove it or begin anew .*--no-resume"):
        quiet(output=tmp_path).train(1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is damaged .it is empty.; remove it or begin anew .resume=False, --no-resume"),
        (b"x" * 100, "is no checkpoint of a Trainer; allowed is .*--no-resume"),
        ({"format": "mambavision training 2"}, r"is no checkpoint of a Trainer .without settings, model, "),
        ({"format": "mambavision training 1"}, "is of another version of mambavision .'mambavision training 1'"),
        ([1], "is no checkpoint of a Trainer"),
    ],
)
def test_files_that_are_no_checkpoint(data: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(data if isinstance(data, bytes) else _saved(data))
    with pytest.raises(TrainingError, match=f"checkpoint.pt: {message}"):
        quiet(output=tmp_path).train(1)


def test_a_damaged_checkpoint_says_how_to_begin_anew(tmp_path: Path) -> None:
    quiet(output=tmp_path).train(1)
    path = tmp_path / CHECKPOINT
    whole, state = path.read_bytes(), read_checkpoint(path)
    for data in (whole[:50], whole[: len(whole) // 2], whole[:-10], _saved(state | {"optimizer": {"state": 3}})):
        path.write_bytes(data)
        with pytest.raises(TrainingError, match=r"checkpoint.pt: is damaged .*remove it or begin anew"):
            quiet(output=tmp_path).train(2)
    quiet(output=tmp_path, resume=False).train(1)


def _saved(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def test_a_state_that_could_not_be_read_back_is_told_at_the_first_checkpoint(tmp_path: Path) -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(optimizer, 3)
    scheduler.evil = Evil()  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="needs unpickling"):
        quiet(model, optimizer=optimizer, scheduler=scheduler, output=tmp_path).train(1)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = quiet(output=tmp_path)
    trainer.train(1)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"checkpoint.pt: cannot be written .No space left"):
        trainer.train(2)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_really_full_is_named(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    trainer = quiet(output=tmp_path)
    trainer.train(1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, name in ((100, "best.safetensors"), (len(before) - 1000, CHECKPOINT)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match=rf"{name}: cannot be written"):
                trainer.train(len(trainer.metrics["epoch"]) + 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / CHECKPOINT).read_bytes() == before
        assert not list(tmp_path.glob(".*"))


def test_an_output_that_cannot_be_written_is_told_before_the_first_update(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output, reason in (
        (tmp_path / "file" / "x", "(Not a directory|File exists)"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/nothing/x"), "[^)]*"),
    ):
        criterion = stopped.Counted(1, stop)
        with pytest.raises(TrainingError, match=rf"output: .* cannot be written \({reason}\); allowed is a folder"):
            quiet(output=output, criterion=criterion).train(1)
        assert criterion.calls == 0
    quiet(output=tmp_path / "made").train(1)
    assert len(list((tmp_path / "made").iterdir())) == 3, "nothing is left of the check"


def test_tensorboard_gets_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def flush(self) -> None:
            pass

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    metrics = quiet(output=tmp_path, tensorboard=True).train(2)
    assert told[0] == (str(tmp_path), 1)
    losses = [(value, step) for name, value, step in told[1:] if name == "train_loss"]
    assert losses == list(zip(metrics["train_loss"], [1, 2], strict=True))
    told.clear()
    quiet(output=tmp_path, tensorboard=True).train(3)
    assert told[0] == (str(tmp_path), 3)
    assert {step for *_, step in told[1:]} == {3}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"tensorboard: is not installed; pip install .mvsearch\[tensorboard\]"):
        quiet(output=tmp_path, tensorboard=True)


def test_real_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = quiet(output=tmp_path, tensorboard=True).train(2)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train_loss")
    assert [event.value for event in events] == pytest.approx(metrics["train_loss"])


def test_progress_is_a_line_an_epoch_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = quiet(val=loader(16), progress=True, ema=0.9)
    trainer.train(2)
    trainer.train(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("epoch 2 of 2  loss ")
    assert "EMA loss" in lines[1]
    assert "img/s" in lines[1]
    assert lines[2] == "all 2 epochs were done before"
    quiet().train(1)
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    quiet(progress=True).train(1)
    shown = capsys.readouterr().out
    assert "epoch 1 of 1" in shown
    assert "left" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate: 0 is not allowed; a whole number, 1 or more"),
        ({"seed": -1}, "seed: -1 is not allowed; a whole number, 0 or more"),
        ({"checkpoint_every": 0, "output": "x"}, "checkpoint_every: 0 is not allowed; 1 or more, or None"),
        ({"clip_norm": 0}, "clip_norm: 0 is not allowed; a number above 0, or None"),
        ({"ema": 1.5}, "ema: 1.5 is not allowed; a number between 0 and 1, or None"),
        ({"scheduler_per": "step"}, "scheduler_per: 'step' is not allowed; 'epoch' or 'update'"),
        ({"clip_norm": "1"}, "clip_norm: '1' is not allowed; a number above 0, or None"),
        ({"clip_norm": math.nan}, "clip_norm: nan is not allowed"),
        ({"ema": "x"}, "ema: 'x' is not allowed; a number between 0 and 1, or None"),
        ({"criterion": "ce"}, "criterion: 'ce' is not allowed; a function of logits and targets, or None"),
        ({"optimizer": "sgd"}, "optimizer: 'sgd' is not allowed; a torch.optim.Optimizer, or None"),
        ({"mixup": 0.2}, "mixup: 0.2 is not allowed; a timm.data.Mixup, or None"),
        ({"output": 5}, "output: 5 is not allowed; the path of a folder, or None"),
        ({"resume": "no"}, "resume: 'no' is not allowed; True or False"),
        ({"use_amp": 1}, "use_amp: 1 is not allowed; True or False"),
        ({"train": 5}, "train_loader: 5 is not allowed; a DataLoader, or what else gives batches each time"),
        ({"val": 5}, "val_loader: 5 is not allowed; a DataLoader, or what else gives batches each time"),
        ({"train": iter([])}, "train_loader: a list_iterator can be gone through only once; allowed is a DataLoader"),
        ({"val": (pair for pair in ())}, "val_loader: a generator can be gone through only once; allowed is"),
        ({"model": 3}, "model: 3 is not allowed; a torch.nn.Module"),
        ({"device": 1.5}, "device: 1.5 is not allowed; auto, cpu, cuda or cuda:N"),
        ({"scheduler": 3}, "scheduler: 3 is not allowed; a torch LRScheduler"),
        ({"dtype": "half", "use_amp": True}, "dtype: 'half' is not allowed; one of auto, bfloat16, float16, float32"),
        ({"dtype": "bfloat16"}, "dtype: 'bfloat16' has no effect without use_amp=True"),
        ({"dtype": "float16", "use_amp": True, "device": "cpu"}, "dtype: 'float16' is not allowed on device cpu"),
        ({"device": "abacus"}, "device: 'abacus' is not allowed; auto, cpu, cuda or cuda:N"),
        ({"checkpoint_every": 3}, "output: missing"),
        ({"mixup": Mixup(num_classes=7)}, "mixup: num_classes 7 is not allowed; the model has 4"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], 1)}, "optimizer: holds none of the model's parameters"),
    ],
)
def test_settings_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        quiet(**options)


def test_a_missing_train_loader() -> None:
    with pytest.raises(TrainingError, match="train_loader: None is not allowed"):
        Trainer(tiny(), None)  # type: ignore[arg-type]


def test_batch_norm_of_a_single_value(tmp_path: Path) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    message = r"train_loader: a batch of shape \(1, 3, 16, 16\) leaves batch norm a single value.*drop_last=True"
    with pytest.raises(TrainingError, match=message):
        quiet(model, loader(9, 8)).train(1)


def test_more_that_is_not_allowed(tmp_path: Path) -> None:
    for epochs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"num_epochs: {epochs} is not allowed; a whole number, 1 or more"):
            quiet().train(epochs)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no classifier"):
        quiet(MambaVision(columnar(), num_classes=0))
    model = tiny()
    other = torch.optim.SGD(tiny().parameters(), lr=1)
    with pytest.raises(TrainingError, match="scheduler: is of another optimizer"):
        quiet(model, scheduler=CosineAnnealingLR(other, 3))
    keeping = DataLoader(create_synthetic_dataset(8, image_size=16), num_workers=1, persistent_workers=True)
    with pytest.raises(TrainingError, match="persistent_workers=True is not allowed with output"):
        quiet(train=keeping, output=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"output: .*file' is not a folder"):
        quiet(output=tmp_path / "file").train(1)
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="device: 'cuda' is not allowed; there is no GPU"):
            quiet(device="cuda")


def batches(images: torch.Tensor, labels: Any) -> Any:
    return DataLoader(TensorDataset(images, labels), 4)


IMAGES = torch.zeros(8, 3, 16, 16)


LABELS = torch.zeros(8, dtype=torch.long)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (batches(IMAGES[:, :1], LABELS), r"images have 1 channels \(4, 1, 16, 16\); the model takes 3"),
        (batches(IMAGES.byte(), LABELS), r"images are uint8 \(4, 3, 16, 16\); allowed are floats"),
        (batches(IMAGES[:, 0], LABELS), r"images are float32 \(4, 16, 16\); allowed are floats \(B, C, H, W\)"),
        (batches(IMAGES, LABELS + 4), "label 4 is not allowed; the model has 4 classes, 0 to 3"),
        (batches(IMAGES, LABELS - 1), "label -1 is not allowed"),
        (batches(IMAGES, LABELS.float()), r"labels are float32 \(4,\); allowed is one whole number an image"),
        (batches(IMAGES, LABELS[:, None]), r"labels are int64 \(4, 1\)"),
        ([IMAGES], "a batch is a Tensor; allowed is a pair of images and labels"),
        (batches(IMAGES[:0], LABELS[:0]), "gives no batches"),
        ([(IMAGES[:0], LABELS[:0])], r"a batch holds no images \(0, 3, 16, 16\); allowed is one or more"),
    ],
)
def test_loaders_that_do_not_fit(data: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=f"train_loader: {message}"):
        quiet(train=data).train(1)
    with pytest.raises(TrainingError, match=f"val_loader: {message}"):
        quiet(val=data).train(1)


def test_mixup_needs_even_batches() -> None:
    with pytest.raises(TrainingError, match="a batch of 3 images is not allowed with mixup; an even number"):
        quiet(train=loader(6, 3), mixup=Mixup(num_classes=4)).train(1)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def criterion(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(logits, targets) * (math.nan if len(calls) == 7 else 1)

    message = r"loss became nan in epoch 2, update 3 \(learning rate 0.001\)"
    calls: list[int] = []
    with pytest.raises(TrainingDiverged, match=message):
        quiet(criterion=criterion, output=tmp_path).train(3)
    assert read_checkpoint(tmp_path / CHECKPOINT)["epochs"] == 1
    # As on a GPU, where the losses are looked at only now and then: still the right update.
    calls.clear()
    trainer = quiet(criterion=criterion)
    look = trainer._look
    monkeypatch.setattr(trainer, "_look", lambda epoch: look(epoch) if trainer.step % 4 == 0 else None)
    with pytest.raises(TrainingDiverged, match=message):
        trainer.train(3)


def test_a_validation_loss_that_is_no_number_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = quiet(val=loader(8))
    monkeypatch.setattr("mambavision.training.trainer.validate", lambda *_: (math.inf, 0.5))
    with pytest.raises(TrainingDiverged, match=r"validation loss is inf after epoch 1 \(learning rate 0.001\)"):
        trainer.train(1)
