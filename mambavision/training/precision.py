"""Mixed precision: dtype names and their autocast contexts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mambavision.training.errors import TrainingError

DTYPES = ("auto", "bfloat16", "float16", "float32")
Autocast = Callable[[], AbstractContextManager[Any]]


def autocast_for(dtype: str, device: torch.device) -> Autocast:
    """The autocast context of a dtype name; ``"auto"`` is bfloat16 on CUDA devices that have it, else float32."""
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=getattr(torch, dtype))


def resolved_dtype(use_amp: bool, dtype: str, device: torch.device) -> str:
    """The dtype that a `Trainer` computes in: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Raises:
        TrainingError: float16 on a device that is no GPU.
    """
    if use_amp and dtype == "auto":
        gpu = device.type == "cuda"
        dtype = "float32" if not gpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if dtype == "float16" and device.type != "cuda":
        raise TrainingError(f"dtype: 'float16' is not allowed on device {device.type}; bfloat16 or float32")
    return dtype if use_amp else "float32"
