"""`mvsearch bench`: throughput of layouts and of any timm model side by side, by the protocol of the search."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mambavision.layout import HybridLayout
from mambavision.library import create_model, list_models
from mambavision.model import MambaVision
from mambavision.scan import scan_path
from mvsearch.evaluate import throughput
from mvsearch.evaluate.gate import DeviceGate
from mvsearch.evaluate.worker import device_name, physical_name


class BenchError(ValueError):
    """A model that cannot be found or timed; the message names it and says why."""


@dataclass(frozen=True)
class BenchRow:
    """One model, timed.

    Attributes:
        name: as given.
        params: parameters.
        macs: multiply-adds of one image, counted while it runs (convolutions, matrix products, attention; no scan).
        images_per_second: median over the windows.
        ratio: to the first model, median over windows beside windows of it.
        iqr: interquartile range of that ratio over its median; of the first model, the noise of the measurement.
        drift: of the first model's speed between the earlier and the later windows.
        latency_ms: of one image, median; None unless asked for.
    """

    name: str
    params: int
    macs: int
    images_per_second: float
    ratio: float
    iqr: float
    drift: float
    latency_ms: float | None


def load(name: str) -> nn.Module:
    """A model by its name in the library or in timm, or of a layout's YAML or JSON file.

    Raises:
        BenchError: for a name that neither knows (the nearest is named), or a file that cannot be read.
        LayoutError: for a file that holds no layout.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BenchError(f"model: {name!r} cannot be read ({error.strerror})") from None
        read = HybridLayout.from_json if path.suffix == ".json" else HybridLayout.from_yaml
        return MambaVision(read(text))
    if name in list_models():
        return create_model(name)
    if timm.is_model(name.partition(".")[0]):
        return timm.create_model(name)
    near = difflib.get_close_matches(name, [*list_models(), *timm.list_models()], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BenchError(
        f"model: {name!r} is neither a model of the library (mambavision list), nor of timm, nor a layout's .yaml or "
        f".json file.{hint}"
    )


def bench(
    names: Sequence[str],
    *,
    image_size: int = 224,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 1,
    window_s: float = 0.5,
    windows: int = 5,
    latency: bool = False,
    on_row: Callable[[BenchRow], None] = lambda row: None,
) -> tuple[list[BenchRow], dict[str, Any]]:
    """Time models one after the other, each in turns with the first.

    Args:
        names: see `load`; the first is the one that ratios are to.
        image_size: side of the images in pixels.
        batch_size: images a pass.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``.
        dtype: ``"auto"`` (bfloat16 on CUDA devices that have it), ``"float32"`` or ``"bfloat16"``.
        threads: of PyTorch, on a CPU.
        window_s: seconds of a window.
        windows: windows of each model.
        latency: time single images as well.
        on_row: called with each row when it is there.

    Returns:
        The rows in the order of `names`, and the conditions they hold for.

    Raises:
        BenchError: for a model that cannot be found, or does not take images of this size.
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise BenchError(f"device: {device!r} is not there; cpu is")
    models = {name: load(name).to(where).eval() for name in dict.fromkeys(names)}
    images = _images(models[names[0]], batch_size, image_size, where)
    for name, model in models.items():
        _check(name, model, images[:1])
    rows = []
    for name in names:
        # Exclusive on its device: a search that trains there waits, and is waited for.
        with DeviceGate(physical_name(where)).write(), throughput.threads(threads):
            options: dict[str, Any] = {"window_s": window_s, "windows": windows, "dtype": dtype}
            found = throughput.measure(models[name], models[names[0]], images, **options)
            single = throughput.measure(models[name], models[names[0]], images[:1], **options) if latency else None
        row = BenchRow(
            name=name,
            params=sum(parameter.numel() for parameter in models[name].parameters()),
            macs=_macs(models[name], images[:1]),
            images_per_second=found["images_per_second"],
            ratio=found["ratio"],
            iqr=found["iqr"],
            drift=found["drift"],
            latency_ms=1e3 / single["images_per_second"] if single else None,
        )
        rows.append(row)
        on_row(row)
    conditions = {
        "device": device_name(where),
        "threads": threads if where.type == "cpu" else None,
        "image_size": image_size,
        "batch_size": batch_size,
        "dtype": dtype,
        "window_s": window_s,
        "windows": windows,
        "scan": scan_path(where),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return rows, conditions


def _images(model: nn.Module, batch_size: int, image_size: int, device: torch.device) -> torch.Tensor:
    channels = getattr(model, "in_chans", 3)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, channels, image_size, image_size, generator=generator).to(device)


@torch.inference_mode()
def _check(name: str, model: nn.Module, image: torch.Tensor) -> None:
    try:
        model(image)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        shape = "×".join(map(str, image.shape[1:]))
        raise BenchError(f"model: {name!r} does not take an image of {shape} ({reason})") from None


@torch.inference_mode()
def _macs(model: nn.Module, image: torch.Tensor) -> int:
    # The counter knows attention only in its plain form.
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2
