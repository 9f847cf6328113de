"""Mixed-precision training on hard inputs, the precision of the state, determinism, and memory of large images."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from layouts import columnar, three_stages
from torch import Tensor

from mambavision.mixers import MambaVisionMixer
from mambavision.model import MambaVision
from mambavision.scan import loop, selective_scan


def hard_model(blocks: str = "MA", dim: int = 16) -> MambaVision:
    """Step sizes near 40 (the bias acts twice), and states that forget at once beside states that hardly forget."""
    torch.manual_seed(0)
    model = MambaVision(columnar(blocks, dim), num_classes=4)
    for module in model.modules():
        if isinstance(module, MambaVisionMixer):
            with torch.no_grad():
                module.dt_proj.bias.fill_(20.0)
                channels, state = module.A_log.shape
                module.A_log.copy_(torch.logspace(-3, 3, state).log().expand(channels, state))
    return model


def hard_batch(side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 1e2 * torch.randn(2, 3, side, side, generator=generator), torch.tensor([0, 1])


def train(model: MambaVision, dtype: torch.dtype, steps: int, side: int) -> tuple[list[float], int]:
    """Losses, and the number of optimizer steps that the gradient scaler did not skip."""
    image, label = hard_batch(side)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    losses, taken = [], 0
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(image).float(), label)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        taken += scaler.get_scale() >= scale
        losses.append(loss.item())
        if dtype != torch.float16:
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return losses, taken


def check_training(dtype: torch.dtype, steps: int, side: int, blocks: str = "MA") -> None:
    model = hard_model(blocks)
    losses, taken = train(model, dtype, steps, side)
    assert torch.tensor(losses).isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    assert taken >= 0.95 * steps
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("blocks", ["MA", "P"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_training_on_hard_inputs(dtype: torch.dtype, blocks: str) -> None:
    check_training(dtype, 60, 32, blocks)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_two_hundred_steps_of_mixed_precision_over_a_thousand_tokens(dtype: torch.dtype) -> None:
    check_training(dtype, 200, 128)


def long_memory(length: int = 1024) -> dict[str, Tensor]:
    """Inputs exact in bfloat16 whose state grows over the whole sequence by steps below its own rounding."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (1, 4, length), "B": (1, 8, length), "C": (1, 8, length)}
    args = {name: torch.rand(*shape, generator=generator).bfloat16() + 0.5 for name, shape in shapes.items()}
    args["delta"] = torch.full((1, 4, length), 2**-7, dtype=torch.bfloat16)
    args["A"] = -torch.logspace(-3, 0, 8).expand(4, 8).contiguous()
    return args


@pytest.mark.parametrize("backend", ["loop", "reference"])
def test_state_is_float32_where_a_half_state_would_be_far_off(backend: str) -> None:
    args = long_memory()
    wide = {name: value.double() for name, value in args.items()}
    exact = selective_scan(**wide, backend="reference")
    # The output is bfloat16: one rounding, at most 2^-9, is all that may be lost.
    with torch.autocast("cpu", torch.bfloat16):
        ours = selective_scan(**args, backend=backend)
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - exact) / exact).abs().max() < 2**-8

    state = torch.zeros(4, 8, dtype=torch.bfloat16)
    for t in range(1024):
        delta, entry = wide["delta"][0, :, t, None], wide["u"][0, :, t, None] * wide["B"][0, :, t]
        state = (torch.exp(delta * wide["A"]) * state.double() + delta * entry).bfloat16()
    half = (state.double() * wide["C"][0, :, -1]).sum(1)
    assert ((half - exact[0, :, -1]) / exact[0, :, -1]).abs().max() > 0.1


def test_gradients_of_half_inputs_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SLAB", 128)  # many slabs, so that what is carried between them counts
    args = {name: value.requires_grad_() for name, value in long_memory().items()}
    wide = {name: value.detach().double().requires_grad_() for name, value in args.items()}
    ours = torch.autograd.grad(selective_scan(**args).double().sum(), list(args.values()))
    exact = torch.autograd.grad(selective_scan(**wide, backend="reference").sum(), list(wide.values()))
    for name, mine, right in zip(args, ours, exact, strict=True):
        assert mine.dtype == args[name].dtype
        # A is float32, and its gradient a sum over all steps.
        bound = 1e-4 if name == "A" else 2**-8
        assert ((mine.double() - right).norm() / right.norm()).item() < bound, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extreme", ["steps", "A", "both", "inputs"])
def test_extreme_arguments_give_finite_gradients(extreme: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    delta, A = normal(2, 3, 1024), -normal(3, 4).abs() - 0.1
    if extreme in ("steps", "both"):
        delta = delta + 100
    if extreme in ("A", "both"):
        A = 1e3 * A
    args = [
        (normal(2, 3, 1024) * (1e2 if extreme == "inputs" else 1)),
        delta,
        A,
        normal(2, 4, 1024),
        normal(2, 4, 1024),
    ]
    leaves = [(value if value is A else value.to(dtype)).requires_grad_() for value in args]
    y = selective_scan(*leaves, delta_softplus=True)
    grads = torch.autograd.grad(y.float().mean(), leaves)
    assert all(value.isfinite().all() for value in (y, *grads))


@pytest.mark.parametrize(
    ("dtype", "threads"),
    # Two threads that wait for each other are slow on a busy machine.
    [(torch.float32, 1), (torch.bfloat16, 1), pytest.param(torch.float32, 2, marks=pytest.mark.slow)],
    ids=str,
)
def test_same_seed_gives_the_same_bits(dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        models = [hard_model("MAM", 32) for _ in range(2)]
        for model in models:
            torch.manual_seed(2)
            train(model, dtype, 2, 32)
    finally:
        torch.set_num_threads(before)
    for (name, first), second in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def training_peak(model: torch.nn.Module, image: Tensor) -> int:
    """Most bytes that the allocator has handed out at one time during a forward and backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(image).sum().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.slow
def test_checkpointing_bounds_the_memory_of_large_images() -> None:
    """1024 pixels: 4096 tokens in the scanned stage. Each further block adds one map that is kept, not its inside."""
    peaks = {}
    for blocks in (2, 6):
        torch.manual_seed(0)
        model = MambaVision(three_stages("M" * blocks, 16, stem_stride=4), num_classes=4).train()
        image = torch.randn(1, 3, 1024, 1024)
        for checkpointing in (False, True):
            twin = copy.deepcopy(model)
            twin.set_grad_checkpointing(checkpointing)
            peaks[blocks, checkpointing] = training_peak(twin, image)
            assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())
    added = {checkpointing: peaks[6, checkpointing] - peaks[2, checkpointing] for checkpointing in (False, True)}
    assert added[True] < 0.15 * added[False]
    assert peaks[6, True] < 0.5 * peaks[6, False]
