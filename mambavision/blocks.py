"""One block class a letter; `mambavision.layout.LETTERS` names them, `build_block` looks them up."""

from __future__ import annotations

import sys

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from mambavision.layout import LETTERS, StageLayout
from mambavision.mixers import Attention, GatedMambaMixer, MambaVisionMixer, ParallelMixer


def build_block(letter: str, stage: StageLayout, *, qk_norm: bool = False, drop_path: float = 0.0) -> nn.Module:
    """The block of one letter, with the numbers of its stage."""
    block = getattr(sys.modules[__name__], LETTERS[letter].block)
    return block(stage, qk_norm=qk_norm, drop_path=drop_path)


def _drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate > 0 else nn.Identity()


def _scale(stage: StageLayout) -> nn.Parameter | None:
    return None if stage.layer_scale is None else nn.Parameter(torch.full((stage.dim,), float(stage.layer_scale)))


class ConvBlock(nn.Module):
    """Letter C: two 3x3 convolutions with BatchNorm and a residual, on a map ``(B, C, H, W)``."""

    def __init__(self, stage: StageLayout, *, qk_norm: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        dim = stage.dim
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim)
        self.act = nn.GELU(approximate="tanh")
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.gamma = _scale(stage)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x_BCHW)))))
        if self.gamma is not None:
            y = y * self.gamma[:, None, None]
        return x_BCHW + self.drop_path(y)


class TokenBlock(nn.Module):
    """A pre-norm residual block of a mixer and an MLP, on tokens ``(B, L, C)``; letters differ in the mixer."""

    def __init__(self, stage: StageLayout, mixer: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(stage.dim)
        self.mlp = Mlp(stage.dim, stage.mlp_hidden)
        self.gamma_1 = _scale(stage)
        self.gamma_2 = _scale(stage)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        x_BLC = x_BLC + self._residual(self.mixer(self.norm1(x_BLC)), self.gamma_1)
        return x_BLC + self._residual(self.mlp(self.norm2(x_BLC)), self.gamma_2)

    def _residual(self, y_BLC: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(y_BLC if gamma is None else gamma * y_BLC)


class MambaBlock(TokenBlock):
    """Letter M: the MambaVision mixer."""

    def __init__(self, stage: StageLayout, *, qk_norm: bool = False, drop_path: float = 0.0) -> None:
        super().__init__(stage, MambaVisionMixer(stage.dim, stage.state, stage.conv_kernel), drop_path)


class GatedMambaBlock(TokenBlock):
    """Letter G: Mamba's original, gated mixer."""

    def __init__(self, stage: StageLayout, *, qk_norm: bool = False, drop_path: float = 0.0) -> None:
        super().__init__(stage, GatedMambaMixer(stage.dim, stage.state, stage.conv_kernel, stage.expand), drop_path)


class AttentionBlock(TokenBlock):
    """Letter A: multi-head self-attention."""

    def __init__(self, stage: StageLayout, *, qk_norm: bool = False, drop_path: float = 0.0) -> None:
        super().__init__(stage, Attention(stage.dim, stage.heads, qk_norm), drop_path)


class ParallelBlock(TokenBlock):
    """Letter P: the MambaVision mixer and self-attention side by side."""

    def __init__(self, stage: StageLayout, *, qk_norm: bool = False, drop_path: float = 0.0) -> None:
        mixer = ParallelMixer(stage.dim, stage.state, stage.conv_kernel, stage.heads, qk_norm)
        super().__init__(stage, mixer, drop_path)
