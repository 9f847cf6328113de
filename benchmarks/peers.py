"""MambaVision layouts beside models of timm of the same size, timed in one run as ratios.

Usage: python benchmarks/peers.py [--batch-size 8] [--threads 1] [--window 1.0] [--windows 5] [MODEL ...]

Ratios are to mambavision_t: windows of each model alternate with windows of it. What `mvsearch bench` does, with a list
of models and as a Markdown table.
"""

from __future__ import annotations

import argparse
from typing import Any

from mvsearch.evaluate.bench import BenchRow, bench

MODELS = (
    "mambavision_t",
    "mambavision_s",
    "resnet50",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "mambaout_tiny",
    "caformer_s18",
    "davit_tiny",
    "efficientvit_b3",
    "maxvit_tiny_rw_224",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS), help="the first is the one ratios are to")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--window", type=float, default=1.0)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    print("| model | params | MACs (no scan) | img/s | ratio | ± IQR |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)

    def show(row: BenchRow, conditions: dict[str, Any]) -> None:
        speed = f"{row.images_per_second:,.1f} | {row.ratio:.2f} | {row.iqr:.1%}"
        print(f"| `{row.name}` | {row.params / 1e6:.1f} M | {row.macs / 1e9:.2f} G | {speed} |", flush=True)

    _, conditions = bench(
        args.models,
        batch_size=args.batch_size,
        threads=args.threads,
        window_s=args.window,
        windows=args.windows,
        device=args.device,
        on_row=show,
    )
    print("\n" + ", ".join(f"{name} {value}" for name, value in conditions.items()))


if __name__ == "__main__":
    main()
