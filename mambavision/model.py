"""MambaVision for any `HybridLayout`.

Names of parameters are the published ones, so a four-stage layout takes published weights. Strides hold no parameters:
weights of layouts that differ only in `stem_stride` and `downsample` fit each other.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, build_sincos2d_pos_embed, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambavision.blocks import build_block
from mambavision.layout import HybridLayout, StageLayout
from mambavision.mixers import GatedMambaMixer, ScanMixer

DT_INITS = ("official", "mamba")
POOLS = ("avg", "")


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
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Image to map. Raises ValueError for an image smaller than a patch."""
        if x_BCHW.shape[2] < self.patch or x_BCHW.shape[3] < self.patch:
            size = f"{x_BCHW.shape[2]} × {x_BCHW.shape[3]}"
            raise ValueError(f"image: {size} px is not allowed; at least the patch, {self.patch} px")
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
        self.grad_checkpointing = False
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
            return self._run_blocks(x_BCHW)
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        window = size if self.window is None else (self.window, self.window)
        return from_windows(self._run_blocks(to_windows(x_BCHW, window)), window, size)

    def _run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                again: dict[str, Any] = {}
                if not self.hybrid:
                    again["context_fn"] = functools.partial(_checkpoint_contexts, block)
                x = checkpoint(block, x, use_reentrant=False, **again)
            else:
                x = block(x)
        return x


def _checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's first run, and of its second in the backward pass."""
    return nullcontext(), _statistics_frozen(block)


@contextmanager
def _statistics_frozen(block: nn.Module) -> Iterator[None]:
    """BatchNorms take the statistics of the batch, but do not add them to their running ones a second time."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    before = [
        (module, module.momentum, count.clone())
        for module in block.modules()
        if isinstance(module, kinds) and (count := module.num_batches_tracked) is not None
    ]
    for norm, _, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked = count


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
        drop_rate: dropout before the classifier.
        global_pool: ``"avg"``, or ``""`` for no pooling: logits are then a map, ``(B, h, w, num_classes)``.

    Attributes:
        layout: the layout it was built from.
        num_features: channels of the last stage.
        feature_info: channels, reduction and module of each stage's map, as timm keeps them.

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
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if not isinstance(layout, HybridLayout):
            raise ValueError(f"layout: a {type(layout).__name__} is not allowed; a HybridLayout (or its from_dict)")
        _check_classes(num_classes)
        if type(in_chans) is not int or in_chans < 1:
            raise ValueError(f"in_chans: {in_chans!r} is not allowed; a whole number, 1 or more")
        for name, rate in (("drop_path_rate", drop_path_rate), ("drop_rate", drop_rate)):
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ValueError(f"{name}: {rate!r} is not allowed; a number from 0 to below 1")
        if dt_init not in DT_INITS:
            raise ValueError(f"dt_init: {dt_init!r} is not allowed; one of {', '.join(DT_INITS)}")
        _check_pool(global_pool)
        self.layout = layout
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.global_pool = global_pool
        stages = layout.stages
        self.num_features = self.head_hidden_size = stages[-1].dim

        if layout.stem == "conv":
            self.patch_embed: nn.Module = ConvStem(in_chans, layout.in_dim, stages[0].dim, layout.stem_stride)
        else:
            self.patch_embed = PatchStem(in_chans, stages[0].dim, layout.patch)
        depth = sum(len(stage.blocks) for stage in stages)
        # Plain floats: a tensor's item() would fail when the model is built on the meta device.
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.levels = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        reduction = layout.stem_stride if layout.stem == "conv" else layout.patch
        for i, stage in enumerate(stages):
            self.feature_info.append({"num_chs": stage.dim, "reduction": reduction, "module": f"levels.{i}"})
            reduction *= (*(layout.downsample or ()), 1)[i]
            downsample = None
            if i + 1 < len(stages):
                downsample = Downsample(stage.dim, stages[i + 1].dim, (layout.downsample or ())[i])
            count = len(stage.blocks)
            self.levels.append(Stage(stage, layout.qk_norm, rates[:count], downsample))
            rates = rates[count:]
        self.norm: nn.Module
        if layout.stem == "conv":
            self.norm = nn.BatchNorm2d(self.num_features)
        else:
            self.norm = LayerNorm2d(self.num_features, eps=1e-5)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

        self._dt_init = dt_init
        own = self._own_dt()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and name.removesuffix(".dt_proj") not in own:
                _draw_linear(module)

    def _own_dt(self) -> set[str]:
        """Names of the mixers that keep Mamba's own start of dt; the gated one always does."""
        return {
            name
            for name, mixer in self.named_modules()
            if isinstance(mixer, ScanMixer) and (self._dt_init == "mamba" or isinstance(mixer, GatedMambaMixer))
        }

    def reset_parameters(self, seed: int) -> None:
        """Draw all weights anew, those of each module from a generator that only the seed and the module's name decide.

        Models of two layouts then start alike wherever they are alike. (Construction draws one module after the other,
        so that one block of another letter changes all that follows, the head too.) The generator of the process is
        left as it was.

        Args:
            seed: any integer.
        """
        own = self._own_dt()
        with torch.random.fork_rng(devices=[]):
            for name, module in self.named_modules():
                torch.default_generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.reset_parameters()
                elif name in own:
                    module.reset_dt()
                elif isinstance(module, nn.Linear) and name.removesuffix(".dt_proj") not in own:
                    _draw_linear(module)

    @property
    def _stages(self) -> list[Stage]:
        return [level for level in self.levels if isinstance(level, Stage)]

    # -- what timm asks of a model ------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Names of what its mixers spare from weight decay: A_log, D and dt bias of each scan."""
        mixers = [(prefix, mixer) for prefix, mixer in self.named_modules() if isinstance(mixer, ScanMixer)]
        return {f"{prefix}.{name}" for prefix, mixer in mixers for name in mixer.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from stem to head, for layer-wise learning rates.

        Args:
            coarse: a group a stage instead of one a block.
        """
        # 99999 is timm's mark for "with the group before".
        block = r"^levels\.(\d+)" if coarse else r"^levels\.(\d+)\.blocks\.(\d+)"
        with_last = [(r"^levels\.(\d+)\.downsample", (99999,)), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": [(block, None), *with_last]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks while training and compute the rest again in the backward pass.

        Same gradients and running statistics; the memory of one block instead of all, for one more forward pass.
        """
        for level in self._stages:
            level.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place.

        Args:
            num_classes: its width; 0 leaves it out.
            global_pool: ``"avg"`` or ``""``; None leaves it as it is.

        Raises:
            ValueError: if an argument is not allowed.
        """
        _check_classes(num_classes)
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            _draw_linear(self.head)

    def forward_intermediates(
        self,
        x_BCHW: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of stages, each before its downsample.

        Args:
            x_BCHW: image ``(B, in_chans, H, W)``.
            indices: stages counted from 0 (or from -1), a number of last stages, or None for all.
            norm: the last stage's map after the final norm.
            stop_early: do not compute stages behind the last one asked for.
            output_fmt: ``"NCHW"``, the only form.
            intermediates_only: return the list of maps alone.

        Returns:
            The maps, or ``(features, maps)`` with `features` as from `forward_features`.

        Raises:
            ValueError: for another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: {output_fmt!r} is not allowed; NCHW")
        take, last = feature_take_indices(len(self.layout.stages), indices)
        final = len(self.layout.stages) - 1
        maps = []
        x = self.patch_embed(x_BCHW)
        for i, level in enumerate(self._stages[: last + 1] if stop_early else self._stages):
            x = level.forward_blocks(x)
            if i in take:
                maps.append(self.norm(x) if norm and i == final else x)
            if level.downsample is not None and not (stop_early and i == last):
                x = level.downsample(x)
        if intermediates_only:
            return maps
        return (self.norm(x) if i == final else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for these stages; returns their numbers."""
        take, last = feature_take_indices(len(self.levels), indices)
        pruned = last + 1 < len(self.levels)
        if pruned:
            self.levels = self.levels[: last + 1]
            self._stages[-1].downsample = None
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0)
        return take

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` to the normalised map of the last stage, ``(B, num_features, h, w)``."""
        x_BCHW = self.patch_embed(x_BCHW)
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.norm(x_BCHW)

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Map to logits ``(B, num_classes)``, or to pooled features ``(B, num_features)`` with `pre_logits`."""
        if self.global_pool:
            x = x_BCHW.mean((2, 3))
        elif pre_logits or not self.num_classes:
            return x_BCHW
        else:
            x = x_BCHW.permute(0, 2, 3, 1)
        x = F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x
        return x if pre_logits else self.head(x)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``, for any H and W of a pixel (patch) or more."""
        return self.forward_head(self.forward_features(x_BCHW))


def _draw_linear(module: nn.Linear) -> None:
    trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _check_classes(num_classes: object) -> None:
    if type(num_classes) is not int or num_classes < 0:
        raise ValueError(f"num_classes: {num_classes!r} is not allowed; a whole number, 0 or more")


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        raise ValueError(f"global_pool: {global_pool!r} is not allowed; 'avg', or '' for none")
