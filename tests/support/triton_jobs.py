"""What the tests of the Triton kernels run in processes of their own: scans in the interpreter, compilation.

Triton decides once, when it is imported, whether functions are compiled or interpreted, its own library among them. In
a test process torch.compile may have imported it long before, so a process with TRITON_INTERPRET=1 from its start is
the only sure way to the interpreter, and one without it the only way to the compiler.
"""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mambavision.scan import selective_scan, triton_scan

_FLOAT32 = ("A", "D", "bias", "ends", "carries", "sums", "dBC", "over_steps", "states")
"""Pointers of the kernels that are float32 whatever the inputs are."""


def pack(value: Any) -> bytes:
    """Tensors with their strides and dtypes, to hand from process to process."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    """What was packed."""
    return torch.load(io.BytesIO(data))


def interpret(data: bytes) -> bytes:
    """y and all gradients, from arguments of `selective_scan`, ``grad``, and the fields of a Tiling."""
    args, grad, tiling = unpack(data)
    leaves = {name: value.requires_grad_() if torch.is_tensor(value) else value for name, value in args.items()}
    with mock.patch.object(triton_scan, "choose_tiling", return_value=triton_scan.Tiling(*tiling)):
        y = selective_scan(**leaves, backend="triton")
        grads = torch.autograd.grad(y, [value for value in leaves.values() if torch.is_tensor(value)], grad)
    return pack([y.detach(), *grads])


def check_operator(data: bytes) -> None:
    """Schema, fake kernels (shapes and strides) and autograd registration of the operator, as torch checks them."""
    inputs = [value.requires_grad_() for value in unpack(data).values()]
    with mock.patch.object(triton_scan, "choose_tiling", return_value=triton_scan.Tiling(4, 4, 1)):
        torch.library.opcheck(torch.ops.mambavision.selective_scan_triton.default, (*inputs, True))


def tilings(shapes: list[tuple[int, int, int, int]]) -> list[tuple[triton_scan.Tiling, int]]:
    """Of each shape (B, D, L, N), for 132 multiprocessors: tiling and padded states."""
    return [(triton_scan.choose_tiling(*shape, 132), triton_scan.padded_states(shape[3])) for shape in shapes]


def compile_ahead(capability: int, dtype: str, shape: tuple[int, int, int, int]) -> list[tuple[str, dict[str, int]]]:
    """Registers, stack and local memory of the kernels as tiled for a shape, from the compiler's own listing.

    Args:
        capability: 80 or 90.
        dtype: ``"fp32"`` or ``"bf16"``.
        shape: ``(B, D, L, N)``.
    """
    tiling = triton_scan.choose_tiling(*shape, 132)
    resources = []
    for name, backward in (("summary", False), ("forward", False), ("summary", True), ("backward", True)):
        constants = {
            "K": tiling.steps,
            "N": triton_scan.padded_states(shape[3]),
            "D": tiling.channels,
            "LOG_D": tiling.channels.bit_length() - 1,
            "BACKWARD": backward,
        }
        source = _source(getattr(triton_scan, f"_{name}_kernel"), dtype, constants)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": tiling.warps})
        resources.append((f"{name}, gradients" if backward else name, _resources(compiled.asm["cubin"])))
    return resources


def _source(kernel: Any, dtype: str, constants: dict[str, int]) -> ASTSource:
    """Signature as a launch gives it, all options on."""
    signature, values = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            signature[name] = "*fp32" if name.removesuffix("_ptr") in _FLOAT32 else f"*{dtype}"
        elif name in constants or name.isupper():
            signature[name], values[(i,)] = "constexpr", constants.get(name, True)
        else:
            signature[name] = "i32"
    return ASTSource(kernel, signature, values)


def cuobjdump() -> Path:
    """NVIDIA's tool that lists a binary's resources; Triton's wheel brings it."""
    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def _resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump()), "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
