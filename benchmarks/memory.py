"""What a training step of a model holds in memory on a CPU, with and without gradient checkpointing.

Usage: python benchmarks/memory.py [--model mambavision_t] [--sizes 224 512 1024] [--windows]

Each row is measured in a process of its own: the highest resident memory during a forward and backward pass of one
image, above what the process held before it. Seconds are those of the pass. With --windows, stages keep their published
windows of 14 and 7 tokens; without, each sees the whole map in one window.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time

COLUMNS = "{:>6}  {:>14}  {:>12}  {:>10}"


def measure(name: str, size: int, checkpointing: bool, windows: bool) -> tuple[float, float]:
    """MB above the process's own, and seconds, of one forward and backward pass."""
    import psutil
    import torch

    import mambavision

    torch.manual_seed(0)
    model = mambavision.create_model(name, **({} if windows else {"window": None}))
    model.set_grad_checkpointing(checkpointing)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    image = torch.randn(1, 3, size, size)
    # A small pass first, so that what libraries allocate once does not count.
    model(torch.randn(2, 3, 64, 64)).mean().backward()
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    model(image).mean().backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kB on Linux
    return (peak - before) / 1e6, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mambavision_t")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024])
    parser.add_argument("--windows", action="store_true", help="published windows instead of the whole map")
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "CHECKPOINTING"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(*measure(args.model, int(args.one[0]), args.one[1] == "1", args.windows))
        return
    import torch

    where = f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, float32"
    print(f"{args.model}, batch 1, {'published windows' if args.windows else 'whole map'}; {where}")
    print(COLUMNS.format("px", "checkpointing", "peak MB", "seconds"))
    for size in args.sizes:
        for checkpointing in (False, True):
            command = [sys.executable, __file__, "--model", args.model, "--one", str(size), str(int(checkpointing))]
            command += ["--windows"] if args.windows else []
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            row = COLUMNS.format(
                size, "yes" if checkpointing else "no", f"{float(out[0]):,.0f}", f"{float(out[1]):.1f}"
            )
            print(row, flush=True)


if __name__ == "__main__":
    main()
