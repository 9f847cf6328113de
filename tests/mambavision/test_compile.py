"""torch.compile and torch.export see a model as one graph, with each scan as one node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layouts import columnar, three_stages
from torch import Tensor

from mambavision import MambaVision
from mambavision.layout import LETTERS, HybridLayout
from mambavision.library import PUBLISHED


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def published_layout(name: str) -> HybridLayout:
    """A published layout, as deep as it is, but narrow; for 64 px, with several windows in stage 3."""
    layout = HybridLayout.from_dict(PUBLISHED[name]["layout"])
    return layout.override(dim=[4, 4, 8, 16], in_dim=4, heads=2, state=2, window=2)


def published(name: str) -> MambaVision:
    model = MambaVision(published_layout(name), num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)  # published layer scales start near zero
    return model


LAYOUTS: dict[str, tuple[HybridLayout, int]] = {
    "columnar": (columnar("GA", dim=8), 16),
    "all letters": (
        three_stages(window=[1, 3, None], blocks=["C", "MGP", "A"], expand=2, conv_kernel=4, layer_scale=0.5),
        16,
    ),
}


def scans(graph: torch.fx.Graph) -> int:
    return sum("selective_scan" in str(node.target) for node in graph.nodes)


def expected_scans(model: MambaVision) -> int:
    return sum(LETTERS[letter].scans for stage in model.layout.stages for letter in stage.blocks)


def gradients(model: MambaVision, logits: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(logits.square().sum(), parameters), strict=True))


def check_compile(model: MambaVision, size: int, backend: Any) -> None:
    """Compiled whole, with its backward pass: the same logits and gradients."""
    # Statistics of BatchNorm as in training would move between the two runs.
    model.eval()
    image = torch.randn(2, 3, size, size)
    expected = model(image)
    logits = torch.compile(model, fullgraph=True, backend=backend)(image)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(model, logits), gradients(model, expected), rtol=1e-3, atol=1e-4)


def check_export(model: MambaVision, size: int) -> None:
    """Exported with any batch: one node a scan, the same logits."""
    model.eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 3, size, size),), dynamic_shapes=({0: batch},))
    assert scans(program.graph) == expected_scans(model)
    exported = program.module()
    for count in (1, 3):
        image = torch.randn(count, 3, size, size)
        torch.testing.assert_close(exported(image), model(image))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_compile_whole(name: str) -> None:
    layout, size = LAYOUTS[name]
    check_compile(MambaVision(layout, num_classes=3), size, "aot_eager")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_export(name: str) -> None:
    layout, size = LAYOUTS[name]
    check_export(MambaVision(layout, num_classes=3), size)


# Names whose layouts are the same when narrow and of one window are tried once.
DISTINCT = {published_layout(name).key: name for name in PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT.values())
def test_published_models_compile_whole(name: str) -> None:
    """Captured as one graph; what a backend makes of it does not depend on the depth."""
    model = published(name).train()
    graphs = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(module.graph)
        return module

    torch.compile(model, fullgraph=True, backend=backend)(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [scans(graph) for graph in graphs] == [expected_scans(model)]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT.values())
def test_published_models_export(name: str) -> None:
    check_export(published(name), 64)


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(_compiler() is None, reason="inductor needs a C++ compiler")
def test_inductor(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layout, size = LAYOUTS["columnar"]
    check_compile(MambaVision(layout, num_classes=3), size, "inductor")


@pytest.mark.slow
def test_image_sizes_may_be_left_open() -> None:
    """Where windows are whole maps. With windows of a side the export holds for sizes that are padded alike."""
    model = MambaVision(three_stages("MA"), num_classes=3).eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(2, 3, 32, 48),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    assert scans(program.graph) == 2
    for size in ((64, 32), (32, 96), (41, 55)):
        image = torch.randn(3, 3, *size)
        torch.testing.assert_close(program.module()(image), model(image))
