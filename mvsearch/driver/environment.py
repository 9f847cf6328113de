"""What a launch runs on, for environment.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from mambavision.data import ImageData
from mvsearch.config.sections import StudyConfig
from mvsearch.pool.pool import Pool
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder


def environment(
    config: StudyConfig, space: SearchSpace, data: ImageData, pool: Pool, folder: StudyFolder
) -> dict[str, Any]:
    """Everything beside the configuration that bears on the numbers, for environment.json."""
    import torch

    from mambavision.scan import scan_path

    on_gpu = "GPU" in pool.description or "cuda" in pool.description
    packages = ("mvsearch", "torch", "torchvision", "timm", "optuna", "ray", "numpy", "pandas", "plotly")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu and torch.cuda.is_available() else f"CPU ({processor()})",
        "cores": len(os.sched_getaffinity(0)),
        "scan": scan_path("cuda" if on_gpu else "cpu"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "git_commit": git_commit(),
        "reference": space.reference().key,
        "command": folder.again_command,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "classes": len(data.classes),
            "channels": data.train.images.shape[1],
            "train_images": len(data.train.labels),
            "val_images": len(data.val.labels),
            "available": data.available,
            "class_names": list(data.classes),
            "mean": list(data.mean),
            "std": list(data.std),
            "licence": data.licence,
        },
        "launch": {
            "started": time.time(),
            "workers": pool.workers,
            "pool": pool.description,
        },
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout that mvsearch runs from, with ``+changes`` if it is not clean; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
