"""What the figures are made of, and that they draw."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pandas as pd
import pytest
import torch
from layouts import columnar, three_stages
from torch.utils.data import DataLoader, TensorDataset

from mambavision import create_synthetic_dataset, plots
from mambavision.cost import cost
from mambavision.layout import LETTERS, HybridLayout, LayoutError
from mambavision.library import SHIPPED
from mambavision.model import MambaVision

METRICS = {
    "epoch": [1, 2, 3],
    "train_loss": [2.0, 1.5, 1.0],
    "val_loss": [2.1, 1.6, 1.2],
    "val_top1": [0.2, 0.4, 0.5],
    "ema_val_loss": [2.2, 1.8, 1.3],
    "ema_val_top1": [0.1, 0.3, 0.45],
    "learning_rate": [1e-3, 5e-4, 1e-4],
    "seconds": [1.0, 1.0, 1.0],
}


def test_curves_are_lines_of_three_panels() -> None:
    found = plots.curves(METRICS)
    assert [(curve.panel, curve.name) for curve in found] == [
        ("loss", "training"),
        ("loss", "validation"),
        ("loss", "validation, EMA"),
        ("top1", "validation"),
        ("top1", "validation, EMA"),
        ("rate", "learning rate"),
    ]
    assert found[3].values == pytest.approx([20, 40, 50]), "percent"
    assert all(curve.epochs == [1, 2, 3] for curve in found)


def test_training_curves_have_axes_of_their_own() -> None:
    figure = plots.plot_training_curves(METRICS)
    assert len({trace.yaxis for trace in figure.data}) == 3
    assert all(not axis.overlaying for axis in figure.select_yaxes())
    titles = {annotation.text for annotation in figure.layout.annotations}
    assert {"Loss (nats)", "Validation top-1 (%)", "Learning rate", "training", "validation, EMA"} <= titles
    assert figure.layout.xaxis.tickvals == (1, 2, 3)
    alone = plots.plot_training_curves({"epoch": [1], "train_loss": [2.0]})
    assert alone.data[0].mode == "markers"


def test_names_at_the_ends_of_curves_keep_apart() -> None:
    lines = [plots.Curve("loss", name, [1, 2], [9.0, end]) for name, end in (("a", 1.0), ("b", 1.01), ("c", 3.0))]
    shifts = plots._apart(lines)
    scale = plots._PLOT / 8
    places = sorted(line.values[-1] * scale + shift for line, shift in zip(lines, shifts, strict=True))
    assert all(above - below >= plots._NAME - 1e-6 for below, above in itertools.pairwise(places))
    assert shifts[2] == 0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, "metrics: a NoneType is not allowed; what Trainer.train returns"),
        ([1.0], "metrics: a list is not allowed"),
        ({}, "metrics: epoch is missing; allowed is what Trainer.train returns"),
        ({"epoch": []}, "epoch is missing"),
        ({"epoch": [1]}, "train_loss is missing"),
        (METRICS | {"val_loss": [1.0]}, "val_loss has 1 values for 3 epochs"),
    ],
)
def test_metrics_that_cannot_be_drawn(metrics: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_training_curves(metrics)


def test_samples_are_stretched_and_named() -> None:
    data = create_synthetic_dataset(12, image_size=16, num_classes=3)
    found = plots.samples(data, 5)
    assert [sample.label for sample in found] == ["class 0", "class 1", "class 2", "class 0", "class 1"]
    for sample, (image, _) in zip(found, data, strict=False):
        assert sample.pixels.shape == (16, 16, 3)
        assert (sample.pixels.min(), sample.pixels.max()) == (0, 255)
        brightest = image.flatten().argmax().item()
        assert sample.pixels.transpose(2, 0, 1).flatten()[brightest] == 255
    batched = plots.samples(DataLoader(data, 4), 5)
    assert [sample.label for sample in batched] == [sample.label for sample in found]
    assert all((a.pixels == b.pixels).all() for a, b in zip(found, batched, strict=True))


def test_samples_of_grey_constant_and_few_images() -> None:
    data = TensorDataset(torch.ones(2, 1, 8, 8), torch.tensor([3, 4]))
    found = plots.samples(data)
    assert [sample.label for sample in found] == ["3", "4"]
    assert found[0].pixels.shape == (8, 8, 3)
    figure = plots.visualize_sample_data(data)
    assert len(figure.data) == 2
    assert figure.data[0].source.startswith("data:image/png;base64,")
    assert len(plots.visualize_sample_data(create_synthetic_dataset(40, image_size=16), n=17).data) == 17


@pytest.mark.parametrize(
    ("data", "n", "message"),
    [
        (create_synthetic_dataset(2, image_size=8), 0, "n: 0 is not allowed; a whole number, 1 or more"),
        ([], 4, "data: holds no images"),
        ([1], 4, "data: gives a int; allowed are pairs of an image tensor and its label"),
        ([(torch.ones(8, 8), 0)], 4, r"an image has shape \(8, 8\); allowed is \(C, H, W\)"),
    ],
)
def test_data_that_cannot_be_shown(data: Any, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.visualize_sample_data(data, n)


def parameters(model: MambaVision) -> list[int]:
    """Of the stem, each stage with its downsample, and the head with the norm before it."""
    parts = [model.patch_embed, *model.levels]
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    return [*counts, sum(p.numel() for p in model.parameters()) - sum(counts)]


@pytest.mark.parametrize(
    "layout",
    [three_stages(), three_stages("MM", window=4, downsample=(1, 2)), columnar("MMA"), columnar("A", patch=8)],
    ids=str,
)
def test_parts_have_the_parameters_of_the_built_model(layout: HybridLayout) -> None:
    parts = plots.diagram(layout, 32, num_classes=7, in_chans=1)
    assert [part.params for part in parts] == parameters(MambaVision(layout, num_classes=7, in_chans=1))
    whole = cost(layout, 32, 7, 1)
    assert sum(part.params for part in parts) == whole.params
    assert sum(part.macs for part in parts) == whole.macs
    assert all(part.macs > 0 for part in parts)
    assert [part.size for part in parts[1:-1]] == list(layout.feature_sizes(32))
    assert "".join(part.blocks for part in parts) == layout.pattern.replace("|", "")


@pytest.mark.parametrize("name", SHIPPED)
def test_parts_of_shipped_layouts_add_up(name: str) -> None:
    layout, size = HybridLayout.from_dict(SHIPPED[name]["layout"]), SHIPPED[name]["input_size"][1]
    parts, whole = plots.diagram(layout, size), cost(layout, size)
    assert sum(part.params for part in parts) == whole.params
    assert sum(part.macs for part in parts) == whole.macs


@pytest.mark.parametrize("name", ["mambavision_t", "mambavision_l3", "mambavision_columnar_tiny"])
def test_shipped_layouts_are_drawn(name: str) -> None:
    config = SHIPPED[name]
    layout = HybridLayout.from_dict(config["layout"])
    figure = plots.model_architecture_diagram(layout, config["input_size"][1])
    cells = [shape for shape in figure.layout.shapes if not shape.fillcolor.startswith("rgba")]
    assert [shape.fillcolor for shape in cells] == [LETTERS[b].colour for s in layout.stages for b in s.blocks]
    heights = [shape.y1 - shape.y0 for shape in cells]
    assert heights == sorted(heights), "wider stages are higher, and these grow"
    left = [shape.x0 for shape in cells]
    assert left == sorted(left)
    texts = [annotation.text for annotation in figure.layout.annotations]
    for stage, (height, width) in zip(layout.stages, layout.feature_sizes(config["input_size"][1]), strict=True):
        assert f"{stage.dim} × {height} × {width}" in texts
    assert len(texts) == len({(a.x, a.y, a.text) for a in figure.layout.annotations})


def test_a_diagram_of_a_model_knows_its_classes_and_channels() -> None:
    model = MambaVision(three_stages(), num_classes=7, in_chans=1)
    figure = plots.model_architecture_diagram(model, (32, 48))
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert {"1 × 32 × 48", "7 classes", "8 × 16 × 24"} <= set(texts)
    assert any(re.search("<b>M</b> MambaVision mixer · <b>A</b> self-attention", text) for text in texts)
    json.loads(figure.to_json())


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model: a Linear is not allowed; a MambaVision or a HybridLayout"):
        plots.model_architecture_diagram(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="at most the image size"):
        plots.model_architecture_diagram(columnar(patch=16), 8)
    for size in (0, -1, 1.5, None, "64", (64,), (0, 64)):
        with pytest.raises(ValueError, match=r"image_size: .* is not allowed; a whole number, 1 or more, or"):
            plots.model_architecture_diagram(three_stages(), size)  # type: ignore[arg-type]


def test_a_table_of_metrics_is_drawn() -> None:
    assert plots.curves(pd.DataFrame(METRICS)) == plots.curves(METRICS)
