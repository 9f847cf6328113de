"""MambaVision: hybrid Mamba/attention vision backbones, described by one value, `HybridLayout`.

Names that need torch are loaded on first use, so that `import mambavision` and the modules about layouts and cost
start quickly. `mambavision.cost` is the module; the function is `mambavision.cost.cost`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mambavision.layout import HybridLayout, LayoutError, StageLayout

if TYPE_CHECKING:
    from mambavision.library import LibraryError, create_model, list_models
    from mambavision.model import MambaVision
    from mambavision.released import load_released_weights
    from mambavision.scan import selective_scan

__all__ = [
    "HybridLayout",
    "LayoutError",
    "LibraryError",
    "MambaVision",
    "StageLayout",
    "cost",
    "create_model",
    "list_models",
    "load_released_weights",
    "selective_scan",
]

_HOMES = {
    "LibraryError": "library",
    "MambaVision": "model",
    "create_model": "library",
    "list_models": "library",
    "load_released_weights": "released",
    "selective_scan": "scan",
}


def __getattr__(name: str) -> Any:
    if name == "cost":
        return importlib.import_module("mambavision.cost")
    if name in _HOMES:
        return getattr(importlib.import_module(f"mambavision.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
