"""The Triton kernels: in the interpreter against the plain recurrence, compiled ahead of time, and on a GPU if any."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambavision.scan import scan_path, selective_scan

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


HALF = {torch.bfloat16: 1.6e-2, torch.float16: 1e-3}


OPTIONAL = {"skip": "D", "bias": "delta_bias"}


def _process(interpreted: bool) -> Iterator[ProcessPoolExecutor]:
    """A process whose Triton interprets or compiles; see triton_jobs for why it is one of its own."""
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        patch.setenv("OMP_NUM_THREADS", "1")
        if interpreted:
            patch.setenv("TRITON_INTERPRET", "1")
        else:
            patch.delenv("TRITON_INTERPRET", raising=False)
        pool.submit(os.getpid).result()  # started now, with this environment
        patch.undo()
        yield pool


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    yield from _process(interpreted=True)


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    yield from _process(interpreted=False)


def make(
    batch: int,
    channels: int,
    length: int,
    state: int,
    *,
    dtype: torch.dtype = torch.float32,
    skip: bool = True,
    bias: bool = True,
    channels_last: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments of a scan: u, delta, B, C of a dtype, the parameters float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    args = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
    }
    args = {name: value.to(dtype).transpose(1, 2) for name, value in args.items()}
    if not channels_last:
        args = {name: value.contiguous() for name, value in args.items()}
    args["A"] = -normal(channels, state).abs() - 0.1
    args |= {"D": normal(channels)} if skip else {}
    args |= {"delta_bias": normal(channels)} if bias else {}
    return args


def exact(args: dict[str, Tensor], grad: Tensor, softplus: bool) -> list[Tensor]:
    """y and all gradients by the plain recurrence in float64."""
    leaves = {name: value.detach().double().cpu().requires_grad_() for name, value in args.items()}
    y = selective_scan(**leaves, delta_softplus=softplus, backend="reference")
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad.double().cpu())]


def assert_equal(names: list[str], ours: list[Tensor], plain: list[Tensor]) -> None:
    """Equal but for rounding: relative to each element, or to a hundredth of the largest."""
    for name, value, truth in zip(names, ours, plain, strict=True):
        rtol = HALF.get(value.dtype, 1e-4)
        atol = max(rtol / 100 * float(truth.abs().max()), 1e-7)
        torch.testing.assert_close(
            value.cpu().double(), truth, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def check(
    pool: ProcessPoolExecutor, args: dict[str, Tensor], softplus: bool, tiling: tuple[int, int, int, int]
) -> list[Tensor]:
    """The interpreted kernels, with tiles of (steps, channels, warps, segments), against the plain recurrence."""
    import triton_jobs

    if not softplus:
        args = args | {"delta": args["delta"].abs()}
        args |= {"delta_bias": args["delta_bias"].abs()} if "delta_bias" in args else {}
    grad = torch.randn(args["u"].shape, generator=torch.Generator().manual_seed(1)).to(args["u"].dtype)
    data = triton_jobs.pack((args | {"delta_softplus": softplus}, grad, tiling))
    ours = triton_jobs.unpack(pool.submit(triton_jobs.interpret, data).result())
    for value, like in zip(ours, [args["u"], *args.values()], strict=True):
        assert (value.dtype, value.shape) == (like.dtype, like.shape)
    assert_equal(["y", *(f"d{name}" for name in args)], ours, exact(args, grad, softplus))
    return ours


@needs_triton
@settings(  # a failure is not shrunk: that takes many runs, and the interpreter is slow
    deadline=None, max_examples=5, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(
    length=st.integers(1, 64),
    state=st.integers(4, 64),
    block=st.sampled_from([2, 4, 8]),
    short=st.integers(0, 1),
    steps=st.sampled_from([2, 4, 8]),
    programs=st.sampled_from(["one", "batch", "blocks", "segments"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    skip=st.booleans(),
    bias=st.booleans(),
    softplus=st.booleans(),
    channels_last=st.booleans(),
)
def test_interpreted_equals_plain_recurrence(
    interpreter: ProcessPoolExecutor,
    length: int,
    state: int,
    block: int,
    short: int,
    steps: int,
    programs: str,
    dtype: torch.dtype,
    skip: bool,
    bias: bool,
    softplus: bool,
    channels_last: bool,
) -> None:
    """At most two programs: of a batch of two, of two blocks of channels, or of two segments of L."""
    batch = 2 if programs == "batch" else 1
    channels = block * (2 if programs == "blocks" else 1) - short
    args = make(batch, channels, length, state, dtype=dtype, skip=skip, bias=bias, channels_last=channels_last)
    check(interpreter, args, softplus, (steps, block, 1, 2 if programs == "segments" else 1))


@needs_triton
@pytest.mark.parametrize(
    ("shape", "tiling", "softplus"),
    [
        ((1, 3, 11, 5), (2, 4, 1, 3), True),  # segments that two others precede and follow
        ((2, 6, 7, 9), (4, 4, 1, 1), False),  # last block, last tile and last states in part
        ((1, 1, 1, 1), (2, 2, 1, 1), True),
    ],
)
def test_interpreted_edges(
    interpreter: ProcessPoolExecutor,
    shape: tuple[int, int, int, int],
    tiling: tuple[int, int, int, int],
    softplus: bool,
) -> None:
    check(interpreter, make(*shape), softplus, tiling)


@needs_triton
def test_interpreted_with_very_large_and_very_small_steps(interpreter: ProcessPoolExecutor) -> None:
    args = make(1, 4, 8, 4)
    args["delta"] = torch.tensor([-1e4, -80.0, -15.0, -9.0, 0.0, 19.99, 20.01, 1e4]).expand(1, 4, 8)
    args["delta_bias"] = torch.zeros(4)
    check(interpreter, args, True, (4, 4, 1, 1))


@needs_triton
def test_operator_contract(interpreter: ProcessPoolExecutor) -> None:
    import triton_jobs

    args = make(1, 3, 5, 2)
    ordered = {name: args[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")}
    interpreter.submit(triton_jobs.check_operator, triton_jobs.pack(ordered)).result()


@needs_triton
def test_tilings_are_possible_and_fill_the_device(interpreter: ProcessPoolExecutor) -> None:
    import triton_jobs

    shapes = [(b, d, n_l, n) for b in (1, 64, 4096) for d in (1, 80, 320) for n_l in (1, 49, 4096) for n in (1, 8, 256)]
    for shape, (tiling, padded) in zip(shapes, interpreter.submit(triton_jobs.tilings, shapes).result(), strict=True):
        assert padded >= shape[3]
        assert tiling.steps * padded >= tiling.channels
        assert padded * tiling.channels >= 32 * tiling.warps
        assert 1 <= tiling.segments <= max(1, shape[2] // 64)
    small, long, many = (
        interpreter.submit(triton_jobs.tilings, [shape]).result()[0][0]
        for shape in ((64, 80, 64, 8), (2, 160, 4096, 8), (4096, 160, 64, 8))
    )
    assert (small.channels, small.segments) == (8, 1)
    assert long.segments > 16
    assert (many.channels, many.segments) == (16, 1)


@needs_triton
def test_scan_path_names_the_kernel(interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(scan_path, "cuda").result() == "triton"
    assert interpreter.submit(scan_path, "cpu").result() == "loop"


def test_on_a_cpu_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend: 'triton' needs tensors on a CUDA device, got cpu"):
        selective_scan(**make(1, 1, 1, 1), backend="triton")


def test_a_cpu_never_needs_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None  # cannot be imported
import torch
from mambavision.scan import scan_path, selective_scan
u = torch.ones(1, 2, 3, requires_grad=True)
for backend in ("auto", "loop"):
    selective_scan(u, u, -torch.ones(2, 1), u[:, :1], u[:, :1], backend=backend).sum().backward()
assert scan_path("cpu") == scan_path("cuda") == "loop"
assert "mambavision.scan.triton_scan" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype", "tiling"),
    [
        ((2, 40, 64, 8), torch.float32, (8, 32, 1, 1)),
        ((1, 16, 196, 16), torch.bfloat16, (4, 16, 1, 1)),
        ((1, 8, 256, 8), torch.float32, (8, 8, 1, 4)),
        ((2, 12, 49, 64), torch.float16, (4, 8, 2, 1)),
        ((1, 8, 40, 256), torch.float32, (4, 8, 8, 1)),
    ],
)
def test_interpreted_larger(
    interpreter: ProcessPoolExecutor,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    tiling: tuple[int, int, int, int],
) -> None:
    check(interpreter, make(*shape, dtype=dtype), True, tiling)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "shape"),
    [
        (80, "fp32", (64, 80, 64, 8)),
        (90, "bf16", (64, 80, 64, 8)),
        (80, "bf16", (4096, 160, 64, 8)),
        (90, "fp32", (4096, 160, 64, 8)),
        (80, "fp32", (16, 320, 196, 16)),
        (90, "bf16", (16, 320, 196, 16)),
        (80, "bf16", (32, 160, 196, 64)),
        (90, "fp32", (32, 160, 196, 64)),
        (80, "fp32", (8, 64, 64, 256)),
    ],
)
def test_compiled_ahead_of_time_without_local_memory(
    compiler: ProcessPoolExecutor, capability: int, dtype: str, shape: tuple[int, int, int, int]
) -> None:
    import triton_jobs

    if not triton_jobs.cuobjdump().exists():
        pytest.skip("Triton's wheel brought no cuobjdump")
    for name, used in compiler.submit(triton_jobs.compile_ahead, capability, dtype, shape).result():
        print(f"sm_{capability} {dtype} {name}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0, name


@needs_cuda
@pytest.mark.parametrize("backend", ["auto", "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 80, 64, 8), (3, 33, 49, 5), (2, 16, 2048, 16), (2, 20, 30, 256), (1, 1, 1, 1)])
def test_on_a_gpu_equals_plain_recurrence(shape: tuple[int, int, int, int], dtype: torch.dtype, backend: str) -> None:
    args = make(*shape, dtype=dtype)
    grad = torch.randn(args["u"].shape).to(dtype)
    leaves = {name: value.cuda().requires_grad_() for name, value in args.items()}
    results = []
    for _ in range(2):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = selective_scan(**leaves, delta_softplus=True, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad.cuda())])
    assert_equal(["y", *(f"d{name}" for name in args)], results[0], exact(args, grad, softplus=True))
    if backend == "auto":
        assert all(torch.equal(first, again) for first, again in zip(*results, strict=True)), "not deterministic"


@needs_cuda
def test_on_a_gpu_float64_stays_float64() -> None:
    args = {name: value.double() for name, value in make(2, 5, 9, 4).items()}
    y = selective_scan(**{name: value.cuda() for name, value in args.items()}, delta_softplus=True)
    torch.testing.assert_close(y.cpu(), selective_scan(**args, delta_softplus=True, backend="reference"))


@needs_cuda
def test_on_a_gpu_captured_and_compiled() -> None:
    args = {name: value.cuda().requires_grad_() for name, value in make(4, 40, 600, 8).items()}
    leaves = list(args.values())

    def run() -> list[Tensor]:
        y = selective_scan(**args, delta_softplus=True)
        return [y, *torch.autograd.grad(y.sum(), leaves)]

    plain = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.testing.assert_close(captured, plain, rtol=0, atol=0)
    compiled = torch.compile(selective_scan, fullgraph=True)(**args, delta_softplus=True)
    torch.testing.assert_close(compiled, plain[0], rtol=0, atol=0)
