"""Tiny proxy trainings."""

from __future__ import annotations

import torch

from mambavision.data import ImageData, Split
from mambavision.layout import HybridLayout, StageLayout
from mvsearch.config.sections import ProxyConfig

LAYOUT = HybridLayout(
    stages=(StageLayout(blocks="C", dim=8), StageLayout(blocks="MA", dim=16, heads=2)), stem_stride=2, in_dim=8
)


def stripes(images=256, size=16):
    """Two classes: horizontal and vertical stripes in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 2
    lines = (torch.arange(size) % 4 < 2).float() * 120
    pattern = torch.where(labels[:, None, None] == 0, lines[None, :, None], lines[None, None, :])
    pixels = (pattern[:, None] + 120 * torch.rand(images, 1, size, size, generator=generator)).to(torch.uint8)
    splits = [Split(pixels[part], labels[part]) for part in (slice(0, 128), slice(128, 192), slice(192, 256))]
    return ImageData(
        name="stripes",
        train=splits[0],
        val=splits[1],
        test=splits[2],
        classes=("across", "down"),
        mean=(0.47,),
        std=(0.27,),
        fingerprint="0",
        available={},
        licence="none",
        augment="none",
    )


def settings(**changes):
    return ProxyConfig(**{"image_size": 16, "epochs": 4, "batch_size": 16, "dtype": "float32", "ema": 0.9} | changes)
