"""What an ONNX export takes, and onnxruntime beside eager torch on the same images.

Usage: python benchmarks/onnx_export.py [--quick]

Prints two tables with their conditions. Speeds are images/s on the CPU; within each round onnxruntime and eager run in
turn, so that other work on the machine meets both, and a figure is the median over rounds. Weights are random.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch

from mambavision import HybridLayout, MambaVision, StageLayout, create_model, export_onnx
from mambavision.scan import scan_path


def small_model() -> MambaVision:
    """A model of the size that a search on a CPU finds: 64 and 16 tokens in its hybrid stages at 32 px."""
    stages = (
        StageLayout(blocks="C", dim=32),
        StageLayout(blocks="MMAA", dim=64, heads=4),
        StageLayout(blocks="MA", dim=128, heads=4),
    )
    return MambaVision(HybridLayout(stages=stages, in_dim=16, stem_stride=2), num_classes=10)


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """The file in onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def milliseconds(forms: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each of forms that run in turn."""
    for form in forms:
        form()
    times: list[list[float]] = [[] for _ in forms]
    for _ in range(rounds):
        for form, row in zip(forms, times, strict=True):
            time.sleep(0.05)  # idle threads of the other one spin for a while before they sleep
            start = time.perf_counter()
            form()
            row.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(row) for row in times]


def conditions() -> str:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    load = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads at most, float32, eager scan "
        f"path {scan_path('cpu')}{load}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 5 if parser.parse_args().quick else 15
    every = torch.get_num_threads()
    print(f"{conditions()}; median of {rounds} interleaved rounds\n")
    torch.manual_seed(0)
    models = {"mambavision_t, 224 px": (create_model("mambavision_t"), 224), "small, 32 px": (small_model(), 32)}
    speeds = []
    print(f"{'model':24}{'export s':>10}{'nodes':>8}{'scans':>8}{'MB':>8}{'largest error':>16}")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name, (model, size) in models.items():
            model.eval()
            start = time.perf_counter()
            with torch.inference_mode(False):
                path = export_onnx(model, Path(folder) / "model.onnx", size, verify=False)
            seconds = time.perf_counter() - start
            nodes = [node.op_type for node in onnx.load(path).graph.node]
            image = torch.randn(4, 3, size, size)
            logits = torch.from_numpy(session(path, 1).run(None, {"image": image.numpy()})[0])
            error = (logits - model(image)).abs().max().item()
            megabytes = path.stat().st_size / 1e6
            print(
                f"{name:24}{seconds:10.1f}{len(nodes):8}{nodes.count('Scan'):8}{megabytes:8.1f}{error:16.1e}",
                flush=True,
            )
            for threads in sorted({1, every}):
                torch.set_num_threads(threads)
                runner = session(path, threads)
                for batch in (1, 8 if size > 100 else 64):
                    image = torch.randn(batch, 3, size, size)
                    feed = {"image": image.numpy()}
                    forms = (lambda run=runner, feed=feed: run.run(None, feed), lambda m=model, x=image: m(x))
                    speeds.append((name, threads, batch, milliseconds(forms, rounds)))
    print(f"\n{'model':24}{'threads':>9}{'batch':>8}{'onnxruntime img/s':>20}{'eager img/s':>14}{'ratio':>8}")
    for name, threads, batch, (ours, eager) in speeds:
        row = f"{name:24}{threads:9}{batch:8}{batch / ours * 1e3:20.1f}{batch / eager * 1e3:14.1f}{eager / ours:8.2f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
