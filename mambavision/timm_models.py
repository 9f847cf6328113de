"""The library's models under their names in timm's registry.

Imported when timm is (see `mambavision/__init__.py`). Every entry is registered, and ``mambavision`` itself, which
takes any layout: ``timm.create_model("mambavision", layout=…)``; so timm also reads an entry's folder or hub page.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from timm.models import build_model_with_cfg, is_model, register_model
from torch import Tensor, nn

from mambavision.layout import HybridLayout, LayoutError, StageLayout
from mambavision.library import (
    ARCHITECTURE,
    LibraryError,
    first_conv,
    library_root,
    list_models,
    load_entry_config,
)

default_cfgs: dict[str, dict[str, Any]] = {}
"""timm's default configuration of every registered name: weights, size and preparation of images, names of layers."""

_LAYOUT_FIELDS = {field.name for kind in (HybridLayout, StageLayout) for field in dataclasses.fields(kind)} - {"stages"}


def register_entry(name: str) -> None:
    """Register a library entry, again if it is registered already. Its configuration is read when a model is built.

    Left out are names with a dot, as timm takes what follows it for a tag of weights, and names of timm's own models.
    """
    if "." in name or (is_model(name) and name not in default_cfgs):
        return
    try:
        config = load_entry_config(name)
        cfg = _default_cfg(name, HybridLayout.from_dict(config["layout"]), config)
    except (LibraryError, LayoutError):
        return  # create_model says what is wrong with it; importing timm must not fail for it

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return _build(name, pretrained, load_entry_config(name), options)

    _register(name, build, cfg)


def _build(name: str, pretrained: bool, config: Mapping[str, Any], options: dict[str, Any]) -> nn.Module:
    from mambavision.model import MambaVision

    changes = {key: options.pop(key) for key in list(options) if key in _LAYOUT_FIELDS}
    layout = HybridLayout.from_dict(config["layout"]).override(**changes)
    options.setdefault("drop_path_rate", config.get("drop_path_rate", 0.0))
    return build_model_with_cfg(
        MambaVision,
        name,
        pretrained,
        feature_cfg={"out_indices": tuple(range(len(layout.stages))), "feature_cls": "getter"},
        pretrained_filter_fn=_checked,
        layout=layout,
        **options,
    )


def _checked(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights under their published names. Raises ValueError if they are of another layout."""
    from mambavision.released import misfit, stripped

    weights = stripped(state_dict)
    # The two that timm adapts itself: the stem to other channels, the classifier to other classes.
    adapted = ("head.", "patch_embed.conv_down.0.", "patch_embed.proj.")
    own = {key: value for key, value in model.state_dict().items() if key.startswith(adapted)}
    if problem := misfit(model, {key: value for key, value in weights.items() if not key.startswith(adapted)} | own):
        raise ValueError(problem)
    return weights


def _default_cfg(name: str, layout: HybridLayout, config: Mapping[str, Any]) -> dict[str, Any]:
    weights = library_root() / name / "model.safetensors"
    last = layout.feature_sizes(tuple(config["input_size"][1:]))[-1] if config.get("input_size") else None
    cfg = {key: config[key] for key in ("interpolation", "crop_pct", "crop_mode") if key in config}
    cfg |= {key: tuple(config[key]) for key in ("input_size", "mean", "std") if key in config}
    return cfg | {
        "file": str(weights) if weights.is_file() else None,
        "num_classes": config["num_classes"],
        "pool_size": last,
        "first_conv": first_conv(layout),
        "classifier": "head",
        "paper_ids": "arXiv:2407.08083",
    }


def _register(name: str, build: Callable[..., nn.Module], cfg: dict[str, Any]) -> None:
    # timm registers a function under its name, with the configuration that its module holds for that name. The function
    # is no attribute of the module: an entry may be called as anything here is.
    build.__name__ = build.__qualname__ = name
    build.__module__ = __name__
    default_cfgs[name] = cfg
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"Overwriting {name} in registry")
        register_model(build)


def _any_layout(pretrained: bool = False, layout: Any = None, **options: Any) -> nn.Module:
    if isinstance(layout, HybridLayout):
        layout = layout.to_dict()
    if layout is None:
        raise LayoutError("layout: missing; the model 'mambavision' takes a HybridLayout, or its to_dict()")
    return _build(ARCHITECTURE, pretrained, {"layout": layout}, options)


_register(
    ARCHITECTURE, _any_layout, {"num_classes": 1000, "first_conv": "patch_embed.conv_down.0", "classifier": "head"}
)
for _name in list_models():
    register_entry(_name)
