"""The selective scan: loop against plain recurrence, gradients, dtypes, autocast, and the operator's contract."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambavision.scan import loop, scan_path, selective_scan


def make(
    batch: int, channels: int, length: int, state: int, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, state).abs() - 0.1,
        "B": normal(batch, state, length),
        "C": normal(batch, state, length),
        "D": normal(channels),
        "delta_bias": normal(channels),
    }


@pytest.fixture
def small_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of few steps, so that short sequences cross several of them."""
    monkeypatch.setattr(loop, "SLAB", 60)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 5)),
    slab=st.sampled_from([1, 37, 1 << 18]),
    kept=st.sampled_from([1, 1 << 23]),
    wide=st.sampled_from([1, 128]),
    skip=st.booleans(),
    bias=st.booleans(),
    softplus=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 5),
)
def test_loop_equals_plain_recurrence(
    shape: tuple[int, int, int, int],
    slab: int,
    kept: int,
    wide: int,
    skip: bool,
    bias: bool,
    softplus: bool,
    channels_last: bool,
    seed: int,
) -> None:
    args = make(*shape, seed=seed)
    if not softplus:
        args["delta"] = args["delta"].abs()
    if channels_last:
        args |= {name: args[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("u", "delta", "B")}
    if not skip:
        del args["D"]
    if not bias:
        del args["delta_bias"]
    grad = torch.randn(args["u"].shape, dtype=torch.float64)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SLAB", slab)
        patch.setattr(loop, "KEPT", kept)
        patch.setattr(loop, "WIDE", wide)
        for backend in ("loop", "reference"):
            leaves = {name: value.clone().requires_grad_() for name, value in args.items()}
            y = selective_scan(**leaves, delta_softplus=softplus, backend=backend)
            results.append([y, *torch.autograd.grad(y, list(leaves.values()), grad)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("skip", "bias", "softplus"), itertools.product([False, True], repeat=3))
@pytest.mark.usefixtures("small_slab")
def test_gradcheck(skip: bool, bias: bool, softplus: bool) -> None:
    args = make(2, 3, 6, 2)
    inputs = [args[name].requires_grad_() for name in ("u", "delta", "A", "B", "C")]
    inputs += [args["D"].requires_grad_() if skip else None, args["delta_bias"].requires_grad_() if bias else None]
    assert torch.autograd.gradcheck(lambda *tensors: selective_scan(*tensors, delta_softplus=softplus), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_have_float32_state_and_their_own_dtype_out(dtype: torch.dtype) -> None:
    args = make(2, 4, 300, 3, dtype=dtype)
    args["delta"] = args["delta"] - 4  # small steps: a long memory, which a half-precision state would round away
    args |= {name: args[name].float() for name in ("A", "D", "delta_bias")}
    leaves = {name: value.clone().requires_grad_() for name, value in args.items()}
    y = selective_scan(**leaves, delta_softplus=True)
    assert y.dtype == dtype
    exact = selective_scan(**{name: value.double() for name, value in args.items()}, delta_softplus=True)
    torch.testing.assert_close(y, exact.to(dtype))
    grads = torch.autograd.grad(y.float().sum(), list(leaves.values()))
    assert [g.dtype for g in grads] == [value.dtype for value in leaves.values()]


@pytest.mark.parametrize("backend", ["loop", "reference"])
def test_autocast_leaves_the_state_alone(backend: str) -> None:
    args = make(2, 4, 50, 3, dtype=torch.float32)
    leaves = {name: value.clone().requires_grad_() for name, value in args.items()}
    plain = selective_scan(**leaves, delta_softplus=True, backend=backend)
    plain_grads = torch.autograd.grad(plain.sum(), list(leaves.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = selective_scan(**leaves, delta_softplus=True, backend=backend)
        if backend == "loop":  # nor may a backward pass inside autocast lower the precision
            again = selective_scan(**leaves, delta_softplus=True, backend=backend)
            inside = torch.autograd.grad(again.sum(), list(leaves.values()))
            torch.testing.assert_close(inside, plain_grads, rtol=0, atol=0)
    mixed_grads = torch.autograd.grad(mixed.sum(), list(leaves.values()))
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)
    torch.testing.assert_close(mixed_grads, plain_grads, rtol=0, atol=0)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that the allocator has handed out at one time during a call, its result included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def scan_peaks(batch: int, channels: int, length: int, state: int) -> tuple[float, float]:
    """Peaks of a forward and of a backward pass beyond their results, in histories of the state (a state a step)."""
    args = [*make(batch, channels, length, state, dtype=torch.float32).values()]
    given = torch.ones_like(args[0])
    history = batch * channels * length * state * 4
    forward = peak_bytes(lambda: loop.loop_forward(*args, True)) - given.nbytes
    backward = peak_bytes(lambda: loop.loop_backward(given, *args, True)) - sum(value.nbytes for value in args)
    return forward / history, backward / history


def test_long_sequences_need_a_fraction_of_their_states() -> None:
    forward, backward = scan_peaks(2, 160, 4096, 8)
    # The step sizes are an eighth of a history here, three times that is the arguments.
    assert forward < 0.2
    assert backward < 0.3


def test_states_kept_are_bounded_where_a_step_fills_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab is then one step, and its states all states: beyond the bound, 2 sqrt(256) of 256 are kept."""
    step, length = 4 * 64 * 16, 256
    monkeypatch.setattr(loop, "SLAB", step)
    monkeypatch.setattr(loop, "KEPT", length * step)
    _, all_kept = scan_peaks(4, 64, length, 16)
    monkeypatch.setattr(loop, "KEPT", length * step - 1)
    _, grouped = scan_peaks(4, 64, length, 16)
    assert all_kept > 1
    # A sixteenth for the step sizes, an eighth for 32 states, and the slabs of a few steps.
    assert grouped < 0.25


def test_inputs_are_not_written_to() -> None:
    args = make(1, 2, 5, 2, dtype=torch.float32)
    kept = {name: value.clone() for name, value in args.items()}
    leaves = {name: value.requires_grad_() for name, value in args.items()}
    selective_scan(**leaves, delta_softplus=True).square().sum().backward()
    for name, value in kept.items():
        assert torch.equal(leaves[name].detach(), value), name


def test_long_sequences_neither_overflow_nor_underflow() -> None:
    args = make(1, 2, 4096, 4, dtype=torch.float32)
    args["A"] = torch.full_like(args["A"], -8.0)
    y = selective_scan(**args, delta_softplus=True)
    exact = selective_scan(**{k: v.double() for k, v in args.items()}, delta_softplus=True, backend="reference")
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_operator_contract(layout: str) -> None:
    """Schema, fake kernels (shapes and strides) and autograd registration, as torch checks them."""
    args = make(2, 3, 5, 2, dtype=torch.float32)
    if layout == "channels last":
        args |= {name: args[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("u", "delta", "B", "C")}
    inputs = [value.detach().requires_grad_() for value in args.values()]
    torch.library.opcheck(torch.ops.mambavision.selective_scan.default, (*inputs, True))
    torch.library.opcheck(torch.ops.mambavision.selective_scan.default, (*inputs[:5], None, None, False))


def test_checkpointing_gives_the_same_gradients() -> None:
    args = make(1, 2, 5, 2)
    inputs = [args[name].requires_grad_() for name in ("u", "delta", "A", "B", "C")]
    direct = torch.autograd.grad(selective_scan(*inputs).sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(selective_scan, *inputs, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), inputs), direct)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("u", (2, 3)), ("delta", (2, 3, 6)), ("A", (4, 2)), ("B", (2, 3, 5)), ("D", (4,)), ("delta_bias", (3, 1))],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...]) -> None:
    args = make(2, 3, 5, 2)
    args[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^{name}: shape"):
        selective_scan(**args)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend: 'cuda' is not allowed; one of auto, loop, reference"):
        selective_scan(**make(1, 1, 1, 1), backend="cuda")


def test_scan_path_on_cpu() -> None:
    assert scan_path("cpu") == "loop"
    assert scan_path(torch.device("cpu")) == "loop"


@pytest.mark.parametrize("shape", [(0, 3, 5, 2), (2, 3, 0, 2)])
def test_nothing_to_scan(shape: tuple[int, int, int, int]) -> None:
    args = {name: value.requires_grad_() for name, value in make(*shape).items()}
    y = selective_scan(**args, delta_softplus=True)
    assert y.shape == shape[:3]
    y.sum().backward()
    assert all(value.grad is not None and not value.grad.any() for value in args.values())


def test_whole_numbers_are_refused() -> None:
    args = make(1, 2, 3, 2)
    with pytest.raises(ValueError, match=r"^u: torch\.int64 is not allowed"):
        selective_scan(**args | {"u": args["u"].long()})
