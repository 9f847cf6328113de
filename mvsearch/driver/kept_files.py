"""The weights and checkpoints that a driver keeps in the study's folder: their names, and when they go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mambavision.files import write_atomic
from mvsearch.driver.crew import JobEnd


class KeptFiles:
    """What trainings give back, as files: weights by layout, checkpoints by layout, seed and epoch.

    Args:
        checkpoints: their folder; it is made with the first of them.
        weights: the folder of the weights, made in the same manner; None: weights are not kept.
        seeds: of the trainings of each layout; the weights are those of the first.
        stops: epochs at which a training may leave a checkpoint, rising; the last is its end, where it leaves weights.
    """

    def __init__(self, checkpoints: Path, weights: Path | None, *, seeds: Sequence[int], stops: Sequence[int]) -> None:
        self._checkpoints = checkpoints
        self._weights = weights
        self._seeds = seeds
        self._stops = stops

    def keep(self, end: JobEnd) -> None:
        """Write what a job gave back.

        Call it before the ledger gets the job's line: what the ledger holds is never done again.

        Raises:
            OSError: if a file cannot be written.
        """
        job = end.job
        of_first_seed = job.seed == self._seeds[0] and job.to_epoch >= self._stops[-1]
        if self._weights is not None and end.weights is not None and of_first_seed:
            self._weights.mkdir(exist_ok=True)
            write_atomic(self._weights / f"{job.layout.key}.safetensors", end.weights)
        if end.checkpoint is not None and job.seed is not None:
            self._checkpoints.mkdir(exist_ok=True)
            write_atomic(self._checkpoint(job.layout.key, job.seed, job.to_epoch), end.checkpoint)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _checkpoint(self, key: str, seed: int, epoch: int) -> Path:
        return self._checkpoints / f"{key}.seed{seed}.epoch{epoch}.pt"

    def checkpoint(self, key: str, seed: int, epochs: Iterable[int]) -> tuple[int, bytes | None]:
        """The first checkpoint of a training that is there.

        Args:
            key: of the layout.
            seed: of the training.
            epochs: after which it may have been left, in the order in which they are looked for.

        Returns:
            Its epoch and what it holds; 0 and None if none is there.
        """
        for epoch in epochs:
            try:
                return epoch, self._checkpoint(key, seed, epoch).read_bytes()
            except FileNotFoundError:
                continue
        return 0, None

    def drop_checkpoints(self, key: str, *, seed: int | None = None, before: int | None = None) -> None:
        """Delete the checkpoints of a layout: of all seeds, or of one; all, or those of earlier epochs."""
        for epoch in self._stops[:-1]:
            if before is None or epoch < before:
                for one in self._seeds if seed is None else [seed]:
                    self._checkpoint(key, one, epoch).unlink(missing_ok=True)

    def sweep_checkpoints(self, keys: Iterable[str]) -> None:
        """Delete the checkpoints of layouts that have ended, which a crash kept from being deleted."""
        if self._checkpoints.is_dir():
            for key in keys:
                self.drop_checkpoints(key)

    def drop_all_checkpoints(self) -> None:
        """Delete the checkpoints of all layouts, and their folder."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)

    # -- weights ----------------------------------------------------------------------------------------------------

    def drop_weights(self, wanted: Callable[[str], bool]) -> None:
        """Delete the weights of all layouts but those whose key is wanted."""
        if self._weights is not None:
            for path in self._weights.glob("*.safetensors"):
                if not wanted(path.stem):
                    path.unlink()

    def drop(self, key: str) -> None:
        """Delete all that is kept of a layout."""
        if self._weights is not None:
            (self._weights / f"{key}.safetensors").unlink(missing_ok=True)
        self.drop_checkpoints(key)
