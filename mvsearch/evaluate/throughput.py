"""How many images a second a layout serves, beside a reference layout in the same seconds.

Absolute speeds drift with heat, clocks and neighbours, so what the search uses is the ratio: windows of the layout and
of the reference alternate, and each window of the layout is divided by the mean of the reference windows around it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mambavision.layout import HybridLayout
from mambavision.model import MambaVision
from mvsearch.evaluate.proxy import autocast_for, used_dtype

MAX_DRIFT = 0.02
MAX_IQR = 0.04
MAX_REPEATS = 2
GRAPH_WARM_UPS = 3

Pass = Callable[[], object]
"""One pass of one model over its images."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run PyTorch's operators on `count` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_model(layout: HybridLayout, num_classes: int, in_chans: int, device: torch.device) -> nn.Module:
    """A model to be timed. Its weights do not matter for its speed, but they are drawn from a fixed seed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return MambaVision(layout, num_classes=num_classes, in_chans=in_chans).to(device).eval()


@torch.inference_mode()
def measure(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    *,
    window_s: float,
    windows: int,
    dtype: str = "auto",
    cuda_graph: str | bool = "auto",
    latency: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time a model and the reference in alternating windows.

    Call it with the device to yourself (`DeviceGate.write`) and the thread count set.

    Args:
        model: in evaluation mode, on the device of `images`.
        reference: likewise.
        images: float input (B, C, H, W) at the deployment's batch size and resolution, on the device.
        window_s: seconds a window lasts, at least one pass.
        windows: windows of the model; the reference gets one more.
        dtype: ``"auto"``, ``"float32"`` or ``"bfloat16"``.
        cuda_graph: ``"auto"``: on CUDA both models are replayed as graphs, which leaves out the time the CPU takes to
            launch kernels; where one of them cannot be captured, both are run eagerly. False: eagerly.
        latency: time single images as well.

    Returns:
        The values: ``images_per_second`` (median of the windows), ``ratio`` (median over windows of model / mean of the
        two reference windows beside it), ``iqr`` (of those quotients, over their median), ``windows`` and
        ``reference_windows`` (img/s), ``drift`` (median of the later half of the reference windows over that of the
        earlier half, minus 1) and ``repeats``: the measurement is repeated, at most twice, while the reference
        drifts by more than 2 % or the quotients have an interquartile range of more than 4 %; the steadiest one is
        kept. With `latency` also ``latency_ms`` (of one image, median) and ``latency_ratio`` (to the reference's).

        And the conditions that only the measurement knows: ``dtype`` (as used) and, on CUDA, ``cuda_graph`` (True,
        False, or why not).
    """
    used, conditions = _passes((model, reference), images, dtype, cuda_graph)
    values = _alternate(*used, images, window_s, windows)
    if latency:
        used, _ = _passes((model, reference), images[:1], dtype, cuda_graph)
        single = _alternate(*used, images[:1], window_s, windows)
        values |= {"latency_ms": 1e3 / single["images_per_second"], "latency_ratio": 1 / single["ratio"]}
    return values, conditions


def _passes(
    models: tuple[nn.Module, nn.Module], images: Tensor, dtype: str, cuda_graph: str | bool
) -> tuple[tuple[Pass, Pass], dict[str, Any]]:
    """How each model is run over the images, both in the same way, and the conditions that this sets."""
    device = images.device
    autocast = autocast_for(dtype, device)
    conditions: dict[str, Any] = {"dtype": used_dtype(dtype, device)}

    def eager(model: nn.Module) -> Pass:
        def run() -> object:
            with autocast():
                return model(images)

        return run

    first, second = (eager(model) for model in models)
    if not _has_graphs(device):
        return (first, second), conditions
    if not cuda_graph:
        return (first, second), conditions | {"cuda_graph": False}
    try:
        graphs = (_capture(first, device), _capture(second, device))
    except RuntimeError as error:
        _synchronise(device)
        reason = " ".join(str(error).split())[:200]
        return (first, second), conditions | {"cuda_graph": f"no: {reason}"}
    return graphs, conditions | {"cuda_graph": True}


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _capture(run: Pass, device: torch.device) -> Pass:
    """A pass as a CUDA graph: its kernels are recorded once and replayed with a single launch.

    Raises:
        RuntimeError: if the pass does what a graph cannot hold, such as waiting for the device.
    """
    # What happens only in first passes (tuning, workspaces, lazy loading) must not be recorded, and capturing wants a
    # stream of its own.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UPS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay(output: object = output) -> object:  # the graph writes into `output`, which must live as long
        graph.replay()
        return output

    return replay


def _alternate(model: Pass, reference: Pass, images: Tensor, window_s: float, windows: int) -> dict[str, Any]:
    def run(what: Pass, seconds: float, least: int) -> float:
        passes = 0
        _synchronise(images.device)
        began = time.perf_counter()
        while True:
            what()
            passes += 1
            if passes >= least and time.perf_counter() - began >= seconds:
                break
        _synchronise(images.device)
        return passes * len(images) / (time.perf_counter() - began)

    best: dict[str, Any] = {}
    least = math.inf
    for repeat in range(MAX_REPEATS + 1):
        for what in (reference, model):
            run(what, window_s / 2, 2)  # warm-up: allocator, caches, clocks
        around = [run(reference, window_s, 1)]
        own = []
        for _ in range(windows):
            own.append(run(model, window_s, 1))
            around.append(run(reference, window_s, 1))
        quotients = [value / ((left + right) / 2) for value, left, right in zip(own, around, around[1:], strict=False)]
        ratio = statistics.median(quotients)
        half = len(around) // 2
        drift = statistics.median(around[-half:]) / statistics.median(around[:half]) - 1
        iqr = _interquartile_range(quotients) / ratio
        unsteady = max(abs(drift) / MAX_DRIFT, iqr / MAX_IQR)
        if unsteady < least:
            least = unsteady
            best = {
                "images_per_second": statistics.median(own),
                "ratio": ratio,
                "iqr": iqr,
                "windows": own,
                "reference_windows": around,
                "drift": drift,
            }
        best["repeats"] = repeat
        if unsteady <= 1:
            break
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _interquartile_range(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
