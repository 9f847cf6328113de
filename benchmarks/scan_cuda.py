"""What the scan costs on a GPU: the Triton kernel against the loop, the plain recurrence and mamba_ssm, and the model.

Usage: python benchmarks/scan_cuda.py [--quick] [--dtype float32|bfloat16|float16] [--batch N] [--channels-last]

Prints two tables with their conditions; needs torch and timm alone, and mamba_ssm only to compare with it. Forms run in
turn within each round, so that clocks and other work meet all of them; a time is the median over rounds, the spread its
interquartile range. Operators are captured in CUDA graphs where that works, so that a launch's share of Python is not
timed ("e" marks those that were timed in eager form). The byte floor is what must be moved, every input read and every
output written once, over the bandwidth of a device copy measured here.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from mambavision import create_model
from mambavision.scan import scan_path, selective_scan

SHAPES = [(64, 80, 64, 8), (64, 160, 49, 8), (32, 160, 196, 8), (16, 320, 196, 16), (2, 160, 4096, 8)]
MAX_PLAIN = 256
"""Longest L that the plain recurrence and its tape, quadratic in L, are run for."""


def mamba_scan() -> Callable[..., Tensor] | None:
    """mamba_ssm's CUDA kernel, if it can be imported."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # an extension built for another torch fails in many ways
        print(f"mamba_ssm is left out: {type(error).__name__}: {error}".splitlines()[0])
        return None
    return functools.partial(_mamba_scan, selective_scan_fn)


def _mamba_scan(
    kernel: Callable[..., Tensor], u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    # It takes steps next to each other and copies what comes otherwise, which is its own cost in a mixer.
    u, delta, B, C = (x.contiguous() for x in (u, delta, B, C))
    return kernel(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Mean time of one run by CUDA events, over a few in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats


def compare(forms: Sequence[Callable[[], object]], rounds: int) -> list[tuple[float, float]]:
    """Median and interquartile range of the milliseconds of forms run in turn."""
    repeats = [max(1, min(50, int(20 / max(milliseconds(run, 1), 1e-3)))) for run in forms]
    times = [[milliseconds(run, n) for run, n in zip(forms, repeats, strict=True)] for _ in range(rounds)]
    summary = []
    for column in zip(*times, strict=True):
        low, _, high = statistics.quantiles(column, n=4)
        summary.append((statistics.median(column), high - low))
    return summary


def warm_up(run: Callable[[], object], times: int = 3) -> None:
    """Run on a side stream, as a capture wants."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Replay of a CUDA graph of `run`."""
    warm_up(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copy_bandwidth() -> float:
    """Bytes a second that a device copy moves, reads and writes together."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    [(time, _)] = compare([lambda: target.copy_(source)], 7)
    return 2 * source.numel() / (time * 1e-3)


def moved_bytes(leaves: Sequence[Tensor], backward: bool) -> int:
    """The least that must be moved: forward reads all and writes y; backward reads all and dy, and writes gradients."""
    inputs = sum(x.numel() * x.element_size() for x in leaves)
    outputs = leaves[0].numel() * leaves[0].element_size()
    return inputs + outputs + (2 * inputs + outputs if backward else 0)


def scan_forms(
    shape: tuple[int, int, int, int], dtype: torch.dtype, backward: bool, mamba: Callable[..., Tensor] | None
) -> tuple[list[tuple[str, Callable[[], object]]], list[Tensor]]:
    """Forms to be timed by name, on random inputs of a shape (B, D, L, N) laid out as the mixer hands them over."""
    batch, channels, length, state = shape
    torch.manual_seed(0)
    leaves = [torch.randn(batch, length, n, device="cuda", dtype=dtype).transpose(1, 2) for n in (channels, channels)]
    leaves += [-torch.rand(channels, state, device="cuda") * state]
    leaves += [torch.randn(batch, length, state, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(2)]
    leaves += [torch.ones(channels, device="cuda"), torch.zeros(channels, device="cuda")]
    leaves = [x.requires_grad_() for x in leaves]
    grad = torch.randn(batch, length, channels, device="cuda", dtype=dtype).transpose(1, 2)

    def form(scan: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> object:
            if backward:
                return torch.autograd.grad(scan(*leaves), leaves, grad)
            with torch.no_grad():
                return scan(*leaves)

        return run

    scans: dict[str, Callable[..., Tensor]] = {
        name: functools.partial(selective_scan, delta_softplus=True, backend=name) for name in ("triton", "loop")
    }
    if length <= MAX_PLAIN:
        scans["reference"] = functools.partial(selective_scan, delta_softplus=True, backend="reference")
    if mamba is not None:
        scans["mamba_ssm"] = mamba
    forms: list[tuple[str, Callable[[], object]]] = []
    for name, scan in scans.items():
        run = form(scan)
        try:
            forms.append((name, captured(run)))
        except RuntimeError:
            torch.cuda.synchronize()
            warm_up(run)
            forms.append((f"{name} e", run))
    return forms, leaves


def print_scans(dtype: torch.dtype, rounds: int) -> None:
    """One line for each shape, pass and form."""
    mamba = mamba_scan()
    bandwidth = copy_bandwidth()
    print(f"\nscan, {dtype}, device copy {bandwidth / 1e9:.0f} GB/s; ratio: time over Triton's")
    head = f"{'(B, D, L, N)':22}{'pass':>18}{'form':>14}{'µs':>10}{'spread':>9}{'ratio':>8}"
    print(f"{head}{'floor µs':>10}{'of floor':>10}")
    for shape in SHAPES:
        for backward in (False, True):
            forms, leaves = scan_forms(shape, dtype, backward, mamba)
            floor = moved_bytes(leaves, backward) / bandwidth * 1e6
            times = compare([run for _, run in forms], rounds)
            for (name, _), (time, spread) in zip(forms, times, strict=True):
                row = f"{shape!s:22}{'forward+backward' if backward else 'forward':>18}{name:>14}{time * 1e3:10.1f}"
                row += f"{spread * 1e3:9.1f}{time / times[0][0]:8.2f}{floor:10.1f}{floor / (time * 1e3):10.1%}"
                print(row, flush=True)


def print_model(batch: int, channels_last: bool, rounds: int) -> None:
    """Images a second of MambaVision-T in eager form, as a CUDA graph, and compiled."""
    model = create_model("mambavision_t").cuda().eval()
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)

    def run(network: nn.Module | Callable[[Tensor], Tensor]) -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            return network(images)

    compiled = torch.compile(model)
    forms: list[tuple[str, Callable[[], object]]] = [("eager", functools.partial(run, model))]
    for name, network in (("CUDA graph", model), ("compiled", compiled), ("compiled, CUDA graph", compiled)):
        form = functools.partial(run, network)
        try:
            warm_up(form)
            forms.append((name, captured(form) if name.endswith("graph") else form))
        except Exception as error:  # the other forms are still worth their lines
            torch.cuda.synchronize()
            print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
    warm_up(forms[0][1])
    layout = "channels_last" if channels_last else "channels first"
    print(f"\nmambavision_t, batch {batch}, 224 px, bfloat16 autocast, {layout}, scan path {scan_path('cuda')}")
    print(f"{'form':24}{'ms':>10}{'spread':>9}{'images/s':>11}")
    for (name, _), (time, spread) in zip(forms, compare([form for _, form in forms], rounds), strict=True):
        print(f"{name:24}{time:10.2f}{spread:9.2f}{batch / time * 1e3:11.0f}", flush=True)


def conditions(rounds: int) -> str:
    """What the numbers depend on."""
    properties = torch.cuda.get_device_properties(0)
    triton: ModuleType | None
    try:
        import triton
    except ImportError:
        triton = None
    return (
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, Triton {triton.__version__ if triton else 'none'}, "
        f"median of {rounds} interleaved rounds, spread: interquartile range"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of u, delta, B, C"
    )
    parser.add_argument("--batch", type=int, default=128, help="images of the model's batch")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the model")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("scan_cuda.py needs a CUDA device, and torch finds none; for a CPU there is scan.py", file=sys.stderr)
        return 2
    rounds = 5 if args.quick else 21
    print(conditions(rounds))
    print_scans(getattr(torch, args.dtype), rounds)
    print_model(args.batch, args.channels_last, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
