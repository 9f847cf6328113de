"""How a pool makes the workers that train and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mambavision.layout import HybridLayout

if TYPE_CHECKING:
    from mambavision.data import ImageData
    from mvsearch.evaluate.worker import TrainingWorker


@dataclass(frozen=True)
class MakeWorker:
    """Builds a `TrainingWorker` in the process that will run it; the driver's own need not import what trains.

    Attributes:
        proxy: the ``proxy`` section of the configuration.
        timing: the ``timing`` section.
        reference: the layout that throughput is given relative to.
        test: whether trainings are also measured on the test split; only `confirm` asks for it.
    """

    proxy: Any
    timing: Any
    reference: HybridLayout
    test: bool = False

    def __call__(self, name: str, device: str, threads: int, data: ImageData) -> TrainingWorker:
        """Build the worker; see `WorkerFactory`."""
        from mvsearch.evaluate.worker import TrainingWorker

        return TrainingWorker(self.proxy, self.timing, self.reference, name, device, threads, data, test=self.test)
