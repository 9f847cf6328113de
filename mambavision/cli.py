"""The command line `mambavision`: list, show, train. What a verb needs is imported when it runs."""

from __future__ import annotations

import enum
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mambavision.files import naming, write_atomic
from mambavision.fine_tuning import FineTuneOptions, prepare
from mambavision.look import console
from mambavision.options import OptionError, check_whole


class _Verbs(TyperGroup):
    """Ends a verb that fails with one message and the right exit code, never with a traceback for bad input."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            code = 130
        except SystemExit as error:
            if not isinstance(error.code, int) or error.code <= 128:
                raise
            code = error.code
        except (ValueError, RuntimeError, OSError) as error:
            found = _exit_code(error)
            if found is None:
                raise
            code = found
            _complain(error)
        if code > 128 and sys.argv[1:2] == ["train"]:
            again = [argument for argument in sys.argv[1:] if argument != "--no-resume"]
            typer.echo(f"\nStopped. To go on: mambavision {shlex.join(again)}", err=True)
        raise typer.Exit(code)


def _exit_code(error: Exception) -> int | None:
    """2 for bad input, 1 for a training that failed or a file that cannot be written; None for a fault of ours."""
    if isinstance(error, OSError):
        return 1
    if type(error).__module__.partition(".")[0] != "mambavision":
        return None
    return 2 if isinstance(error, ValueError) else 1


def _complain(error: Exception) -> None:
    # An error in a loader's worker comes with its traceback; the last line is what it says.
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    typer.echo(f"error: {message}", err=True)


app = typer.Typer(
    name="mambavision",
    cls=_Verbs,
    help="Hybrid Mamba/attention vision backbones: what is in the library, and training it further.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model of the library; mambavision list names them.")]

ImageSize = Annotated[int | None, typer.Option(metavar="PX", help="Side of the image; default the entry's.")]


_EPOCHS = (
    "Epochs in all, those before a resume included. The schedule belongs to them: another number begins anew, with "
    "--no-resume or another --output."
)

_RANDAUGMENT = FineTuneOptions.randaugment or "none"


class Schedule(enum.StrEnum):
    """Learning rate over the updates of a training, by timm."""

    cosine = "cosine"
    poly = "poly"
    tanh = "tanh"
    constant = "constant"


@app.command("list")
def list_() -> None:
    """Name the models of the library, shipped layouts first."""
    from rich.table import Table
    from rich.text import Text

    from mambavision.cost import cost
    from mambavision.layout import HybridLayout
    from mambavision.library import SHIPPED, library_root, list_models, load_entry_config
    from mambavision.strip import rich_strip
    from mambavision.words import plural, scaled

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = list_models()
    # Least widths, so that a narrow terminal cuts the strips and nothing else.
    table.add_column("name", no_wrap=True, min_width=max(len(name) for name in names))
    table.add_column("params", justify="right", no_wrap=True, min_width=6)
    table.add_column("input", justify="right", no_wrap=True, min_width=13)
    table.add_column("weights", no_wrap=True, min_width=11)
    table.add_column("blocks", no_wrap=True)
    for name in names:
        try:
            config = load_entry_config(name)
            layout = HybridLayout.from_dict(config["layout"])
            channels, height, width = config["input_size"]
            params = cost(layout, (height, width), config["num_classes"], config["in_chans"]).params
        except (ValueError, KeyError, TypeError) as error:
            table.add_row(name, "–", "–", Text("damaged", style="red"), str(error))
            continue
        weights = Text("–" if name in SHIPPED else str(config.get("weights", "own")), style="dim")
        table.add_row(name, scaled(params), f"{channels} × {height} × {width}", weights, rich_strip(layout))
    out = console(width=200)
    out.print(table)
    own_names = [name for name in names if name not in SHIPPED]
    out.print(f"\n{len(names) - len(own_names)} shipped layouts, without weights; ", end="")
    out.print(f"{plural(len(own_names), 'entry', 'entries')} of your own in {library_root()}")
    out.print(f"Next: mambavision show {own_names[0] if own_names else names[0]}")


@app.command()
def show(
    name: Name,
    image_size: ImageSize = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the diagram to this page.")] = None,
) -> None:
    """Show a model: its strip, stages, shapes, parameters, MACs, and its card."""
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from mambavision.cost import cost
    from mambavision.layout import LETTERS
    from mambavision.library import load_entry
    from mambavision.plots import diagram, model_architecture_diagram
    from mambavision.strip import rich_strip
    from mambavision.words import scaled

    config, layout = load_entry(name)
    check_whole("image_size", image_size)
    card = _card(name)
    classes, channels = config["num_classes"], config["in_chans"]
    size = tuple(config["input_size"][1:]) if image_size is None else (image_size, image_size)
    parts = diagram(layout, size, num_classes=classes, in_chans=channels)
    whole = cost(layout, size, classes, channels)
    out = console(width=200)
    out.print(Text(name, style="bold"))
    out.print(rich_strip(layout, numbers=True))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("part", "blocks"):
        table.add_column(column, no_wrap=True)
    for column in ("output", "window", "state", "heads", "params", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in parts:
        head = part.name == "head"
        mixes = part.blocks != "" and LETTERS[part.blocks[0]].mixes_tokens
        table.add_row(
            part.name,
            part.blocks,
            f"{part.dim:,}" if head else f"{part.dim} × {part.size[0]} × {part.size[1]}",
            str(part.window or "whole map") if mixes else "–",
            "–" if part.state is None else str(part.state),
            "–" if part.heads is None else str(part.heads),
            scaled(part.params),
            scaled(part.macs),
        )
    out.print(table)
    out.print(
        f"{whole.params:,} parameters, {scaled(whole.macs)} MACs at {channels} × {size[0]} × {size[1]} "
        f"(scan not counted: {scaled(whole.macs_scan)} more), {scaled(whole.memory, 'B')} for one image in float32"
    )
    if html is not None:
        figure = model_architecture_diagram(layout, size, num_classes=classes, in_chans=channels)
        with naming(html):
            write_atomic(html, figure.to_html())
        out.print(f"Written: {html}")
    if card is not None:
        out.print()
        out.print(Markdown(card) if out.is_terminal else Text(card))
    out.print(f"Next: mambavision train {name} --data PATH --epochs 20")


@app.command()
def train(
    name: Name,
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg.")
    ],
    epochs: Annotated[int, typer.Option(metavar="N", help=_EPOCHS)],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkpoint, log and best weights; default trained/NAME.")
    ] = None,
    save_as: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="Save the best weights as a new entry of the library.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an entry of the name NEW.")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images a batch.")] = FineTuneOptions.batch_size,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Batches an update.")] = FineTuneOptions.accumulate,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Highest learning rate of AdamW.")] = FineTuneOptions.lr,
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Weight decay.")] = FineTuneOptions.weight_decay,
    schedule: Annotated[Schedule, typer.Option(help="Learning rate over the updates.")] = Schedule.cosine,
    warmup_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs of linear warm-up; default a tenth, at most 5.")
    ] = None,
    clip_norm: Annotated[
        float, typer.Option(metavar="X", help="Largest norm of the gradient; 0 does not clip.")
    ] = FineTuneOptions.clip_norm,
    image_size: ImageSize = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not start from the entry's weights.")
    ] = False,
    mixup: Annotated[float, typer.Option(metavar="ALPHA", help="timm's mixup; 0 for none.")] = FineTuneOptions.mixup,
    cutmix: Annotated[float, typer.Option(metavar="ALPHA", help="timm's CutMix; 0 for none.")] = FineTuneOptions.cutmix,
    smoothing: Annotated[
        float, typer.Option(metavar="X", help="Label smoothing, 0 to below 1.")
    ] = FineTuneOptions.smoothing,
    randaugment: Annotated[str, typer.Option(metavar="SPEC", help="timm's RandAugment, or none.")] = _RANDAUGMENT,
    ema: Annotated[
        float, typer.Option(metavar="DECAY", help="Average of the weights; 0 for none.")
    ] = FineTuneOptions.ema,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes that decode images.")] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of a fresh start, order and augmentation.")
    ] = FineTuneOptions.seed,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = FineTuneOptions.device,
    amp: Annotated[bool, typer.Option("--amp/--no-amp", help="Mixed precision on a GPU.")] = FineTuneOptions.amp,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from a checkpoint in DIR.")
    ] = FineTuneOptions.resume,
    checkpoint_every: Annotated[
        int, typer.Option(metavar="N", help="Updates between two checkpoints.")
    ] = FineTuneOptions.checkpoint_every,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard event files, too.")
    ] = FineTuneOptions.tensorboard,
) -> None:
    """Train a model on a folder of images; the same command goes on with a training that was stopped."""
    options = FineTuneOptions(
        name=name,
        data=data,
        epochs=epochs,
        output=output,
        save_as=save_as,
        overwrite=overwrite,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule.value,
        warmup_epochs=warmup_epochs,
        clip_norm=clip_norm,
        image_size=image_size,
        from_scratch=from_scratch,
        mixup=mixup,
        cutmix=cutmix,
        smoothing=smoothing,
        randaugment=None if randaugment == "none" else randaugment,
        ema=ema,
        workers=workers,
        seed=seed,
        device=device,
        amp=amp,
        resume=resume,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
    )
    options.check()
    _train(options)


def _train(options: FineTuneOptions) -> None:
    """Train, and print what a person wants to know before and after."""
    from mambavision.words import plural

    out = console(width=200)
    with out.status("loading PyTorch and the folder …"):
        from mambavision.training import BEST, CHECKPOINT, LOG, OtherTraining

        training = prepare(options)
    trainer = training.trainer
    out.print(
        f"{options.name} {training.start.replace('`', '')}: {training.train_images:,} training and "
        f"{training.val_images:,} validation images in {len(training.classes)} classes, batch {training.batch_size}, "
        f"{plural(options.epochs, 'epoch')} on {trainer.device}"
    )
    try:
        trainer.train(num_epochs=options.epochs)
    except OtherTraining as error:
        raise OptionError(f"{error}. On the command line: {_options(error.field)}") from None
    best = trainer.best
    assert best is not None, "an epoch was measured"
    kind = ", averaged weights" if best["ema"] else ""
    out.print(
        f"Best: epoch {best['epoch']}{kind}, top-1 {100 * best['val_top1']:.1f} % of {training.val_images:,} "
        "validation images"
    )
    out.print(f"Written: {', '.join(str(options.folder / file) for file in (BEST, LOG, CHECKPOINT))}")
    if options.save_as is None:
        out.print(f"Next: the same command with --name NEW saves {options.name} so trained into the library")
        return
    out.print(f"Written: {training.save(f'mambavision {shlex.join(sys.argv[1:])}')}")
    new = options.save_as
    out.print(f'Next: mambavision show {new}, or mambavision.create_model("{new}", pretrained=True)')


_FIELDS = {
    "scheduler": "--epochs, --warmup-epochs, --schedule or --lr, as schedule and epochs belong together",
    "optimizer": "--lr or --weight-decay",
    "mixup": "--mixup, --cutmix or --smoothing",
    "criterion": "--smoothing, --mixup or --cutmix",
    "dtype": "--amp or --device",
    "train_loader.batch_size": "--batch-size",
    "train_loader": "--image-size",
    "train_data.randaugment": "--randaugment",
    "train_data.input_size": "--image-size",
    "train_data.files": "--data or --seed (which images are kept for validation)",
    "train_data": "NAME",
    "batches": "--data or --batch-size",
    "images": "--data",
    "val_images": "--data",
}


def _options(field: str) -> str:
    """The options of `train` that a setting of a `Trainer` comes from."""
    first = field.partition(".")[0]
    return _FIELDS.get(field) or _FIELDS.get(first) or f"--{first.replace('_', '-')}"


def _card(name: str) -> str | None:
    """The card of an entry of one's own, if it has one."""
    from mambavision.library import SHIPPED, LibraryError, library_root

    path = library_root() / name / "card.md"
    if name in SHIPPED or not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LibraryError(f"{path}: is not UTF-8 text; write it again as UTF-8, or remove it") from None


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
