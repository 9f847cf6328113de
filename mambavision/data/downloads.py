"""Data sets that torchvision downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambavision.data.checks import DataError


def download_root() -> Path:
    """The folder of the user's cache that downloads go to."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("mvsearch")) / "torchvision"


def from_torchvision(name: str, load: Callable[[], Any], hint: str) -> Any:
    """What `load` gives, a data set of torchvision.

    Raises:
        DataError: names the data set, why it cannot be had, and `hint`.
    """
    try:
        return load()
    except (OSError, RuntimeError) as error:  # no network, no room, missing or damaged files
        raise DataError(f"data {name}: not there and cannot be downloaded ({error}); {hint}") from None
