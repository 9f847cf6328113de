"""`mvsearch bench`: throughput of layouts and of any timm model side by side, by the protocol of the search."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mambavision.layout import HybridLayout, LayoutError
from mambavision.library import create_model, list_models
from mambavision.model import MambaVision
from mambavision.scan import scan_path
from mvsearch.evaluate import throughput
from mvsearch.evaluate.gate import DeviceGate
from mvsearch.evaluate.memory import is_out_of_memory
from mvsearch.evaluate.worker import device_name, physical_name
from mvsearch.space.space import SearchSpace


class BenchError(ValueError):
    """A model that cannot be found or timed; the message names it and says why."""


@dataclass(frozen=True)
class BenchRow:
    """One model, timed.

    Attributes:
        name: as given.
        key: of the layout; None for a model that is none.
        layout: the layout as JSON; None for a model that is none.
        params: parameters.
        macs: multiply-adds of one image, counted while it runs (convolutions, matrix products, attention; no scan).
        images_per_second: median over the windows.
        ratio: to the first model, median over windows beside windows of it.
        iqr: interquartile range of that ratio over its median; of the first model, the noise of the measurement.
        drift: of the first model's speed between the earlier and the later windows.
        latency_ms: of one image, median; None unless asked for.
    """

    name: str
    key: str | None
    layout: str | None
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
        BenchError: for a name that neither knows (the nearest is named), or a file that cannot be read or holds no
            layout.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BenchError(f"model: {name!r} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise BenchError(f"model: {name!r} cannot be read ({error})") from None
        read = HybridLayout.from_json if path.suffix == ".json" else HybridLayout.from_yaml
        try:
            return MambaVision(read(text))
        except LayoutError as error:
            raise BenchError(f"model: {name!r} holds no layout: {error}") from None
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
    cuda_graph: str | bool = "auto",
    latency: bool = False,
    load: Callable[[str], nn.Module] = load,
    keep: bool = True,
    on_row: Callable[[BenchRow, dict[str, Any]], None] = lambda row, conditions: None,
) -> tuple[list[BenchRow], dict[str, Any]]:
    """Time models one after the other, each in turns with the first.

    Args:
        names: what `load` takes; the first is the one that ratios are to.
        image_size: side of the images in pixels.
        batch_size: images a pass.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``.
        dtype: ``"auto"`` (bfloat16 on CUDA devices that have it), ``"float32"`` or ``"bfloat16"``.
        threads: of PyTorch, on a CPU.
        window_s: seconds of a window.
        windows: windows of each model.
        cuda_graph: ``"auto"`` or False, as for `throughput.measure`.
        latency: time single images as well.
        load: makes a model of its name.
        keep: whether all models are made, and checked, before the first is timed; else one after the other.
        on_row: called with each row when it is there, and the conditions.

    Returns:
        The rows in the order of `names`, and the conditions they hold for.

    Raises:
        BenchError: for a model that cannot be found, or does not take images of this size, or a batch that does not
            fit into memory.
    """
    where = _device(device)
    reference = load(names[0]).to(where).eval()
    with _fitting(batch_size):
        images = _images(reference, batch_size, image_size, where)

    def prepared(name: str) -> nn.Module:
        model = reference if name == names[0] else load(name).to(where).eval()
        _check(name, model, images[:1])
        return model

    models = {name: prepared(name) for name in dict.fromkeys(names)} if keep else {}
    conditions = {
        "device": device_name(where),
        "threads": threads if where.type == "cpu" else None,
        "image_size": image_size,
        "batch_size": batch_size,
        "window_s": window_s,
        "windows": windows,
        "reference": _key(reference) or names[0],
        "scan": scan_path(where),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    rows = []
    for name in names:
        model = models.get(name) or prepared(name)
        # Exclusive on its device: a search that trains there waits, and is waited for.
        with DeviceGate(physical_name(where)).write(), throughput.threads(threads), _fitting(batch_size):
            found, measured = throughput.measure(
                model,
                reference,
                images,
                window_s=window_s,
                windows=windows,
                dtype=dtype,
                cuda_graph=cuda_graph,
                latency=latency,
            )
        if not isinstance(conditions.get("cuda_graph"), str):  # the reason of the first that could not be captured
            conditions |= measured
        row = BenchRow(
            name=name,
            key=_key(model),
            layout=_layout_json(model),
            params=sum(parameter.numel() for parameter in model.parameters()),
            macs=_macs(model, images[:1]),
            images_per_second=found["images_per_second"],
            ratio=found["ratio"],
            iqr=found["iqr"],
            drift=found["drift"],
            latency_ms=found.get("latency_ms"),
        )
        rows.append(row)
        on_row(row, conditions)
    return rows, conditions


def bench_space(
    space: SearchSpace,
    *,
    layouts: int,
    device: str = "auto",
    seed: int = 0,
    on_row: Callable[[BenchRow, dict[str, Any]], None] = lambda row, conditions: None,
) -> tuple[list[BenchRow], dict[str, Any]]:
    """Time layouts of a space as its study would, for a search on another machine (``throughput.file``).

    Args:
        space: whose ``timing`` section says how.
        layouts: how many: the hand-made ones, then others drawn uniformly; fewer where the space has fewer.
        device: as for `bench`.
        seed: of the draws.
        on_row: as for `bench`.

    Returns:
        The rows, the reference layout first, and the conditions.

    Raises:
        BenchError: for a device that is not there.
        SpaceError: if no layout is within the budgets.
    """
    reference = space.reference()
    chosen = {layout.key: layout for layout in (reference, *space.baselines().values())}
    rng = random.Random(seed)
    while len(chosen) < layouts and (drawn := space.uniform_unseen(set(chosen), rng)) is not None:
        chosen[drawn.key] = drawn
    where, timing = _device(device), space.config.timing
    return bench(
        list(chosen)[:layouts],
        image_size=space.config.deployed_image_size,
        batch_size=timing.batch_size,
        device=device,
        dtype=timing.dtype,
        threads=timing.threads,
        window_s=timing.window_s,
        windows=timing.windows,
        cuda_graph=timing.cuda_graph,
        latency=timing.latency,
        load=lambda key: throughput.timed_model(chosen[key], space.num_classes, space.in_chans, where),
        keep=False,
        on_row=on_row,
    )


@contextmanager
def _fitting(batch_size: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BenchError(f"batch-size: {batch_size} images of this size do not fit into memory") from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise BenchError(f"device: {name!r} is not allowed; cpu, cuda, cuda:N or auto") from None
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise BenchError(f"device: {name!r} is not there; cpu and {torch.cuda.device_count()} CUDA devices are")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchError(f"device: {name!r} is not there; cpu is")
    return device


def _key(model: nn.Module) -> str | None:
    return model.layout.key if isinstance(model, MambaVision) else None


def _layout_json(model: nn.Module) -> str | None:
    return json.dumps(model.layout.to_dict()) if isinstance(model, MambaVision) else None


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
