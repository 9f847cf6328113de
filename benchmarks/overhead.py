"""What the driver costs: milliseconds a trial at an objective that takes no time, and the utilisation of a real launch.

python benchmarks/overhead.py                         both pools, 200 and 1,000 trials
python benchmarks/overhead.py --study studies/NAME    also the utilisation of that study, from its ledger
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvsearch.config import load_config
from mvsearch.evaluate.job import Done, Job, Progress
from mvsearch.launch import processor
from mvsearch.ledger import read_evaluations
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.ray_pool import RayPool
from mvsearch.search import Search
from mvsearch.space import SearchSpace
from mvsearch.study import StudyFolder, find_study


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
    parser.add_argument("--study", help="a study whose utilisation to print")
    parser.add_argument("--trials", type=int, nargs="*", default=[200, 1000])
    parser.add_argument(
        "--samplers", nargs="+", default=["random"], help="random shows the driver, others add their own"
    )
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {processor()}; driver milliseconds a trial (timing and training take no time)")
    print(f"{'sampler':<8} {'pool':<7} {'trials':>6} {'ms a trial':>11} {'last quarter':>13}")
    for trials in args.trials:
        for sampler in args.samplers:
            for on_ray in (False, True):
                mean, late = per_trial(sampler, trials, on_ray)
                pool = "ray" if on_ray else "inline"
                print(f"{sampler:<8} {pool:<7} {trials:>6} {mean:>11.1f} {late:>13.1f}", flush=True)
    if args.study:
        print(utilisation(find_study(args.study)))


if __name__ == "__main__":
    main()
