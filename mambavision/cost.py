"""What a layout costs: parameters, multiply-adds and memory in closed form. No model is built and no torch imported."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mambavision.layout import LETTERS, HybridLayout, StageLayout

SCAN_SLAB = 1 << 18
"""Numbers in a slab of the scan's loop (`mambavision.scan.loop.SLAB`; a test ties the two)."""


@dataclass(frozen=True)
class Cost:
    """What a layout costs.

    Attributes:
        params: parameters.
        macs: multiply-adds of one image: convolutions, linear layers and the two products of attention, padding
            included, the scan and all elementwise work left out. The papers' "FLOPs" are ``macs - macs_attention``.
        macs_attention: the part of `macs` in the two products of attention, QK^T and its product with V.
        macs_scan: the selective scan of one image, not in `macs`: 9 operations, 4.5 multiply-adds, for each token,
            channel and state (the convention of VMamba, arXiv 2401.10166).
        memory: bytes of weights, buffers, the image batch and the peak of activations in inference at that batch, as
            the allocator of a CPU sees it; within 10 % of measured.
    """

    params: int
    macs: int
    macs_attention: int
    macs_scan: int
    memory: int


def cost(
    layout: HybridLayout,
    image_size: int | tuple[int, int],
    num_classes: int = 1000,
    in_chans: int = 3,
    batch_size: int = 1,
    bytes_per_value: int = 4,
) -> Cost:
    """Cost of a layout in closed form.

    Args:
        layout: the architecture.
        image_size: side of the image in pixels, or (height, width).
        num_classes: width of the classifier; 0 for none.
        in_chans: channels of the image.
        batch_size: images at once, for `memory`.
        bytes_per_value: size of a weight and an activation: 4 for float32, 2 for half precision. The scan's own
            buffers are float32 in any case.

    Returns:
        A `Cost`.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    maps = layout.feature_sizes(size)
    params, buffers, macs = _ends(layout, _stem_inner(layout, size), maps, num_classes, in_chans)
    attention = scan = 0
    for i, (stage, (height, width)) in enumerate(zip(layout.stages, maps, strict=True)):
        tokens, length, _ = _windowed(stage, height, width)
        if stage.hybrid:
            for letter in stage.blocks:
                mixer_params, mixer_macs = MIXERS[letter].weights(stage, layout.qk_norm)
                mlp = 2 * stage.dim * stage.mlp_hidden
                scales = 0 if stage.layer_scale is None else 2 * stage.dim
                params += mixer_params + mlp + stage.mlp_hidden + stage.dim + 4 * stage.dim + scales
                macs += tokens * (mixer_macs + mlp)
                if LETTERS[letter].attends:
                    attention += tokens * 2 * length * stage.dim
                if LETTERS[letter].scans:
                    scan += tokens * 9 * stage.scanned(letter) * stage.state // 2
        else:
            conv = 18 * stage.dim**2
            scales = 0 if stage.layer_scale is None else stage.dim
            params += len(stage.blocks) * (conv + 6 * stage.dim + scales)
            buffers += len(stage.blocks) * 2 * (2 * stage.dim + 1)
            macs += len(stage.blocks) * tokens * conv
        if i + 1 < len(maps):
            reduction = 9 * stage.dim * layout.stages[i + 1].dim
            params += reduction
            macs += reduction * math.prod(maps[i + 1])
    peak = _peak(layout, size, num_classes, in_chans, batch_size, bytes_per_value)
    return Cost(params, macs + attention, attention, scan, (params + buffers) * bytes_per_value + peak)


def _windowed(stage: StageLayout, height: int, width: int) -> tuple[int, int, int]:
    """Tokens of a stage's map with its padding, tokens of one window, and the number of windows."""
    if not stage.hybrid or stage.window is None:
        return height * width, height * width, 1
    side = stage.window
    windows = math.ceil(height / side) * math.ceil(width / side)
    return windows * side * side, side * side, windows


def _stem_inner(layout: HybridLayout, size: tuple[int, int]) -> int:
    """Positions between the two stem convolutions."""
    return size[0] * size[1] if layout.stem_stride == 1 else math.ceil(size[0] / 2) * math.ceil(size[1] / 2)


def _ends(
    layout: HybridLayout, inner: int, maps: tuple[tuple[int, int], ...], num_classes: int, in_chans: int
) -> tuple[int, int, int]:
    """Parameters, numbers in buffers, and multiply-adds of the stem, the last norm and the head."""
    first, last = layout.stages[0].dim, layout.stages[-1].dim
    params, macs = 2 * last + (last + 1) * num_classes, last * num_classes
    if layout.stem == "patch":
        patch = in_chans * layout.patch**2 * first
        return params + patch + first, 0, macs + patch * math.prod(maps[0])
    conv1, conv2 = 9 * in_chans * layout.in_dim, 9 * layout.in_dim * first
    params += conv1 + conv2 + 2 * layout.in_dim + 2 * first
    # BatchNorm keeps mean, variance and a counter.
    buffers = 2 * (layout.in_dim + first + last) + 3
    return params, buffers, macs + conv1 * inner + conv2 * math.prod(maps[0])


@dataclass(frozen=True)
class Mixer:
    """What the mixer of a letter costs, beside attention's products and the scan itself, which are alike for all.

    Attributes:
        weights: parameters, and multiply-adds for a token, of a stage and qk_norm.
        alive: most numbers alive for a token at its larger steps but the scan, of a stage and qk_norm.
        around_scan: numbers alive for a token in the mixer while it scans, of a stage; None where it does not scan.
    """

    weights: Callable[[StageLayout, bool], tuple[int, int]]
    alive: Callable[[StageLayout, bool], int]
    around_scan: Callable[[StageLayout], int] | None = None


def _rank(stage: StageLayout) -> int:
    return math.ceil(stage.dim / 16)


def _scan_weights(stage: StageLayout, letter: str) -> tuple[int, int]:
    """Parameters and multiply-adds for a token of what feeds the scan."""
    inner = stage.scanned(letter)
    macs = inner * (_rank(stage) + 2 * stage.state) + _rank(stage) * inner
    return macs + inner + inner * stage.state + inner, macs


def _mamba_weights(stage: StageLayout, qk_norm: bool) -> tuple[int, int]:
    """Both halves of dim are projected, convolved and projected back; one of them is scanned."""
    params, macs = _scan_weights(stage, "M")
    weights = 2 * stage.dim**2 + stage.dim * stage.conv_kernel
    return params + weights, macs + weights


def _gated_weights(stage: StageLayout, qk_norm: bool) -> tuple[int, int]:
    """Scanned and gating channels are projected; the scanned are convolved and projected back."""
    params, macs = _scan_weights(stage, "G")
    weights = stage.scanned("G") * (3 * stage.dim + stage.conv_kernel)
    return params + weights, macs + weights


def _attention_weights(stage: StageLayout, qk_norm: bool) -> tuple[int, int]:
    norms = 4 * (stage.dim // stage.heads) if qk_norm else 0
    return 4 * stage.dim**2 + 4 * stage.dim + norms, 4 * stage.dim**2


def _parallel_weights(stage: StageLayout, qk_norm: bool) -> tuple[int, int]:
    """Both mixers without their last projections; two norms without shifts, and one projection."""
    mamba, mamba_macs = _mamba_weights(stage, qk_norm)
    attention, attention_macs = _attention_weights(stage, qk_norm)
    return mamba + attention - stage.dim**2 + 2 * stage.dim, mamba_macs + attention_macs - stage.dim**2


# Around the scan: the mixer's input, what it scans, its step sizes and the result; beside it z, in G with all of the
# projection.
MIXERS: dict[str, Mixer] = {
    "M": Mixer(
        _mamba_weights,
        alive=lambda stage, qk_norm: 9 * stage.dim // 2,
        around_scan=lambda stage: stage.dim + 4 * stage.scanned("M") + _rank(stage) + 2 * stage.state,
    ),
    "G": Mixer(
        _gated_weights,
        alive=lambda stage, qk_norm: stage.dim + 5 * stage.scanned("G"),
        around_scan=lambda stage: stage.dim + 5 * stage.scanned("G") + _rank(stage) + 2 * stage.state,
    ),
    "A": Mixer(_attention_weights, alive=lambda stage, qk_norm: (7 if qk_norm else 5) * stage.dim + stage.heads),
    "P": Mixer(
        _parallel_weights,
        # Attention, with the branch of Mamba beside it.
        alive=lambda stage, qk_norm: (8 if qk_norm else 6) * stage.dim + stage.heads,
        around_scan=lambda stage: stage.dim + 4 * stage.scanned("P") + _rank(stage) + 2 * stage.state,
    ),
}
"""The mixers of the letters that mix tokens."""


def _peak(
    layout: HybridLayout, size: tuple[int, int], num_classes: int, in_chans: int, batch_size: int, bytes_per_value: int
) -> int:
    """Most bytes of activations alive at one time in the forward pass, the image batch included.

    Follows `mambavision.model` step by step: what is alive at each of its larger steps, as a multiple of the map.
    """
    maps = layout.feature_sizes(size)
    image = batch_size * in_chans * size[0] * size[1]
    first = batch_size * layout.stages[0].dim * math.prod(maps[0])
    # A dense convolution works in a layout of its own: for a moment there are two of its output, and of its weights.
    if layout.stem == "patch":
        alive = [image + 2 * first + in_chans * layout.patch**2 * layout.stages[0].dim]
    else:
        inner = batch_size * layout.in_dim * _stem_inner(layout, size)
        alive = [image + 2 * inner, image + inner + 2 * first + 9 * layout.in_dim * layout.stages[0].dim]
    scan_bytes = 0
    for i, (stage, (height, width)) in enumerate(zip(layout.stages, maps, strict=True)):
        entry = batch_size * stage.dim * height * width
        tokens, length, windows = _windowed(stage, height, width)
        own = batch_size * stage.dim * tokens
        one_window = stage.hybrid and windows == 1
        for j, letter in enumerate(stage.blocks):
            # The stage's entry is alive throughout; a block's own input too, unless it is a view of that entry.
            view = j == 0 and (not stage.hybrid or (one_window and tokens == height * width))
            base = image + entry + (0 if view else own)
            if not stage.hybrid:
                alive.append(base + 3 * own + 9 * stage.dim**2)
                continue
            alive.append(base + 2 * own + 2 * batch_size * tokens * stage.mlp_hidden)
            mixer = MIXERS[letter]
            alive.append(base + batch_size * tokens * mixer.alive(stage, layout.qk_norm))
            if mixer.around_scan is not None:
                around = batch_size * tokens * mixer.around_scan(stage)
                inside = _scan_alive(stage, letter, batch_size * windows, length)
                scan_bytes = max(scan_bytes, (base + around) * bytes_per_value + inside * max(4, bytes_per_value))
        if i + 1 < len(maps):
            # The map of one window has its channels last, as the convolution wants its output.
            following = batch_size * layout.stages[i + 1].dim * math.prod(maps[i + 1]) * (1 if one_window else 2)
            alive.append(image + entry + own + following + 9 * stage.dim * layout.stages[i + 1].dim)
        else:
            alive.append(image + 2 * own)
    return max(max(alive) * bytes_per_value, scan_bytes)


def _scan_alive(stage: StageLayout, letter: str, batch: int, length: int) -> int:
    """Numbers alive inside the scan, in its own precision."""
    inner = stage.scanned(letter)
    step = batch * inner * stage.state
    steps = min(length, max(1, SCAN_SLAB // step))
    slabs = (2 * steps + 1) * step + steps * batch * inner
    # The step sizes of the whole sequence; all else a slab at a time.
    return batch * length * inner + slabs + steps * batch * (inner + 2 * stage.state)
