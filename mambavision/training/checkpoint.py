"""Checkpoints: where a training stands, in one file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mambavision.released import misfit
from mambavision.training.errors import OtherTraining, TrainingError, damaged
from mambavision.training.state import TrainingState
from mambavision.words import reason

CHECKPOINT = "checkpoint.pt"
_FORMAT = "mambavision training 2"
_PARTS = ("model", "ema", "optimizer", "scheduler", "scaler")

Parts = Mapping[str, Any]
"""What a training changes beside its `TrainingState`, each with a ``state_dict``, or None: model, ema, …"""


def checkpoint_content(settings: Mapping[str, Any], parts: Parts, state: TrainingState) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values alone."""
    return {
        "format": _FORMAT,
        "settings": settings,
        **{name: None if parts[name] is None else parts[name].state_dict() for name in _PARTS},
        **{field.name: getattr(state, field.name) for field in fields(state)},
    }


def load_checkpoint(path: Path, settings: Mapping[str, Any], parts: Parts) -> TrainingState:
    """Put the parts of a training back as a checkpoint holds them, and return where it stands.

    Args:
        path: the checkpoint.
        settings: of this training; the checkpoint's must be equal.
        parts: of this training, in the order in which they are put back.

    Raises:
        TrainingError: see `read_checkpoint`; also for weights of another model.
        OtherTraining: its settings are others.
    """
    content = read_checkpoint(path)
    known = content["settings"]
    differ = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    # Another model has other parameters in its groups, and is told of as such.
    plain = [name for name in differ if not name.endswith("].params")]
    problem = None if plain else misfit(parts["model"], content["model"])
    if problem:
        raise TrainingError(f"{path}: {problem}")
    for name in plain or differ:
        raise OtherTraining(path, name, known.get(name), settings.get(name))
    try:
        for name in _PARTS:
            if parts[name] is not None:
                parts[name].load_state_dict(content[name])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(damaged(path, error)) from None
    return TrainingState(**{field.name: content[field.name] for field in fields(TrainingState)})


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a `Trainer` wrote, on the CPU. Nothing is unpickled.

    Raises:
        TrainingError: a file that cannot be read, that is damaged, that needs unpickling, or that no `Trainer` wrote.
    """
    path = Path(path)
    foreign = f"{path}: is no checkpoint of a Trainer"
    allowed = "allowed is a file that Trainer(output=…) wrote; choose another output, or begin anew (resume=False, "
    allowed += "--no-resume)"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({reason(error)})") from None
    if not start:
        raise TrainingError(damaged(path, "it is empty"))
    # A zip of torch.save, or a bare pickle; torch takes anything else for a pickle too.
    if start != b"PK\x03\x04" and start[:1] != b"\x80":
        raise TrainingError(f"{foreign}; {allowed}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise TrainingError(
            f"{path}: is not read, as it needs unpickling, which could run code from the file; allowed are tensors, "
            "numbers, texts, lists and dicts (what torch.load reads with weights_only=True), and weights as safetensors"
        ) from None
    except (
        *(AssertionError, AttributeError, EOFError, LookupError),
        *(OSError, RuntimeError, TypeError, ValueError),
    ) as error:
        raise TrainingError(damaged(path, error)) from None
    version = state.get("format") if isinstance(state, dict) else None
    if version != _FORMAT:
        if isinstance(version, str) and version.startswith(_FORMAT[:-1]):
            raise TrainingError(
                f"{path}: is of another version of mambavision ({version!r}, not {_FORMAT!r}); {allowed}"
            )
        raise TrainingError(f"{foreign}; {allowed}")
    parts = ("settings", *_PARTS, *(field.name for field in fields(TrainingState)))
    missing = [name for name in parts if name not in state]
    missing += [name for name in ("settings", "model") if not isinstance(state.get(name, {}), dict)]
    if missing:
        raise TrainingError(f"{foreign} (without {', '.join(missing)}); {allowed}")
    return state
