"""Reading weights from files, and loading published ones. None are shipped; people who hold them load them here."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_PREFIXES = ("module.", "model.")


def load_released_weights(model: nn.Module, state_dict: Mapping[str, Any] | str | Path) -> None:
    """Load weights with the published key names into a model of the same layout.

    Args:
        model: a `MambaVision`.
        state_dict: names to tensors, or a file of them, see `read_weights`; may be wrapped as ``{"state_dict": …}`` and
            its names prefixed with ``module.`` or ``model.``, as the published files are. `num_batches_tracked` may
            be absent.

    Raises:
        ValueError: if the file cannot be read without unpickling, or names are missing, unexpected, or of another
            shape; the first of each are named. Nothing is loaded then.
    """
    weights = stripped(read_weights(state_dict) if isinstance(state_dict, (str, Path)) else state_dict)
    problem = misfit(model, weights)
    if problem:
        raise ValueError(problem)
    model.load_state_dict({**model.state_dict(), **weights})


def read_weights(path: str | Path) -> dict[str, Any]:
    """A state dict from a safetensors file, or from one of torch.save that holds tensors and plain values alone.

    Nothing is unpickled: a pickle can run any code of its author.

    Raises:
        ValueError: names the file, what is wrong with it, and what is allowed.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts keep their arguments beside the weights; a Namespace does no more than hold them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: reading it would need unpickling, which can run code of its author; only safetensors are read, "
            f"and files of torch.save that hold nothing but tensors and plain values. Its author can write one with "
            f"safetensors.torch.save_file(model.state_dict(), …). ({reason})"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty or cut off"
        raise ValueError(f"{path}: cannot be read as weights ({reason})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; a mapping of names to tensors is wanted")
    return found


def stripped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict under their names without wrapping and prefixes."""
    if isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    return {_strip(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Why weights do not fit a model, naming the first keys missing, unexpected and misshaped; None if they fit."""
    own = model.state_dict()
    missing = [_placed(name) for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [_placed(name) for name in weights if name not in own]
    misshaped = [
        f"{_placed(name)} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    other_kind = [
        f"{_placed(name)} {str(weights[name].dtype).removeprefix('torch.')} instead of floating point"
        for name, value in own.items()
        if name in weights and value.is_floating_point() and not weights[name].is_floating_point()
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
            ("of another kind", other_kind),
        )
        if names
    ]
    return f"weights do not fit the model's layout: {'; '.join(problems)}" if problems else None


def _placed(name: str) -> str:
    """A parameter's name with its stage, counted from 1 as in messages about layouts."""
    parts = name.split(".")
    return f"stage {int(parts[1]) + 1}: {name}" if parts[0] == "levels" and parts[1].isdigit() else name


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name
