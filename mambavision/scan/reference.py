"""The plain recurrence of the selective scan, under autograd: the form that the others are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_scan(
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_D: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """One step after the other, as the equations are written.

    ``s_t = exp(delta_t A) s_{t-1} + delta_t u_t B_t``, ``s_0 = 0``, ``y_t = <s_t, C_t> + D u_t`` (Mamba, Alg. 2, with
    the Euler form of B-bar). Arguments and result as in `selective_scan`.
    """
    dtype = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    with torch.autocast(u_BDL.device.type, enabled=False):
        u, delta, A, B, C = (t.to(dtype) for t in (u_BDL, delta_BDL, A_DN, B_BNL, C_BNL))
        if delta_bias_D is not None:
            delta = delta + delta_bias_D.to(dtype)[:, None]
        if delta_softplus:
            delta = F.softplus(delta)
        decay_BDLN = torch.exp(delta[..., None] * A[:, None])
        input_BDLN = (delta * u)[..., None] * B.transpose(1, 2)[:, None]
        state_BDN = torch.zeros_like(input_BDLN[:, :, 0])
        outputs = []
        for t in range(u.shape[2]):
            state_BDN = decay_BDLN[:, :, t] * state_BDN + input_BDLN[:, :, t]
            outputs.append(torch.einsum("bdn,bn->bd", state_BDN, C[:, :, t]))
        y = torch.stack(outputs, dim=2)
        if D_D is not None:
            y = y + D_D.to(dtype)[:, None] * u
    return y.to(u_BDL.dtype)
