"""The scan on a GPU, in Triton: forward and backward, float32 inside, no atomics.

A program has a block of channels of one batch entry, with all N states, and goes through its steps K at a time: what
does not depend on the state is computed for the K steps at once, the recurrence then takes one multiply-add a state.
Where channels and batch are too few to fill the device, L is cut into segments: a first kernel runs each segment from a
zero state and leaves its last state and the sum of its step sizes; the state at the start of a segment follows from
those before it, ``s = exp(A sum) s + last``, in which no factor is ever divided by. The backward pass carries the
gradient of the state from segment to segment in the same way, and computes the states anew: a checkpoint every K steps,
then K steps at a time backwards. dB and dC are summed over the channels of a program, the partial sums by torch.

Shape suffixes: K steps of a tile, N states, D channels of a program; B batch, S segments, T tiles of K steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: disable-error-code="no-untyped-def"
# What the kernels take are pointers, strides and tiles; their names say which.

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))

_TENSORS = ("u", "delta", "A", "B", "C", "D", "bias", "y", "dy", "du", "ddelta")
_BUFFERS = ("dBC", "over_steps", "states", "ends", "carries", "sums")
_STRIDES = [f"{name}_{axis}" for name in _TENSORS for axis in "bdnl"]
_compiled = triton.jit(
    # A kernel is compiled once for all shapes and layouts. Also, knowing a stride to be 1 the compiler would give a
    # thread neighbouring channels to load at once, and then move them to the threads that need them, by shared memory
    # and barriers.
    do_not_specialize=[*_STRIDES, "batches", "channels", "states", "length", "tiles"],
    do_not_specialize_on_alignment=[f"{name}_ptr" for name in (*_TENSORS, *_BUFFERS)],
)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut.

    Attributes:
        steps: steps K of a tile, a power of two.
        channels: channels D of a program, a power of two, at most K times the padded N.
        warps: warps of a program.
        segments: parts of L that run side by side.
    """

    steps: int
    channels: int
    warps: int
    segments: int = 1


@triton.jit
def _row(tile_KND, at_K11, k: tl.constexpr):
    """Row k of a tile. The sum is over bit patterns: zeros added to integers vanish when compiled, and NaN stays."""
    bits = tl.where(at_K11 == k, tile_KND.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _softplus(x):
    # max(x, 0) + log1p(z), z = exp(-|x|): log(1 + z) would lose a small z, so a polynomial for log1p(z) / z on [0, 1],
    # interpolated at Chebyshev nodes; relative error below 2e-7.
    z = tl.exp2(-tl.abs(x) * _LOG2_E)
    p = -0.00317605705 * z + 0.0195425274
    p = p * z - 0.0563736132
    p = p * z + 0.105436238
    p = p * z - 0.152696671
    p = p * z + 0.196632743
    p = p * z - 0.249516163
    p = p * z + 0.333297105
    p = p * z - 0.499998926
    p = p * z + 0.999999995
    return tl.maximum(x, 0.0) + p * z


@triton.jit
def _load(ptr, at_R1, row_stride, at_1C, column_stride, mask):
    """A tile as float32, zero where masked."""
    return tl.load(ptr + at_R1 * row_stride + at_1C * column_stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_steps(ptr, start, length, step_stride, at_K, at_R, row_stride, mask_R):
    """Steps start to start + K of some rows (channels or states) of u, delta, dy, B or C, as (K, R)."""
    at_L = start + at_K
    mask_KR = ((at_L >= 0) & (at_L < length))[:, None] & mask_R[None, :]
    return _load(ptr + start * step_stride, at_K[:, None], step_stride, at_R[None, :], row_stride, mask_KR)


@triton.jit
def _steps(raw_KD, bias_D, A_ND, mask_KD, SOFTPLUS: tl.constexpr):
    """delta before and after softplus, and the decays of the states."""
    raw_KD += bias_D[None, :]
    delta_KD = raw_KD
    if SOFTPLUS:
        delta_KD = _softplus(raw_KD)
    # Beyond the end no step is made: the state passes through.
    delta_KD = tl.where(mask_KD, delta_KD, 0.0)
    return raw_KD, delta_KD, tl.exp2(delta_KD[:, None, :] * A_ND[None, :, :])


@triton.jit
def _sum_over_channels(x_KND, K: tl.constexpr, N: tl.constexpr, D: tl.constexpr, LOG_D: tl.constexpr):
    """Sums over D, not one on all threads but each on one: element (r, d) is that of the flat index ``d R + r`` in
    (K, N), with R = K N / D. Each stage halves what a thread holds, keeping one half and passing on the other, so that
    K N sums over 32 threads take K N exchanges, where summing them one by one would take five times as many."""
    at_1D = tl.arange(0, D)[None, :]
    x = tl.reshape(x_KND, [K * N, D])
    for i in tl.static_range(LOG_D):
        low, high = tl.split(tl.permute(tl.reshape(x, [2, K * N >> (i + 1), D]), [1, 2, 0]))
        keeps_high = (at_1D & (D >> (i + 1))) != 0
        partner = tl.broadcast_to(at_1D ^ (D >> (i + 1)), [K * N >> (i + 1), D])
        passed = tl.gather(tl.where(keeps_high, low, high), partner, axis=1)
        x = tl.where(keeps_high, high, low) + passed
    return x


@triton.jit
def _before(
    ends_ptr, sums_ptr, A_ND, at_N, at_D, mask_ND, mask_D, row, start, step, count, states, channels, K: tl.constexpr
):  # fmt: skip
    """State at the edge of a segment: from the ends of `count` segments, beginning with `start`, K at a time."""
    state_ND = tl.zeros_like(A_ND)
    at_K = tl.arange(0, K)
    at_K11 = at_K[:, None, None]
    for done in range(0, count, K):
        mask_K = done + at_K < count
        row_K = row + start + step * (done + at_K)
        sum_KD = tl.load(
            sums_ptr + row_K[:, None] * channels + at_D[None, :], mask=mask_K[:, None] & mask_D[None, :], other=0.0
        )
        end_KND = tl.load(
            ends_ptr + (row_K[:, None, None] * states + at_N[None, :, None]) * channels + at_D[None, None, :],
            mask=mask_K[:, None, None] & mask_ND[None, :, :],
            other=0.0,
        )
        decay_KND = tl.exp2(sum_KD[:, None, :] * A_ND[None, :, :])
        for k in tl.static_range(K):
            state_ND = _row(decay_KND, at_K11, k) * state_ND + _row(end_KND, at_K11, k)
    return state_ND


@_compiled
def _summary_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, bias_ptr, dy_ptr, ends_ptr, carries_ptr, sums_ptr,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, A_d, A_n, B_b, B_n, B_l, C_b, C_n, C_l, dy_b, dy_d, dy_l, bias_d,
    channels, states, length, tiles,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, BACKWARD: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Of each segment: its last state from a zero state, the sum of its step sizes, and, for the backward pass, the
    gradient that its outputs give to the state before it."""
    blocks = tl.cdiv(channels, D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    segment, segments = tl.program_id(1), tl.num_programs(1)
    at_K, at_N = tl.arange(0, K), tl.arange(0, N)
    at_D = tl.program_id(0) % blocks * D + tl.arange(0, D)
    mask_N, mask_D = at_N < states, at_D < channels
    mask_ND = mask_N[:, None] & mask_D[None, :]
    at_K11 = at_K[:, None, None]
    A_ND = _load(A_ptr, at_N[:, None], A_n, at_D[None, :], A_d, mask_ND) * _LOG2_E
    bias_D = tl.zeros([D], tl.float32)
    if HAS_BIAS:
        bias_D = tl.load(bias_ptr + at_D * bias_d, mask=mask_D, other=0.0).to(tl.float32)
    state_ND = tl.zeros([N, D], tl.float32)
    carry_ND = tl.zeros([N, D], tl.float32)
    product_ND = tl.full([N, D], 1.0, tl.float32)
    sum_D = tl.zeros([D], tl.float32)
    u_ptr += batch * u_b
    delta_ptr += batch * delta_b
    B_ptr += batch * B_b
    if BACKWARD:
        C_ptr += batch * C_b
        dy_ptr += batch * dy_b
    start = segment.to(tl.int64) * tiles * K
    u_KD = _load_steps(u_ptr, start, length, u_l, at_K, at_D, u_d, mask_D)
    raw_KD = _load_steps(delta_ptr, start, length, delta_l, at_K, at_D, delta_d, mask_D)
    B_KN = _load_steps(B_ptr, start, length, B_l, at_K, at_N, B_n, mask_N)
    if BACKWARD:
        C_KN = _load_steps(C_ptr, start, length, C_l, at_K, at_N, C_n, mask_N)
        dy_KD = _load_steps(dy_ptr, start, length, dy_l, at_K, at_D, dy_d, mask_D)
    for _tile in range(segment * tiles, min((segment + 1) * tiles, tl.cdiv(length, K))):
        mask_KD = (start + at_K < length)[:, None] & mask_D[None, :]
        next_u_KD = _load_steps(u_ptr, start + K, length, u_l, at_K, at_D, u_d, mask_D)
        next_raw_KD = _load_steps(delta_ptr, start + K, length, delta_l, at_K, at_D, delta_d, mask_D)
        next_B_KN = _load_steps(B_ptr, start + K, length, B_l, at_K, at_N, B_n, mask_N)
        _raw_KD, delta_KD, decay_KND = _steps(raw_KD, bias_D, A_ND, mask_KD, SOFTPLUS)
        input_KND = (delta_KD * u_KD)[:, None, :] * B_KN[:, :, None]
        sum_D += tl.sum(delta_KD, axis=0)
        if BACKWARD:
            next_C_KN = _load_steps(C_ptr, start + K, length, C_l, at_K, at_N, C_n, mask_N)
            next_dy_KD = _load_steps(dy_ptr, start + K, length, dy_l, at_K, at_D, dy_d, mask_D)
            output_KND = dy_KD[:, None, :] * C_KN[:, :, None]
        for k in tl.static_range(K):
            decay_ND = _row(decay_KND, at_K11, k)
            state_ND = decay_ND * state_ND + _row(input_KND, at_K11, k)
            if BACKWARD:
                product_ND *= decay_ND
                carry_ND += product_ND * _row(output_KND, at_K11, k)
        u_KD, raw_KD, B_KN = next_u_KD, next_raw_KD, next_B_KN
        if BACKWARD:
            C_KN, dy_KD = next_C_KN, next_dy_KD
        start += K
    row = batch * segments + segment
    at_ND = (row * states + at_N[:, None]) * channels + at_D[None, :]
    tl.store(ends_ptr + at_ND, state_ND, mask=mask_ND)
    tl.store(sums_ptr + row * channels + at_D, sum_D, mask=mask_D)
    if BACKWARD:
        tl.store(carries_ptr + at_ND, carry_ND, mask=mask_ND)


@_compiled
def _forward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, y_ptr, ends_ptr, sums_ptr,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, A_d, A_n, B_b, B_n, B_l, C_b, C_n, C_l, y_b, y_d, y_l, D_d, bias_d,
    channels, states, length, tiles,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, SEGMENTED: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """y of one segment."""
    blocks = tl.cdiv(channels, D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    segment, segments = tl.program_id(1), tl.num_programs(1)
    at_K, at_N = tl.arange(0, K), tl.arange(0, N)
    at_D = tl.program_id(0) % blocks * D + tl.arange(0, D)
    mask_N, mask_D = at_N < states, at_D < channels
    mask_ND = mask_N[:, None] & mask_D[None, :]
    at_K11 = at_K[:, None, None]
    A_ND = _load(A_ptr, at_N[:, None], A_n, at_D[None, :], A_d, mask_ND) * _LOG2_E
    bias_D = tl.zeros([D], tl.float32)
    if HAS_BIAS:
        bias_D = tl.load(bias_ptr + at_D * bias_d, mask=mask_D, other=0.0).to(tl.float32)
    if HAS_D:
        D_D = tl.load(D_ptr + at_D * D_d, mask=mask_D, other=0.0).to(tl.float32)
    if SEGMENTED:
        state_ND = _before(
            ends_ptr, sums_ptr, A_ND, at_N, at_D, mask_ND, mask_D, batch * segments, 0, 1, segment, states, channels, K
        )
    else:
        state_ND = tl.zeros([N, D], tl.float32)
    u_ptr += batch * u_b
    delta_ptr += batch * delta_b
    B_ptr += batch * B_b
    C_ptr += batch * C_b
    y_ptr += batch * y_b
    start = segment.to(tl.int64) * tiles * K
    u_KD = _load_steps(u_ptr, start, length, u_l, at_K, at_D, u_d, mask_D)
    raw_KD = _load_steps(delta_ptr, start, length, delta_l, at_K, at_D, delta_d, mask_D)
    B_KN = _load_steps(B_ptr, start, length, B_l, at_K, at_N, B_n, mask_N)
    C_KN = _load_steps(C_ptr, start, length, C_l, at_K, at_N, C_n, mask_N)
    for _tile in range(segment * tiles, min((segment + 1) * tiles, tl.cdiv(length, K))):
        mask_KD = (start + at_K < length)[:, None] & mask_D[None, :]
        next_u_KD = _load_steps(u_ptr, start + K, length, u_l, at_K, at_D, u_d, mask_D)
        next_raw_KD = _load_steps(delta_ptr, start + K, length, delta_l, at_K, at_D, delta_d, mask_D)
        next_B_KN = _load_steps(B_ptr, start + K, length, B_l, at_K, at_N, B_n, mask_N)
        next_C_KN = _load_steps(C_ptr, start + K, length, C_l, at_K, at_N, C_n, mask_N)
        _raw_KD, delta_KD, decay_KND = _steps(raw_KD, bias_D, A_ND, mask_KD, SOFTPLUS)
        input_KND = (delta_KD * u_KD)[:, None, :] * B_KN[:, :, None]
        state_KND = tl.zeros([K, N, D], tl.float32)
        for k in tl.static_range(K):
            state_ND = _row(decay_KND, at_K11, k) * state_ND + _row(input_KND, at_K11, k)
            state_KND = tl.where(at_K11 == k, state_ND[None, :, :], state_KND)
        y_KD = tl.sum(state_KND * C_KN[:, :, None], axis=1)
        if HAS_D:
            y_KD += D_D[None, :] * u_KD
        at_KD = at_K[:, None] * y_l + at_D[None, :] * y_d
        tl.store(y_ptr + start * y_l + at_KD, y_KD, mask=mask_KD)
        u_KD, raw_KD, B_KN, C_KN = next_u_KD, next_raw_KD, next_B_KN, next_C_KN
        start += K


@_compiled
def _backward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, dy_ptr,
    du_ptr, ddelta_ptr, dBC_ptr, over_steps_ptr, states_ptr, ends_ptr, carries_ptr, sums_ptr,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, A_d, A_n, B_b, B_n, B_l, C_b, C_n, C_l, dy_b, dy_d, dy_l,
    du_b, du_d, du_l, ddelta_b, ddelta_d, ddelta_l, D_d, bias_d,
    batches, channels, states, length, tiles,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, SEGMENTED: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr, D: tl.constexpr, LOG_D: tl.constexpr,
):  # fmt: skip
    """Gradients of one segment: du, ddelta; dB, dC summed over the program's channels; dA, dD, dbias over its steps."""
    blocks = tl.cdiv(channels, D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    segment, segments = tl.program_id(1), tl.num_programs(1)
    at_K, at_N = tl.arange(0, K), tl.arange(0, N)
    at_D = block * D + tl.arange(0, D)
    mask_N, mask_D = at_N < states, at_D < channels
    mask_ND = mask_N[:, None] & mask_D[None, :]
    at_K11 = at_K[:, None, None]
    A_ND = _load(A_ptr, at_N[:, None], A_n, at_D[None, :], A_d, mask_ND) * _LOG2_E
    bias_D = tl.zeros([D], tl.float32)
    if HAS_BIAS:
        bias_D = tl.load(bias_ptr + at_D * bias_d, mask=mask_D, other=0.0).to(tl.float32)
    if HAS_D:
        D_D = tl.load(D_ptr + at_D * D_d, mask=mask_D, other=0.0).to(tl.float32)
    if SEGMENTED:
        state_ND = _before(
            ends_ptr, sums_ptr, A_ND, at_N, at_D, mask_ND, mask_D, batch * segments, 0, 1, segment, states, channels, K
        )
        after = segments - 1 - segment
        carry_ND = _before(
            carries_ptr, sums_ptr, A_ND, at_N, at_D, mask_ND, mask_D,
            batch * segments, segments - 1, -1, after, states, channels, K,
        )  # fmt: skip
    else:
        state_ND = tl.zeros([N, D], tl.float32)
        carry_ND = tl.zeros([N, D], tl.float32)
    all_tiles = tl.cdiv(length, K)
    first, last = segment * tiles, min((segment + 1) * tiles, all_tiles)
    at_ND = at_N[:, None] * channels + at_D[None, :]

    u_ptr += batch * u_b
    delta_ptr += batch * delta_b
    B_ptr += batch * B_b
    C_ptr += batch * C_b
    dy_ptr += batch * dy_b
    du_ptr += batch * du_b
    ddelta_ptr += batch * ddelta_b
    start = segment.to(tl.int64) * tiles * K
    u_KD = _load_steps(u_ptr, start, length, u_l, at_K, at_D, u_d, mask_D)
    raw_KD = _load_steps(delta_ptr, start, length, delta_l, at_K, at_D, delta_d, mask_D)
    B_KN = _load_steps(B_ptr, start, length, B_l, at_K, at_N, B_n, mask_N)
    for tile in range(first, last):
        tl.store(states_ptr + (batch * all_tiles + tile) * states * channels + at_ND, state_ND, mask=mask_ND)
        if tile + 1 < last:
            mask_KD = (start + at_K < length)[:, None] & mask_D[None, :]
            next_u_KD = _load_steps(u_ptr, start + K, length, u_l, at_K, at_D, u_d, mask_D)
            next_raw_KD = _load_steps(delta_ptr, start + K, length, delta_l, at_K, at_D, delta_d, mask_D)
            next_B_KN = _load_steps(B_ptr, start + K, length, B_l, at_K, at_N, B_n, mask_N)
            _raw_KD, delta_KD, decay_KND = _steps(raw_KD, bias_D, A_ND, mask_KD, SOFTPLUS)
            input_KND = (delta_KD * u_KD)[:, None, :] * B_KN[:, :, None]
            for k in tl.static_range(K):
                state_ND = _row(decay_KND, at_K11, k) * state_ND + _row(input_KND, at_K11, k)
            u_KD, raw_KD, B_KN = next_u_KD, next_raw_KD, next_B_KN
            start += K

    flat_RD = tl.arange(0, D)[None, :] * (K * N // D) + tl.arange(0, K * N // D)[:, None]
    k_RD, n_RD = flat_RD // N, flat_RD % N
    # A thread may read below what another one wrote above.
    tl.debug_barrier()
    dA_ND = tl.zeros([N, D], tl.float32)
    dD_D = tl.zeros([D], tl.float32)
    dbias_D = tl.zeros([D], tl.float32)
    C_KN = _load_steps(C_ptr, start, length, C_l, at_K, at_N, C_n, mask_N)
    dy_KD = _load_steps(dy_ptr, start, length, dy_l, at_K, at_D, dy_d, mask_D)
    for back in range(first, last):
        tile = first + last - 1 - back
        state_ND = tl.load(states_ptr + (batch * all_tiles + tile) * states * channels + at_ND, mask=mask_ND, other=0.0)
        mask_KD = (start + at_K < length)[:, None] & mask_D[None, :]
        next_u_KD = _load_steps(u_ptr, start - K, length, u_l, at_K, at_D, u_d, mask_D)
        next_raw_KD = _load_steps(delta_ptr, start - K, length, delta_l, at_K, at_D, delta_d, mask_D)
        next_B_KN = _load_steps(B_ptr, start - K, length, B_l, at_K, at_N, B_n, mask_N)
        next_dy_KD = _load_steps(dy_ptr, start - K, length, dy_l, at_K, at_D, dy_d, mask_D)
        next_C_KN = _load_steps(C_ptr, start - K, length, C_l, at_K, at_N, C_n, mask_N)
        raw_KD, delta_KD, decay_KND = _steps(raw_KD, bias_D, A_ND, mask_KD, SOFTPLUS)
        input_KD = delta_KD * u_KD
        input_KND = input_KD[:, None, :] * B_KN[:, :, None]

        # The states again. What the decay left of the state before is kept apart: the exponent's gradient needs it.
        kept_KND = tl.zeros([K, N, D], tl.float32)
        for k in tl.static_range(K):
            kept_ND = _row(decay_KND, at_K11, k) * state_ND
            kept_KND = tl.where(at_K11 == k, kept_ND[None, :, :], kept_KND)
            state_ND = kept_ND + _row(input_KND, at_K11, k)
        dC_RD = _sum_over_channels(dy_KD[:, None, :] * (kept_KND + input_KND), K, N, D, LOG_D)

        # Gradient of the states, backwards in time: g_t = C_t dy_t + decay_{t+1} g_{t+1}.
        output_KND = dy_KD[:, None, :] * C_KN[:, :, None]
        g_KND = tl.zeros([K, N, D], tl.float32)
        for k in tl.static_range(K - 1, -1, -1):
            g_ND = _row(output_KND, at_K11, k) + carry_ND
            g_KND = tl.where(at_K11 == k, g_ND[None, :, :], g_KND)
            carry_ND = _row(decay_KND, at_K11, k) * g_ND
        dB_RD = _sum_over_channels(input_KD[:, None, :] * g_KND, K, N, D, LOG_D)

        dinput_KD = tl.sum(g_KND * B_KN[:, :, None], axis=1)
        dexponent_KND = g_KND * kept_KND
        ddelta_KD = tl.sum(dexponent_KND * A_ND[None, :, :], axis=1) * _LN_2 + dinput_KD * u_KD
        dA_ND += tl.sum(dexponent_KND * delta_KD[:, None, :], axis=0)
        du_KD = dinput_KD * delta_KD
        if HAS_D:
            du_KD += D_D[None, :] * dy_KD
            dD_D += tl.sum(dy_KD * u_KD, axis=0)
        if SOFTPLUS:
            ddelta_KD *= tl.sigmoid(raw_KD)
        if HAS_BIAS:
            dbias_D += tl.sum(ddelta_KD, axis=0)
        at_KD = at_K[:, None] * du_l + at_D[None, :] * du_d
        tl.store(du_ptr + start * du_l + at_KD, du_KD, mask=mask_KD)
        at_KD = at_K[:, None] * ddelta_l + at_D[None, :] * ddelta_d
        tl.store(ddelta_ptr + start * ddelta_l + at_KD, ddelta_KD, mask=mask_KD)
        at_RD = ((block * batches + batch) * length + start + k_RD) * 2 * states + n_RD
        mask_RD = (start + k_RD < length) & (n_RD < states)
        tl.store(dBC_ptr + at_RD, dB_RD, mask=mask_RD)
        tl.store(dBC_ptr + at_RD + states, dC_RD, mask=mask_RD)
        u_KD, raw_KD, B_KN, C_KN, dy_KD = next_u_KD, next_raw_KD, next_B_KN, next_C_KN, next_dy_KD
        start -= K

    row = (batch * segments + segment) * (states + 2)
    tl.store(over_steps_ptr + row * channels + at_ND, dA_ND, mask=mask_ND)
    if HAS_D:
        tl.store(over_steps_ptr + (row + states) * channels + at_D, dD_D, mask=mask_D)
    if HAS_BIAS:
        tl.store(over_steps_ptr + (row + states + 1) * channels + at_D, dbias_D, mask=mask_D)


def choose_tiling(batch: int, channels: int, length: int, states: int, processors: int) -> Tiling:
    """How to cut the work for a device of some multiprocessors: reasoned from compiled code, not tuned on a device.

    A program of 16 channels does the least work a channel, one of 8 fills a device with the fewest channels; what is
    still lacking, segments make up for, where they are long and many enough to pay for the second pass. Tiles of 4
    steps and 128 states a warp leave a thread registers for the loads of the next tile, and nothing spills.
    """
    N = padded_states(states)
    wanted = 16 * processors  # four for each scheduler
    D = 16 if N <= 8 and batch * triton.cdiv(channels, 16) >= wanted else max(1, min(8, 1024 // N))
    segments = min(wanted // (batch * triton.cdiv(channels, D)), length // 64)
    return Tiling(4, D, max(1, N * D // 128), segments if segments >= 4 else 1)


def padded_states(states: int) -> int:
    """States of a program, a power of two; fewer than 8 would leave threads of a warp without one."""
    return max(8, triton.next_power_of_2(states))


@dataclasses.dataclass(frozen=True)
class _Launch:
    """What the launches of a pass have in common."""

    grid: tuple[int, int]
    tiles: int
    sizes: tuple[int, int, int, int]
    constants: dict[str, Any]


def _launch(
    u: Tensor, A: Tensor, delta_bias: Tensor | None, delta_softplus: bool, tensors: Sequence[Tensor]
) -> _Launch:
    batch, channels, length = u.shape
    states = A.shape[1]
    if max(x.shape[1] * x.stride(1) for x in tensors) >= 2**31:
        raise ValueError(
            "backend: 'triton' wants channels less than 2^31 numbers apart in memory; lay them side by side"
        )
    processors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 1
    tiling = choose_tiling(batch, channels, length, states, processors)
    tiles = triton.cdiv(length, tiling.steps)
    segment_tiles = triton.cdiv(tiles, tiling.segments)
    constants = {
        "HAS_BIAS": delta_bias is not None,
        "SOFTPLUS": delta_softplus,
        "K": tiling.steps,
        "N": padded_states(states),
        "D": tiling.channels,
        "num_warps": tiling.warps,
    }
    grid = (batch * triton.cdiv(channels, tiling.channels), triton.cdiv(tiles, segment_tiles))
    return _Launch(grid, tiles, (channels, states, length, segment_tiles), constants)


def _on_device_of(u: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(u.device) if u.is_cuda else nullcontext()


def _stride(x_D: Tensor | None) -> int:
    return 0 if x_D is None else x_D.stride(0)


def triton_forward(
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """`selective_scan` without its gradient; arguments as there, of any strides. The result has the strides of `u`."""
    y_BDL = torch.empty_like(u_BDL)
    if not u_BDL.numel():
        return y_BDL
    batch, channels, _ = u_BDL.shape
    states = A_DN.shape[1]
    inputs = (u_BDL, delta_BDL, A_DN, B_BNL, C_BNL)
    launch = _launch(u_BDL, A_DN, delta_bias_D, delta_softplus, inputs)
    grid, segments = launch.grid, launch.grid[1]
    strides = [stride for x in inputs for stride in x.stride()]
    ends = sums = None
    with _on_device_of(u_BDL):
        if segments > 1:
            ends = torch.empty(batch, segments, states, channels, dtype=torch.float32, device=u_BDL.device)
            sums = torch.empty(batch, segments, channels, dtype=torch.float32, device=u_BDL.device)
            _summary_kernel[grid](
                *inputs, delta_bias_D, None, ends, None, sums,
                *strides, 0, 0, 0, _stride(delta_bias_D), *launch.sizes, BACKWARD=False, **launch.constants,
            )  # fmt: skip
        _forward_kernel[grid](
            *inputs, D_D, delta_bias_D, y_BDL, ends, sums,
            *strides, *y_BDL.stride(), _stride(D_D), _stride(delta_bias_D), *launch.sizes,
            HAS_D=D_D is not None, SEGMENTED=segments > 1, **launch.constants,
        )  # fmt: skip
    return y_BDL


def triton_backward(
    grad_BDL: Tensor,
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, and of D and delta_bias where given; dtypes and strides as of their tensors.

    While it runs it takes memory for the states before tiles, B L D N / 4 numbers of float32, and about as much for the
    partial sums of dB and dC.
    """
    inputs = (u_BDL, delta_BDL, A_DN, B_BNL, C_BNL)
    given = [x for x in (*inputs, D_D, delta_bias_D) if x is not None]
    if not u_BDL.numel():
        return [torch.zeros_like(x) for x in given]
    batch, channels, length = u_BDL.shape
    states = A_DN.shape[1]
    launch = _launch(u_BDL, A_DN, delta_bias_D, delta_softplus, [grad_BDL, *inputs])
    grid, segments = launch.grid, launch.grid[1]
    strides = [stride for x in inputs for stride in x.stride()]

    def buffer(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u_BDL.device)

    du_BDL, ddelta_BDL = torch.empty_like(u_BDL), torch.empty_like(delta_BDL)
    before_BTND = buffer(batch, launch.tiles, states, channels)
    over_channels = buffer(grid[0] // batch, batch, length, 2, states)
    over_steps = buffer(batch * segments, states + 2, channels)
    ends = carries = sums = None
    with _on_device_of(u_BDL):
        if segments > 1:
            ends, carries = buffer(batch, segments, states, channels), buffer(batch, segments, states, channels)
            sums = buffer(batch, segments, channels)
            _summary_kernel[grid](
                *inputs, delta_bias_D, grad_BDL, ends, carries, sums,
                *strides, *grad_BDL.stride(), _stride(delta_bias_D), *launch.sizes, BACKWARD=True, **launch.constants,
            )  # fmt: skip
        _backward_kernel[grid](
            *inputs, D_D, delta_bias_D, grad_BDL,
            du_BDL, ddelta_BDL, over_channels, over_steps, before_BTND, ends, carries, sums,
            *strides, *grad_BDL.stride(), *du_BDL.stride(), *ddelta_BDL.stride(), _stride(D_D), _stride(delta_bias_D),
            batch, *launch.sizes, HAS_D=D_D is not None, SEGMENTED=segments > 1,
            LOG_D=launch.constants["D"].bit_length() - 1, **launch.constants,
        )  # fmt: skip
    dB_BLN, dC_BLN = over_channels.sum(0).unbind(2)
    sums_KD = over_steps.sum(0)
    grads = [sums_KD[:states].t(), dB_BLN.transpose(1, 2), dC_BLN.transpose(1, 2)]
    grads += [sums_KD[states]] if D_D is not None else []
    grads += [sums_KD[states + 1]] if delta_bias_D is not None else []
    others = [torch.empty_like(like).copy_(grad) for like, grad in zip(given[2:], grads, strict=True)]
    return [du_BDL, ddelta_BDL, *others]
