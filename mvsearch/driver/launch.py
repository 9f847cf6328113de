"""A launch from the resolved configuration to the report: data, space, pool, search, tables, page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mambavision.layout import HybridLayout, LayoutError
from mvsearch.analysis.findings import Findings
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.environment import environment
from mvsearch.driver.results import write_results
from mvsearch.driver.search import Outcome, Search, SearchFailed
from mvsearch.driver.settings import check_settings
from mvsearch.driver.trials import REMOVE, connect, open_optuna_study
from mvsearch.driver.view import View
from mvsearch.driver.warm_start import plan_warm_start, read_warm_start, source_study
from mvsearch.evaluate.images import data_shape, load_study_data
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.pool.opening import Resources, on_gpu, open_pool
from mvsearch.pool.pool import Pool
from mvsearch.space.design import with_design
from mvsearch.space.space import SearchSpace
from mvsearch.study.files import RESTORE, StudyError, driver_lock, repair_tail
from mvsearch.study.folder import StudyFolder
from mvsearch.study.timings import RecordedTiming, check_conditions, read_timings


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


def launch(
    config: StudyConfig,
    *,
    studies: Path,
    resources: Resources,
    timings: Path | None,
    view: View,
    on_space: Callable[[SearchSpace, Pool, bool, int], None],
) -> tuple[StudyFolder, Findings, Outcome]:
    """Run (or go on with) a study and write its tables and report.

    Args:
        config: the resolved configuration.
        studies: the folder of all studies.
        resources: where the work runs.
        timings: recorded timings to take instead of measuring: short for ``throughput.file``.
        view: what a person sees while it runs.
        on_space: called once before the search starts, with the space, the pool, whether the study is new, and
            how many layouts it holds already.

    Returns:
        The study's folder, what was found, and how the search ended.

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
        check_table(recorded, config, space, resources)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise StudyError(
            f"studies: {str(studies)!r} cannot hold {config.name!r} ({error.strerror}); a folder that can be written to"
        ) from None
    with driver_lock(folder.path):
        check_settings(folder, config)  # before files are mended that may be of a later format
        for path, mend in ((folder.ledger, RESTORE), (folder.journal, REMOVE)):
            if notice := repair_tail(path, mend):
                view.notice(notice)
        new = folder.is_new
        source = source_study(config, folder) if new else None
        pool = open_pool(MakeWorker(config.proxy, config.timing, space.reference()), data, resources)
        try:
            surroundings = environment(config, space, data, pool, folder)
            plan = plan_warm_start(config, space, source, surroundings) if new else read_warm_start(config, folder)
            folder.begin(config.resolved_yaml())  # once the workers are there: a refused launch binds no name
            folder.record_environment(surroundings)
            if new and config.warm_start is not None:
                plan.write(folder, source)
            kept = open_optuna_study(folder, database, view.notice)
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
        findings = write_results(folder)
    return folder, findings, outcome


def check_table(
    recorded: dict[str, RecordedTiming], config: StudyConfig, space: SearchSpace, resources: Resources | None
) -> None:
    """Keep throughputs of two devices apart: with `skip` the space is limited to the table.

    Args:
        recorded: the table.
        config: of the study.
        space: of the study.
        resources: of a launch; None for a dry run, which may stand for a launch on any device.
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
    if resources is None:
        return
    here = "cuda" if on_gpu(resources) else "cpu"
    devices = {timing.device for timing in recorded.values()} - {"not recorded"}
    other = next((device for device in sorted(devices) if device.partition(":")[0] != here), None)
    if other is not None and resources.address is None:
        raise StudyError(
            f"throughput.others: measure is not allowed; the table was measured on {other!r}, and layouts that are not "
            f"in it would be on {here!r}. With skip only the layouts of the table are tried"
        )
