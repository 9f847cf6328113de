"""Does a search space's data tell layouts apart? Standard deviation between seeds beside that between layouts.

Trains the hand-made layouts, and the narrowest and the widest form of "last half", with several seeds each, by the
proxy of the space, and prints one table with its conditions. A difference counts where it is at least twice the noise.

    python benchmarks/noise.py stagewise --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from mambavision.layout import HybridLayout
from mvsearch.config.reading import load_config
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.environment import processor
from mvsearch.evaluate.images import load_study_data
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.pool.job import Done, Job, Lost
from mvsearch.pool.opening import Resources, open_pool
from mvsearch.space.space import SearchSpace
from mvsearch.study.record import Evaluation


def layouts_of(config: StudyConfig, space: SearchSpace) -> dict[str, HybridLayout]:
    """The hand-made layouts, and "last half" at the narrowest and the widest width of the space."""
    found = dict(space.baselines())
    for name, width in (("narrowest", min(config.layout.width)), ("widest", max(config.layout.width))):
        params = space.encode(space.reference()) | {"width": width}
        found[f"last half, {name} ({width})"] = space.decode(params)
    return found


def train_all(config: StudyConfig, layouts: dict[str, HybridLayout], space: SearchSpace, seeds: int, workers: int):
    """Evaluations by layout name, one a seed."""
    pool = open_pool(
        MakeWorker(config.proxy, config.timing, space.reference()), load_study_data(config), Resources(workers=workers)
    )
    jobs = {}
    for seed in range(seeds):
        for name, layout in layouts.items():
            job = Job(id=len(jobs), what="train", layout=layout, trial=0, seed=seed, to_epoch=config.proxy.epochs)
            jobs[job.id] = name
            pool.submit(job)
    results: dict[str, list[Evaluation]] = {name: [] for name in layouts}
    left = len(jobs)
    try:
        while left:
            for event in pool.events(1.0):
                if isinstance(event, Lost):
                    raise SystemExit(f"{jobs[event.job]}: {event.reason}")
                if isinstance(event, Done):
                    if event.evaluation.reason:
                        raise SystemExit(f"{jobs[event.job]}: {event.evaluation.reason}")
                    results[jobs[event.job]].append(event.evaluation)
                    left -= 1
                    print(f"\r{len(jobs) - left} of {len(jobs)} trainings", end="", flush=True)
    finally:
        pool.close()
    print()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", default="stagewise")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    args = parser.parse_args()
    config = load_config(args.space, args.overrides)
    data = load_study_data(config)
    space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
    began = time.time()
    results = train_all(config, layouts_of(config, space), space, args.seeds, args.workers)

    print(
        f"{config.name}: {config.proxy.data} ({data.fingerprint}), {len(data.train.labels):,} images x "
        f"{config.proxy.epochs} epochs at {config.proxy.image_size} px, "
        f"{len(data.val.labels):,} validation images, {args.seeds} seeds; "
        f"torch {torch.__version__}, {args.workers} workers, {processor()}, {time.time() - began:.0f} s"
    )
    print(f"{'layout':<28} {'pattern':<16} {'NLL':>7} {'sd':>6} {'top-1 %':>8} {'sd':>6} {'seconds':>8}")
    nll, top1 = {}, {}
    for name, lines in results.items():
        nll[name] = [line.values["nll"] for line in lines]
        top1[name] = [100 * line.values["top1"] for line in lines]
        seconds = statistics.fmean(line.values["train_seconds"] for line in lines)
        pattern = "|".join(stage["blocks"] for stage in lines[0].layout["stages"])
        print(
            f"{name:<28} {pattern:<16} {statistics.fmean(nll[name]):7.3f} {statistics.stdev(nll[name]):6.3f} "
            f"{statistics.fmean(top1[name]):8.1f} {statistics.stdev(top1[name]):6.1f} {seconds:8.1f}"
        )

    orders = list(space.baselines())
    widths = [name for name in results if name.startswith("last half,")]
    for measure, values in (("NLL", nll), ("top-1", top1)):
        within = {name: statistics.stdev(runs) for name, runs in values.items()}
        means = {name: statistics.fmean(runs) for name, runs in values.items()}

        def pooled(names: list[str], within: dict[str, float] = within) -> float:
            return (statistics.fmean(within[name] ** 2 for name in names)) ** 0.5

        def between(names: list[str], means: dict[str, float] = means) -> float:
            return statistics.stdev(means[name] for name in names)

        pairs = [(between([a, b]) / pooled([a, b]), a, b) for i, a in enumerate(orders) for b in orders[i + 1 :]]
        best = max(pairs)
        print(
            f"{measure}: between seeds {pooled(list(values)):.3f}; between the hand-made orders {between(orders):.3f} "
            f"({between(orders) / pooled(orders):.1f}x their noise); between the widths {between(widths):.3f} "
            f"({between(widths) / pooled(widths):.1f}x); the clearest pair of orders, {best[1]} and {best[2]}: "
            f"{best[0]:.1f}x; pairs at 2x or more: {sum(ratio >= 2 for ratio, *_ in pairs)} of {len(pairs)}"
        )


if __name__ == "__main__":
    main()
