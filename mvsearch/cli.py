"""The command line: verb → function, nothing else. What a verb needs is imported when it runs."""

from __future__ import annotations

import enum
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Verbs(TyperGroup):
    """Ends a verb that fails with one message and the right exit code, never with a traceback for bad input."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            code, kept = 130, True
        except BaseException as error:
            found = _exit_code(error)
            if found is None:
                raise
            code = found
            from mvsearch.terminal.live import complain

            stopped = isinstance(error, SystemExit)
            complain(
                "stopped by SIGTERM"
                if stopped
                else str(error)
                if code == 2 or not isinstance(error, OSError)
                else f"cannot go on: {error}"
            )
            kept = code > 2 or isinstance(error, OSError)
        if kept and sys.argv[1:2] in (["launch"], ["calibrate"], ["confirm"], ["export"]):
            typer.echo(f"To go on: mvsearch {shlex.join(sys.argv[1:])}", err=True)
        raise typer.Exit(code)


def _exit_code(error: BaseException) -> int | None:
    """2 for bad input, 1 for a search that failed, 128 + signal for an interruption; None for a fault of ours."""
    kind = type(error)
    if kind.__name__ == "Interrupted" and kind.__module__ == "mvsearch.driver.stop":
        return 128 + error.signum  # type: ignore[attr-defined]
    if isinstance(error, SystemExit):
        return 128 + signal.SIGTERM if error.code == signal.SIGTERM else None
    if isinstance(error, OSError):
        return 1
    ours = kind.__module__.partition(".")[0] in ("mvsearch", "mambavision")
    if not ours:
        return None
    return 2 if isinstance(error, ValueError) else 1


app = typer.Typer(
    name="mvsearch",
    cls=_Verbs,
    help="Search for hybrid Mamba/attention vision backbones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Studies = Annotated[Path, typer.Option("--studies", metavar="DIR", help="Folder of all studies.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the YAML, e.g. search.trials=12."),
]
Space = Annotated[str, typer.Argument(metavar="SPACE", help="A YAML file, or the name of a shipped one (stagewise).")]
Study = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or its folder.")]


class Format(enum.StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


class Design(enum.StrEnum):
    """What a launch trains instead of searching for the front."""

    placement = "placement"


class TimingDtype(enum.StrEnum):
    """Precision of a timing."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def launch(
    space: Space,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers; default one a GPU, else one a core. 1 runs in this process.")
    ] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="Share of a GPU for each worker.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster, or 'auto'.")] = None,
    timings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take throughputs from a table; short for throughput.file.")
    ] = None,
    design: Annotated[
        Design | None, typer.Option(help="Train exactly the layouts that answer a question, with 3 seeds each.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run the loop with made-up values in seconds; train and write nothing.")
    ] = False,
    studies: Studies = Path("studies"),
) -> None:
    """Search a space; the same command goes on with a study that was stopped."""
    from mambavision.look import console
    from mvsearch.study.folder import goes_on_in
    from mvsearch.terminal import live, tables

    # Until the search has its own handler; Ray sets one that ends the same way.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))
    out = console()
    home, config = _configured(space, overrides or [])
    if design is not None:
        with out.status("loading PyTorch and the data …"):
            from mvsearch.driver.launch import designed
        config = designed(config, design.value, named=any(one.startswith("name=") for one in overrides or []))
    studies = goes_on_in(home, config.name, studies)
    if dry_run:
        with out.status("loading PyTorch and the data …"):
            from mvsearch.driver.dry_run import dry_run as pretend
            from mvsearch.pool.opening import Resources
        done = pretend(
            config,
            studies=studies,
            resources=Resources(workers=workers, gpus_per_trial=gpus_per_trial, address=address),
            timings=timings,
            view=live.NoticesOnly(out),
            on_space=lambda searched, pool, new, done: tables.print_start(
                out, searched, pool.description, new=new, done=done
            ),
        )
        tables.print_dry_run(out, config.name, done)
        return
    from mvsearch.pool.ray_pool import connecting

    view = live.LaunchView(out)
    with connecting(workers, address):  # while PyTorch is imported here
        with out.status("loading PyTorch and the data …"):
            from mvsearch.driver.launch import launch as run
            from mvsearch.pool.opening import Resources
        with view.running():
            folder, findings, outcome = run(
                config,
                studies=studies,
                resources=Resources(workers=workers, gpus_per_trial=gpus_per_trial, address=address),
                timings=timings,
                view=view,
                on_space=lambda searched, pool, new, done: tables.print_start(
                    out, searched, pool.description, new=new, done=done
                ),
            )
    files = [str(folder.path / name) for name in ("trials.csv", "front.csv", "report.html")]
    tables.print_outcome(out, findings.study, files, folder.argument, outcome)


def _configured(space: str, overrides: list[str]) -> tuple[Any, Any]:
    """The study whose study.yaml is given, or None, and the configuration."""
    from mvsearch.config.reading import load_config
    from mvsearch.study.folder import study_of

    home = study_of(Path(space))
    return home, load_config(space, overrides, folder=home.name if home is not None else None)


@app.command()
def space(space: Space, overrides: Overrides = None) -> None:
    """Show what a search space holds, without training anything."""
    from mambavision.look import console
    from mvsearch.evaluate.images import data_shape
    from mvsearch.space.describe import describe
    from mvsearch.space.space import SearchSpace
    from mvsearch.terminal import tables

    _, config = _configured(space, overrides or [])
    classes, channels, notice = data_shape(config)
    searched = SearchSpace(config, num_classes=classes, in_chans=channels)
    searched.check()
    tables.print_space(console(), describe(searched), notice=notice)


@app.command()
def init(
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="Folder with one folder of images a class.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The YAML to write.")] = Path("search.yaml"),
) -> None:
    """Write a search space for your own image folder, with comments."""
    from mvsearch.config.template import write_template

    write_template(data, out)
    written = shlex.quote(str(out))
    typer.echo(f"Written: {out}\nNext: mvsearch space {written}, then mvsearch launch {written}")


@app.command()
def report(study: Study, studies: Studies = Path("studies")) -> None:
    """Write trials.csv, front.csv and report.html of a study anew."""
    from mvsearch.driver.results import write_results
    from mvsearch.study.folder import find_study

    folder = find_study(study, studies)
    write_results(folder)
    typer.echo(f"Written: {folder.path / 'trials.csv'}, {folder.path / 'front.csv'}, {folder.report}")


@app.command()
def front(
    study: Study,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    studies: Studies = Path("studies"),
) -> None:
    """Print the Pareto front of a study."""
    from mvsearch.analysis.findings import Findings
    from mvsearch.study.data import load_study
    from mvsearch.study.folder import find_study

    findings = Findings(load_study(find_study(study, studies)))
    if format is Format.table:
        from mambavision.look import console
        from mvsearch.terminal import tables

        tables.print_front(console(), findings)
        return
    from mvsearch.report import front_table

    table = front_table(findings)
    typer.echo(
        table.to_csv(index=False) if format is Format.csv else table.to_json(orient="records", indent=2), nl=False
    )


@app.command()
def insight(
    study: Study,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    studies: Studies = Path("studies"),
) -> None:
    """Say what ratio, placement, state and width do, at matched parameters and throughput."""
    from mvsearch.study.folder import find_study

    folder = find_study(study, studies)
    if format is Format.table:
        from mambavision.look import console
        from mvsearch.driver.results import read_findings
        from mvsearch.terminal import tables

        tables.print_insight(console(), read_findings(folder), f"mvsearch report {folder.argument}")
        return
    from mvsearch.analysis.findings import Findings
    from mvsearch.report.insight_words import insight_table
    from mvsearch.study.data import load_study

    table = insight_table(Findings(load_study(folder)).insight)
    typer.echo(
        table.to_csv(index=False) if format is Format.csv else table.to_json(orient="records", indent=2), nl=False
    )


@app.command()
def compare(
    studies_: Annotated[list[str], typer.Argument(metavar="STUDY STUDY …", help="Names of studies, or their folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; default compare.html among the studies.")
    ] = None,
    studies: Studies = Path("studies"),
) -> None:
    """Compare studies of the same data and timing: fronts, hypervolumes, layouts in common."""
    from mambavision.look import console
    from mvsearch.analysis.comparison import Comparison
    from mvsearch.report.page_compare import write_comparison
    from mvsearch.study.data import load_study
    from mvsearch.study.files import StudyError
    from mvsearch.study.folder import find_study
    from mvsearch.terminal import tables

    if len(studies_) < 2:
        raise StudyError("compare: 1 study given; two or more are needed")
    path = out or (studies if studies.is_dir() else Path()) / "compare.html"
    if path.is_dir() or not path.parent.is_dir():
        why = "is a folder" if path.is_dir() else "is in a folder that is not there"
        raise StudyError(f"out: {path} {why}; choose another file")
    found = Comparison([load_study(find_study(name, studies)) for name in studies_])
    write_comparison(found, path)
    tables.print_comparison(console(), found, str(path))


@app.command()
def status(study: Study, studies: Studies = Path("studies")) -> None:
    """Show how far a search, calibrate or confirm is, from another terminal; nothing is touched."""
    from mambavision.look import console
    from mvsearch.driver.status import read_status
    from mvsearch.study.folder import find_study
    from mvsearch.terminal import tables

    folder = find_study(study, studies)
    tables.print_status(console(), read_status(folder), folder.argument, folder.launch_command)


@app.command()
def dashboard(
    study: Study,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of this machine; 0: any that is free.")] = 8080,
    studies: Studies = Path("studies"),
) -> None:
    """Serve optuna-dashboard on a study, also while it runs; Ctrl-C ends it."""
    from mvsearch.driver.settings import study_config
    from mvsearch.driver.trials import open_dashboard
    from mvsearch.study.folder import find_study

    folder = find_study(study, studies)
    url = study_config(folder).storage
    open_dashboard(folder, url, port, lambda address: typer.echo(f"{address} (Ctrl-C ends it)"))


@app.command("list")
def list_(studies: Studies = Path("studies")) -> None:
    """Name the studies here."""
    from mambavision.look import console
    from mvsearch.study.data import describe_study
    from mvsearch.study.folder import list_studies
    from mvsearch.terminal import tables

    found = list_studies(studies)
    if not found:
        among = "" if studies == Path("studies") else f" --studies {shlex.quote(str(studies))}"
        typer.echo(f"No studies in {studies}/ yet. Next: mvsearch launch stagewise{among}")
        return
    tables.print_studies(console(), [(folder.name, describe_study(folder)) for folder in found])


@app.command()
def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL …", help="Names of the library or of timm, or layouts' .yaml files."),
    ],
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    dtype: Annotated[TimingDtype, typer.Option(help="auto: bfloat16 on a GPU that has it.")] = TimingDtype.auto,
    threads: Annotated[int, typer.Option(min=1, max=4096, help="PyTorch's threads on a CPU.")] = 1,
    window: Annotated[float, typer.Option(min=0.001, help="Seconds of a window.")] = 0.5,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each model.")] = 5,
    latency: Annotated[bool, typer.Option("--latency", help="Time single images as well.")] = False,
    eager: Annotated[bool, typer.Option("--eager", help="On CUDA: no graphs, each kernel launched by itself.")] = False,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
) -> None:
    """Time models side by side; ratios are to the first."""
    from mambavision.look import console
    from mvsearch.terminal import tables

    out = console(stderr=format is not Format.table)
    with out.status("loading PyTorch and the models …") as status:
        from mvsearch.evaluate.bench import bench as run

        rows, conditions = run(
            models,
            image_size=image_size,
            batch_size=batch_size,
            device=device,
            dtype=dtype.value,
            threads=threads,
            window_s=window,
            windows=windows,
            cuda_graph=False if eager else "auto",
            latency=latency,
            on_row=lambda row, conditions: status.update(f"timed {row.name}: {row.images_per_second:,.1f} img/s"),
        )
    if format is Format.table:
        tables.print_bench(out, rows, conditions)
        return
    import pandas

    # With its keys and layouts, what is printed is also a table for throughput.file.
    found = pandas.DataFrame(rows).assign(**conditions)
    typer.echo(
        found.to_csv(index=False) if format is Format.csv else found.to_json(orient="records", indent=2), nl=False
    )


Workers = Annotated[
    int | None, typer.Option("--workers", help="Workers; default one a GPU, else one a core. 1 runs in this process.")
]
GpusPerTrial = Annotated[float | None, typer.Option("--gpus-per-trial", help="Share of a GPU for each worker.")]
Address = Annotated[str | None, typer.Option("--address", help="Address of a running Ray cluster, or 'auto'.")]
Hours = Annotated[float | None, typer.Option("--hours", help="Begin nothing after so many hours.")]


@app.command()
def calibrate(
    study: Study,
    layouts: Annotated[int, typer.Option(help="Layouts to train, the hand-made ones always among them.")] = 16,
    budget_factor: Annotated[int, typer.Option(help="Epochs as a multiple of the proxy's, 4 to 8.")] = 4,
    seeds: Annotated[int, typer.Option(help="Fresh seeds a layout.")] = 2,
    hours: Hours = None,
    workers: Workers = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    studies: Studies = Path("studies"),
) -> None:
    """Train a sample of a study's layouts long: does the proxy rank them as long training does?"""
    from mvsearch.analysis.plans import plan_calibrate

    _repeat(
        study,
        studies,
        lambda measured: plan_calibrate(measured, layouts=layouts, factor=budget_factor, seeds=seeds),
        (workers, gpus_per_trial, address),
        hours,
    )


@app.command()
def confirm(
    study: Study,
    layouts: Annotated[int | None, typer.Option(help="Members of the front at most; default all.")] = None,
    seeds: Annotated[int, typer.Option(help="Fresh seeds a layout.")] = 3,
    hours: Hours = None,
    workers: Workers = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    studies: Studies = Path("studies"),
) -> None:
    """Train the front of a study again with fresh seeds and measure it on the test split."""
    from mvsearch.analysis.plans import plan_confirm

    _repeat(
        study,
        studies,
        lambda measured: plan_confirm(measured, layouts=layouts, seeds=seeds),
        (workers, gpus_per_trial, address),
        hours,
    )


def _repeat(study: str, studies: Path, make_plan: Any, where: tuple[Any, ...], hours: float | None) -> None:
    from mambavision.look import console
    from mvsearch.study.folder import find_study
    from mvsearch.terminal import live, tables

    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))
    out = console()
    folder = find_study(study, studies)
    with out.status("loading PyTorch and the data …"):
        from mvsearch.driver.repeat import repeat
        from mvsearch.pool.opening import Resources
    view = live.LaunchView(out)
    with view.running():
        findings, outcome = repeat(
            folder,
            make_plan,
            resources=Resources(*where),
            hours=hours,
            view=view,
            on_start=lambda plan, pool, done: tables.print_repeat_start(out, plan, pool.description, done),
        )
    files = [str(folder.path / "front.csv"), str(folder.report)]
    tables.print_repeat(out, findings, outcome, files, folder.argument)


@app.command()
def timings(
    space: Space,
    overrides: Overrides = None,
    layouts: Annotated[int, typer.Option(min=1, help="How many layouts to time, the hand-made ones first.")] = 100,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table to write.")] = Path("timings.csv"),
) -> None:
    """Time layouts of a space on this device, for a search on another (throughput.file)."""
    from mambavision.files import write_atomic
    from mambavision.look import console
    from mvsearch.study.files import StudyError

    if out.exists() or not out.parent.is_dir():
        why = "is there already" if out.exists() else "is in a folder that is not there"
        raise StudyError(f"out: {out} {why}; choose another file")
    _, config = _configured(space, overrides or [])
    shown = console()
    with shown.status("loading PyTorch …") as status:
        import pandas

        from mvsearch.evaluate.bench import bench_space
        from mvsearch.evaluate.images import data_shape
        from mvsearch.space.space import SearchSpace

        classes, channels, notice = data_shape(config)
        if notice:
            shown.print(notice)
        searched = SearchSpace(config, num_classes=classes, in_chans=channels)
        searched.check()
        rows: list[Any] = []

        def keep(row: Any, conditions: dict[str, Any]) -> None:
            rows.append(row)
            status.update(f"timed {len(rows)} of {layouts}: {row.name}, ratio {row.ratio:.3f}")
            write_atomic(out, pandas.DataFrame(rows).assign(**conditions).to_csv(index=False))

        bench_space(searched, layouts=layouts, device=device, on_row=keep)
    changed = [*(overrides or []), f"throughput.file={out}", "throughput.others=skip"]  # of the space that was timed
    following = ["mvsearch", "launch", space, *(word for one in changed for word in ("--set", one))]
    typer.echo(f"Written: {out}, {len(rows)} layouts\nNext: {shlex.join(following)}")


@app.command()
def export(
    study: Study,
    pick: Annotated[str, typer.Option(metavar="WHICH", help="knee, fastest, most-accurate, all, or a key.")] = "knee",
    name: Annotated[str | None, typer.Option(help="Name of the entry; default study and key.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an entry of the same name.")] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="WHICH", help="searched or confirmed; default confirmed where there are.")
    ] = None,
    retrain: Annotated[
        int | None, typer.Option(metavar="EPOCHS", help="Train the layout anew for so long, and export that.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Export although the calibration is red.")] = False,
    studies: Studies = Path("studies"),
) -> None:
    """Write layouts of the front, with weights and card, into the model library."""
    from mvsearch.analysis.findings import Findings
    from mvsearch.export.entry import export as run
    from mvsearch.study.data import load_study
    from mvsearch.study.folder import find_study
    from mvsearch.terminal import tables

    folder = find_study(study, studies)
    findings = Findings(load_study(folder))
    exported = run(
        folder,
        findings,
        pick,
        name=name,
        overwrite=overwrite,
        force=force,
        kind=weights,
        retrain_epochs=retrain,
        onnx=onnx,
    )
    for entry in exported:
        typer.echo(f"Written: {entry.folder}")
        typer.echo(f"  {tables.weights_words(entry.weights)}")
    if not findings.confirmation:
        typer.echo(
            f"Not confirmed yet: mvsearch confirm {folder.argument} trains the front again, on the test split too."
        )
    typer.echo(f'Next: mambavision.create_model("{exported[0].name}", pretrained=True)')


def main() -> None:
    """Run the command line."""
    app()
