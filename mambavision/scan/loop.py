"""The scan on a CPU: a loop over time whose every step is one fused in-place operation.

A plain loop under autograd spends its time on small kernels, on fresh memory and on the tape. Here a few steps at a
time are worked on in time-major slabs ``(L, B, N, D)`` that fit the cache and are used again for the next steps: step t
is one contiguous block, the recurrence is one `addcmul_` a step, and all that does not depend on the state (decays,
inputs, outputs, gradients) is computed for the whole slab at once. The forward pass keeps no states; the backward pass
computes them again. Nothing that the caller handed over is written to.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB = 1 << 18
"""Numbers in a slab (1 MB of float32), unless one step is larger. Bounds the memory of the forward pass."""

_LOG2_E = math.log2(math.e)


def slab_steps(batch: int, channels: int, state: int, length: int) -> int:
    """Steps that are worked on at once."""
    return min(length, max(1, SLAB // (batch * channels * state)))


def _math_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _time_major(x_BKL: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, K, L) to contiguous (L, B, K)."""
    return x_BKL.permute(2, 0, 1).to(dtype).contiguous()


class _Slabs:
    """Decays and states of a few steps, in memory that is used again for the next few.

    Attributes:
        decay: exp(delta_t A), ``(steps, B, N, D)``.
        state: ``(steps + 1, B, N, D)``; the first is the state before these steps.
    """

    def __init__(self, steps: int, delta_LBD: Tensor, input_LBD: Tensor, A_ND: Tensor, B_LBN: Tensor) -> None:
        _, batch, channels = delta_LBD.shape
        self.delta_LBD, self.input_LBD, self.B_LBN = delta_LBD, input_LBD, B_LBN
        # exp2 takes half the time of exp.
        self.A_ND = A_ND * _LOG2_E
        self.decay = delta_LBD.new_empty(steps, batch, A_ND.shape[0], channels)
        self.state = delta_LBD.new_empty(steps + 1, batch, A_ND.shape[0], channels)

    def run(self, start: int, stop: int, state_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Decays of steps start to stop, and states before, between and after them, from the state before them."""
        decay, state = self.decay[: stop - start], self.state[: stop - start + 1]
        state[0].copy_(state_BND)  # first, as it may be the last state of the slab's earlier steps
        torch.mul(self.delta_LBD[start:stop].unsqueeze(2), self.A_ND, out=decay).exp2_()
        torch.mul(self.input_LBD[start:stop].unsqueeze(2), self.B_LBN[start:stop].unsqueeze(3), out=state[1:])
        decays, states = decay.unbind(0), state.unbind(0)
        for t, now in enumerate(states[1:]):
            now.addcmul_(decays[t], states[t])
        return decay, state


def _rows(x_LBK: Tensor) -> Tensor:
    """(L, B, K) to one row vector a token, (L B, 1, K), for batched products."""
    return x_LBK.view(-1, 1, x_LBK.shape[2])


def loop_forward(
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """`selective_scan` without its gradient; arguments as there. The result has the strides of `u`."""
    dtype = _math_dtype(u_BDL)
    batch, channels, length = u_BDL.shape
    u_LBD, B_LBN, C_LBN = (_time_major(x, dtype) for x in (u_BDL, B_BNL, C_BNL))
    delta_LBD = _step_sizes(delta_BDL, delta_bias_D, delta_softplus, dtype)[1]
    steps = slab_steps(batch, channels, A_DN.shape[1], length)
    slabs = _Slabs(steps, delta_LBD, delta_LBD * u_LBD, A_DN.to(dtype).t().contiguous(), B_LBN)
    out_BDL = torch.empty_like(u_BDL)
    out_LBD = out_BDL.permute(2, 0, 1)
    y_LBD = u_LBD.new_empty(steps, batch, channels)
    last_BND = slabs.state[0].zero_()
    for start in range(0, length, steps):
        stop = min(start + steps, length)
        decay, state = slabs.run(start, stop, last_BND)
        last_BND = state[-1]
        y = y_LBD[: stop - start]
        # The decays are spent; a batched product would be slower where N and D are small.
        torch.sum(torch.mul(state[1:], C_LBN[start:stop].unsqueeze(3), out=decay), 2, out=y)
        if D_D is not None:
            y.addcmul_(u_LBD[start:stop], D_D.to(dtype))
        out_LBD[start:stop] = y
    return out_BDL


def loop_backward(
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
    """Gradients of u, delta, A, B, C, and of D and delta_bias where given; dtypes and strides as of their tensors."""
    dtype = _math_dtype(u_BDL)
    batch, channels, length = u_BDL.shape
    dy_LBD, u_LBD, B_LBN, C_LBN = (_time_major(x, dtype) for x in (grad_BDL, u_BDL, B_BNL, C_BNL))
    raw_LBD, delta_LBD = _step_sizes(delta_BDL, delta_bias_D, delta_softplus, dtype)
    input_LBD = delta_LBD * u_LBD
    A_ND = A_DN.to(dtype).t().contiguous()
    steps = slab_steps(batch, channels, A_DN.shape[1], length)
    slabs = _Slabs(steps, delta_LBD, input_LBD, A_ND, B_LBN)

    # The state before each slab, then the slabs from the last to the first with their states computed again.
    starts = range(0, length, steps)
    before = slabs.state.new_zeros(len(starts), *slabs.state.shape[1:])
    for i, start in enumerate(starts[:-1]):
        before[i + 1] = slabs.run(start, start + steps, before[i])[1][-1]

    dinput_LBD, ddelta_LBD = torch.empty_like(u_LBD), torch.empty_like(u_LBD)
    dB_LBN, dC_LBN = torch.empty_like(B_LBN), torch.empty_like(C_LBN)
    dA_ND = torch.zeros_like(A_ND)
    dstate, scratch = torch.empty_like(slabs.decay), torch.empty_like(slabs.decay)
    carry_BND = torch.zeros_like(before[0])
    for i, start in reversed(list(enumerate(starts))):
        stop = min(start + steps, length)
        now = slice(start, stop)
        decay, state = slabs.run(start, stop, before[i])
        g, work = dstate[: stop - start], scratch[: stop - start]
        torch.bmm(_rows(dy_LBD[now]), state[1:].flatten(0, 1).transpose(1, 2), out=_rows(dC_LBN[now]))
        # Gradient of the states, backwards in time: g_t = C_t dy_t + decay_{t+1} g_{t+1}.
        torch.mul(dy_LBD[now].unsqueeze(2), C_LBN[now].unsqueeze(3), out=g)
        g[-1].add_(carry_BND)
        decays, gs = decay.unbind(0), g.unbind(0)
        for t in range(len(gs) - 2, -1, -1):
            gs[t].addcmul_(decays[t + 1], gs[t + 1])
        torch.mul(decays[0], gs[0], out=carry_BND)
        torch.bmm(_rows(input_LBD[now]), g.flatten(0, 1).transpose(1, 2), out=_rows(dB_LBN[now]))
        torch.sum(torch.mul(g, B_LBN[now].unsqueeze(3), out=work), 2, out=dinput_LBD[now])
        # Gradient of the exponent delta_t A: g_t s_{t-1} decay_t, in the place of the decay.
        dexp = decay.mul_(state[:-1]).mul_(g)
        torch.sum(torch.mul(dexp, A_ND, out=work), 2, out=ddelta_LBD[now])
        dA_ND += dexp.mul_(delta_LBD[now].unsqueeze(2)).sum((0, 1))

    ddelta_LBD.addcmul_(dinput_LBD, u_LBD)
    if delta_softplus:
        ddelta_LBD.mul_(torch.sigmoid(raw_LBD))
    du_LBD = dinput_LBD.mul_(delta_LBD)
    grads = {"dA": (A_DN, dA_ND.t()), "dB": (B_BNL, dB_LBN.permute(1, 2, 0)), "dC": (C_BNL, dC_LBN.permute(1, 2, 0))}
    if D_D is not None:
        du_LBD.addcmul_(dy_LBD, D_D.to(dtype))
        grads["dD"] = (D_D, (dy_LBD * u_LBD).sum((0, 1)))
    if delta_bias_D is not None:
        grads["dbias"] = (delta_bias_D, ddelta_LBD.sum((0, 1)))
    first = [(u_BDL, du_LBD.permute(1, 2, 0)), (delta_BDL, ddelta_LBD.permute(1, 2, 0))]
    return [torch.empty_like(like).copy_(grad) for like, grad in [*first, *grads.values()]]


def _step_sizes(delta_BDL: Tensor, bias_D: Tensor | None, softplus: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Step sizes before and after softplus, (L, B, D)."""
    raw_LBD = _time_major(delta_BDL, dtype)
    if bias_D is not None:
        raw_LBD = raw_LBD + bias_D.to(dtype)
    return raw_LBD, F.softplus(raw_LBD) if softplus else raw_LBD
