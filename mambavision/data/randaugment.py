"""timm's RandAugment: which is allowed, and a fault of its strongest mended."""

from __future__ import annotations

import re
from typing import Any

from mambavision.data.checks import DataError

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
"""timm's usual RandAugment: magnitude 9 with a spread of 0.5, stronger always worse."""

# timm passes over what it does not know.
_ALLOWED = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(mstd|p)\d+(\.\d+)?)*")


def check_randaugment(spec: str) -> None:
    """Raise DataError unless timm knows every part of a RandAugment, e.g. ``"rand-m9-mstd0.5-inc1"``."""
    if not _ALLOWED.fullmatch(spec):
        raise DataError(
            f"randaugment: {spec!r} is not allowed; one of timm's, such as {RANDAUGMENT!r} (m magnitude, mstd "
            "its spread, n operations, p probability, inc1: a larger magnitude is always stronger), or none"
        )


def keep_a_bit(transform: Any) -> None:
    """Let RandAugment's posterize keep a bit at least: at its strongest timm asks for none, which Pillow refuses."""
    from timm.data.auto_augment import posterize

    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            if getattr(operation, "aug_fn", None) is posterize:
                operation.aug_fn = _posterize


def _posterize(image: Any, bits: int, **options: Any) -> Any:
    from timm.data.auto_augment import posterize

    return posterize(image, max(1, bits), **options)
