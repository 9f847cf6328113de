"""`selective_scan` as one torch operator, with fake and autograd kernels.

torch.compile, torch.export and activation checkpointing see one node; what computes it is chosen by `backend`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambavision.scan.loop import loop_backward, loop_forward
from mambavision.scan.reference import reference_scan

BACKENDS = ("auto", "loop", "reference")


def scan_path(device: torch.device | str = "cpu") -> str:
    """Name of the backend that ``backend="auto"`` runs on a device; timings record it."""
    torch.device(device)  # refuses a name that is no device
    return "loop"


@torch.library.custom_op("mambavision::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    # Autocast still applies inside an operator's kernel; the state math must not see it.
    with torch.autocast(u.device.type, enabled=False):
        return loop_forward(u, delta, A, B, C, D, delta_bias, delta_softplus)


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    return torch.empty_like(u)


@torch.library.custom_op("mambavision::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    with torch.autocast(u.device.type, enabled=False):
        return loop_backward(grad, u, delta, A, B, C, D, delta_bias, delta_softplus)


@_scan_backward.register_fake
def _(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    inputs = [u, delta, A, B, C, D, delta_bias]
    return [torch.empty_like(t) for t in inputs if t is not None]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = iter(_scan_backward(grad, *tensors, ctx.delta_softplus))
    return (*(None if t is None else next(grads) for t in tensors), None)


_scan.register_autograd(_differentiate, setup_context=_save_inputs)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Selective state-space scan, ``s_t = exp(delta_t A) s_{t-1} + delta_t u_t B_t``, ``y_t = <s_t, C_t> + D u_t``.

    The discretisation is the zero-order hold for A and Euler for B, as in Mamba (arXiv 2312.00752, section 3.6). State
    and sums are float32 whatever comes in, also under autocast; float64 stays float64.

    Args:
        u: input, ``(B, D, L)``.
        delta: step sizes, ``(B, D, L)``.
        A: state matrix, ``(D, N)``, negative for a stable scan.
        B: input matrix of each step, ``(B, N, L)``.
        C: output matrix of each step, ``(B, N, L)``.
        D: skip weight of each channel, ``(D,)``.
        delta_bias: added to `delta`, ``(D,)``.
        delta_softplus: apply softplus to `delta` (after its bias).
        backend: ``"auto"``, ``"loop"`` or ``"reference"``; auto takes what `scan_path` names.

    Returns:
        ``(B, D, L)`` in the dtype of `u`.

    Raises:
        ValueError: for an unknown backend or a tensor of the wrong shape, which the message names.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not allowed; one of {', '.join(BACKENDS)}")
    _check_shapes(u, delta, A, B, C, D, delta_bias)
    if backend == "reference":
        return reference_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    if u.dim() != 3:
        raise ValueError(f"u: shape {tuple(u.shape)} is not allowed; (B, D, L) expected")
    if A.dim() != 2:
        raise ValueError(f"A: shape {tuple(A.shape)} is not allowed; (D, N) expected")
    batch, channels, length = u.shape
    state = A.shape[1]
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, state)),
        "B": (B, (batch, state, length)),
        "C": (C, (batch, state, length)),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not allowed; {shape} expected")
