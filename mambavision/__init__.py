"""MambaVision: hybrid Mamba/attention vision backbones, described by one value, `HybridLayout`.

Names that need torch are loaded on first use, so that `import mambavision` and the modules about layouts and cost
start quickly. `mambavision.cost` is the module; the function is `mambavision.cost.cost`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from mambavision.layout import HybridLayout, LayoutError, StageLayout

if TYPE_CHECKING:
    from mambavision.data import create_image_loaders, create_synthetic_dataset
    from mambavision.library import (
        LibraryError,
        create_mambavision_small,
        create_mambavision_tiny,
        create_model,
        list_models,
    )
    from mambavision.model import MambaVision
    from mambavision.onnx_export import ExportError, export_onnx
    from mambavision.plots import model_architecture_diagram, plot_training_curves, visualize_sample_data
    from mambavision.released import load_released_weights
    from mambavision.scan import selective_scan
    from mambavision.training import Trainer

__all__ = [
    "ExportError",
    "HybridLayout",
    "LayoutError",
    "LibraryError",
    "MambaVision",
    "StageLayout",
    "Trainer",
    "cost",
    "create_image_loaders",
    "create_mambavision_small",
    "create_mambavision_tiny",
    "create_model",
    "create_synthetic_dataset",
    "export_onnx",
    "list_models",
    "load_released_weights",
    "model_architecture_diagram",
    "plot_training_curves",
    "selective_scan",
    "visualize_sample_data",
]

_HOMES = {
    "ExportError": "onnx_export",
    "LibraryError": "library",
    "MambaVision": "model",
    "Trainer": "training",
    "create_image_loaders": "data",
    "create_mambavision_small": "library",
    "create_mambavision_tiny": "library",
    "create_model": "library",
    "create_synthetic_dataset": "data",
    "export_onnx": "onnx_export",
    "list_models": "library",
    "load_released_weights": "released",
    "model_architecture_diagram": "plots",
    "plot_training_curves": "plots",
    "selective_scan": "scan",
    "visualize_sample_data": "plots",
}


def __getattr__(name: str) -> Any:
    if name == "cost":
        return importlib.import_module("mambavision.cost")
    if name in _HOMES:
        return getattr(importlib.import_module(f"mambavision.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Registers the library's names with timm once timm has been imported, which takes seconds, by somebody else."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "timm.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                importlib.import_module("mambavision.timm_models")

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "timm.models" in sys.modules:
    importlib.import_module("mambavision.timm_models")
else:
    sys.meta_path.insert(0, _AfterTimm())
