"""The folder that a training writes to."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambavision.files import naming, replacing
from mambavision.training.checkpoint import CHECKPOINT, read_checkpoint
from mambavision.training.errors import TrainingError
from mambavision.training.state import Metrics
from mambavision.words import reason

BEST = "best.safetensors"
LOG = "log.csv"


class OutputFolder:
    """Checkpoint, best weights, log and event files of a training, each written whole or not at all.

    Args:
        path: the folder.
        tensorboard: whether to write event files too.

    Attributes:
        path: the folder.
        checkpoint: where its checkpoint lies, or will.

    Raises:
        TrainingError: TensorBoard is wanted and not installed.
    """

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        self.path = path
        self.checkpoint = path / CHECKPOINT
        self._event_writer = _event_writer() if tensorboard else None
        self._events: Any = None
        self._proven = False

    def prepare(self) -> None:
        """Make the folder and write to it, now rather than after the first epoch.

        Raises:
            TrainingError: it cannot be made or written to.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise TrainingError(f"output: {str(self.path)!r} is not a folder")
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"output")
        except OSError as error:
            raise TrainingError(
                f"output: {str(self.path)!r} cannot be written ({reason(error)}); allowed is a folder that can be "
                "made and written to"
            ) from None

    def open_events(self, epochs: int) -> None:
        """Begin to write event files, if they are wanted; what older ones hold beyond `epochs` is dropped."""
        if self._event_writer is not None:
            self._events = self._event_writer(str(self.path), purge_step=epochs + 1)

    def write_checkpoint(self, content: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: it cannot be written; names it.
            TrainingError: the first one written holds what could not be read back.
        """
        with self._replacing(CHECKPOINT) as scratch:
            try:
                torch.save(content, scratch)
            except RuntimeError as error:  # what torch's own writer raises on a full disk
                raise OSError(reason(error)) from error
            if not self._proven:
                # Better now than after the kill: a scheduler of one's own may hold what cannot be read back.
                read_checkpoint(scratch)
                self._proven = True

    def write_best(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the best weights. Raises OSError if they cannot be written, and names the file."""
        from safetensors.torch import save

        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        with self._replacing(BEST) as scratch:
            # Not save_file, whose files only their owner may read.
            scratch.write_bytes(save(tensors, metadata={"format": "pt"}))

    def write_log(self, metrics: Metrics) -> None:
        """Replace the log by these metrics, if there are any, and add their last epoch to the event files.

        Raises:
            OSError: it cannot be written; names it.
        """
        if not metrics:
            return
        with (
            self._replacing(LOG) as scratch,
            open(scratch, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(metrics)
            writer.writerows(zip(*metrics.values(), strict=True))
        if self._events is not None:
            for name, values in metrics.items():
                if name != "epoch":
                    self._events.add_scalar(name, values[-1], int(metrics["epoch"][-1]))
            self._events.flush()

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        path = self.path / name
        with naming(path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Always by one name: a training may be killed many times, and a checkpoint is large.
            with replacing(path, unique=False) as scratch:
                yield scratch


def _event_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError(
            'tensorboard: is not installed; pip install "mvsearch[tensorboard]", or leave it out'
        ) from None
    return SummaryWriter
