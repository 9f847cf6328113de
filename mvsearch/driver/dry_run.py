"""A launch that trains nothing: the loop of a study in virtual time, with made-up values."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mvsearch.config.sections import StudyConfig
from mvsearch.driver.launch import check_table
from mvsearch.driver.search import Outcome, Search
from mvsearch.driver.trials import brief_optuna_study
from mvsearch.driver.view import View
from mvsearch.driver.warm_start import plan_warm_start, source_study
from mvsearch.evaluate.images import data_shape
from mvsearch.pool.opening import Resources
from mvsearch.pool.pool import Pool, PoolError
from mvsearch.pool.replay import MakeReplayWorker, ReplayPool, Synthetic
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder
from mvsearch.study.record import TRAIN
from mvsearch.study.timings import read_timings


@dataclass(frozen=True)
class DryRun:
    """How a search went that trained nothing; all its values are made up.

    Attributes:
        outcome: of the search, its seconds pretended.
        layouts: layouts that were asked for, the hand-made ones among them.
        rungs: epochs at the end of each rung, and how many layouts were trained to it.
        epochs: epochs trained in all, every seed.
        device_hours: pretended hours of work, all devices together.
        devices: how many were pretended.
    """

    outcome: Outcome
    layouts: int
    rungs: dict[int, int]
    epochs: int
    device_hours: float
    devices: int


def dry_run(
    config: StudyConfig,
    *,
    studies: Path,
    resources: Resources,
    timings: Path | None,
    view: View,
    on_space: Callable[[SearchSpace, Pool, bool, int], None],
) -> DryRun:
    """Run the loop of a study with made-up values, in a temporary folder and in virtual time.

    Nothing is trained or timed, and no study is read or written.

    Args:
        config: the resolved configuration.
        studies: the folder of all studies, where a warm start finds the one it names.
        resources: ``workers`` is the number of pretended devices; None: as many as a launch would use here.
        timings: must be None: throughputs are made up too.
        view: what a person sees while it runs.
        on_space: as for `launch`.

    Raises:
        ConfigError, SpaceError, PoolError: bad input.
        Interrupted, OSError: see `Search.run`.
    """
    import torch

    for name, value in (
        ("address", resources.address),
        ("gpus-per-trial", resources.gpus_per_trial),
        ("timings", timings),
    ):
        if value is not None:
            raise PoolError(f"{name}: {value} is not allowed with --dry-run, which pretends; only --workers is")
    if resources.workers is not None and resources.workers < 1:
        raise PoolError(f"workers: {resources.workers} is not allowed; 1 or more")
    devices = resources.workers or torch.cuda.device_count() or len(os.sched_getaffinity(0))
    table = config.throughput.file  # says what the space holds; its throughputs are made up like everything
    recorded = read_timings(Path(table).expanduser()) if table else None
    limits = ("hours", "device_hours")
    if told := [f"search.{name}" for name in limits if getattr(config.search, name) is not None]:
        view.notice(f"{' and '.join(told)} left out: the seconds of a dry run are made up.")
        config = config.model_copy(update={"search": config.search.model_copy(update=dict.fromkeys(limits))})
    classes, channels, notice = data_shape(config)
    if notice:
        view.notice(notice)
    space = SearchSpace(config, num_classes=classes, in_chans=channels)
    space.check()
    if recorded:
        check_table(recorded, config, space, None)
    cost = space.cost(space.reference())
    synthetic = Synthetic(
        classes=classes,
        reference_cost={"params": cost.params, "macs": cost.macs},
        epochs=config.proxy.epochs,
        train_images=config.proxy.train_images or Synthetic.train_images,
    )
    pool = ReplayPool(MakeReplayWorker(synthetic=synthetic), devices=devices)
    plan = plan_warm_start(config, space, source_study(config, StudyFolder(studies / config.name)), None)
    with tempfile.TemporaryDirectory(prefix="mvsearch-dry-run-") as temporary:
        folder = StudyFolder(Path(temporary) / config.name)
        folder.path.mkdir()
        folder.begin(config.resolved_yaml())
        search = Search(config, space, folder, pool, view=view, study=brief_optuna_study(folder), warm_start=plan)
        on_space(space, pool, True, 0)
        for said in plan.notices:
            view.notice(said)
        outcome = search.run()
        lines, records = search.ledger.evaluations, search.records()
    return DryRun(
        outcome=outcome,
        layouts=len(records),
        rungs={epoch: sum(record.epochs >= epoch for record in records) for epoch in config.rung_epochs},
        epochs=sum(line.to_epoch - line.from_epoch for line in lines if line.what == TRAIN),
        device_hours=sum(line.ended - line.started for line in lines) / 3600,
        devices=devices,
    )
