"""The command line `mambavision`: list, show, train. What a verb needs is imported when it runs."""

from __future__ import annotations

import contextlib
import enum
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mambavision.look import console


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
    from mambavision.plots import diagram, model_architecture_diagram
    from mambavision.strip import rich_strip
    from mambavision.words import scaled

    config, layout = _entry(name)
    _positive("image_size", image_size)
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
        table.add_row(
            part.name,
            part.blocks,
            f"{part.dim:,}" if head else f"{part.dim} × {part.size[0]} × {part.size[1]}",
            "–" if not part.blocks or part.blocks[0] == "C" else str(part.window or "whole map"),
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
        _write(html, figure.to_html())
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
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images a batch.")] = 64,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Batches an update.")] = 1,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Highest learning rate of AdamW.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Weight decay.")] = 0.05,
    schedule: Annotated[Schedule, typer.Option(help="Learning rate over the updates.")] = Schedule.cosine,
    warmup_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs of linear warm-up; default a tenth, at most 5.")
    ] = None,
    clip_norm: Annotated[float, typer.Option(metavar="X", help="Largest norm of the gradient; 0 does not clip.")] = 5.0,
    image_size: ImageSize = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not start from the entry's weights.")
    ] = False,
    mixup: Annotated[float, typer.Option(metavar="ALPHA", help="timm's mixup; 0 for none.")] = 0.2,
    cutmix: Annotated[float, typer.Option(metavar="ALPHA", help="timm's CutMix; 0 for none.")] = 0.0,
    smoothing: Annotated[float, typer.Option(metavar="X", help="Label smoothing, 0 to below 1.")] = 0.1,
    randaugment: Annotated[
        str, typer.Option(metavar="SPEC", help="timm's RandAugment, or none.")
    ] = "rand-m9-mstd0.5-inc1",
    ema: Annotated[float, typer.Option(metavar="DECAY", help="Average of the weights; 0 for none.")] = 0.999,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes that decode images.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of a fresh start, order and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    amp: Annotated[bool, typer.Option("--amp/--no-amp", help="Mixed precision on a GPU.")] = True,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from a checkpoint in DIR.")] = True,
    checkpoint_every: Annotated[int, typer.Option(metavar="N", help="Updates between two checkpoints.")] = 200,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files, too.")] = False,
) -> None:
    """Train a model on a folder of images; the same command goes on with a training that was stopped."""
    config, layout = _entry(name)
    for field, value in (("epochs", epochs), ("batch_size", batch_size), ("image_size", image_size)):
        _positive(field, value)
    for field, number, top in (("mixup", mixup, 100.0), ("cutmix", cutmix, 100.0), ("smoothing", smoothing, 0.999)):
        _within(field, number, 0.0, top)
    for field, number in (("lr", lr), ("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        _within(field, number, 0.0, 1000.0)
    _positive("warmup_epochs", warmup_epochs, least=0)
    if save_as is not None:
        from mambavision.library import free_folder

        free_folder(save_as, overwrite=overwrite)  # complains before hours of training, not after them
    folder = Path("trained") / name if output is None else output.expanduser()
    _writable(folder)
    out = console(width=200)
    with out.status("loading PyTorch and the folder …"):
        import torch
        from timm.data import Mixup
        from timm.scheduler import create_scheduler_v2

        from mambavision.data import create_image_loaders
        from mambavision.library import SHIPPED, create_model
        from mambavision.training import OtherTraining, Trainer, default_optimizer
        from mambavision.words import plural

        if workers is None:
            workers = min(8, (os.cpu_count() or 1) - 1)
        spec = None if randaugment == "none" else randaugment
        train_loader, val_loader = create_image_loaders(
            data, config, batch_size=batch_size, image_size=image_size, randaugment=spec, workers=workers, seed=seed
        )
        classes: tuple[str, ...] = train_loader.dataset.classes  # type: ignore[attr-defined]
        pretrained = name not in SHIPPED and not from_scratch
        torch.manual_seed(seed)
        model = create_model(name, num_classes=len(classes), pretrained=pretrained)
        start = "from fresh weights"
        if pretrained:
            start = f"from the weights of `{name}`"
            if list(classes) != list(config.get("classes", classes)) and model.num_classes == config["num_classes"]:
                # As many classes, but others: what its classifier has learned is about those.
                model.reset_classifier(len(classes))
    updates = math.ceil(len(train_loader) / max(1, accumulate))
    optimizer = default_optimizer(model, learning_rate=lr, weight_decay=weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        schedule.value,
        num_epochs=epochs,
        warmup_epochs=min(5, epochs // 10) if warmup_epochs is None else warmup_epochs,
        warmup_lr=lr / 100,
        min_lr=lr / 100,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    blend = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=len(classes)) if mixup or cutmix else None
    criterion = None if blend else torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    trainer = Trainer(
        model,
        train_loader,
        val_loader,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=scheduler,
        device=device,
        use_amp=amp,
        ema=ema or None,
        clip_norm=clip_norm or None,
        accumulate=accumulate,
        mixup=blend,
        output=folder,
        tensorboard=tensorboard,
        checkpoint_every=checkpoint_every,
        resume=resume,
        seed=seed,
    )
    images = {"train_images": len(train_loader.dataset), "val_images": len(val_loader.dataset)}  # type: ignore[arg-type]
    out.print(
        f"{name} {start.replace('`', '')}: {images['train_images']:,} training and {images['val_images']:,} validation "
        f"images in {len(classes)} classes, batch {train_loader.batch_size}, {plural(epochs, 'epoch')} "
        f"on {trainer.device}"
    )
    try:
        trainer.train(num_epochs=epochs)
    except OtherTraining as error:
        raise _BadOption(f"{error}. On the command line: {_options(error.field)}") from None
    best = trainer.best
    assert best is not None, "an epoch was measured"
    kind = ", averaged weights" if best["ema"] else ""
    out.print(
        f"Best: epoch {best['epoch']}{kind}, top-1 {100 * best['val_top1']:.1f} % of {images['val_images']:,} "
        "validation images"
    )
    out.print(f"Written: {folder / 'best.safetensors'}, {folder / 'log.csv'}, {folder / 'checkpoint.pt'}")
    if save_as is None:
        out.print(f"Next: the same command with --name NEW saves {name} so trained into the library")
        return
    trained = {
        **images,
        "from": start,
        "epochs": epochs,
        "best": best,
        "command": f"mambavision {shlex.join(sys.argv[1:])}",
    }
    entry = _save(save_as, config, layout, folder, list(classes), image_size, trained, overwrite)
    out.print(f"Written: {entry}")
    out.print(f'Next: mambavision show {save_as}, or mambavision.create_model("{save_as}", pretrained=True)')


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


def _writable(folder: Path) -> None:
    """Refuse an output that cannot be, before anything is loaded; makes nothing, as other options may be wrong too."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _BadOption(f"output: {str(folder)!r} cannot be written ({error.strerror})") from None
    if not there.is_dir():
        which = "it" if there == folder.absolute() else repr(str(there))
        raise _BadOption(f"output: {str(folder)!r} cannot be written; {which} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _BadOption(f"output: {str(folder)!r} cannot be written (no right to write in {str(there)!r})")


def _write(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that a full disk leaves no half of it."""
    # What is no plain file, such as /dev/stdout, cannot be replaced.
    scratch = path if os.path.exists(path) and not os.path.isfile(path) else path.with_name(f".{path.name}.new")
    try:
        scratch.write_text(text, encoding="utf-8")
        if scratch != path:
            os.replace(scratch, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if scratch != path:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)


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


def _save(
    name: str,
    config: dict[str, Any],
    layout: Any,
    folder: Path,
    classes: list[str],
    image_size: int | None,
    trained: dict[str, Any],
    overwrite: bool,
) -> Path:
    from safetensors.torch import load_file

    from mambavision.card import trained_card
    from mambavision.library import save_entry

    kept = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "drop_path_rate")
    size = config["input_size"][1:] if image_size is None else [image_size, image_size]
    own = {field: config[field] for field in kept if field in config} | {
        "input_size": [config["in_chans"], *size],
        "classes": classes,
        "weights": "trained on a folder",
        "trained": trained,
    }
    card = trained_card(name, own | {"layout": layout.to_dict(), "num_classes": len(classes)})
    return save_entry(
        name,
        layout,
        load_file(folder / "best.safetensors"),
        num_classes=len(classes),
        in_chans=config["in_chans"],
        config=own,
        card=card,
        overwrite=overwrite,
    )


def _entry(name: str) -> tuple[dict[str, Any], Any]:
    from mambavision.layout import HybridLayout, LayoutError
    from mambavision.library import LibraryError, load_entry_config

    config = load_entry_config(name)
    for field in ("input_size", "mean", "std"):
        if field not in config:
            raise LibraryError(f"{name}: its config.json lacks {field}")
    try:
        return config, HybridLayout.from_dict(config["layout"])
    except LayoutError as error:
        raise LibraryError(f"{name}: its config.json holds no valid layout ({error})") from None


def _positive(field: str, value: int | None, least: int = 1) -> None:
    if value is not None and value < least:
        raise _BadOption(f"{field}: {value!r} is not allowed; a whole number, {least} or more")


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise _BadOption(f"{field}: {value!r} is not allowed; a number from {low:g} to {high:g}")


class _BadOption(ValueError):
    """An option that is not allowed."""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
