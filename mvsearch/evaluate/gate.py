"""The reader/writer gate of a device: training steps are readers, a timing is the writer.

A device is shared by every worker on it (a CPU by all of them), and a throughput taken while a neighbour trains is
worthless. Two `flock`s make the gate: the writer holds the turnstile while it waits, so readers cannot starve it, and
both locks die with their process, so a killed worker never leaves the gate shut.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DeviceGate:
    """Keeps training off a device while it is timed.

    Args:
        device: name of the device; every process of this user on this host that names the same device shares the gate.
        folder: where the lock files live; default a folder of this user below the temporary directory.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir()) / f"mvsearch-{os.getuid()}"
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-") or "device"
        self._turnstile = os.open(folder / f"{name}.turnstile", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._gate = os.open(folder / f"{name}.gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold while one training step runs; waits while the device is timed or somebody waits to time it."""
        fcntl.flock(self._turnstile, fcntl.LOCK_SH)
        try:
            fcntl.flock(self._gate, fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold while the device is timed: nothing else that uses the gate runs on it."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the lock files back."""
        os.close(self._turnstile)
        os.close(self._gate)
