"""`selective_scan` as one torch operator, with fake and autograd kernels.

torch.compile, torch.export and activation checkpointing see one node; what computes it is chosen by the device, or by
`backend`, each of which is an operator of its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mambavision.scan.loop import loop_backward, loop_forward
from mambavision.scan.reference import reference_scan

_T = TypeVar("_T")

BACKENDS = ("auto", "loop", "reference", "triton")


@functools.cache
def _has_triton() -> bool:
    # Only asked for GPUs: the import takes time, and the package exists on few platforms.
    try:
        import mambavision.scan.triton_scan  # noqa: F401
    except ImportError:
        return False
    return True


def scan_path(device: torch.device | str = "cpu") -> str:
    """Name of the backend that ``backend="auto"`` runs on a device; timings record it."""
    return "triton" if torch.device(device).type == "cuda" and _has_triton() else "loop"


def _triton_forward(u: Tensor, *others: Any) -> Tensor:
    # The kernels are float32 inside.
    if u.dtype == torch.float64 or not _has_triton():
        return loop_forward(u, *others)
    from mambavision.scan.triton_scan import triton_forward

    return triton_forward(u, *others)


def _triton_backward(grad: Tensor, u: Tensor, *others: Any) -> list[Tensor]:
    if u.dtype == torch.float64 or not _has_triton():
        return loop_backward(grad, u, *others)
    from mambavision.scan.triton_scan import triton_backward

    return triton_backward(grad, u, *others)


def _without_autocast(kernel: Callable[..., _T]) -> Callable[..., _T]:
    """Autocast still applies inside an operator's kernel; the state math must not see it."""

    @functools.wraps(kernel)
    def run(first: Tensor, *others: Any) -> _T:
        with torch.autocast(first.device.type, enabled=False):
            return kernel(first, *others)

    return run


_ARGUMENTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, bool delta_softplus"


def _operator(name: str, forward: Callable[..., Tensor], backward: Callable[..., list[Tensor]]) -> tuple[Any, Any]:
    """The custom operators ``mambavision::name`` and ``mambavision::name_backward``, differentiable and traceable."""

    @torch.library.custom_op(f"mambavision::{name}", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
    def scan(u: Tensor, *others: Any) -> Tensor:
        # Autocast still applies inside an operator's kernel; the state math must not see it.
        with torch.autocast(u.device.type, enabled=False):
            return forward(u, *others)

    @scan.register_fake
    def _(u: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(u)

    @torch.library.custom_op(
        f"mambavision::{name}_backward", mutates_args=(), schema=f"(Tensor grad, {_ARGUMENTS}) -> Tensor[]"
    )
    def scan_backward(grad: Tensor, u: Tensor, *others: Any) -> list[Tensor]:
        with torch.autocast(u.device.type, enabled=False):
            return backward(grad, u, *others)

    @scan_backward.register_fake
    def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
        return [torch.empty_like(tensor) for tensor in arguments[:-1] if tensor is not None]

    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.delta_softplus = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grads = iter(scan_backward(grad, *tensors, ctx.delta_softplus))
        return (*(None if t is None else next(grads) for t in tensors), None)

    scan.register_autograd(differentiate, setup_context=save_inputs)
    return scan, scan_backward


_scan, _scan_backward = _operator("selective_scan", loop_forward, loop_backward)
_loop, _ = _operator("selective_scan_loop", loop_forward, loop_backward)
_triton, _ = _operator("selective_scan_triton", _triton_forward, _triton_backward)


_scan.register_kernel("cuda")(_without_autocast(_triton_forward))
_scan_backward.register_kernel("cuda")(_without_autocast(_triton_backward))


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
    and sums are float32 whatever comes in, also under autocast; float64 stays float64 (by the loop, on every device).
    Differentiable once; for second derivatives take ``backend="reference"``.

    Args:
        u: input, ``(B, D, L)``.
        delta: step sizes, ``(B, D, L)``.
        A: state matrix, ``(D, N)``, negative for a stable scan.
        B: input matrix of each step, ``(B, N, L)``.
        C: output matrix of each step, ``(B, N, L)``.
        D: skip weight of each channel, ``(D,)``.
        delta_bias: added to `delta`, ``(D,)``.
        delta_softplus: apply softplus to `delta` (after its bias).
        backend: ``"auto"``, ``"loop"``, ``"reference"`` or ``"triton"``; auto takes what `scan_path` names.

    Returns:
        ``(B, D, L)`` in the dtype of `u`.

    Raises:
        ValueError: for an unknown backend, one that cannot run here, or a tensor of the wrong shape, which the message
            names.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not allowed; one of {', '.join(BACKENDS)}")
    _check_shapes(u, delta, A, B, C, D, delta_bias)
    if backend == "reference":
        return reference_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    if backend == "triton" and not torch.compiler.is_compiling():
        _check_triton(u.device)
    operator = {"auto": _scan, "loop": _loop, "triton": _triton}[backend]
    return operator(u, delta, A, B, C, D, delta_bias, delta_softplus)


def _check_triton(device: torch.device) -> None:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend: 'triton' needs tensors on a CUDA device, got {device}; "
            "for tests, TRITON_INTERPRET=1 at the start of Python runs it on a CPU"
        )
    if not _has_triton():
        raise ValueError("backend: 'triton' needs the package triton, which cannot be imported")


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    if u.dim() != 3:
        raise ValueError(f"u: shape {tuple(u.shape)} is not allowed; (B, D, L) expected")
    if not u.is_floating_point():
        raise ValueError(f"u: {u.dtype} is not allowed; a floating point dtype")
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
