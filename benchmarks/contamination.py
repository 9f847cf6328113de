"""What a training on the same device does to a timing, and what the gate makes of it.

python benchmarks/contamination.py [--rounds 10] [--window 0.15] [--windows 5] [--space stagewise] [--device cpu]

In each round the same layout is timed three times, in turns: alone; beside a training that does not ask the gate;
beside one that does. The training runs in a process of its own, on all cores, as a search with one worker would.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mvsearch.config.reading import load_config
from mvsearch.driver.environment import processor
from mvsearch.evaluate import throughput
from mvsearch.evaluate.bench import _device
from mvsearch.evaluate.gate import DeviceGate
from mvsearch.evaluate.images import load_study_data
from mvsearch.evaluate.proxy import DeviceData, train
from mvsearch.evaluate.worker import device_name, physical_name
from mvsearch.space.space import SearchSpace

ALONE, WITHOUT, WITH = range(3)
NAMES = ("alone", "beside a training, no gate", "beside a training, gate")


def neighbour(space_name: str, device: str, mode: Any, steps: Any) -> None:
    """Train for ever; `mode` says whether to rest, to train, or to train behind the gate."""
    config = load_config(space_name)
    data = load_study_data(config)
    space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    where = _device(device)
    gate = DeviceGate(physical_name(where))

    @contextmanager
    def step_gate() -> Iterator[None]:
        while mode.value == ALONE:
            time.sleep(0.005)
        if mode.value == WITH:
            with gate.read():
                yield
        else:
            yield
        steps.value += 1

    for _ in train(
        space.reference(), DeviceData(data, where), config.proxy, seed=0, to_epoch=10**6, step_gate=step_gate
    ):
        pass


def spread(values: list[float]) -> float:
    """Coefficient of variation."""
    return statistics.stdev(values) / statistics.fmean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--window", type=float, default=0.15)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--space", default="stagewise")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    config = load_config(args.space)
    data = load_study_data(config)
    space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
    where, timing = _device(args.device), config.timing
    layout, reference = space.baselines()["alternating"], space.reference()
    models = [throughput.timed_model(one, space.num_classes, space.in_chans, where) for one in (layout, reference)]
    size = config.deployed_image_size
    images = torch.randn(timing.batch_size, space.in_chans, size, size).to(where)
    gate = DeviceGate(physical_name(where))

    context = multiprocessing.get_context("spawn")
    mode, steps = context.Value("i", WITHOUT), context.Value("i", 0)
    process = context.Process(target=neighbour, args=(args.space, args.device, mode, steps), daemon=True)
    process.start()
    while steps.value < 5:  # until it trains
        time.sleep(0.1)

    speed: dict[int, list[float]] = {ALONE: [], WITHOUT: [], WITH: []}
    ratio: dict[int, list[float]] = {ALONE: [], WITHOUT: [], WITH: []}
    trained: dict[int, int] = dict.fromkeys(speed, 0)
    began, order = time.time(), (ALONE, WITHOUT, WITH)
    with contextlib.suppress(KeyboardInterrupt):  # what was measured until then is shown
        for number in range(args.rounds):
            found = {}
            for kind in order if number % 2 else order[::-1]:
                mode.value = kind
                time.sleep(0.3)
                before = steps.value
                with gate.write(), throughput.threads(timing.threads):
                    found[kind], _ = throughput.measure(*models, images, window_s=args.window, windows=args.windows)
                trained[kind] += steps.value - before
            for kind, values in found.items():
                speed[kind].append(values["images_per_second"])
                ratio[kind].append(values["ratio"])
            times = ", ".join(f"{NAMES[kind]} {speed[kind][-1]:,.0f}" for kind in order)
            print(f"round {number + 1}: {times} img/s", file=sys.stderr, flush=True)
    process.terminate()

    print(
        f"{layout.key} beside {reference.key} on {device_name(where)} ({processor()}, {os.cpu_count()} cores), "
        f"{size} px, batch {timing.batch_size}, {timing.threads} thread, {args.windows} windows of {args.window:g} s, "
        f"{len(speed[ALONE])} rounds in turns, torch {torch.__version__}, {time.time() - began:.0f} s"
    )
    print("| timed | img/s | of alone | (least – most) | CV | ratio | CV | steps trained meanwhile |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for kind, name in enumerate(NAMES):
        of_alone = [value / alone for value, alone in zip(speed[kind], speed[ALONE], strict=True)]
        print(
            f"| {name} | {statistics.median(speed[kind]):,.0f} | {statistics.median(of_alone):.3f} | "
            f"{min(of_alone):.2f} – {max(of_alone):.2f} | {spread(speed[kind]):.1%} | "
            f"{statistics.median(ratio[kind]):.3f} | {spread(ratio[kind]):.1%} | {trained[kind]} |"
        )


if __name__ == "__main__":
    main()
