"""ONNX files against the model in torch: same numbers in onnxruntime, one Scan a Mamba block, clear refusals."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from layouts import columnar, three_stages
from torch import Tensor, nn

from mambavision import ExportError, MambaVision, create_model, export_onnx, onnx_export
from mambavision.layout import LETTERS, HybridLayout, StageLayout
from mambavision.scan import selective_scan

TINY = columnar("G", dim=4)


def model() -> MambaVision:
    torch.manual_seed(0)
    return MambaVision(TINY, num_classes=2)


def randomised(model: nn.Module, noise: float = 0.3) -> nn.Module:
    """In eval mode, with weights and statistics far from where they start, so that no term is near zero or one."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape, generator=generator), alpha=noise)
    return model.eval()


def images(model: MambaVision, batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, model.in_chans, *size, generator=torch.Generator().manual_seed(batch))


def run(path: Path, image: Tensor) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]


def assert_same(path: Path, model: MambaVision, size: tuple[int, int], batches: tuple[int, ...] = (1, 3)) -> None:
    for batch in batches:
        image = images(model, batch, size)
        with torch.no_grad():
            expected = model(image)
        # Logits that hardly depend on the image would agree whatever is inside.
        assert batch == 1 or expected.std(0).max() > 0.05
        torch.testing.assert_close(run(path, image)[0], expected, rtol=1e-4, atol=1e-4)


def shapes(values: Any) -> dict[str, list[str | int]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


# -- same numbers -----------------------------------------------------------------------------------------------------


def one_stage(blocks: str, **changes: Any) -> HybridLayout:
    stage = StageLayout(blocks=blocks, dim=8, heads=2, state=3)
    return HybridLayout(stages=(stage,), in_dim=4, stem_stride=2).override(**changes)


LAYOUTS = {
    # Padding, an even kernel, expansion and layer scale where the windows cut the map; the whole map behind it.
    "windows": (
        three_stages(window=[1, 3, None], blocks=["C", "MG", "A"], conv_kernel=4, expand=2, layer_scale=0.5),
        (16, 20),
    ),
    "columnar": (columnar("GA").override(qk_norm=True), (16, 24)),
    "parallel": (one_stage("MP", window=3), (16, 16)),
}
MORE_LAYOUTS = {
    "exact windows": (one_stage("M", window=4), (16, 16)),
    "window larger than the map": (one_stage("GA", window=10), (16, 16)),
    "odd sizes": (one_stage("M", window=3), (17, 13)),
    "a window of one token": (one_stage("M", window=1), (8, 8)),
    "one state": (one_stage("M", state=1), (8, 8)),
    "many states, wide kernel": (one_stage("G", state=24, conv_kernel=7), (8, 8)),
    "conv only": (HybridLayout(stages=(StageLayout(blocks="CC", dim=4, layer_scale=0.5),)), (16, 16)),
}


def check_layout(layout: HybridLayout, size: tuple[int, int], path: Path) -> None:
    model = randomised(MambaVision(layout, num_classes=5, in_chans=2))
    # The comparison here is the stricter one.
    assert export_onnx(model, path, size, verify=False) == path
    assert_same(path, model, size)

    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert shapes(file.graph.input) == {"image": ["batch", 2, *size]}
    assert shapes(file.graph.output) == {"logits": ["batch", 5]}
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert metadata["layout_key"] == layout.key
    assert HybridLayout.from_json(metadata["layout"]) == layout
    assert json.loads(metadata["image_size"]) == list(size)

    blocks = "".join(stage.blocks for stage in layout.stages)
    counts = [sum(node.op_type == kind for node in file.graph.node) for kind in ("Scan", "Exp")]
    assert counts == [sum(LETTERS[letter].scans for letter in blocks), 0]  # no step outside a Scan
    assert not file.functions
    for node in file.graph.node:
        if node.op_type == "Scan":
            (body,) = [attribute.g for attribute in node.attribute if attribute.name == "body"]
            assert sorted(step.op_type for step in body.node) == ["Add", "Exp", "MatMul", "Mul", "Mul", "Mul"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_onnxruntime_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    check_layout(*LAYOUTS[name], tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_LAYOUTS)
def test_onnxruntime_gives_the_same_logits_for_more_layouts(name: str, tmp_path: Path) -> None:
    check_layout(*MORE_LAYOUTS[name], tmp_path / "model.onnx")


@pytest.mark.slow
def test_mambavision_t_at_224_px(tmp_path: Path) -> None:
    # Wide layers of larger weights have logits of thousands, on which an absolute tolerance means nothing.
    model = randomised(create_model("mambavision_t"), noise=0.03)
    start = time.process_time()  # other work on the machine does not count
    path = export_onnx(model, tmp_path / "t.onnx", 224, verify=False)
    seconds = time.process_time() - start
    assert sum(node.op_type == "Scan" for node in onnx.load(path).graph.node) == 6
    assert_same(path, model, (224, 224), (1, 2))
    assert seconds < 60


class EveryForm(nn.Module):
    """The operator alone, with and without each of its options."""

    forms = tuple(itertools.product([False, True], repeat=3))

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Arguments as of `selective_scan`."""
        *inputs, D, bias = tensors
        return [
            selective_scan(*inputs, D if skip else None, bias if biased else None, softplus)
            for skip, biased, softplus in self.forms
        ]


def test_every_form_of_the_operator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names, batch = ("u", "delta", "A", "B", "C", "D", "bias"), {0: "batch"}

    def inputs(count: int) -> tuple[Tensor, ...]:
        u, B, C = (torch.randn(count, rows, 6) for rows in (4, 3, 3))
        return u, torch.rand(count, 4, 6), -torch.rand(4, 3), B, C, torch.randn(4), torch.rand(4)

    module = EveryForm().eval()
    torch.onnx.export(
        module,
        (inputs(2)),
        tmp_path / "scan.onnx",
        input_names=names,
        dynamic_shapes=((batch, batch, None, batch, batch, None, None),),
        custom_translation_table=onnx_export.translation_table(),
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "scan.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        args = inputs(count)
        results = session.run(None, {name: value.numpy() for name, value in zip(names, args, strict=True)})
        for form, expected, result in zip(module.forms, module(*args), results, strict=True):
            torch.testing.assert_close(
                torch.from_numpy(result), expected, rtol=1e-5, atol=1e-5, msg=lambda text, form=form: f"{form}: {text}"
            )


# -- options ----------------------------------------------------------------------------------------------------------


def test_fixed_batch_older_opset_no_classes(tmp_path: Path) -> None:
    model = randomised(MambaVision(TINY, num_classes=0))
    path = export_onnx(model, tmp_path / "model.onnx", 8, dynamic_batch=False, opset=18)
    file = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 18)]
    assert shapes(file.graph.input) == {"image": [1, 3, 8, 8]}
    assert shapes(file.graph.output) == {"logits": [1, 4]}
    assert_same(path, model, (8, 8), (1,))


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `model()`, randomised, that replaced an older one. The model stayed as it was."""
    trained = randomised(model()).train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    random_state = torch.get_rng_state()
    checked: list[Any] = []
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    path.write_text("an older file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "EMBEDDED_BYTES", 0)  # its weights in a second file, as those of a large model
        patch.setattr(onnx_export, "_verify", lambda *args: checked.append(args))
        assert export_onnx(trained, str(path), (8, 8)) == path
    ((file, twin, image),) = checked
    assert file.name == path.name
    assert not twin.training
    assert image.shape == (3, 3, 8, 8)
    assert all(module.training for module in trained.modules())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    return path


def test_weights_in_a_second_file(tiny_file: Path) -> None:
    assert sorted(file.name for file in tiny_file.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert_same(tiny_file, randomised(model()), (8, 8))


@pytest.mark.slow
def test_feature_maps_of_timm_s_wrapper(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("mambavision_t", features_only=True, out_indices=(1, 2), dim=[4, 8, 16, 32], heads=2)
    randomised(model, noise=0.1)
    path = export_onnx(model, tmp_path / "model.onnx", 64)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
    assert list(shapes(onnx.load(path).graph.output)) == ["feature_0", "feature_1"]
    torch.testing.assert_close(run(path, image), expected, rtol=1e-4, atol=1e-4)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 8.0, "8", (8,), (8, 0), (8, 8.0), True, None, (8, 8, 8)])
def test_bad_image_sizes_are_named(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^image_size: .* is not allowed; pixels, one number or \(height, width\)"):
        export_onnx(model(), tmp_path / "model.onnx", size)


def test_an_image_smaller_than_a_patch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^image_size: 3 is not allowed \(patch: 4 .* at most the image size, 3 px"):
        export_onnx(model(), tmp_path / "model.onnx", 3)


@pytest.mark.parametrize("opset", [17, 24, "18", True])
def test_bad_opsets_are_named(opset: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^opset: .* is not allowed; a whole number from 18 to 23"):
        export_onnx(model(), tmp_path / "model.onnx", 8, opset=opset)


def test_what_is_no_mambavision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^model: Linear is not allowed; a MambaVision$"):
        export_onnx(nn.Linear(1, 1), tmp_path / "model.onnx", 8)
    with pytest.raises(ExportError, match=r"a MambaVision; of a compiled model export the one that was compiled"):
        export_onnx(torch.compile(model()), tmp_path / "model.onnx", 8)


def test_models_without_float32_values_are_refused(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(ExportError, match=rf"^model: \S+ is {dtype}; only float32 is exported: call model.float"):
            export_onnx(model().to(dtype), tmp_path / "model.onnx", 8)
    with pytest.raises(ExportError, match=r"^model: \S+ is on the meta device and has no values; load weights first"):
        export_onnx(model().to("meta"), tmp_path / "model.onnx", 8)


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"^path: '.*missing/model.onnx' cannot be written \(.*No such file"):
        export_onnx(model(), tmp_path / "missing" / "model.onnx", 8)
    with pytest.raises(ExportError, match=r"^path: .* is a folder; give the name of a file in it"):
        export_onnx(model(), tmp_path, 8)

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ExportError, match=r"^path: .* cannot be written \(Permission denied\)"):
        export_onnx(model(), tmp_path / "model.onnx", 8)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"^ONNX needs the package {package} .*pip install 'mvsearch\[onnx\]'"):
        export_onnx(model(), tmp_path / "model.onnx", 8)


class Untranslated(nn.Module):
    """A head that ONNX has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to itself."""
        return torch.special.bessel_j0(x)


def test_parts_that_onnx_does_not_know_are_named_and_no_file_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("an older file")
    broken = model()
    broken.head = Untranslated()
    with pytest.raises(ExportError, match=r"^model: torch.onnx cannot export it \(.*bessel_j0"):
        export_onnx(broken, path, 8)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "an older file"


def test_a_file_that_computes_something_else_is_refused(tiny_file: Path) -> None:
    image = images(model(), 2, (8, 8))
    onnx_export._verify(tiny_file, randomised(model()), image)
    for name, value in (("levels.0.blocks.0.mixer.D", 0.0), ("head.bias", float("nan"))):
        other = randomised(model())
        nn.init.constant_(other.get_parameter(name), value)
        with pytest.raises(ExportError, match=r"^model: its file differs from it by up to .* in logits"):
            onnx_export._verify(tiny_file, other, image)
    with pytest.raises(ExportError, match=r"^model: onnxruntime cannot run its file \("):
        onnx_export._verify(tiny_file, model(), images(model(), 1, (8, 9)))
