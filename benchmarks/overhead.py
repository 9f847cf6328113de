"""What the search costs beside the work: of a trial, of an epoch, and of the start.

python benchmarks/overhead.py [trials --trials 200 1000]  driver milliseconds a trial, its work taking no time
python benchmarks/overhead.py epoch [--rounds 10]         an epoch through the worker, over the same loop written bare
python benchmarks/overhead.py start [--rounds 3]          from the command to the first trial, beside Ray and an actor
python benchmarks/overhead.py study studies/NAME          utilisation of the devices in that study, from its ledger
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3

from mambavision.layout import HybridLayout
from mambavision.model import MambaVision
from mvsearch.config.reading import load_config
from mvsearch.driver.environment import processor
from mvsearch.driver.search import Search
from mvsearch.evaluate.images import load_study_data
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.evaluate.proxy import DeviceData, augment
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.job import Done, Job, Progress
from mvsearch.pool.ray_pool import RayPool
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder, find_study
from mvsearch.study.ledger import read_evaluations


@dataclass(frozen=True)
class Instant:
    """Builds workers that answer at once, with values that depend on the layout alone."""

    def __call__(self, name: str, device: str, threads: int, data: Any) -> InstantWorker:
        return InstantWorker()


class InstantWorker:
    def run(self, job: Job) -> Iterator[Progress | Done]:
        share = int(job.layout.key[-8:], 16) / 0xFFFFFFFF
        now = time.time()
        if job.what == "time":
            values = {"images_per_second": 1000.0, "ratio": 0.5 + share}
        else:
            values = {"nll": 1 + (share * 7919) % 1, "top1": 0.5, "images_seen": 0, "train_seconds": 0.0}
        yield Done(job.id, job.evaluation(values=values, started=now, ended=now, worker="instant", device="none"))


def per_trial(sampler: str, trials: int, on_ray: bool) -> tuple[float, float]:
    """Driver milliseconds a trial, from the first ask to the last tell; and the same for the last quarter."""
    config = load_config("stagewise", [f"search.trials={trials}", f"search.sampler={sampler}", "budgets={}"])
    space = SearchSpace(config, num_classes=10, in_chans=1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = StudyFolder(Path(scratch) / "overhead")
        folder.begin(config.resolved_yaml())
        pool = RayPool(Instant(), None, workers=2) if on_ray else InlinePool(Instant(), None)
        try:
            search = Search(config, space, folder, pool)
            while not pool.idle():
                time.sleep(0.1)
            if on_ray:  # the actors' own start is not the driver's cost
                warm = Job(id=-1, what="time", layout=space.reference(), trial=-1)
                pool.submit(warm)
                while not any(isinstance(event, Done) for event in pool.events(1.0)):
                    pass
            began = time.perf_counter()
            search.run()
            seconds = time.perf_counter() - began
        finally:
            pool.close()
        ended = sorted(line.ended for line in search.ledger.evaluations)
        tail = ended[-len(ended) // 4 :]
        return 1000 * seconds / trials, 1000 * (tail[-1] - tail[0]) / (len(tail) / 2)


def bare_epochs(layout: HybridLayout, data: DeviceData, proxy: Any, epochs: int) -> float:
    """The proxy's loop as one would write it by hand for float32; the validation NLL."""
    torch.manual_seed(0)
    model = MambaVision(layout, num_classes=data.classes, in_chans=data.channels)
    groups = param_groups_weight_decay(model, proxy.weight_decay, no_weight_decay_list=model.no_weight_decay())
    optimizer = torch.optim.AdamW(groups, lr=proxy.learning_rate, betas=(0.9, 0.98), fused=True)
    ema = ModelEmaV3(model, decay=proxy.ema, use_warmup=True)
    steps_per_epoch = len(data.train_images) // proxy.batch_size
    step = 0
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(data.train_images), generator=generator)
        model.train()
        for batch in order[: steps_per_epoch * proxy.batch_size].split(proxy.batch_size):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = proxy.learning_rate * min(1.0, step / (proxy.warmup_epochs * steps_per_epoch))
            images = data.normalise(augment(data.train_images[batch], data.augment, generator))
            loss = F.cross_entropy(model(images), data.train_labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), proxy.clip_norm)
            optimizer.step()
            ema.update(model, step=step)
    ema.module.eval()
    total = 0.0
    with torch.inference_mode():
        for images, labels in zip(data.val_images.split(256), data.val_labels.split(256), strict=True):
            total += F.cross_entropy(ema.module(data.normalise(images)), labels, reduction="sum").item()
    return total / len(data.val_labels)


def epoch_overhead(rounds: int, epochs: int) -> None:
    """Print how long epochs through the worker take over the bare loop, in turns in one process."""
    config = load_config("stagewise")
    data = load_study_data(config)
    space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
    layout = space.reference()
    worker = MakeWorker(config.proxy, config.timing, layout)("bench", "cpu", 1, data)

    def through_worker() -> float:
        *_, done = worker.run(Job(id=0, what="train", layout=layout, trial=0, seed=0, to_epoch=epochs))
        assert isinstance(done, Done), done
        return float(done.evaluation.values["nll"])

    def bare() -> float:
        return bare_epochs(layout, worker.data, config.proxy, epochs)

    seconds: dict[Any, list[float]] = {through_worker: [], bare: []}
    nll = {}
    for number in range(rounds + 1):  # the first warms up
        for run in (through_worker, bare) if number % 2 else (bare, through_worker):
            began = time.perf_counter()
            nll[run] = run()
            if number:
                seconds[run].append(time.perf_counter() - began)
    quotients = [ours / theirs for ours, theirs in zip(seconds[through_worker], seconds[bare], strict=True)]
    print(
        f"torch {torch.__version__}, {processor()}, 1 thread; {layout.key}, {len(data.train.labels):,} images, "
        f"{epochs} epoch(s) and the validation, {rounds} rounds in turns, one process\n"
        f"through the worker {statistics.median(seconds[through_worker]):.2f} s, bare "
        f"{statistics.median(seconds[bare]):.2f} s: {statistics.median(quotients):.3f}x (median of the rounds; "
        f"{min(quotients):.3f} to {max(quotients):.3f}); NLL {nll[through_worker]:.3f} and {nll[bare]:.3f}"
    )


BARE_ACTOR = """
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="critical")
@ray.remote
class Actor:
    def __init__(self):
        import torch
        self.torch = torch
    def work(self):
        return self.torch.ones(1).item()
ray.get(Actor.remote().work.remote())
"""


def start_overhead(rounds: int) -> None:
    """Print how long a launch takes to its first trial, and Ray with one actor that imports torch, in turns."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    seconds: dict[str, list[float]] = {"launch": [], "ray": []}
    for number in range(rounds + 1):  # the first warms the file cache and makes the data
        with tempfile.TemporaryDirectory() as scratch:
            script = "from mvsearch.cli import main; main()"
            command = [sys.executable, "-c", script, "launch", "stagewise", "--studies", scratch]
            began = time.time()
            process = subprocess.Popen(command, **quiet)
            ledger = Path(scratch) / "stagewise" / "evaluations.jsonl"
            while not ledger.exists() or "\n" not in ledger.read_text():
                if process.poll() is not None:
                    raise RuntimeError(f"the launch ended by itself with {process.returncode}")
                time.sleep(0.05)
            first = json.loads(ledger.read_text().splitlines()[0])["started"] - began
            process.send_signal(signal.SIGTERM)
            process.wait()
        began = time.time()
        subprocess.run([sys.executable, "-c", BARE_ACTOR], check=True, **quiet)
        if number:
            seconds["ray"].append(time.time() - began)
            seconds["launch"].append(first)
    beyond = [launch - ray for launch, ray in zip(seconds["launch"], seconds["ray"], strict=True)]
    print(
        f"torch {torch.__version__}, {processor()}, {len(os.sched_getaffinity(0))} cores, {rounds} rounds in turns\n"
        f"from the command to the first trial {statistics.median(seconds['launch']):.1f} s "
        f"({min(seconds['launch']):.1f} to {max(seconds['launch']):.1f}); ray.init and one actor that imports torch "
        f"{statistics.median(seconds['ray']):.1f} s ({min(seconds['ray']):.1f} to {max(seconds['ray']):.1f}); beyond "
        f"it {statistics.median(beyond):.1f} s ({min(beyond):.1f} to {max(beyond):.1f})"
    )


def utilisation(folder: StudyFolder) -> str:
    """Busy share of the workers, from the times of events in the ledger."""
    lines = [line for line in read_evaluations(folder.ledger) if line.worker]
    workers = {line.worker for line in lines}
    first, last = min(line.started for line in lines), max(line.ended for line in lines)
    busy = sum(line.ended - line.started for line in lines)
    spans = sorted((line.started, line.ended) for line in lines)
    device, end = 0.0, first
    for start, stop in spans:
        device += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return (
        f"{folder.name}: {len(lines)} evaluations on {len(workers)} workers in {last - first:.0f} s; workers busy "
        f"{100 * busy / (len(workers) * (last - first)):.1f} % (waiting for the device's gate counts as busy), "
        f"device busy {100 * device / (last - first):.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(what="trials", trials=[200, 1000], samplers=["random"])
    what = parser.add_subparsers(dest="what")
    trials = what.add_parser("trials")
    trials.add_argument("--trials", type=int, nargs="*", default=[200, 1000])
    trials.add_argument("--samplers", nargs="+", default=["random"], help="random shows the driver, others add theirs")
    epoch = what.add_parser("epoch")
    epoch.add_argument("--rounds", type=int, default=10)
    epoch.add_argument("--epochs", type=int, default=1)
    what.add_parser("start").add_argument("--rounds", type=int, default=3)
    what.add_parser("study").add_argument("name")
    args = parser.parse_args()
    if args.what == "epoch":
        torch.set_num_threads(1)
        epoch_overhead(args.rounds, args.epochs)
        return
    if args.what == "start":
        start_overhead(args.rounds)
        return
    if args.what == "study":
        print(utilisation(find_study(args.name)))
        return
    print(f"torch {torch.__version__}, {processor()}; driver milliseconds a trial (timing and training take no time)")
    print(f"{'sampler':<8} {'pool':<7} {'trials':>6} {'ms a trial':>11} {'last quarter':>13}")
    for trials in args.trials:
        for sampler in args.samplers:
            for on_ray in (False, True):
                mean, late = per_trial(sampler, trials, on_ray)
                pool = "ray" if on_ray else "inline"
                print(f"{sampler:<8} {pool:<7} {trials:>6} {mean:>11.1f} {late:>13.1f}", flush=True)


if __name__ == "__main__":
    main()
