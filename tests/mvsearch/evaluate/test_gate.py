"""The gate of a device: who waits for whom, and that a dead process holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mvsearch.evaluate.gate import DeviceGate

HOLD = """
import sys, time
from pathlib import Path
from mvsearch.evaluate.gate import DeviceGate
gate = DeviceGate("cpu", Path(sys.argv[1]))
with getattr(gate, sys.argv[2])():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def gates(tmp_path):
    made = [DeviceGate("cpu", tmp_path) for _ in range(3)]
    yield made
    for gate in made:
        gate.close()


def started(action):
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_readers_share_and_a_writer_is_alone(gates):
    reader, other, writer = gates
    inside = []

    def write():
        with writer.write():
            inside.append("writer")

    with reader.read(), other.read():
        thread = started(write)
        thread.join(0.2)
        assert not inside
    thread.join(10)
    assert inside == ["writer"]

    def read():
        with reader.read():
            inside.append("reader")

    with writer.write():
        thread = started(read)
        thread.join(0.2)
        assert inside == ["writer"]
    thread.join(10)
    assert inside == ["writer", "reader"]


def test_a_reader_that_comes_while_a_writer_waits_waits_too(gates):
    first, second, writer = gates
    order = []

    def write():
        with writer.write():
            order.append("writer")

    def read():
        with second.read():
            order.append("reader")

    with first.read():
        writing = started(write)
        time.sleep(0.2)
        reading = started(read)
        reading.join(0.2)
        assert order == [], "readers that follow one another would keep the writer waiting for ever"
    for thread in (writing, reading):
        thread.join(10)
    assert order == ["writer", "reader"]


@pytest.mark.slow
@pytest.mark.parametrize("held", ["read", "write"])
def test_a_process_that_is_killed_leaves_the_gate_open(gates, tmp_path, held):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), held], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    done = threading.Event()

    def write():
        with gates[0].write():
            done.set()

    started(write)
    assert not done.wait(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert done.wait(10)
