"""The scan on a CPU: a loop over time whose every step is one fused in-place operation.

A plain loop under autograd spends its time on small kernels, on fresh memory and on the tape. Here a few steps at a
time are worked on in time-major slabs ``(L, B, N, D)`` that fit the cache and are used again for the next steps: step t
is one contiguous block, the recurrence is one `addcmul_` a step, and all that does not depend on the state (step sizes,
decays, inputs, outputs, gradients) is computed for the whole slab at once. Nothing that the caller handed over is
written to.

Memory beyond arguments and results: the step sizes of the whole sequence, a few slabs, and in the backward pass some
states. The forward pass keeps none: the backward pass computes them again, slab by slab from the last to the first, and
needs the state before each. While one state a slab stays within `KEPT` numbers, all of these are kept, at the price of
a second run through the slabs. Above it, of n slabs only about ``2 sqrt(n)`` states are kept (`_Slabs.backwards`), at
the price of a third run: about a seventh more time for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB = 1 << 18
"""Numbers in a slab (1 MB of float32), unless one step is larger. Bounds the memory of the forward pass."""

KEPT = 1 << 23
"""Numbers in the states that the backward pass keeps (32 MB of float32) before it computes them once more instead."""

WIDE = 128
"""Channels from which the sum over a channel's states is faster as a batched product than as two plain passes."""

_LOG2_E = math.log2(math.e)


def slab_steps(batch: int, channels: int, state: int, length: int) -> int:
    """Steps that are worked on at once."""
    return min(length, max(1, SLAB // max(1, batch * channels * state)))


def _time_major(x_BKL: Tensor) -> Tensor:
    """(B, K, L) as (L, B, K), in the same memory."""
    return x_BKL.permute(2, 0, 1)


class _Slabs:
    """A scan's inputs and states a few steps at a time, in memory that is used again for the next few.

    Attributes:
        dtype: precision of the state, and of all below but u.
        spans: the slabs of the sequence, first to last.
        A_ND: A, transposed.
        decays, states: the memory of `decay` and `state`, one tensor a step.
        u: of the steps last run, ``(steps, B, D)``, as it was given.
        delta, input: step sizes of the steps last run, and their products with u, ``(steps, B, D)``.
        B: of the steps last run, ``(steps, B, N)``.
        decay: exp(delta_t A) of the steps last run, ``(steps, B, N, D)``.
        state: ``(steps + 1, B, N, D)``: the state before the steps last run, and after each.
    """

    def __init__(
        self,
        u_BDL: Tensor,
        delta_BDL: Tensor,
        A_DN: Tensor,
        B_BNL: Tensor,
        delta_bias_D: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        batch, channels, length = u_BDL.shape
        self.dtype = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
        self.A_ND = A_DN.to(self.dtype).t().contiguous()
        # exp2 takes half the time of exp.
        self._exponent_ND = self.A_ND * _LOG2_E
        self._u_LBD, self._raw_LBD, self._B_LBN = _time_major(u_BDL), _time_major(delta_BDL), _time_major(B_BNL)
        self._bias_D = None if delta_bias_D is None else delta_bias_D.to(self.dtype)
        # Softplus costs as much as the decays of several states: once for all runs through the slabs.
        raw_LBD = self.raw(slice(None))
        self._delta_LBD = F.softplus(raw_LBD) if delta_softplus else raw_LBD
        steps = slab_steps(batch, channels, A_DN.shape[1], length)
        self.spans = [slice(start, min(start + steps, length)) for start in range(0, length, steps)]
        self._decay = self.A_ND.new_empty(steps, batch, *self.A_ND.shape)
        self._state = self.A_ND.new_empty(steps + 1, batch, *self.A_ND.shape)
        self._input = self.A_ND.new_empty(steps, batch, channels)
        # Taken apart once: for small steps that costs half as much as working on them.
        self.decays, self.states = self._decay.unbind(0), self._state.unbind(0)

    def take(self, x_LBK: Tensor) -> Tensor:
        """A copy of steps as one block in the precision of the state."""
        return torch.empty(x_LBK.shape, dtype=self.dtype, device=x_LBK.device).copy_(x_LBK)

    def another(self) -> Tensor:
        """Memory of the shape of the decays."""
        return torch.empty_like(self._decay)

    def raw(self, now: slice) -> Tensor:
        """Delta before softplus."""
        raw_LBD = self.take(self._raw_LBD[now])
        return raw_LBD if self._bias_D is None else raw_LBD.add_(self._bias_D)

    def run(self, now: slice, state_BND: Tensor) -> Tensor:
        """Runs one slab from the state before it; returns the state after it, valid until the next run."""
        steps = now.stop - now.start
        self.decay, self.state = self._decay[:steps], self._state[: steps + 1]
        # First, as it may be the last state of this memory's earlier steps.
        self.states[0].copy_(state_BND)
        self.u, self.delta, self.B = self._u_LBD[now], self._delta_LBD[now], self.take(self._B_LBN[now])
        self.input = torch.mul(self.delta, self.u, out=self._input[:steps])
        torch.mul(self.delta.unsqueeze(2), self._exponent_ND, out=self.decay).exp2_()
        torch.mul(self.input.unsqueeze(2), self.B.unsqueeze(3), out=self.state[1:])
        for before, decay, after in zip(self.states, self.decays[:steps], self.states[1:], strict=False):
            after.addcmul_(decay, before)
        return self.states[steps]

    def backwards(self) -> Iterator[slice]:
        """Runs the slabs from the last to the first, each from the state before it, which runs ahead have found.

        Where these states are too many to be kept, about as many groups are formed as a group has slabs: a run through
        all slabs keeps the states before groups, and one through each group in turn those before its slabs.
        """
        count = len(self.spans)
        size = count if count * self._state[0].numel() <= KEPT else math.ceil(math.sqrt(count))
        groups = [self.spans[i : i + size] for i in range(0, count, size)]
        before_groups = self._states_before(groups, torch.zeros_like(self._state[0]))
        for group in reversed(groups):
            before = self._states_before([[now] for now in group], before_groups.pop())
            for now in reversed(group):
                self.run(now, before.pop())
                yield now

    def _states_before(self, parts: Sequence[Sequence[slice]], first_BND: Tensor) -> list[Tensor]:
        """The state before each of some parts that follow each other, from that before the first."""
        states = [first_BND]
        for part in parts[:-1]:
            state = states[-1]
            for now in part:
                state = self.run(now, state)
            states.append(state.clone())
        return states


def _rows(x_LBK: Tensor) -> Tensor:
    """(L, B, K) to one row vector a token, (L B, 1, K), for batched products."""
    return x_LBK.view(-1, 1, x_LBK.shape[2])


def _sum_states(x_LBND: Tensor, weight_LBN: Tensor, work_LBND: Tensor) -> Tensor:
    """Weighted sum over the states of a channel, (L, B, D); writes to `work`."""
    steps, batch, _, channels = x_LBND.shape
    if channels >= WIDE:
        return torch.bmm(_rows(weight_LBN), x_LBND.flatten(0, 1)).view(steps, batch, channels)
    return torch.mul(x_LBND, weight_LBN.unsqueeze(3), out=work_LBND).sum(2)


def _sum_channels(x_LBD: Tensor, weight_LBND: Tensor) -> Tensor:
    """Weighted sum over channels, (L, B, N)."""
    return torch.bmm(_rows(x_LBD), weight_LBND.flatten(0, 1).transpose(1, 2)).view(weight_LBND.shape[:3])


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
    if not u_BDL.numel():
        return torch.empty_like(u_BDL)
    slabs = _Slabs(u_BDL, delta_BDL, A_DN, B_BNL, delta_bias_D, delta_softplus)
    skip_D = None if D_D is None else D_D.to(slabs.dtype)
    out_BDL = torch.empty_like(u_BDL)
    out_LBD, C_LBN = _time_major(out_BDL), _time_major(C_BNL)
    last_BND = torch.zeros_like(slabs.states[0])
    for now in slabs.spans:
        last_BND = slabs.run(now, last_BND)
        # The decays are spent: their memory serves the sum.
        y = _sum_states(slabs.state[1:], slabs.take(C_LBN[now]), slabs.decay)
        out_LBD[now] = y if skip_D is None else y.addcmul_(slabs.u, skip_D)
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
    if not u_BDL.numel():
        given = (u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, delta_bias_D)
        return [torch.zeros_like(tensor) for tensor in given if tensor is not None]
    slabs = _Slabs(u_BDL, delta_BDL, A_DN, B_BNL, delta_bias_D, delta_softplus)
    skip_D = None if D_D is None else D_D.to(slabs.dtype)
    dy_LBD, C_LBN = _time_major(grad_BDL), _time_major(C_BNL)
    grads = [torch.empty_like(x) for x in (u_BDL, delta_BDL, B_BNL, C_BNL)]
    du_LBD, ddelta_LBD, dB_LBN, dC_LBN = (_time_major(grad) for grad in grads)
    dA_ND = torch.zeros_like(slabs.A_ND)
    dD_D, dbias_D = dA_ND.new_zeros(A_DN.shape[0]), dA_ND.new_zeros(A_DN.shape[0])
    dstate, scratch = slabs.another(), slabs.another()
    dstates = dstate.unbind(0)
    carry_BND = torch.zeros_like(slabs.states[0])
    for now in slabs.backwards():
        steps = now.stop - now.start
        decay, g, work = slabs.decay, dstate[:steps], scratch[:steps]
        dy, C = slabs.take(dy_LBD[now]), slabs.take(C_LBN[now])
        dC_LBN[now] = _sum_channels(dy, slabs.state[1:])
        # Gradient of the states, backwards in time: g_t = C_t dy_t + decay_{t+1} g_{t+1}.
        torch.mul(dy.unsqueeze(2), C.unsqueeze(3), out=g)
        g[-1].add_(carry_BND)
        for t in range(steps - 2, -1, -1):
            dstates[t].addcmul_(slabs.decays[t + 1], dstates[t + 1])
        torch.mul(slabs.decays[0], dstates[0], out=carry_BND)
        dB_LBN[now] = _sum_channels(slabs.input, g)
        dinput = _sum_states(g, slabs.B, work)
        # Gradient of the exponent delta_t A: g_t s_{t-1} decay_t, in the place of the decay.
        dexp = decay.mul_(slabs.state[:-1]).mul_(g)
        ddelta = torch.mul(dexp, slabs.A_ND, out=work).sum(2).addcmul_(dinput, slabs.u)
        dA_ND += dexp.mul_(slabs.delta.unsqueeze(2)).sum((0, 1))
        if delta_softplus:
            ddelta.mul_(torch.sigmoid_(slabs.raw(now)))
        dbias_D += ddelta.sum((0, 1))
        du = dinput.mul_(slabs.delta)
        if skip_D is not None:
            du.addcmul_(dy, skip_D)
            dD_D += dy.mul_(slabs.u).sum((0, 1))
        du_LBD[now], ddelta_LBD[now] = du, ddelta
    grads.insert(2, torch.empty_like(A_DN).copy_(dA_ND.t()))
    sums = ((D_D, dD_D), (delta_bias_D, dbias_D))
    return grads + [torch.empty_like(like).copy_(grad) for like, grad in sums if like is not None]
