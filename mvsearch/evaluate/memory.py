"""The high-water mark of memory (what a GPU's allocator gave out, or a process held resident), and the lack of it."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new mark. Where Linux does not allow it, the mark of a CPU goes on from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at the mark: on a GPU those of its tensors, on a CPU the resident set of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device, or a CPU's allocator, has no memory left."""
    # The CPU's allocator has no error of its own.
    text = "DefaultCPUAllocator: can't allocate"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or text in str(error)
