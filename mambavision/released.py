"""Loading published weights. None are shipped; people who hold them load them here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_PREFIXES = ("module.", "model.")


def load_released_weights(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a state dict with the published key names into a model of the same layout.

    Args:
        model: a `MambaVision`.
        state_dict: names to tensors; may be wrapped as ``{"state_dict": …}`` and its names prefixed with ``module.`` or
            ``model.``, as the published files are. `num_batches_tracked` may be absent.

    Raises:
        ValueError: if names are missing, unexpected, or of another shape; the first of each are named. Nothing is
            loaded then.
    """
    weights = stripped(state_dict)
    problem = misfit(model, weights)
    if problem:
        raise ValueError(problem)
    model.load_state_dict({**model.state_dict(), **weights})


def stripped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict under their names without wrapping and prefixes."""
    if isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    return {_strip(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Why weights do not fit a model, naming the first keys missing, unexpected and misshaped; None if they fit."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    misshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if names
    ]
    return f"weights do not fit the model's layout: {'; '.join(problems)}" if problems else None


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name
