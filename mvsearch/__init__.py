"""Search for hybrid Mamba/attention vision backbones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazily(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A folder's ``__getattr__``: names that people import from it, each loaded from its module on first use.

    So a folder shows what it is for, and importing one module of it does not load the others.

    Args:
        package: ``__name__`` of the folder.
        homes: name to the module of the folder that defines it.
    """

    def find(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
