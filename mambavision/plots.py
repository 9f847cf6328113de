"""Pictures of a training, of a data set and of an architecture, as plotly figures.

What is shown is worked out apart from how it is drawn: `curves`, `samples` and `diagram` give plain data.
Backgrounds are transparent and greys readable on white and on black.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from mambavision.cost import cost
from mambavision.layout import LETTERS, HybridLayout
from mambavision.look import ACCENT, GREY, GRID, figure_style
from mambavision.strip import colour, ink
from mambavision.words import scaled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from torch import Tensor

    from mambavision.model import MambaVision

# -- training curves -------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One line of a panel: a value for each epoch."""

    panel: str
    name: str
    epochs: Sequence[float]
    values: Sequence[float]


_PANELS = {"loss": "Loss (nats)", "top1": "Validation top-1 (%)", "rate": "Learning rate"}
_CURVES = {
    "train_loss": ("loss", "training"),
    "val_loss": ("loss", "validation"),
    "ema_val_loss": ("loss", "validation, EMA"),
    "val_top1": ("top1", "validation"),
    "ema_val_top1": ("top1", "validation, EMA"),
    "learning_rate": ("rate", "learning rate"),
}
_LINES = {"training": (GREY, "solid"), "validation": (ACCENT, "solid"), "validation, EMA": (ACCENT, "dash")}


def curves(metrics: Mapping[str, Sequence[float]]) -> list[Curve]:
    """The lines that metrics of a `Trainer` give, top-1 in percent.

    Raises:
        ValueError: metrics without epochs or losses, or with lists of different lengths.
    """
    if not isinstance(metrics, Mapping) and not hasattr(metrics, "columns"):  # a table of pandas does, too
        raise ValueError(
            f"metrics: a {type(metrics).__name__} is not allowed; what Trainer.train returns, of one epoch or more"
        )
    for name in ("epoch", "train_loss"):
        if name not in metrics or not len(metrics[name]):
            raise ValueError(f"metrics: {name} is missing; allowed is what Trainer.train returns, of one epoch or more")
    epochs = list(metrics["epoch"])
    found = []
    for key, (panel, name) in _CURVES.items():
        if key not in metrics:
            continue
        values = [100 * value if panel == "top1" else value for value in metrics[key]]
        if len(values) != len(epochs):
            raise ValueError(f"metrics: {key} has {len(values)} values for {len(epochs)} epochs; one each is allowed")
        found.append(Curve(panel, name, epochs, values))
    return found


def plot_training_curves(metrics: Mapping[str, Sequence[float]]) -> Figure:
    """Loss, top-1 and learning rate over the epochs, each on axes of its own.

    Args:
        metrics: what `Trainer.train` returned, or the columns of its log.csv.

    Raises:
        ValueError: metrics that hold no epoch.
    """
    from plotly.subplots import make_subplots

    lines = curves(metrics)
    panels = [panel for panel in _PANELS if any(line.panel == panel for line in lines)]
    figure = make_subplots(1, len(panels), subplot_titles=[_PANELS[panel] for panel in panels], horizontal_spacing=0.07)
    last = max(lines[0].epochs)
    for line in lines:
        fill, dash = _LINES.get(line.name, (GREY, "solid"))
        column = panels.index(line.panel) + 1
        figure.add_scatter(
            x=line.epochs,
            y=line.values,
            name=line.name,
            # A single epoch has no line to see.
            mode="lines" if len(line.epochs) > 1 else "markers",
            line={"color": fill, "dash": dash, "width": 2},
            marker={"color": fill},
            hovertemplate=f"epoch %{{x}}: %{{y:.4g}}<extra>{line.name}</extra>",
            row=1,
            col=column,
        )
    first, span = min(lines[0].epochs), max(last - min(lines[0].epochs), 1)
    for column, panel in enumerate(panels, start=1):
        own = [line for line in lines if line.panel == panel]
        if panel != "rate":
            for line, shift in zip(own, _apart(own), strict=True):
                figure.add_annotation(
                    x=last,
                    y=line.values[-1],
                    text=line.name,
                    xanchor="left",
                    yanchor="middle",
                    xshift=6,
                    yshift=shift,
                    showarrow=False,
                    font={"color": _LINES[line.name][0], "size": 12},
                    row=1,
                    col=column,
                )
        # Room for the names at the ends of the lines.
        figure.update_xaxes(range=[first - 0.04 * span, last + (0.06 if panel == "rate" else 0.6) * span], col=column)
    figure.update_layout(**figure_style("Training", _HEIGHT, top=84))
    ticks = list(range(int(first), int(last) + 1, math.ceil(span / 6)))
    figure.update_xaxes(title="Epoch", gridcolor=GRID, zeroline=False, automargin=True, tickvals=ticks)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_annotations(selector={"yref": "paper"}, font={"size": 13})
    if "rate" in panels:
        figure.update_yaxes(exponentformat="power", rangemode="tozero", col=panels.index("rate") + 1)
    return figure


_HEIGHT = 340
_PLOT = 200  # about what is left of it for the lines, in pixels
_NAME = 15  # pixels a name needs


def _apart(lines: Sequence[Curve]) -> list[float]:
    """Shifts in pixels that keep the names at the ends of lines apart, from the highest down."""
    values = [value for line in lines for value in line.values]
    scale = _PLOT / ((max(values) - min(values)) or 1)
    shifts = [0.0] * len(lines)
    above = math.inf
    for index in sorted(range(len(lines)), key=lambda i: -lines[i].values[-1]):
        own = lines[index].values[-1] * scale
        above = min(own, above - _NAME)
        shifts[index] = above - own
    return shifts


# -- samples ---------------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """One image as uint8 (H, W, 3), and what stands above it."""

    pixels: Any
    label: str


def samples(data: Any, n: int = 16) -> list[Sample]:
    """The first images of a data set or a loader, their values stretched to 0 to 255.

    Args:
        data: a data set of (image (C, H, W), label), or a loader of batches of them; 1 or 3 channels, of others the
            first. Class names come from its ``classes``.
        n: images, 1 or more; fewer if there are no more.

    Raises:
        ValueError: `n`, or data of another form.
    """
    if type(n) is not int or n < 1:
        raise ValueError(f"n: {n!r} is not allowed; a whole number, 1 or more")
    names = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)
    found = []
    for image, label in islice(_pairs(data), n):
        number = int(label)
        known = names is not None and 0 <= number < len(names)
        found.append(Sample(_pixels(image), str(names[number]) if known and names is not None else str(number)))
    if not found:
        raise ValueError("data: holds no images; allowed is a data set or a loader with one image or more")
    return found


def _pairs(data: Any) -> Iterable[tuple[Tensor, Any]]:
    import torch

    for item in data:
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], torch.Tensor)):
            raise ValueError(f"data: gives a {type(item).__name__}; allowed are pairs of an image tensor and its label")
        images, labels = item
        if images.ndim == 3:
            yield images, labels
        elif images.ndim == 4:
            yield from zip(images, labels, strict=True)
        else:
            raise ValueError(f"data: an image has shape {tuple(images.shape)}; allowed is (C, H, W)")


def _pixels(image: Tensor) -> Any:
    import torch

    pixels = image.detach().float().cpu()
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    low, high = float(pixels.min()), float(pixels.max())
    stretched = (pixels - low) * (255 / (high - low if high > low else 1))
    return stretched.round().to(torch.uint8).permute(1, 2, 0).numpy()


def visualize_sample_data(data: Any, n: int = 16) -> Figure:
    """A sheet of images with their classes.

    Args:
        data: a data set, or a `DataLoader`; see `samples`.
        n: how many images.

    Raises:
        ValueError: `n`, or data of another form.
    """
    from plotly.subplots import make_subplots

    shown = samples(data, n)
    columns = min(8, math.ceil(math.sqrt(len(shown) * 1.6)))
    rows = math.ceil(len(shown) / columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[html.escape(sample.label) for sample in shown],
        horizontal_spacing=0.012,
        vertical_spacing=min(0.28 / rows, 0.14),
    )
    for number, sample in enumerate(shown):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        figure.add_image(source=_data_uri(sample.pixels), hoverinfo="skip", **place)
    figure.update_layout(**figure_style(f"{len(shown)} images", 70 + rows * 150, top=64))
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain")
    figure.update_annotations(font={"size": 12})
    return figure


def _data_uri(pixels: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# -- architecture ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of an architecture: the stem, a stage with the downsample at its end, or the head.

    Attributes:
        name: e.g. ``"stage 3"``.
        blocks: letters; none of the stem and the head.
        dim: channels of its map.
        size: height and width of its map in tokens; (1, 1) of the head.
        window: side of the windows in tokens, None for the whole map or where nothing is mixed.
        state: state size where it scans, else None.
        heads: where it attends, else None.
        params: parameters, all of a part's together.
        macs: multiply-adds of an image, likewise, without the scan.
        letters: parameters and multiply-adds of one block of each letter in it.
    """

    name: str
    blocks: str
    dim: int
    size: tuple[int, int]
    window: int | None
    state: int | None
    heads: int | None
    params: int
    macs: int
    letters: dict[str, tuple[int, int]]


def diagram(
    layout: HybridLayout, image_size: int | tuple[int, int] = 224, *, num_classes: int = 1000, in_chans: int = 3
) -> list[Part]:
    """The parts of an architecture from image to logits, with shapes and costs in closed form.

    Raises:
        LayoutError: an image size that the layout cannot take.
    """
    # Costs add up over blocks, so that differences between layouts give the cost of each part.
    price = _Price(image_size, in_chans)
    parts = []
    sizes = layout.feature_sizes(image_size)
    before = (0, 0)
    for number, stage in enumerate(layout.stages):
        letters = {letter: price.block(layout, number, letter) for letter in dict.fromkeys(stage.blocks)}
        counts = Counter(stage.blocks)
        own = tuple(sum(counts[letter] * letters[letter][i] for letter in letters) for i in (0, 1))
        through = price.until(layout, number)
        # What is before the blocks of a stage: the stem, or the downsample at the end of the stage before.
        entry = (through[0] - before[0] - own[0], through[1] - before[1] - own[1])
        if number == 0:
            parts.append(Part("stem", "", stage.dim, sizes[0], None, None, None, *entry, {}))
        else:
            last = parts[-1]
            parts[-1] = dataclasses.replace(last, params=last.params + entry[0], macs=last.macs + entry[1])
        parts.append(
            Part(
                name=f"stage {number + 1}",
                blocks=stage.blocks,
                dim=stage.dim,
                size=sizes[number],
                window=stage.window if stage.hybrid else None,
                state=stage.state if stage.scans else None,
                heads=stage.heads if stage.attends else None,
                params=own[0],
                macs=own[1],
                letters=letters,
            )
        )
        before = through
    whole = cost(layout, image_size, num_classes, in_chans)
    head = (whole.params - before[0], whole.macs - before[1])
    return [*parts, Part("head", "", num_classes, (1, 1), None, None, None, *head, {})]


class _Price:
    """Parameters and multiply-adds as pairs."""

    def __init__(self, image_size: int | tuple[int, int], in_chans: int) -> None:
        self.image_size = image_size
        self.in_chans = in_chans

    def until(self, layout: HybridLayout, number: int) -> tuple[int, int]:
        """Of the stem and the stages up to one, without the norm that follows the last stage."""
        stages, strides = layout.stages[: number + 1], (layout.downsample or ())[:number]
        found = cost(dataclasses.replace(layout, stages=stages, downsample=strides), self.image_size, 0, self.in_chans)
        return found.params - 2 * stages[-1].dim, found.macs

    def block(self, layout: HybridLayout, number: int, letter: str) -> tuple[int, int]:
        """Of one block of a letter in a stage."""

        def of(blocks: str) -> tuple[int, int]:
            stage = dataclasses.replace(layout.stages[number], blocks=blocks)
            stages = (*layout.stages[:number], stage, *layout.stages[number + 1 :])
            found = cost(dataclasses.replace(layout, stages=stages), self.image_size, 0, self.in_chans)
            return found.params, found.macs

        two, one = of(letter * 2), of(letter)
        return two[0] - one[0], two[1] - one[1]


def model_architecture_diagram(
    model: MambaVision | HybridLayout,
    image_size: int | tuple[int, int] = 224,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
) -> Figure:
    """An architecture from left to right: a cell a block, its letter and colour; shapes, parameters and MACs below.

    Args:
        model: a `MambaVision`, or a layout alone. Cells are the higher, the wider their stage is.
        image_size: side of the image in pixels, or (height, width).
        num_classes: width of the classifier, for a layout; a model knows its own.
        in_chans: channels of the image, likewise.

    Raises:
        ValueError: something else than a model or a layout, or an image size below 1.
        LayoutError: an image size that the layout cannot take.
    """
    import plotly.graph_objects as go

    layout = model if isinstance(model, HybridLayout) else getattr(model, "layout", None)
    if not isinstance(layout, HybridLayout):
        raise ValueError(f"model: a {type(model).__name__} is not allowed; a MambaVision or a HybridLayout")
    if not isinstance(model, HybridLayout):
        num_classes, in_chans = model.num_classes, model.in_chans
    pair = image_size if isinstance(image_size, (list, tuple)) else (image_size, image_size)
    if len(pair) != 2 or not all(type(side) is int and side >= 1 for side in pair):
        raise ValueError(f"image_size: {image_size!r} is not allowed; a whole number, 1 or more, or (height, width)")
    height, width = pair
    parts = diagram(layout, (height, width), num_classes=num_classes, in_chans=in_chans)
    widest = max(part.dim for part in parts if part.blocks)
    # Text keeps its size on a long drawing, so what holds only text takes a share of it.
    cells = sum(len(part.blocks) for part in parts) + _GAP * len(parts)
    room = max(4.4, 0.13 * cells)
    canvas = _Canvas()
    canvas.text(room / 2, 0, "image")
    canvas.lines(room / 2, [f"{in_chans} × {height} × {width}"])
    x = room
    for part in parts:
        wide = max(float(len(part.blocks)), room)
        if part.blocks:
            canvas.stage(x + (wide - len(part.blocks)) / 2, 1.0 + 1.6 * part.dim / widest, part)
        else:
            canvas.box(x + 0.2 * wide, x + 0.8 * wide, 1.0, "rgba(0,0,0,0)")
            canvas.text(x + wide / 2, 0, part.name)
            canvas.hover(x + wide / 2, f"{part.name}<br>{part.params:,} parameters · {part.macs:,} MACs")
        canvas.lines(x + wide / 2, _captions(part))
        x += wide + (_GAP if part.blocks else 0.4 * _GAP)
    used = [letter for letter in LETTERS if any(letter in part.blocks for part in parts)]
    canvas.texts.append(
        {
            "x": 0,
            "y": 0,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "top",
            "yshift": -6,
            "text": " · ".join(f"<b>{letter}</b> {LETTERS[letter].name}" for letter in used),
            "showarrow": False,
        }
    )
    figure = go.Figure()
    figure.add_scatter(
        x=[spot[0] for spot in canvas.hovers],
        y=[0] * len(canvas.hovers),
        text=[spot[1] for spot in canvas.hovers],
        mode="markers",
        marker={"size": 24, "color": "rgba(0,0,0,0)"},
        hovertemplate="%{text}<extra></extra>",
    )
    total = (sum(part.params for part in parts), sum(part.macs for part in parts))
    title = f"{layout.pattern}: {scaled(total[0])} parameters, {scaled(total[1])} MACs at {height} × {width} px"
    figure.update_layout(
        **figure_style(title, 330, top=48)
        | {
            "margin": {"l": 10, "r": 10, "t": 48, "b": 34},
            "shapes": canvas.shapes,
            "annotations": canvas.texts,
            "xaxis": {"visible": False, "range": [-0.3, x + 0.3], "fixedrange": True},
            "yaxis": {"visible": False, "range": [-4.4, 1.5], "fixedrange": True},
        }
    )
    return figure


_GAP = 1.1  # between parts, where a cell is 1 wide


class _Canvas:
    """Shapes, texts and hovers, gathered first: plotly takes thousands at once far faster than one by one."""

    def __init__(self) -> None:
        self.shapes: list[dict[str, Any]] = []
        self.texts: list[dict[str, Any]] = []
        self.hovers: list[tuple[float, str]] = []

    def stage(self, left: float, tall: float, part: Part) -> None:
        """The cells of a stage."""
        for letter in part.blocks:
            fill = colour(letter)
            self.box(left, left + 0.94, tall, fill)
            self.text(left + 0.47, 0, f"<b>{html.escape(letter)}</b>", {"color": ink(fill), "size": 13})
            params, macs = part.letters[letter]
            told = f"{letter}: {LETTERS[letter].name}<br>{scaled(params)} parameters · {scaled(macs)} MACs"
            self.hover(left + 0.47, told)
            left += 1

    def box(self, left: float, right: float, tall: float, fill: str) -> None:
        line = {"color": GREY, "width": 1 if fill.startswith("rgba") else 0}
        corners = {"x0": left, "x1": right, "y0": -tall / 2, "y1": tall / 2}
        self.shapes.append({"type": "rect", **corners, "fillcolor": fill, "line": line})

    def text(self, x: float, y: float, text: str, font: dict[str, Any] | None = None) -> None:
        self.texts.append({"x": x, "y": y, "text": text, "showarrow": False, "font": font or {}})

    def lines(self, x: float, lines: Sequence[str]) -> None:
        """Small lines below the drawing."""
        for number, line in enumerate(lines):
            self.text(x, -1.9 - 0.62 * number, line, {"size": 11})

    def hover(self, x: float, text: str) -> None:
        self.hovers.append((x, text))


def _captions(part: Part) -> list[str]:
    shape = f"{part.dim:,} classes" if part.name == "head" else f"{part.dim} × {part.size[0]} × {part.size[1]}"
    facts = [f"N{part.state}"] if part.state is not None else []
    facts += [f"{part.heads} heads"] if part.heads is not None else []
    facts += [f"window {part.window}"] if part.window is not None else []
    lines = [shape, f"{scaled(part.params)} params", f"{scaled(part.macs)} MACs"]
    return [*lines, ", ".join(facts)] if facts else lines
