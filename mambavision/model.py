"""MambaVision for any `HybridLayout`.

Names of parameters are the published ones, so a four-stage layout takes published weights. Strides hold no parameters:
weights of layouts that differ only in `stem_stride` and `downsample` fit each other.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import LayerNorm2d, build_sincos2d_pos_embed, trunc_normal_
from torch import Tensor, nn

from mambavision.blocks import build_block
from mambavision.layout import HybridLayout, StageLayout
from mambavision.mixers import GatedMambaMixer, ScanMixer

DT_INITS = ("official", "mamba")


class ConvStem(nn.Module):
    """Two 3x3 convolutions, ``(B, in_chans, H, W)`` to ``(B, dim, H/stride, W/stride)``; odd sizes round up."""

    def __init__(self, in_chans: int, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        first, second = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[stride]
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, in_dim, 3, first, 1, bias=False),
            nn.BatchNorm2d(in_dim, eps=1e-4),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_dim, dim, 3, second, 1, bias=False),
            nn.BatchNorm2d(dim, eps=1e-4),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Image to map."""
        return self.conv_down(x_BCHW)


class PatchStem(nn.Module):
    """One patch embedding plus fixed 2-D sine-cosine positions, computed for the grid at hand."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Image to map."""
        x = self.proj(x_BCHW)
        height, width = x.shape[2:]
        positions = build_sincos2d_pos_embed([height, width], x.shape[1], device=x.device, dtype=x.dtype)
        return x + positions.t().view(1, -1, height, width)


class Downsample(nn.Module):
    """One 3x3 convolution to the next stage's width, without norm or activation."""

    def __init__(self, dim: int, dim_out: int, stride: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(dim, dim_out, 3, stride, 1, bias=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map to map."""
        return self.reduction(x_BCHW)


class Stage(nn.Module):
    """The blocks of one stage, inside windows where it is hybrid, and the downsample at its end."""

    def __init__(self, stage: StageLayout, qk_norm: bool, rates: list[float], downsample: Downsample | None) -> None:
        super().__init__()
        self.hybrid = stage.hybrid
        self.window = stage.window
        self.blocks = nn.ModuleList(
            build_block(letter, stage, qk_norm=qk_norm, drop_path=rate)
            for letter, rate in zip(stage.blocks, rates, strict=True)
        )
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map to the next stage's map."""
        x = self.forward_blocks(x_BCHW)
        return x if self.downsample is None else self.downsample(x)

    def forward_blocks(self, x_BCHW: Tensor) -> Tensor:
        """Map to the stage's own feature, before the downsample."""
        if not self.hybrid:
            for block in self.blocks:
                x_BCHW = block(x_BCHW)
            return x_BCHW
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        window = size if self.window is None else (self.window, self.window)
        x_NLC = to_windows(x_BCHW, window)
        for block in self.blocks:
            x_NLC = block(x_NLC)
        return from_windows(x_NLC, window, size)


def to_windows(x_BCHW: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B * windows, tokens, C): windows row-major, batch outermost, tokens row-major inside.

    A map that is no multiple of the window gets zeros at the right and bottom; as published, without a mask: they take
    part in the mixing.
    """
    height, width = x_BCHW.shape[2:]
    below, right = -height % window[0], -width % window[1]
    if below or right:
        x_BCHW = F.pad(x_BCHW, (0, right, 0, below))
    x = x_BCHW.unflatten(3, (-1, window[1])).unflatten(2, (-1, window[0]))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)


def from_windows(x_NLC: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverse of `to_windows` for a map of `size`; what was padded is cut off."""
    rows, columns = -(-size[0] // window[0]), -(-size[1] // window[1])
    x = x_NLC.unflatten(0, (-1, rows, columns)).unflatten(3, window)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)[:, :, : size[0], : size[1]]


class MambaVision(nn.Module):
    """A hybrid Mamba/attention backbone and classifier, for any layout.

    Args:
        layout: the architecture.
        num_classes: width of the classifier; 0 leaves it out.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; it grows linearly over all blocks from 0.
        dt_init: how step sizes of the scan start. ``"official"`` as published: the model's general initialisation
            also covers dt (weights of standard deviation 0.02, bias 0, so steps near 0.7). ``"mamba"``: Mamba's own,
            steps of 0.001 to 0.1, which blocks ``G`` have in any case.

    Attributes:
        layout: the layout it was built from.
        num_features: channels of the last stage.

    Raises:
        ValueError: if an argument is not allowed.
    """

    def __init__(
        self,
        layout: HybridLayout,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        dt_init: str = "official",
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes: {num_classes!r} is not allowed; 0 or more")
        if in_chans < 1:
            raise ValueError(f"in_chans: {in_chans!r} is not allowed; 1 or more")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: {drop_path_rate!r} is not allowed; from 0 to below 1")
        if dt_init not in DT_INITS:
            raise ValueError(f"dt_init: {dt_init!r} is not allowed; one of {', '.join(DT_INITS)}")
        self.layout = layout
        self.num_classes = num_classes
        self.in_chans = in_chans
        stages = layout.stages
        self.num_features = stages[-1].dim

        if layout.stem == "conv":
            self.patch_embed: nn.Module = ConvStem(in_chans, layout.in_dim, stages[0].dim, layout.stem_stride)
            self.norm: nn.Module = nn.BatchNorm2d(self.num_features)
        else:
            self.patch_embed = PatchStem(in_chans, stages[0].dim, layout.patch)
            self.norm = LayerNorm2d(self.num_features, eps=1e-5)
        depth = sum(len(stage.blocks) for stage in stages)
        # Plain floats: a tensor's item() would fail when the model is built on the meta device.
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.levels = nn.ModuleList()
        for i, stage in enumerate(stages):
            downsample = None
            if i + 1 < len(stages):
                downsample = Downsample(stage.dim, stages[i + 1].dim, (layout.downsample or ())[i])
            count = len(stage.blocks)
            self.levels.append(Stage(stage, layout.qk_norm, rates[:count], downsample))
            rates = rates[count:]
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

        # The gated mixer always keeps Mamba's own start.
        kept = {
            mixer.dt_proj
            for mixer in self.modules()
            if isinstance(mixer, ScanMixer) and (dt_init == "mamba" or isinstance(mixer, GatedMambaMixer))
        }
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in kept:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of the scan's parameters (A_log, D, dt bias), which decay would pull away from where they start."""
        return {name for name, param in self.named_parameters() if getattr(param, "_no_weight_decay", False)}

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` to the normalised map of the last stage, ``(B, num_features, h, w)``."""
        x_BCHW = self.patch_embed(x_BCHW)
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.norm(x_BCHW)

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Map to logits ``(B, num_classes)``, or to pooled features ``(B, num_features)`` with `pre_logits`."""
        x_BC = x_BCHW.mean((2, 3))
        return x_BC if pre_logits else self.head(x_BC)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``, for any H and W of a pixel (patch) or more."""
        return self.forward_head(self.forward_features(x_BCHW))
