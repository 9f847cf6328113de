"""Models by name: the published layouts, the columnar ones, and entries of one's own in a folder.

An entry is a folder ``<name>/`` with config.json, model.safetensors and card.md under `library_root`, in the form in
which timm keeps models on a hub: ``timm.create_model("local-dir:<folder>", pretrained=True)`` reads it too. This module
imports torch only when a model is built or weights are written.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.files import scratch_folder
from mambavision.layout import HybridLayout, LayoutError, StageLayout, first_part, last_half

if TYPE_CHECKING:
    from torch import Tensor

    from mambavision.model import MambaVision

ARCHITECTURE = "mambavision"
_PREPARATION = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class LibraryError(ValueError):
    """An entry that cannot be found, read or written; the message says which and why."""


def _published(
    dim: int,
    in_dim: int,
    depths: tuple[int, int, int, int],
    heads: tuple[int, int],
    drop_path_rate: float,
    *,
    windows: tuple[int, int] = (14, 7),
    layer_scale: float | None = None,
    size: int = 224,
    crop_pct: float = 1.0,
    crop_mode: str = "center",
) -> dict[str, Any]:
    conv = [StageLayout(blocks="C" * depths[i], dim=dim << i) for i in (0, 1)]
    hybrid = [
        StageLayout(
            blocks=last_half(depths[i]),
            dim=dim << i,
            heads=heads[i - 2],
            window=windows[i - 2],
            layer_scale=layer_scale,
        )
        for i in (2, 3)
    ]
    layout = HybridLayout(stages=(*conv, *hybrid), in_dim=in_dim)
    return _imagenet(layout, drop_path_rate, size, crop_pct, crop_mode)


def _columnar(dim: int, depth: int, heads: int, mlp_ratio: float) -> dict[str, Any]:
    stage = StageLayout(
        blocks=first_part(depth, 0.5),
        dim=dim,
        heads=heads,
        state=16,
        conv_kernel=4,
        expand=2,
        mlp_ratio=mlp_ratio,
    )
    return _imagenet(HybridLayout(stages=(stage,), stem="patch", patch=16), 0.0, 224, 0.9, "center")


def _imagenet(
    layout: HybridLayout, drop_path_rate: float, size: int, crop_pct: float, crop_mode: str
) -> dict[str, Any]:
    return {
        "architecture": ARCHITECTURE,
        "layout": layout.to_dict(),
        "num_classes": 1000,
        "in_chans": 3,
        "drop_path_rate": drop_path_rate,
        "input_size": [3, size, size],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }


# arXiv 2407.08083 and its published models: width, stem width, depths, heads of stages 3 and 4, stochastic depth.
_L3 = (256, 64, (3, 3, 20, 10), (16, 32), 0.5)
_L2 = (196, 64, (3, 3, 12, 5), (16, 32), 0.3)
PUBLISHED: dict[str, dict[str, Any]] = {
    "mambavision_t": _published(80, 32, (1, 3, 8, 4), (8, 16), 0.2),
    "mambavision_t2": _published(80, 32, (1, 3, 11, 4), (8, 16), 0.2, crop_pct=0.98),
    "mambavision_s": _published(96, 64, (3, 3, 7, 5), (8, 16), 0.2, crop_pct=0.93),
    "mambavision_b": _published(128, 64, (3, 3, 10, 5), (8, 16), 0.3, layer_scale=1e-5),
    "mambavision_l": _published(196, 64, (3, 3, 10, 5), (16, 32), 0.3, layer_scale=1e-5),
    "mambavision_l2": _published(*_L2, layer_scale=1e-5),
    "mambavision_l2_512": _published(
        *_L2, layer_scale=1e-5, windows=(32, 16), size=512, crop_pct=0.93, crop_mode="squash"
    ),
    "mambavision_l3": _published(*_L3, layer_scale=1e-5, windows=(16, 8), size=256),
    "mambavision_l3_512": _published(
        *_L3, layer_scale=1e-5, windows=(32, 16), size=512, crop_pct=0.93, crop_mode="squash"
    ),
}
"""Configurations of the published models; their weights are not part of this library."""

COLUMNAR: dict[str, dict[str, Any]] = {
    "mambavision_columnar_tiny": _columnar(128, 8, 4, 4.0),
    "mambavision_columnar_small": _columnar(256, 12, 8, 3.4375),  # hidden width 880
}
"""Configurations of the columnar models: one stage on patches of 16 px, gated Mamba first and attention last."""

SHIPPED = PUBLISHED | COLUMNAR
"""Names that are part of this library, without weights."""


def library_root() -> Path:
    """Folder of one's own entries: ``$MAMBAVISION_LIBRARY``, else the platform's user data folder."""
    if root := os.environ.get("MAMBAVISION_LIBRARY"):
        return Path(root).expanduser()
    try:
        import platformdirs
    except ImportError:  # where only torch and timm are installed; the same place on Linux
        return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "mambavision"
    return Path(platformdirs.user_data_dir("mambavision"))


def list_models() -> list[str]:
    """Names that `create_model` takes: the shipped layouts, then one's own entries, each sorted."""
    root = library_root()
    own = sorted(path.parent.name for path in root.glob("*/config.json") if _NAME.fullmatch(path.parent.name))
    return sorted(SHIPPED) + [name for name in own if name not in SHIPPED]


def load_entry_config(name: str) -> dict[str, Any]:
    """The configuration of an entry, shipped or one's own, as plain data without nesting.

    Holds at least ``architecture``, ``layout``, ``num_classes``, ``in_chans``, ``input_size`` (channels, height, width
    in pixels), ``mean`` and ``std`` of the image normalisation.

    Raises:
        LibraryError: if there is no such entry, or its file is damaged.
    """
    if name in SHIPPED:
        return json.loads(json.dumps(SHIPPED[name]))
    path = _folder(name) / "config.json"
    if not path.is_file():
        near = difflib.get_close_matches(name, list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LibraryError(f"no model {name!r} in the library ({library_root()}).{hint} list_models() names them all.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LibraryError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict) or config.get("architecture") != ARCHITECTURE:
        raise LibraryError(f"{path}: architecture is not {ARCHITECTURE!r}")
    config = _flat(config)
    for field in ("layout", "num_classes", "in_chans"):
        if field not in config:
            raise LibraryError(f"{path}: {field} is missing")
    if problem := _preparation_problem(config, config["in_chans"]):
        raise LibraryError(f"{path}: {problem}")
    return config


def load_entry(name: str) -> tuple[dict[str, Any], HybridLayout]:
    """The configuration of an entry (`load_entry_config`), which says how its images are prepared, and its layout.

    Raises:
        LibraryError: if there is no such entry, or its file is damaged or lacks what a user of its images needs.
    """
    config = load_entry_config(name)
    for field in ("input_size", "mean", "std"):
        if field not in config:
            raise LibraryError(f"{name}: its config.json lacks {field}")
    return config, _layout(name, config)


def _layout(name: str, config: Mapping[str, Any]) -> HybridLayout:
    try:
        return HybridLayout.from_dict(config["layout"])
    except LayoutError as error:
        raise LibraryError(f"{name}: its config.json holds no valid layout ({error})") from None


def _preparation_problem(config: Mapping[str, Any], in_chans: Any) -> str | None:
    """What is wrong with what an entry says of its classes and images; None if nothing is."""

    def whole(value: Any, least: int) -> bool:
        return type(value) is int and value >= least

    def numbers(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in value
        )

    size: Any = config.get("input_size")
    std: Any = config.get("std")
    if not whole(in_chans, 1):
        return f"in_chans: {in_chans!r} is not allowed; a whole number, 1 or more"
    if "num_classes" in config and not whole(config["num_classes"], 0):
        return f"num_classes: {config['num_classes']!r} is not allowed; a whole number, 0 or more"
    if "input_size" in config and not (
        isinstance(size, (list, tuple)) and len(size) == 3 and all(whole(x, 1) for x in size) and size[0] == in_chans
    ):
        return f"input_size: {size!r} is not allowed; [{in_chans}, height, width], as it takes {in_chans} channel(s)"
    for field in ("mean", "std"):
        value: Any = config.get(field)
        if field in config and not (numbers(value) and len(value) in (1, in_chans)):
            return f"{field}: {value!r} is not allowed; a list of {in_chans} number(s), one for each channel"
    if "std" in config and min(std) <= 0:
        return f"std: {std!r} is not allowed; numbers above 0"
    return None


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """timm's form without its nesting; entries of version 0.1 had none."""
    pretrained = config.get("pretrained_cfg", {})
    arguments = config.get("model_args", {})
    if not isinstance(pretrained, dict) or not isinstance(arguments, dict):
        return config
    flat = {key: pretrained[key] for key in _PREPARATION if key in pretrained} | arguments
    if "input_size" in flat:
        size = flat["input_size"]
        flat["in_chans"] = size[0] if isinstance(size, list) and size else 3  # the check names a wrong size
    rest = {key: value for key, value in config.items() if key not in ("pretrained_cfg", "model_args")}
    return flat | rest


def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    pretrained: bool = False,
    *,
    drop_path_rate: float | None = None,
    dt_init: str = "official",
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    **overrides: Any,
) -> MambaVision:
    """Build a model by name.

    Args:
        name: one of `list_models()`.
        num_classes: width of the classifier; None takes the entry's (published: 1000), 0 leaves it out. With
            `pretrained`, another number than the entry's keeps a fresh classifier.
        in_chans: channels of the image; None takes the entry's (published: 3).
        pretrained: load the entry's weights.
        drop_path_rate: stochastic depth; None takes the entry's, published ones their published rate, else 0.
        dt_init: ``"official"`` or ``"mamba"``, see `MambaVision`.
        drop_rate: dropout before the classifier.
        global_pool: ``"avg"``, or ``""`` for a map of logits.
        **overrides: fields of the layout or its stages (one value, or a list with one a stage), e.g.
            ``window=[8, 8, 7, 7]``; see `HybridLayout.override`.

    Raises:
        LibraryError: unknown name, damaged entry, or weights that are missing or do not fit.
        LayoutError: an override that is not allowed.
    """
    config = load_entry_config(name)
    if pretrained and name in COLUMNAR:
        raise LibraryError(f"{name}: there are no weights of this layout; build it without pretrained and train it.")
    if pretrained and name in PUBLISHED:
        raise LibraryError(
            f"{name}: published weights are not shipped with this library. If you hold them, build the model without "
            "pretrained and pass their state dict to mambavision.load_released_weights(model, state_dict)."
        )
    from mambavision.model import MambaVision
    from mambavision.released import load_released_weights

    model = MambaVision(
        _layout(name, config).override(**overrides),
        num_classes=config["num_classes"] if num_classes is None else num_classes,
        in_chans=config["in_chans"] if in_chans is None else in_chans,
        drop_path_rate=config.get("drop_path_rate", 0.0) if drop_path_rate is None else drop_path_rate,
        dt_init=dt_init,
        drop_rate=drop_rate,
        global_pool=global_pool,
    )
    if pretrained:
        weights = _read_weights(name)
        if model.num_classes != config["num_classes"]:
            fresh = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
            weights = {key: value for key, value in weights.items() if not key.startswith("head.")} | fresh
        try:
            load_released_weights(model, weights)
        except ValueError as error:
            raise LibraryError(f"{name}: {error}") from None
    return model


def create_mambavision_tiny(num_classes: int = 1000, *, use_mamba_ratio: float = 0.5, **options: Any) -> MambaVision:
    """The small columnar model: patches of 16 px, 8 blocks of width 128; 1.9 M parameters with 10 classes.

    Args:
        num_classes: width of the classifier.
        use_mamba_ratio: share of the blocks, rounded down, that are gated Mamba; the rest, behind them, is attention.
        **options: as for `create_model`, e.g. ``in_chans``, ``patch``, ``state``.
    """
    return create_model("mambavision_columnar_tiny", num_classes, blocks=first_part(8, use_mamba_ratio), **options)


def create_mambavision_small(num_classes: int = 1000, *, use_mamba_ratio: float = 0.5, **options: Any) -> MambaVision:
    """The larger columnar model: patches of 16 px, 12 blocks of width 256; 9.8 M parameters with 10 classes.

    Arguments as for `create_mambavision_tiny`.
    """
    return create_model("mambavision_columnar_small", num_classes, blocks=first_part(12, use_mamba_ratio), **options)


def save_entry(
    name: str,
    layout: HybridLayout,
    state_dict: Mapping[str, Tensor],
    *,
    num_classes: int,
    in_chans: int,
    config: Mapping[str, Any],
    card: str,
    overwrite: bool = False,
    complete: Callable[[Path], object] | None = None,
) -> Path:
    """Write an entry, whole or not at all.

    Args:
        name: letters, digits, ``.``, ``_`` and ``-``; not a shipped name. What follows a dot would be a tag to timm, so
            it finds such a name only as ``local-dir:<folder>``.
        layout: its architecture.
        state_dict: weights of a `MambaVision` of that layout.
        num_classes: width of its classifier.
        in_chans: channels of its images.
        config: what else config.json shall hold; ``input_size``, ``mean`` and ``std`` at least. ``interpolation``,
            ``crop_pct`` and ``crop_mode`` are timm's (default bicubic, 1.0, center).
        card: text of card.md.
        overwrite: replace an entry of that name.
        complete: called with the folder before it gets its name, to add files; if it raises, nothing is written.

    Returns:
        The entry's folder.

    Raises:
        LibraryError: a name that is not allowed or taken, weights that do not fit the layout, or a missing field.
    """
    import torch
    from safetensors.torch import save

    from mambavision.model import MambaVision
    from mambavision.released import misfit

    folder = free_folder(name, overwrite=overwrite)
    for field in ("input_size", "mean", "std"):
        if field not in config:
            raise LibraryError(f"config: {field} is missing; an entry says how its images are prepared")
    if problem := _preparation_problem({**config, "num_classes": num_classes}, in_chans):
        raise LibraryError(f"config: {problem}")
    with torch.device("meta"):
        problem = misfit(MambaVision(layout, num_classes, in_chans), state_dict)
    if problem:
        raise LibraryError(f"{name}: {problem}")

    try:
        data = json.dumps(_nested(layout, num_classes, config), indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise LibraryError(f"config: cannot be written as JSON ({error}); plain values only") from None
    # Copies, as safetensors takes neither shared memory nor other strides.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:  # hidden from list_models by its dot
        new = scratch / "new"
        new.mkdir()
        (new / "config.json").write_text(data, encoding="utf-8")
        (new / "card.md").write_text(card, encoding="utf-8")
        # Not save_file, whose files only their owner may read.
        (new / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        if complete is not None:
            complete(new)
        if overwrite and folder.exists():
            os.rename(folder, scratch / "old")
        try:
            os.rename(new, folder)
        except OSError as error:
            raise LibraryError(f"name: {name!r} cannot be written ({error})") from None
    if (registry := sys.modules.get("mambavision.timm_models")) is not None:
        registry.register_entry(name)
    return folder


def free_folder(name: str, *, overwrite: bool = False) -> Path:
    """The folder that an entry of this name would take.

    Raises:
        LibraryError: a name that is not allowed, or that is taken and shall not be overwritten.
    """
    folder = _folder(name)
    if name in SHIPPED or name == ARCHITECTURE:
        raise LibraryError(f"name: {name!r} is a name of the library's own; choose another")
    if folder.exists() and not overwrite:
        raise LibraryError(f"name: {name!r} exists already ({folder}); choose another, or --overwrite it")
    return folder


def first_conv(layout: HybridLayout) -> str:
    """Name of the layer that sees the image's channels, as timm's configurations want it."""
    return "patch_embed.conv_down.0" if layout.stem == "conv" else "patch_embed.proj"


def _nested(layout: HybridLayout, num_classes: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as timm writes it; what timm does not know stands beside."""
    preparation = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    preparation |= {key: config[key] for key in _PREPARATION if key in config}
    own = {key: value for key, value in config.items() if key not in _PREPARATION}
    return {
        "architecture": ARCHITECTURE,
        "num_classes": num_classes,
        "num_features": layout.stages[-1].dim,
        "global_pool": "avg",
        "model_args": {"layout": layout.to_dict()},
        "pretrained_cfg": {
            "custom_load": False,
            **preparation,
            "fixed_input_size": False,
            "num_classes": num_classes,
            "first_conv": first_conv(layout),
            "classifier": "head",
        },
        **own,
    }


def _folder(name: str) -> Path:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LibraryError(f"name: {name!r} is not allowed; letters, digits, '.', '_' and '-', up to 100")
    return library_root() / name


def _read_weights(name: str) -> dict[str, Tensor]:
    from mambavision.released import read_weights

    path = _folder(name) / "model.safetensors"
    if not path.is_file():
        raise LibraryError(f"{name}: its weights are missing ({path})")
    try:
        return read_weights(path)
    except ValueError as error:
        raise LibraryError(str(error)) from None
