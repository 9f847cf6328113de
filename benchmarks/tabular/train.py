"""Train and time every layout of a small space, and write the table that samplers are compared on by replay.

Our own model and worker, every rung and every seed recorded. What is measured goes into a ledger beside the table
(`<name>.jsonl`) and is never measured again, so the script can be stopped and started at any moment; the table is
written when all is there. Trainings and timings may be done at different times: timings want a quiet machine. Each
layout is timed several times, in passes over the whole table, and the table holds the median: one timing in some
hundred is off by as much as a layout is worth, and would stand on the front for it.

    python benchmarks/tabular/train.py benchmarks/tabular/fashion_mnist.yaml --workers 2
    python benchmarks/tabular/train.py benchmarks/tabular/fashion_mnist.yaml --only time --workers 1
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from mambavision.files import write_atomic
from mambavision.layout import HybridLayout
from mvsearch.config.reading import load_config
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.environment import processor
from mvsearch.evaluate.images import load_study_data
from mvsearch.evaluate.worker import TrainingWorker
from mvsearch.pool.job import Done, Job
from mvsearch.space.space import SearchSpace
from mvsearch.study.files import repair_tail
from mvsearch.study.ledger import Ledger
from mvsearch.study.record import TIME, TRAIN, Evaluation


def layouts_of(space: SearchSpace) -> dict[str, HybridLayout]:
    """Every layout of the space within its budgets, by key, in a fixed order."""
    return {layout.key: layout for layout in space.layouts() if not space.excess(layout)}


@dataclass(frozen=True)
class Task:
    """What is missing of one layout: its timing, or the rest of a training with one seed."""

    what: str
    layout: HybridLayout
    number: int
    cost: dict[str, int]
    seed: int
    epochs: tuple[int, ...] = ()


TIMINGS = 3
"""Passes of timings over the table; the number of a pass stands in the ledger as its seed."""


def missing(
    config: StudyConfig, layouts: dict[str, HybridLayout], ledger: Ledger, space: SearchSpace, only: str
) -> list[Task]:
    """What the ledger does not hold; a training that was cut short between two rungs begins again."""
    tasks = []
    for number, (key, layout) in enumerate(layouts.items()):
        cost = space.cost(layout)
        costs = {name: getattr(cost, name) for name in ("params", "macs", "macs_attention", "macs_scan", "memory")}
        lines = ledger.of(key)
        for repeat in range(TIMINGS) if only != TRAIN else ():
            if not any(line.what == TIME and line.seed == repeat for line in lines):
                tasks.append(Task(TIME, layout, number, costs, repeat))
        for seed in range(config.proxy.seeds) if only != TIME else ():
            done = {line.to_epoch for line in lines if line.what == TRAIN and line.seed == seed}
            if not done.issuperset(config.rung_epochs):
                tasks.append(Task(TRAIN, layout, number, costs, seed, config.rung_epochs))
    # Shuffled alike each time, so that what was measured when is not a property of the layout.
    random.Random(0).shuffle(tasks)
    return sorted(tasks, key=lambda task: task.seed)


_worker: TrainingWorker


def begin(config: StudyConfig, reference: HybridLayout) -> None:
    """Build the worker of this process."""
    global _worker
    data = load_study_data(config)
    _worker = TrainingWorker(config.proxy, config.timing, reference, f"process {os.getpid()}", "cpu", 1, data)


def do(task: Task) -> list[Evaluation]:
    """Do a task; a training's processor time is in its values beside its seconds, as other work may run here."""
    found: list[Evaluation] = []
    checkpoint, from_epoch = None, 0
    for to_epoch in task.epochs or (0,):
        began = time.process_time()
        job = Job(
            id=0,
            what=task.what,
            layout=task.layout,
            trial=task.number,
            cost=task.cost,
            seed=task.seed,
            from_epoch=from_epoch,
            to_epoch=to_epoch,
            checkpoint=checkpoint,
            keep_checkpoint=to_epoch < task.epochs[-1] if task.epochs else False,
        )
        done = list(_worker.run(job))[-1]
        assert isinstance(done, Done)
        if done.evaluation.reason:
            raise RuntimeError(f"{task.layout.key}: {done.evaluation.reason}")
        values = {**done.evaluation.values, "cpu_seconds": time.process_time() - began}
        found.append(dataclasses.replace(done.evaluation, values=values))
        checkpoint, from_epoch = done.checkpoint, to_epoch
    return found


def work(tasks: list[Task], config: StudyConfig, space: SearchSpace, ledger: Ledger, workers: int) -> None:
    """Do the tasks in processes of one thread each, and write down what comes back."""
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as progress,
        context.Pool(workers, begin, (config, space.reference())) as pool,
    ):
        for evaluations in progress.track(pool.imap_unordered(do, tasks), len(tasks)):
            for evaluation in evaluations:
                ledger.append(evaluation)


def table(evaluations: list[Evaluation], layouts: dict[str, HybridLayout]) -> pd.DataFrame:
    """One row a layout, seed and rung; the processor seconds of a rung count from the start of the training."""
    timings: dict[str, list[dict[str, float]]] = {}
    for line in evaluations:
        if line.what == TIME:
            timings.setdefault(line.key, []).append(line.values)
    rows = []
    for line in evaluations:
        if line.what != TRAIN or line.key not in layouts:
            continue
        speeds, ratios = ([timing[name] for timing in timings[line.key]] for name in ("images_per_second", "ratio"))
        before = [
            other.values["cpu_seconds"]
            for other in evaluations
            if (other.what, other.key, other.seed) == (TRAIN, line.key, line.seed) and other.to_epoch < line.to_epoch
        ]
        layout = layouts[line.key]
        rows.append(
            {
                "key": line.key,
                "pattern": "|".join(stage.blocks for stage in layout.stages),
                "width": layout.stages[0].dim,
                "params": line.cost["params"],
                "macs": line.cost["macs"],
                "images_per_second": round(statistics.median(speeds), 2),
                "ratio": round(statistics.median(ratios), 5),
                "ratio_sd": round(statistics.stdev(ratios), 5),
                "seed": line.seed,
                "epoch": line.to_epoch,
                "nll": round(line.values["nll"], 5),
                "top1": line.values["top1"],
                "cpu_seconds": round(sum(before) + line.values["cpu_seconds"], 3),
            }
        )
    return pd.DataFrame(rows).sort_values(["width", "pattern", "seed", "epoch"]).reset_index(drop=True)


def read_table(path: Path) -> tuple[dict[str, object], pd.DataFrame]:
    """The conditions in the header of a table, and its rows."""
    with path.open(encoding="utf-8") as file:
        conditions = json.loads(file.readline().lstrip("# "))
    return conditions, pd.read_csv(path, comment="#")


def main() -> None:
    """Measure what is missing; write the table when nothing is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=[TIME, TRAIN, "both"], default="both", help="what to do now")
    args = parser.parse_args()
    config = load_config(args.space)
    data = load_study_data(config)
    space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
    layouts = layouts_of(space)
    path = args.space.with_suffix(".jsonl")
    repair_tail(path)
    ledger = Ledger(path)
    tasks = missing(config, layouts, ledger, space, args.only)
    print(f"{len(layouts)} layouts, {len(ledger.evaluations)} evaluations there, {len(tasks)} tasks to do")
    if tasks:
        work(tasks, config, space, ledger, args.workers)
    left = missing(config, layouts, ledger, space, "both")
    if left:
        print(f"{len(left)} still missing; no table yet")
        return
    found = table(ledger.evaluations, layouts)
    timing = next(line for line in ledger.evaluations if line.what == TIME)
    training = next(line for line in ledger.evaluations if line.what == TRAIN)
    trained = [line for line in ledger.evaluations if line.what == TRAIN]
    conditions = {
        "space": args.space.name,
        "layouts": len(layouts),
        "seeds": config.proxy.seeds,
        "rungs": list(config.rung_epochs),
        "data": config.proxy.data,
        "fingerprint": data.fingerprint,
        "val_images": len(data.val.labels),
        "classes": len(data.classes),
        "cpu_minutes": round(sum(line.values["cpu_seconds"] for line in trained) / 60, 1),
        "training": training.conditions,
        "timing": {**timing.conditions, "timings": TIMINGS},
        "processor": processor(),
        "torch": importlib.metadata.version("torch"),
        "date": time.strftime("%Y-%m-%d"),
    }
    header = "# " + json.dumps(conditions) + "\n"
    write_atomic(args.space.with_suffix(".csv"), header + found.to_csv(index=False))
    print(f"Written: {args.space.with_suffix('.csv')}, {len(found)} rows, {conditions['cpu_minutes']} CPU-minutes")


if __name__ == "__main__":
    main()
