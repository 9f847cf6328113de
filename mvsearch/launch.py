"""A launch from the resolved configuration to the report: data, space, pool, search, tables, page."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambavision.data import DataError, ImageData, Split, load_data
from mambavision.layout import HybridLayout, LayoutError
from mvsearch.config import StudyConfig
from mvsearch.design import with_design
from mvsearch.evaluate.job import MakeWorker
from mvsearch.ledger import RESTORE, StudyError, driver_lock, repair_tail
from mvsearch.pool import Pool, PoolError
from mvsearch.pool.inline import InlinePool
from mvsearch.pool.replay import MakeReplayWorker, ReplayPool, Synthetic
from mvsearch.record import TRAIN
from mvsearch.report.data import StudyData
from mvsearch.search import Outcome, Search, SearchFailed
from mvsearch.space import SearchSpace
from mvsearch.storage import REMOVE, brief_optuna_study, connect, open_optuna_study
from mvsearch.study import StudyFolder, write_results
from mvsearch.timings import RecordedTiming, check_conditions, read_timings
from mvsearch.view import View
from mvsearch.warm_start import plan_warm_start, read_warm_start, source_study


@dataclass(frozen=True)
class Where:
    """Where the work runs.

    Attributes:
        workers: how many; None: one a GPU, or one a core where there is none. 1 without `address` is this process.
        gpus_per_trial: share of a GPU for a worker; None: a whole one where there are GPUs.
        address: of a running Ray cluster; None: this machine.
    """

    workers: int | None = None
    gpus_per_trial: float | None = None
    address: str | None = None


def load_study_data(config: StudyConfig, *, test: bool = False) -> ImageData:
    """The data set of a study: always the same images for the same configuration.

    Args:
        config: of the study.
        test: with the test split, which is only for `confirm` and the final figures of an export; without, it is empty.
    """
    proxy = config.proxy
    data = load_data(
        proxy.data,
        root=proxy.root,
        image_size=proxy.image_size,
        train_images=proxy.train_images,
        val_images=proxy.val_images,
    )
    if test:
        return data
    return dataclasses.replace(data, test=Split(data.test.images[:0].clone(), data.test.labels[:0].clone()))


def data_shape(config: StudyConfig) -> tuple[int, int, str | None]:
    """Classes and channels of a study's data, and a notice where they had to be assumed.

    An image folder is not decoded for this: its classes are counted, and three channels assumed.
    """
    if config.proxy.data != "folder":
        try:
            data = load_study_data(config)
        except DataError as error:
            return 1000, 3, f"Costs assume 1,000 classes and 3 channels, because the data is not here: {error}"
        return len(data.classes), data.train.images.shape[1], None
    root = Path(config.proxy.root or "").expanduser()
    root = root / "train" if (root / "train").is_dir() else root
    classes = sum(path.is_dir() for path in root.iterdir()) if root.is_dir() else 0
    if not classes:
        return 1000, 3, f"Costs assume 1,000 classes, because {root} holds no folders of images."
    return classes, 3, None


def designed(config: StudyConfig, design: str, *, named: bool) -> StudyConfig:
    """The configuration of a study that runs a design of a space, under the space's name and the design's.

    Args:
        config: of the space, or of a study of this design, which goes on as it is.
        design: ``"placement"``.
        named: whether the person has given the study a name of its own.

    Raises:
        ConfigError, SpaceError: if the space holds no such design.
    """
    if config.search.design is not None:
        return config
    classes, channels, _ = data_shape(config)
    return with_design(config, design, name=config.name if named else None, classes=classes, channels=channels)


def open_pool(make_worker: MakeWorker, data: ImageData, where: Where) -> Pool:
    """The pool that fits: this process for one local worker, else Ray.

    Raises:
        PoolError: if what is asked for is not there.
    """
    import torch

    gpus = torch.cuda.device_count()
    if where.workers is not None and where.workers < 1:
        raise PoolError(f"workers: {where.workers} is not allowed; 1 or more")
    if where.gpus_per_trial is not None and not where.gpus_per_trial >= 0:
        raise PoolError(f"gpus-per-trial: {where.gpus_per_trial:g} is not allowed; 0 or more")
    cores = len(os.sched_getaffinity(0))
    if where.address is None and (where.workers == 1 or (where.workers is None and max(gpus, cores) == 1)):
        if where.gpus_per_trial and not gpus:
            raise PoolError(f"gpus-per-trial: {where.gpus_per_trial:g} asked for, and there is no GPU here")
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        threads = int(asked) if asked.isdigit() and int(asked) else cores
        return InlinePool(make_worker, data, device="cuda:0" if _on_gpu(where) else "cpu", threads=threads)
    from mvsearch.pool.ray_pool import RayPool

    return RayPool(
        make_worker,
        data,
        workers=where.workers,
        gpus_per_trial=where.gpus_per_trial,
        address=where.address,
    )


def launch(
    config: StudyConfig,
    *,
    studies: Path,
    where: Where,
    timings: Path | None,
    view: View,
    on_space: Callable[[SearchSpace, Pool, bool, int], None],
) -> tuple[StudyFolder, StudyData, Outcome]:
    """Run (or go on with) a study and write its tables and report.

    Args:
        config: the resolved configuration.
        studies: the folder of all studies.
        where: where the work runs.
        timings: recorded timings to take instead of measuring: short for ``throughput.file``.
        view: what a person sees while it runs.
        on_space: called once before the search starts, with the space, the pool, whether the study is new, and
            how many layouts it holds already.

    Returns:
        The study's folder, what was measured, and how the search ended.

    Raises:
        ConfigError, SpaceError, DataError, StudyError, PoolError: bad input, found before anything is trained.
        Interrupted, SearchFailed, OSError: see `Search.run`.
    """
    folder = StudyFolder(studies / config.name)
    if timings is not None:
        named = config.throughput.model_copy(update={"file": str(timings)})
        config = config.model_copy(update={"throughput": named})
    table = config.throughput.file
    recorded = read_timings(Path(table).expanduser()) if table else None
    database = connect(config.storage) if config.storage else None
    if config.proxy.data == "folder":  # before thousands of images are decoded
        classes, channels, _ = data_shape(config)
        SearchSpace(config, num_classes=classes, in_chans=channels).check()
    data = load_study_data(config)
    space = SearchSpace(config, num_classes=len(data.classes), in_chans=data.train.images.shape[1])
    space.check()
    if recorded:
        _check_table(recorded, config, space, where)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise StudyError(
            f"studies: {str(studies)!r} cannot hold {config.name!r} ({error.strerror}); a folder that can be written to"
        ) from None
    with driver_lock(folder.path):
        for path, mend in ((folder.ledger, RESTORE), (folder.journal, REMOVE)):
            if notice := repair_tail(path, mend):
                view.notice(notice)
        new = folder.check(config.resolved_yaml())
        source = source_study(config, folder) if new else None
        pool = open_pool(MakeWorker(config.proxy, config.timing, space.reference()), data, where)
        try:
            surroundings = environment(config, space, data, pool, folder)
            plan = plan_warm_start(config, space, source, surroundings) if new else read_warm_start(config, folder)
            folder.begin(config.resolved_yaml())  # once the workers are there: a refused launch binds no name
            folder.record_environment(surroundings)
            if new and config.warm_start is not None:
                plan.write(folder, source)
            kept = open_optuna_study(folder, database)
            search = Search(config, space, folder, pool, view=view, timings=recorded, study=kept, warm_start=plan)
            on_space(space, pool, new, len(search.records()))
            if new:
                for notice in plan.notices:
                    view.notice(notice)
            outcome = search.run()
        except SearchFailed:
            write_results(folder)  # it says what failed and why
            raise
        finally:
            pool.close()
        study = write_results(folder)
    return folder, study, outcome


def _check_table(
    recorded: dict[str, RecordedTiming], config: StudyConfig, space: SearchSpace, where: Where | None
) -> None:
    """Keep throughputs of two devices apart: with `skip` the space is limited to the table.

    Args:
        recorded: the table.
        config: of the study.
        space: of the study.
        where: of a launch; None for a dry run, which may stand for a launch on any device.
    """
    expected = {
        "reference": space.reference().key,
        "image_size": config.deployed_image_size,
        "batch_size": config.timing.batch_size,
    }
    check_conditions(recorded, expected)
    try:
        layouts = [HybridLayout.from_dict(timing.layout) for timing in recorded.values() if timing.layout is not None]
    except LayoutError as error:
        raise StudyError(f"throughput.file: the table holds a layout that is none: {error}") from None
    if config.throughput.others == "skip":
        reference = space.reference().key
        if reference not in {layout.key for layout in layouts}:
            raise StudyError(
                f"throughput.file: the table lacks the layout that ratios are to, {reference}, or has no column layout"
            )
        space.limit_to(layouts)
        return
    if where is None:
        return
    here = "cuda" if _on_gpu(where) else "cpu"
    devices = {timing.device for timing in recorded.values()} - {"not recorded"}
    other = next((device for device in sorted(devices) if device.partition(":")[0] != here), None)
    if other is not None and where.address is None:
        raise StudyError(
            f"throughput.others: measure is not allowed; the table was measured on {other!r}, and layouts that are not "
            f"in it would be on {here!r}. With skip only the layouts of the table are tried"
        )


def _on_gpu(where: Where) -> bool:
    import torch

    return torch.cuda.device_count() > 0 and where.gpus_per_trial != 0


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
    where: Where,
    timings: Path | None,
    view: View,
    on_space: Callable[[SearchSpace, Pool, bool, int], None],
) -> DryRun:
    """Run the loop of a study with made-up values, in a temporary folder and in virtual time.

    Nothing is trained or timed, and no study is read or written.

    Args:
        config: the resolved configuration.
        studies: the folder of all studies, where a warm start finds the one it names.
        where: ``workers`` is the number of pretended devices; None: as many as a launch would use here.
        timings: must be None: throughputs are made up too.
        view: what a person sees while it runs.
        on_space: as for `launch`.

    Raises:
        ConfigError, SpaceError, PoolError: bad input.
        Interrupted, OSError: see `Search.run`.
    """
    import torch

    for name, value in (
        ("address", where.address),
        ("gpus-per-trial", where.gpus_per_trial),
        ("timings", timings),
    ):
        if value is not None:
            raise PoolError(f"{name}: {value} is not allowed with --dry-run, which pretends; only --workers is")
    if where.workers is not None and where.workers < 1:
        raise PoolError(f"workers: {where.workers} is not allowed; 1 or more")
    devices = where.workers or torch.cuda.device_count() or len(os.sched_getaffinity(0))
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
        _check_table(recorded, config, space, None)
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


def environment(
    config: StudyConfig, space: SearchSpace, data: ImageData, pool: Pool, folder: StudyFolder
) -> dict[str, Any]:
    """Everything beside the configuration that bears on the numbers, for environment.json."""
    import torch

    from mambavision.scan import scan_path

    on_gpu = "GPU" in pool.description or "cuda" in pool.description
    packages = ("mvsearch", "torch", "torchvision", "timm", "optuna", "ray", "numpy", "pandas", "plotly")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu and torch.cuda.is_available() else f"CPU ({processor()})",
        "cores": len(os.sched_getaffinity(0)),
        "scan": scan_path("cuda" if on_gpu else "cpu"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "git_commit": git_commit(),
        "reference": space.reference().key,
        "command": f"mvsearch launch {folder.config} --set name={config.name}-again",
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "classes": len(data.classes),
            "channels": data.train.images.shape[1],
            "train_images": len(data.train.labels),
            "val_images": len(data.val.labels),
            "available": data.available,
            "class_names": list(data.classes),
            "mean": list(data.mean),
            "std": list(data.std),
            "licence": data.licence,
        },
        "launch": {
            "started": time.time(),
            "workers": pool.workers,
            "pool": pool.description,
        },
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout that mvsearch runs from, with ``+changes`` if it is not clean; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
