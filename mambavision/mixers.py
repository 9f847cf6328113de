"""Token mixers: what a block of a hybrid stage does between its tokens.

Shape suffixes: B windows, L tokens of a window, C channels, E channels of the scanned half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavision.scan import selective_scan


class ScanMixer(nn.Module):
    """What the two Mamba mixers share: parameters of the selective scan, its convolution and its inputs."""

    rank: int
    state: int

    def _add_convolution(self, name: str, inner: int, kernel: int) -> None:
        # One more step than needed for an even kernel; _convolve drops the first.
        self.add_module(name, nn.Conv1d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False))

    def _add_scan(self, dim: int, inner: int, state: int) -> None:
        self.state = state
        self.rank = math.ceil(dim / 16)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def no_weight_decay(self) -> set[str]:
        """Names of the scan's parameters, which decay would pull away from where they start."""
        return {"A_log", "D", "dt_proj.bias"}

    @torch.no_grad()
    def reset_dt(self) -> None:
        """Mamba's own start: step sizes log-uniform in 0.001 to 0.1, at least 1e-4 (arXiv 2312.00752, section 3.6)."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def _scan(self, x_BLE: Tensor, *, bias_twice: bool) -> Tensor:
        """(B, L, E) to (B, L, E)."""
        dt, B, C = self.x_proj(x_BLE).split([self.rank, self.state, self.state], dim=2)
        delta = self.dt_proj(dt) if bias_twice else F.linear(dt, self.dt_proj.weight)
        y_BEL = selective_scan(
            x_BLE.transpose(1, 2),
            delta.transpose(1, 2),
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )
        return y_BEL.transpose(1, 2)

    @staticmethod
    def _convolve(conv: nn.Conv1d, x_BLE: Tensor) -> Tensor:
        # As a 2-D convolution of height 1: tokens first is then its channels-last form, and nothing is transposed.
        x_BE1L = x_BLE.transpose(1, 2).unsqueeze(2)
        y_BE1L = F.conv2d(x_BE1L, conv.weight.unsqueeze(2), padding=(0, int(conv.padding[0])), groups=conv.groups)
        even = 1 - conv.kernel_size[0] % 2
        return F.silu(y_BE1L.squeeze(2).transpose(1, 2)[:, even:])


class MambaVisionMixer(ScanMixer):
    """The MambaVision mixer (arXiv 2407.08083, section 3.2): half of the channels scanned, half only convolved.

    Both halves pass a depthwise convolution that looks one step ahead ('same' padding, not causal) and SiLU; the first
    is then scanned; both are concatenated and projected. There is no gate. The dt bias acts twice, once in the
    projection and once in the scan, as in the published model.

    Args:
        dim: channels C, even.
        state: states N of a channel of the scan.
        conv_kernel: width of the depthwise convolutions.
        project: False leaves out the last projection, for a mixer that has this one as a branch.
    """

    conv1d_x: nn.Conv1d
    conv1d_z: nn.Conv1d

    def __init__(self, dim: int, state: int = 8, conv_kernel: int = 3, *, project: bool = True) -> None:
        super().__init__()
        inner = dim // 2
        self.in_proj = nn.Linear(dim, dim, bias=False)
        self._add_convolution("conv1d_x", inner, conv_kernel)
        self._add_convolution("conv1d_z", inner, conv_kernel)
        self._add_scan(dim, inner, state)
        self.out_proj = nn.Linear(dim, dim, bias=False) if project else nn.Identity()
        self.reset_dt()

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        x_BLE, z_BLE = self.in_proj(x_BLC).chunk(2, dim=2)
        x_BLE = self._convolve(self.conv1d_x, x_BLE)
        z_BLE = self._convolve(self.conv1d_z, z_BLE)
        return self.out_proj(torch.cat([self._scan(x_BLE, bias_twice=True), z_BLE], dim=2))


class GatedMambaMixer(ScanMixer):
    """Mamba's original mixer (arXiv 2312.00752, figure 3): one branch convolved and scanned, the other its gate.

    As in `MambaVisionMixer` the convolution looks one step ahead instead of being causal; the dt bias acts once.

    Args:
        dim: channels C.
        state: states N of a channel of the scan.
        conv_kernel: width of the depthwise convolution.
        expand: scanned channels as a multiple of `dim`.
    """

    conv1d: nn.Conv1d

    def __init__(self, dim: int, state: int = 8, conv_kernel: int = 3, expand: int = 1) -> None:
        super().__init__()
        inner = expand * dim
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self._add_convolution("conv1d", inner, conv_kernel)
        self._add_scan(dim, inner, state)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_dt()

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        x_BLE, z_BLE = self.in_proj(x_BLC).chunk(2, dim=2)
        y_BLE = self._scan(self._convolve(self.conv1d, x_BLE), bias_twice=False)
        return self.out_proj(y_BLE * F.silu(z_BLE))


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of a window, without positions or mask.

    Args:
        dim: channels C.
        heads: number of heads, a divisor of `dim`.
        qk_norm: LayerNorm on the queries and keys of each head.
        attn_drop: dropout of the attention weights while training.
        project: False leaves out the last projection, for a mixer that has this one as a branch.
    """

    def __init__(
        self, dim: int, heads: int = 1, qk_norm: bool = False, attn_drop: float = 0.0, *, project: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim) if project else nn.Identity()

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        q, k, v = self.qkv(x_BLC).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=dropout)
        return self.proj(out.transpose(1, 2).flatten(2))


class ParallelMixer(nn.Module):
    """Mamba and attention side by side on one input, as in Hymba (arXiv 2411.13676, section 2).

    Each branch is normalised and multiplied with a learned scale a channel, the two are averaged, and one projection
    follows. What is chosen here: the Mamba branch is `MambaVisionMixer` and the other `Attention`, each with its own
    first projection and without its last, so that both give `dim` channels. The norms are LayerNorms without shifts;
    their weights are the scales and start at 1. The paper's meta tokens, and keys and values shared between layers,
    are left out.

    Args:
        dim: channels C, even.
        state: states N of a channel of the scan.
        conv_kernel: width of the depthwise convolutions.
        heads: number of heads, a divisor of `dim`.
        qk_norm: LayerNorm on the queries and keys of each head.
    """

    def __init__(self, dim: int, state: int = 8, conv_kernel: int = 3, heads: int = 1, qk_norm: bool = False) -> None:
        super().__init__()
        self.mamba = MambaVisionMixer(dim, state, conv_kernel, project=False)
        self.attention = Attention(dim, heads, qk_norm, project=False)
        self.mamba_norm = nn.LayerNorm(dim, bias=False)
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        mamba_BLC = self.mamba_norm(self.mamba(x_BLC))
        attention_BLC = self.attention_norm(self.attention(x_BLC))
        return self.proj((mamba_BLC + attention_BLC) / 2)
