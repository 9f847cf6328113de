"""How a training shows where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mambavision.look import ACCENT, console
from mambavision.words import duration, percent

if TYPE_CHECKING:
    from rich.console import Console


class TrainingProgress:
    """A bar on a terminal, a line an epoch elsewhere, nothing where it is not wanted.

    Args:
        shown: whether it is wanted.
        epochs: of the whole training.
        updates: an epoch, None where that is not known.
        done: updates done before.
    """

    def __init__(self, shown: bool, epochs: int, updates: int | None, done: int = 0) -> None:
        self.shown = shown
        self.epochs = epochs
        self.total = None if updates is None else epochs * updates
        self.done = done
        self.out: Console | None = None
        self._bar: Any = None

    def __enter__(self) -> TrainingProgress:
        if not self.shown:
            return self
        try:
            from rich import progress
        except ImportError:  # where only torch and timm are installed: plain lines
            return self
        self.out = console()
        if not self.out.is_terminal:
            return self
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(complete_style=ACCENT, finished_style=ACCENT),
            progress.TextColumn("{task.fields[told]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
            console=self.out,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("starting", total=self.total, completed=self.done, told="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """A line of its own."""
        if self.out is not None:
            self.out.print(text)
        elif self.shown:
            print(text, flush=True)

    def update(self, epoch: int, step: int, loss: float, speed: float) -> None:
        """After an update: mean loss of the epoch so far, images a second."""
        if self._bar is not None:
            told = f"loss {loss:.4f}  {speed:,.0f} img/s"
            self._bar.update(self._task, completed=step, description=f"epoch {epoch} of {self.epochs}", told=told)

    def epoch(self, row: Mapping[str, float]) -> None:
        """After an epoch: its row of the metrics."""
        parts = [f"epoch {row['epoch']} of {self.epochs}", f"loss {row['train_loss']:.4f}"]
        for prefix, name in (("", "val"), ("ema_", "EMA")):
            if f"{prefix}val_loss" in row:
                parts.append(f"{name} loss {row[f'{prefix}val_loss']:.4f} top-1 {percent(row[f'{prefix}val_top1'])}")
        parts.append(f"rate {row['learning_rate']:.2g}")
        parts.append(f"{row['images_per_second']:,.0f} img/s")
        parts.append(duration(row["seconds"]))
        self.line("  ".join(parts))
