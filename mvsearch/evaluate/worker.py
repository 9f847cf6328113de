"""The worker: turns a job into a ledger line on one device."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mambavision.data import ImageData
from mambavision.layout import HybridLayout
from mambavision.scan import scan_path
from mvsearch.evaluate import throughput
from mvsearch.evaluate.gate import DeviceGate
from mvsearch.evaluate.memory import is_out_of_memory, peak_memory, reset_peak_memory
from mvsearch.evaluate.proxy import DeviceData, EpochDone, ProxyResult, train, used_dtype
from mvsearch.pool.job import DeviceBroken, Done, Job, Progress
from mvsearch.study.record import FAIL, TIME


class _OverLimit(Exception):
    """The job has taken longer than it may."""


class _OutOfMemory(Exception):
    """A training did not fit, its batches cut in two either."""


class TrainingWorker:
    """Trains and times layouts on one device.

    Args:
        proxy: the ``proxy`` section of the configuration.
        timing: the ``timing`` section.
        reference: the layout that throughput is given relative to.
        name: of the worker.
        device: ``"cpu"`` or ``"cuda:N"``.
        threads: threads a training uses on a CPU.
        data: the data set.
        test: whether trainings are also measured on the test split.
    """

    def __init__(
        self,
        proxy: Any,
        timing: Any,
        reference: HybridLayout,
        name: str,
        device: str,
        threads: int,
        data: ImageData,
        *,
        test: bool = False,
    ) -> None:
        self.proxy = proxy
        self.timing = timing
        self.reference = reference
        self.name = name
        self.device = torch.device(device)
        self.threads = threads
        self.data = DeviceData(data, self.device, test=test)
        self.gate = DeviceGate(physical_name(self.device))
        self._reference_model: torch.nn.Module | None = None
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
            with contextlib.suppress(RuntimeError):  # it can be set once, before the first parallel work
                torch.set_num_interop_threads(1)

    def run(self, job: Job) -> Iterator[Progress | Done]:
        """Do a job. Whatever the job raises becomes a `Done` with a failure and its reason.

        Raises:
            DeviceBroken: if the device does not answer any more.
        """
        started = time.time()
        measured: dict[str, Any] = {"started": started, "worker": self.name, "device": device_name(self.device)}
        try:
            if job.what == TIME:
                values, conditions = self._time(job)
                yield Done(job.id, job.evaluation(values=values, conditions=conditions, ended=time.time(), **measured))
                return
            yield from self._train(job, measured)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError):
                raise DeviceBroken(f"{job.what}: the device failed and takes no more work ({_text(error)})") from None
            if isinstance(error, _OverLimit):
                reason = job.over_limit
            elif is_out_of_memory(error) or isinstance(error, _OutOfMemory):
                tried = f", each batch of {self.proxy.batch_size} in two passes too" * isinstance(error, _OutOfMemory)
                peak = _size(peak_memory(self.device))
                reason = f"{job.what}: out of memory{tried}; the peak was {peak} ({_text(error)})"
            else:
                reason = f"{job.what}: {_explain(error)}"
            yield Done(job.id, job.evaluation(**measured, what=FAIL, reason=reason, ended=time.time()))

    def _train(self, job: Job, measured: dict[str, Any]) -> Iterator[Progress | Done]:
        over_at = math.inf if job.limit_s is None else time.monotonic() + job.limit_s

        @contextmanager
        def step_gate() -> Iterator[None]:
            with self.gate.read():
                if time.monotonic() > over_at:
                    raise _OverLimit
                yield

        batch = min(self.proxy.batch_size, len(self.data.train_images))
        for parts in (1, 2):
            steps = train(
                self.proxy.as_trained(job.layout),
                self.data,
                self.proxy,
                seed=job.seed or 0,
                from_epoch=job.from_epoch,
                to_epoch=job.to_epoch,
                checkpoint=job.checkpoint,
                keep_checkpoint=job.keep_checkpoint,
                parts=parts,
                step_gate=step_gate,
            )
            try:
                for event in steps:
                    if isinstance(event, EpochDone):
                        yield Progress(job.id, event.epoch, event.epochs, event.train_loss)
                    else:
                        yield self._trained(job, event, parts, measured)
                return
            except Exception as error:
                if batch < 2 or not is_out_of_memory(error):
                    raise
                if parts == 2:
                    raise _OutOfMemory(str(error)) from None
            # Outside the handler, so that the error's frames do not keep the tensors.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _trained(self, job: Job, result: ProxyResult, parts: int, measured: dict[str, Any]) -> Done:
        conditions = {
            "threads": self.threads,
            "batch_size": self.proxy.batch_size,
            "image_size": self.data.train_images.shape[-1],
            "dtype": used_dtype(self.proxy.dtype, self.device),
            "train_images": len(self.data.train_images),
            "scan": scan_path(self.device),
            "peak_memory": "of the tensors" if self.device.type == "cuda" else "of the process",
        }
        if parts > 1:
            conditions["batch_in_parts"] = parts  # it did not fit the memory in one
        evaluation = job.evaluation(values=result.values, conditions=conditions, ended=time.time(), **measured)
        return Done(job.id, evaluation, result.weights, result.checkpoint)

    def _time(self, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
        timing = self.timing
        size = timing.deployed_image_size(self.proxy)
        classes, channels = self.data.classes, self.data.channels
        reset_peak_memory(self.device)
        if self._reference_model is None:
            self._reference_model = throughput.timed_model(self.reference, classes, channels, self.device)
        model = throughput.timed_model(job.layout, classes, channels, self.device)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(timing.batch_size, channels, size, size, generator=generator).to(self.device)
        with self.gate.write(), throughput.threads(timing.threads):
            values, conditions = throughput.measure(
                model,
                self._reference_model,
                images,
                window_s=timing.window_s,
                windows=timing.windows,
                dtype=timing.dtype,
                cuda_graph=timing.cuda_graph,
                latency=timing.latency,
            )
        conditions |= {
            "source": "measured",
            "threads": timing.threads,
            "batch_size": timing.batch_size,
            "image_size": size,
            "window_s": timing.window_s,
            "reference": self.reference.key,
            "scan": scan_path(self.device),
        }
        return values, conditions


def device_name(device: torch.device) -> str:
    """What the records call a device: "cpu", or "cuda:0 NVIDIA H100"."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return str(device)


def physical_name(device: torch.device) -> str:
    """One name for one piece of hardware: a CPU is one device however many workers share it."""
    if device.type == "cuda":
        return f"cuda-{torch.cuda.get_device_properties(device).uuid}"
    return str(device)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__
    # Our own errors are sentences already; others need their name to mean anything.
    return text if text and type(error).__module__.startswith("mvsearch") else f"{name}: {text}"[:500]
