"""What the scan costs on a CPU: the loop against a plain recurrence under autograd, and its share of a training step.

Usage: python benchmarks/scan.py [--quick] [--threads N]

Prints one table with its conditions. The forms to be compared run in turn within each round, so that other work on the
machine meets all of them; a ratio is the median over rounds. "Plain" is the recurrence as one writes it, indexing
step t; "unbound" takes the steps apart first, which keeps autograd's tape linear. "Scan skipped" is the same model
with the recurrence replaced by elementwise products of the same inputs, so that everything around it still runs,
forwards and backwards. The aim is T at 224 px, forward and backward, within 3 % of the same with its scan skipped.
Models on one thread are timed by the processor time of the process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavision import HybridLayout, MambaVision, StageLayout, create_model, mixers
from mambavision.scan import scan_path, selective_scan

SHAPES = [(64, 80, 64, 8), (64, 160, 49, 8), (32, 160, 196, 8), (16, 320, 196, 16), (2, 160, 4096, 8)]


def skipped(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """In the place of the scan: every input is used, no state is carried."""
    return u * (delta + (delta_bias + D + A.sum(1))[:, None]) + (B * C).sum(1, keepdim=True)


@contextmanager
def scan_skipped() -> Iterator[None]:
    """Models run without their scan inside this context."""
    mixers.selective_scan = skipped  # type: ignore[assignment]
    try:
        yield
    finally:
        mixers.selective_scan = selective_scan


def unbound(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, delta_softplus: bool
) -> Tensor:
    """The plain recurrence with its steps taken apart at once: autograd's tape is then linear in L, not quadratic."""
    delta = F.softplus(delta + delta_bias[:, None])
    decays = torch.exp(delta[..., None] * A[:, None]).unbind(2)
    inputs = ((delta * u)[..., None] * B.transpose(1, 2)[:, None]).unbind(2)
    state, outputs = torch.zeros_like(inputs[0]), []
    for decay, entry, c in zip(decays, inputs, C.unbind(2), strict=True):
        state = decay * state + entry
        outputs.append(torch.einsum("bdn,bn->bd", state, c))
    return torch.stack(outputs, 2) + D[:, None] * u


def compare(
    forms: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Median milliseconds of forms run in turn, and the median over rounds of each one's ratio to the first."""
    if rounds > 1:
        for run in forms:
            run()
    times = []
    for _ in range(rounds):
        times.append([])
        for run in forms:
            start = clock()
            run()
            times[-1].append((clock() - start) * 1e3)
    columns = list(zip(*times, strict=True))
    ratios = [statistics.median(b / a for a, b in zip(columns[0], column, strict=True)) for column in columns]
    return [statistics.median(column) for column in columns], ratios


def bench_operator(shape: tuple[int, int, int, int], rounds: int, backward: bool) -> tuple[list[float], list[float]]:
    """Loop, plain and unbound recurrence on random inputs of a shape (B, D, L, N)."""
    batch, channels, length, state = shape
    torch.manual_seed(0)
    inputs = [
        torch.randn(batch, length, channels).transpose(1, 2),  # as the mixer hands them over
        torch.randn(batch, length, channels).transpose(1, 2),
        -torch.rand(channels, state) * state,
        torch.randn(batch, length, state).transpose(1, 2),
        torch.randn(batch, length, state).transpose(1, 2),
        torch.ones(channels),
        torch.zeros(channels),
    ]
    grad = torch.randn(batch, channels, length)
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def form(scan: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> object:
            if not backward:
                with torch.inference_mode():
                    return scan(*leaves, delta_softplus=True)
            return torch.autograd.grad(scan(*leaves, delta_softplus=True), leaves, grad)

        return run

    loop, plain = (functools.partial(selective_scan, backend=backend) for backend in ("loop", "reference"))
    form(loop)()
    return compare([form(loop), form(plain), form(unbound)], rounds)


def bench_model(
    model: MambaVision, batch: int, size: int, rounds: int, update: bool
) -> tuple[list[float], list[float]]:
    """Forward, loss and backward with the scan skipped, and with it; with `update` a step of AdamW too."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    image, label = torch.randn(batch, 3, size, size), torch.randint(0, model.num_classes, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(image), label).backward()
        if update:
            optimizer.step()

    def without() -> None:
        with scan_skipped():
            step()

    return compare([without, step], rounds, time.process_time if torch.get_num_threads() == 1 else time.perf_counter)


def small_model() -> MambaVision:
    """A model of the size that a search on a CPU trains: 64 and 16 tokens in its hybrid stages at 32 px."""
    stages = (
        StageLayout(blocks="C", dim=32),
        StageLayout(blocks="MMAA", dim=64, heads=4),
        StageLayout(blocks="MA", dim=128, heads=4),
    )
    return MambaVision(HybridLayout(stages=stages, in_dim=16, stem_stride=2), num_classes=10)


def conditions() -> str:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {cpu}, "
        f"{torch.backends.cpu.get_cpu_capability()}, float32, scan path {scan_path('cpu')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without the two slowest comparisons")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 3 if args.quick else 7
    print(f"{conditions()}, median of {rounds} interleaved rounds")
    print(f"{'(B, D, L, N)':24}{'pass':>18}{'loop ms':>10}{'plain ms':>11}{'plain/loop':>12}{'unbound/loop':>14}")
    for shape in SHAPES:
        for backward in (False, True):
            # The plain tape is quadratic in L: half a minute and minutes at the last two shapes. One round, not warmed.
            slow = backward and shape[0] * shape[1] * shape[2] ** 2 * shape[3] > 2e9
            if slow and args.quick:
                continue
            times, ratios = bench_operator(shape, 1 if slow else rounds, backward)
            name = "forward+backward" if backward else "forward"
            row = f"{shape!s:24}{name:>18}{times[0]:10.1f}{times[1]:11.1f}{ratios[1]:12.2f}{ratios[2]:14.2f}"
            print(row + ("  (1 round)" if slow else ""), flush=True)
    print(f"\n{'model':40}{'pass':>26}{'ms':>10}{'skipped ms':>12}{'ratio':>8}")
    small, tiny = small_model(), create_model("mambavision_t")
    for name, model, batch, size, update, repeats in (
        ("mambavision_t, 224 px, batch 2", tiny, 2, 224, False, 3 * rounds),
        ("mambavision_t, 224 px, batch 8", tiny, 8, 224, False, rounds),
        ("mambavision_t, 224 px, batch 2", tiny, 2, 224, True, 3 * rounds),
        ("small, 32 px, batch 64", small, 64, 32, False, 5 * rounds),
        ("small, 32 px, batch 64", small, 64, 32, True, 5 * rounds),
    ):
        times, ratios = bench_model(model, batch, size, repeats, update)
        passes = "forward+backward" + ("+AdamW" if update else "")
        print(f"{name:40}{passes:>26}{times[1]:10.1f}{times[0]:12.1f}{ratios[1]:8.3f}", flush=True)


if __name__ == "__main__":
    main()
