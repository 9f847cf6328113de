"""ONNX: a `MambaVision` of any layout as one file that onnxruntime runs, each of its scans one ONNX Scan.

torch and the packages of the extra ``onnx`` are imported when something is exported.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.files import scratch_folder
from mambavision.layout import LayoutError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mambavision.model import MambaVision

OPSETS = range(18, 24)
"""ONNX operator sets that a file may be written in; torch translates to no older one."""

EMBEDDED_BYTES = 1_800_000_000
"""Weights beyond this go to a second file, as one ONNX file holds at most 2 GB."""

VERIFY_TOLERANCE = 1e-3
"""Largest error that the check after an export lets pass, as a part of the largest output (or of 1)."""


class ExportError(ValueError):
    """A model that cannot be exported, or a wrong argument; the message says which and why."""


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    *,
    dynamic_batch: bool = True,
    opset: int = 20,
    verify: bool = True,
) -> Path:
    """Write a model as an ONNX file, as it computes in eval mode. The model itself stays as it is.

    The file has the input ``image``, float32 ``(batch, in_chans, height, width)``, already normalised, and the output
    ``logits``, ``(batch, num_classes)``: what the model's `forward` returns, so pooled features with ``num_classes=0``.
    A model of ``timm.create_model(..., features_only=True)`` has the outputs ``feature_0``, ``feature_1``, ... Its
    metadata hold ``layout_key``, ``layout`` (JSON), ``image_size`` (height, width), ``in_chans`` and ``num_classes``.

    Args:
        model: a `MambaVision` of any layout, float32, on any device.
        path: the file to write, replaced if it exists; its folder must exist. Weights of more than 1.8 GB go to a
            second file beside it, of the same name with ``.data`` appended.
        image_size: height and width of the images in pixels, or one number for both. The file takes no other size.
        dynamic_batch: take any number of images at once; False fixes it to one.
        opset: ONNX operator set, 18 to 23; from 20 on a GELU is one operator, and somewhat faster.
        verify: run the file in onnxruntime on random images, and compare with the model.

    Returns:
        The path.

    Raises:
        ExportError: packages of the extra ``onnx`` are missing, an argument is not allowed, the model cannot be
            exported, the file cannot be written, or it computes something else than the model.
    """
    check_packages(verify=verify)
    import torch

    inner = _check_model(model)
    height, width = _check_size(inner, image_size)
    if type(opset) is not int or opset not in OPSETS:
        raise ExportError(f"opset: {opset!r} is not allowed; a whole number from {OPSETS[0]} to {OPSETS[-1]}")
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ExportError(f"path: {path!r} is not allowed; the name of a file")
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"path: {str(path)!r} is a folder; give the name of a file in it")

    twin = copy.deepcopy(model).to("cpu").eval()
    # More than one image in the trace, or the batch would be taken for a constant.
    batch = 2 if dynamic_batch else 1
    image = torch.zeros(batch, inner.in_chans, height, width, device="cpu")
    try:
        with scratch_folder(path) as scratch, torch.no_grad():
            program = _exported(twin, image, opset, dynamic_batch)
            program.model.metadata_props.update(_metadata(inner, (height, width)))
            size = sum(tensor.nbytes for tensor in twin.state_dict().values())
            program.save(scratch / path.name, external_data=size > EMBEDDED_BYTES)
            if verify:
                generator = torch.Generator().manual_seed(0)
                count = 3 if dynamic_batch else 1  # another number than in the trace
                _verify(scratch / path.name, twin, torch.randn(count, *image.shape[1:], generator=generator))
            # The weights first: what names them must not come before them.
            for file in sorted(scratch.iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise ExportError(f"path: {str(path)!r} cannot be written ({error})") from None
    return path


def check_packages(*, verify: bool = True) -> None:
    """See that what an export needs is installed, before anything else is done.

    Raises:
        ExportError: names the package that is missing.
    """
    _import("onnx", "onnxscript", *(("onnxruntime",) if verify else ()))


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How `torch.onnx.export` translates the selective scan: its argument ``custom_translation_table``.

    For modules of one's own that call `mambavision.selective_scan`. Inputs are float32.

    Raises:
        ExportError: onnxscript is not installed.
    """
    _import("onnxscript")
    import torch

    import mambavision.scan  # noqa: F401  registers the operator

    return {torch.ops.mambavision.selective_scan.default: _translate}


def _translate(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, delta_bias: Any = None, delta_softplus: bool = False
) -> Any:
    """The scan in ONNX operators; arguments are values of the graph under construction, of the shapes in `scan`.

    Only u, delta, B and C are laid out over time, and a step's decay and input are made inside the step. As arrays of
    (L, B, N, D), made before it, they take N times the memory, and in onnxruntime more time at short sequences (13
    against 8 ms at L = 196) and about as much at long ones.
    """
    import onnxscript

    op: Any = onnxscript.opset18  # its types know onnxscript's own tensors only
    channels, state = A.shape

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def time_major(x_BKL: Any, axis: int) -> Any:
        return op.Unsqueeze(op.Transpose(x_BKL, perm=[2, 0, 1]), ints(axis))

    if delta_bias is not None:
        delta = op.Add(delta, op.Unsqueeze(delta_bias, ints(1)))
    if delta_softplus:
        delta = op.Softplus(delta)
    batch = op.Shape(u, start=0, end=1)
    scan = op.Scan(
        op.Expand(op.Constant(value_float=0.0), op.Concat(batch, ints(state, channels), axis=0)),
        time_major(delta, 2),  # (L, B, 1, D)
        time_major(op.Mul(delta, u), 2),  # (L, B, 1, D)
        time_major(B, 3),  # (L, B, N, 1)
        time_major(C, 2),  # (L, B, 1, N)
        body=_step(op.Transpose(A, perm=[1, 0]), state, channels),
        num_scan_inputs=4,
    ).producer()
    # onnxscript counts one output where an operator has a variable number: the last state. The second is y.
    scan.resize_outputs(2)
    y_BDL = op.Transpose(op.Squeeze(scan.outputs[1], ints(2)), perm=[1, 2, 0])
    if D is not None:
        y_BDL = op.Add(y_BDL, op.Mul(u, op.Unsqueeze(D, ints(1))))
    return y_BDL


def _step(A_ND: Any, state: int, channels: int) -> Any:
    """Body of the Scan: state before, delta, delta u, B and C of a step, to the state after and y."""
    import onnx_ir as ir

    def value(name: str, *shape: int) -> Any:
        return ir.Value(name=name, shape=ir.Shape([None, *shape]), type=ir.TensorType(ir.DataType.FLOAT))

    nodes = []

    def call(kind: str, *inputs: Any) -> Any:
        nodes.append(ir.node(kind, inputs))
        return nodes[-1].outputs[0]

    before, delta, entry = value("before", state, channels), value("delta", 1, channels), value("entry", 1, channels)
    b, c = value("b", state, 1), value("c", 1, state)
    decay = call("Exp", call("Mul", delta, A_ND))
    after = call("Add", call("Mul", decay, before), call("Mul", entry, b))
    y = call("MatMul", c, after)
    for name, output, rows in (("after", after, state), ("y", y, 1)):
        output.name, output.shape, output.type = name, ir.Shape([None, rows, channels]), ir.TensorType(before.dtype)
    return ir.Graph([before, delta, entry, b, c], [after, y], nodes=nodes, name="step", opset_imports={"": 18})


def _import(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ExportError(f"ONNX needs the package {name} ({error}); pip install 'mvsearch[onnx]'") from None


def _check_model(model: nn.Module) -> MambaVision:
    """The MambaVision in a model: itself, or inside timm's wrapper for features."""
    import torch
    from timm.models._features import FeatureGetterNet

    from mambavision.model import MambaVision

    inner = model.model if isinstance(model, FeatureGetterNet) else model
    if not isinstance(inner, MambaVision):
        hint = "; of a compiled model export the one that was compiled" if hasattr(model, "_orig_mod") else ""
        raise ExportError(f"model: {type(inner).__name__} is not allowed; a MambaVision{hint}")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise ExportError(f"model: {name} is on the meta device and has no values; load weights first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"model: {name} is {tensor.dtype}; only float32 is exported: call model.float() first")
    return inner


def _check_size(model: MambaVision, image_size: int | tuple[int, int]) -> tuple[int, int]:
    sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
    if (
        not isinstance(sizes, (tuple, list))
        or len(sizes) != 2
        or any(type(size) is not int or size < 1 for size in sizes)
    ):
        raise ExportError(f"image_size: {image_size!r} is not allowed; pixels, one number or (height, width)")
    try:
        model.layout.feature_sizes((sizes[0], sizes[1]))
    except LayoutError as error:
        raise ExportError(f"image_size: {image_size!r} is not allowed ({error})") from None
    return sizes[0], sizes[1]


def _exported(model: nn.Module, image: Tensor, opset: int, dynamic_batch: bool) -> Any:
    """torch's ONNX program of a model, traced with an image. Raises ExportError if torch cannot make one."""
    import torch

    outputs = [name for name, _ in _named(model(image))]
    try:
        with warnings.catch_warnings():
            # Notes of torch's exporter on its own insides; what matters is raised, or found by the check of the file.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (image,),
                input_names=["image"],
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=({0: "batch"},) if dynamic_batch else None,
                custom_translation_table=translation_table(),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"model: torch.onnx cannot export it ({_root_cause(error)})") from error
    assert program is not None
    return program


def _named(outputs: Tensor | list[Tensor]) -> list[tuple[str, Tensor]]:
    if isinstance(outputs, (list, tuple)):
        return [(f"feature_{i}", output) for i, output in enumerate(outputs)]
    return [("logits", outputs)]


def _metadata(model: MambaVision, size: tuple[int, int]) -> dict[str, str]:
    return {
        "layout_key": model.layout.key,
        "layout": model.layout.to_json(),
        "image_size": json.dumps(size),
        "in_chans": str(model.in_chans),
        "num_classes": str(model.num_classes),
    }


def _root_cause(error: BaseException) -> str:
    """First line of the error that the others were raised from: torch's own message is a page of steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _verify(file: Path, model: nn.Module, image: Tensor) -> None:
    """Refuse a file that computes something else than its model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        results = session.run(None, {"image": image.numpy()})
    except Exception as error:  # onnxruntime's own errors share no base class
        raise ExportError(f"model: onnxruntime cannot run its file ({error})") from None
    for (name, expected), result in zip(_named(model(image)), results, strict=True):
        worst = (expected - expected.new_tensor(result)).abs().max().item()
        allowed = VERIFY_TOLERANCE * max(1.0, expected.abs().max().item())
        if not worst <= allowed:  # so written, NaN fails too
            raise ExportError(f"model: its file differs from it by up to {worst:.3g} in {name}; {allowed:.3g} allowed")
