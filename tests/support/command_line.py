"""Running mvsearch as a person does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def mvsearch(*arguments, cwd, check=True, timeout=200, **env):
    done = subprocess.run(
        [sys.executable, "-c", "from mvsearch.cli import main; main()", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done


def wait_for_lines(path: Path, count: int, seconds: float = 120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} has no {count} lines after {seconds} s")
