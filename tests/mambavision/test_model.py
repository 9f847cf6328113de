"""MambaVision against a slow, plain form of its equations, and its behaviour as a module."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from layouts import columnar, three_stages
from torch import Tensor

from mambavision.layout import HybridLayout, StageLayout
from mambavision.mixers import Attention, GatedMambaMixer, MambaVisionMixer, ParallelMixer
from mambavision.model import MambaVision, from_windows, to_windows

# -- the equations again, one token, channel and state at a time, from the weights by name ---------------------------


def plain_convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """(tokens, E), kernel (E, 1, k): 'same' padding, then SiLU."""
    length, k = len(x), kernel.shape[2]
    left = (k - 1) // 2
    out = torch.zeros_like(x)
    for t in range(length):
        for i in range(k):
            if 0 <= t + i - left < length:
                out[t] += kernel[:, 0, i] * x[t + i - left]
    return out * torch.sigmoid(out)


def plain_scan(w: dict[str, Tensor], x: Tensor, rank: int, biases: int) -> Tensor:
    """(tokens, E) to (tokens, E); the dt bias counts `biases` times."""
    state = w["A_log"].shape[1]
    projected = x @ w["x_proj.weight"].T
    dt, b, c = projected[:, :rank], projected[:, rank : rank + state], projected[:, rank + state :]
    delta = torch.log1p(torch.exp(dt @ w["dt_proj.weight"].T + biases * w["dt_proj.bias"]))
    y = torch.zeros_like(x)
    for channel in range(x.shape[1]):
        for n in range(state):
            s = torch.tensor(0.0, dtype=x.dtype)
            for t in range(len(x)):
                s = torch.exp(-delta[t, channel] * torch.exp(w["A_log"][channel, n])) * s
                s = s + delta[t, channel] * x[t, channel] * b[t, n]
                y[t, channel] += s * c[t, n]
        y[:, channel] += w["D"][channel] * x[:, channel]
    return y


def plain_mamba(w: dict[str, Tensor], h: Tensor) -> Tensor:
    """(tokens, C) to (tokens, C)."""
    return plain_halves(w, h) @ w["out_proj.weight"].T


def plain_halves(w: dict[str, Tensor], h: Tensor) -> Tensor:
    """(tokens, C) to (tokens, C), without the last projection."""
    half = h.shape[1] // 2
    xz = h @ w["in_proj.weight"].T
    x = plain_convolve(xz[:, :half], w["conv1d_x.weight"])
    z = plain_convolve(xz[:, half:], w["conv1d_z.weight"])
    y = plain_scan(w, x, math.ceil(h.shape[1] / 16), biases=2)
    return torch.cat([y, z], dim=1)


def plain_gated_mamba(w: dict[str, Tensor], h: Tensor) -> Tensor:
    """(tokens, C) to (tokens, C)."""
    inner = w["D"].shape[0]
    xz = h @ w["in_proj.weight"].T
    x, z = plain_convolve(xz[:, :inner], w["conv1d.weight"]), xz[:, inner:]
    y = plain_scan(w, x, math.ceil(h.shape[1] / 16), biases=1)
    return (y * z * torch.sigmoid(z)) @ w["out_proj.weight"].T


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5) * weight + bias


def plain_attention(w: dict[str, Tensor], h: Tensor, heads: int) -> Tensor:
    return plain_heads(w, h, heads) @ w["proj.weight"].T + w["proj.bias"]


def plain_heads(w: dict[str, Tensor], h: Tensor, heads: int) -> Tensor:
    """(tokens, C) to (tokens, C), without the last projection."""
    q, k, v = (h @ w["qkv.weight"].T + w["qkv.bias"]).split(h.shape[1], dim=1)
    out = []
    width = h.shape[1] // heads
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        qi, ki = q[:, part], k[:, part]
        if "q_norm.weight" in w:
            qi = plain_norm(qi, w["q_norm.weight"], w["q_norm.bias"])
            ki = plain_norm(ki, w["k_norm.weight"], w["k_norm.bias"])
        out.append(torch.softmax(qi @ ki.T / math.sqrt(width), dim=1) @ v[:, part])
    return torch.cat(out, dim=1)


def plain_parallel(w: dict[str, Tensor], h: Tensor, heads: int) -> Tensor:
    """(tokens, C) to (tokens, C)."""
    mamba = plain_halves({name.removeprefix("mamba."): value for name, value in w.items()}, h)
    attention = plain_heads({name.removeprefix("attention."): value for name, value in w.items()}, h, heads)
    mean = torch.zeros_like(h)
    for branch, scale in ((mamba, w["mamba_norm.weight"]), (attention, w["attention_norm.weight"])):
        mean += 0.5 * plain_norm(branch, scale, torch.zeros_like(scale))
    return mean @ w["proj.weight"].T + w["proj.bias"]


def plain_stage(weights: dict[str, Tensor], stage: StageLayout, image: Tensor) -> Tensor:
    """Blocks of a hybrid stage on a map (B, C, H, W), window by window."""
    batch, dim, height, width = image.shape
    rows, columns = (height, width) if stage.window is None else (stage.window, stage.window)
    down, across = math.ceil(height / rows), math.ceil(width / columns)
    padded = torch.zeros(batch, dim, down * rows, across * columns, dtype=image.dtype)
    padded[:, :, :height, :width] = image
    out = torch.zeros_like(padded)
    for b in range(batch):
        for i in range(down):
            for j in range(across):
                where = (b, slice(None), slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                x = padded[where].reshape(dim, -1).T
                for n, letter in enumerate(stage.blocks):
                    x = plain_block(weights, f"blocks.{n}.", letter, stage.heads, x)
                out[where] = x.T.reshape(dim, rows, columns)
    return out[:, :, :height, :width]


def plain_block(weights: dict[str, Tensor], prefix: str, letter: str, heads: int, x: Tensor) -> Tensor:
    w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    mixer = {name.removeprefix("mixer."): value for name, value in w.items() if name.startswith("mixer.")}
    h = plain_norm(x, w["norm1.weight"], w["norm1.bias"])
    if letter in "AP":
        mixed = {"A": plain_attention, "P": plain_parallel}[letter](mixer, h, heads)
    else:
        mixed = {"M": plain_mamba, "G": plain_gated_mamba}[letter](mixer, h)
    x = x + w.get("gamma_1", 1.0) * mixed
    h = plain_norm(x, w["norm2.weight"], w["norm2.bias"]) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return x + w.get("gamma_2", 1.0) * (h @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights far from where they start, so that no term is near zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.3)
    return model


STAGES = {
    "whole map": {"window": None},
    "exact windows": {"window": 2},
    "padded windows": {"window": 3},
    "window larger than the map": {"window": 7},
    "even kernel": {"window": 3, "conv_kernel": 4},
    "wide kernel": {"conv_kernel": 7},
    "layer scale": {"layer_scale": 0.5},
    "narrow MLP": {"mlp_ratio": 1.5},
    "qk_norm": {"qk_norm": True},
    "all letters": {"blocks": ["C", "GMA", "AG"], "expand": 2, "conv_kernel": 4},
    "gated, not expanded": {"blocks": ["C", "G", "G"]},
    "parallel": {"blocks": ["C", "P", "P"], "conv_kernel": 5},
    "parallel among others, padded windows": {"blocks": ["C", "MPGA", "P"], "window": 3, "layer_scale": 0.5},
    "parallel, qk_norm": {"blocks": ["C", "PM", "P"], "qk_norm": True},
}


@pytest.mark.parametrize("case", STAGES)
def test_hybrid_stage_equals_the_plain_equations(case: str) -> None:
    layout = three_stages("MAMA", dim=6).override(**STAGES[case])
    model = randomised(MambaVision(layout, num_classes=3)).double().eval()
    level = model.levels[1]
    image = torch.randn(2, 12, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain_stage(level.state_dict(), layout.stages[1], image)
        torch.testing.assert_close(level.forward_blocks(image), expected, rtol=1e-9, atol=1e-9)


def plain_batch_norm(w: dict[str, Tensor], x: Tensor, prefix: str, eps: float) -> Tensor:
    mean, var, weight, bias = (
        w[f"{prefix}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


def plain_conv_block(w: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    y = F.conv2d(x, w[f"{block}.conv1.weight"], w[f"{block}.conv1.bias"], 1, 1)
    y = plain_batch_norm(w, y, f"{block}.norm1", 1e-5)
    y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    y = F.conv2d(y, w[f"{block}.conv2.weight"], w[f"{block}.conv2.bias"], 1, 1)
    y = plain_batch_norm(w, y, f"{block}.norm2", 1e-5)
    gamma = w.get(f"{block}.gamma")
    return x + (y if gamma is None else gamma[:, None, None] * y)


def plain_model(w: dict[str, Tensor], layout: HybridLayout, x: Tensor) -> Tensor:
    """Image to logits, for the conv stem with its published strides."""
    for i in (0, 3):
        x = F.conv2d(x, w[f"patch_embed.conv_down.{i}.weight"], None, 2, 1)
        x = torch.relu(plain_batch_norm(w, x, f"patch_embed.conv_down.{i + 1}", 1e-4))
    for i, stage in enumerate(layout.stages):
        if stage.hybrid:
            prefix = f"levels.{i}."
            x = plain_stage({k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}, stage, x)
        else:
            for n in range(len(stage.blocks)):
                x = plain_conv_block(w, f"levels.{i}.blocks.{n}", x)
        if i + 1 < len(layout.stages):
            x = F.conv2d(x, w[f"levels.{i}.downsample.reduction.0.weight"], None, 2, 1)
    x = plain_batch_norm(w, x, "norm", 1e-5)
    return x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("size", [(64, 64), (77, 53), (33, 90), (9, 3)])
@pytest.mark.parametrize(
    ("in_chans", "changes"), [(3, {}), (5, {"layer_scale": 0.5, "qk_norm": True}), (1, {"window": 2})]
)
def test_whole_model_equals_the_plain_equations(
    size: tuple[int, int], in_chans: int, changes: dict[str, object]
) -> None:
    """Odd sizes, sizes below a window, several windows with padding, other channel counts."""
    stages = tuple(
        StageLayout(blocks=blocks, dim=4 << i, heads=2, state=3, window=3)
        for i, blocks in enumerate(("C", "CC", "MA", "GA"))
    )
    layout = HybridLayout(stages=stages, in_dim=5).override(**changes)
    model = randomised(MambaVision(layout, num_classes=3, in_chans=in_chans)).double().eval()
    image = torch.randn(2, in_chans, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain_model(model.state_dict(), layout, image)
        torch.testing.assert_close(model(image), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mixer", [MambaVisionMixer(8), GatedMambaMixer(8), GatedMambaMixer(8, 16, 4, 2)])
def test_mixer_looks_as_far_ahead_as_its_kernel_and_no_further(mixer: torch.nn.Module) -> None:
    mixer = randomised(mixer).double()
    x = torch.randn(1, 20, 8, dtype=torch.float64, requires_grad=True)
    mixer(x)[0, 9].sum().backward()
    reached = x.grad[0].abs().sum(1) > 0
    ahead = mixer.conv1d.kernel_size[0] // 2 if isinstance(mixer, GatedMambaMixer) else 1
    assert reached.tolist() == [True] * (10 + ahead) + [False] * (10 - ahead)


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 9)])
def test_windows_round_trip(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    windows = to_windows(x, (3, 3))
    assert windows.shape == (2 * math.ceil(size[0] / 3) * math.ceil(size[1] / 3), 9, 3)
    assert torch.equal(from_windows(windows, (3, 3), size), x)


# -- behaviour as a module --------------------------------------------------------------------------------------------

LAYOUTS = {
    "three stages": three_stages(),
    "stem stride 1": three_stages(stem_stride=1, downsample=[1, 2]),
    "stem stride 4": three_stages(stem_stride=4),
    "one conv stage": HybridLayout(stages=(StageLayout(blocks="CC", dim=4),)),
    "conv after hybrid": HybridLayout(
        stages=(StageLayout(blocks="M", dim=4), StageLayout(blocks="C", dim=6), StageLayout(blocks="A", dim=5))
    ),
    "columnar": columnar(),
    "all letters": three_stages().override(blocks=["C", "GAMP", "MPG"], expand=2),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [(32, 32), (20, 37)])
def test_any_layout_runs_forward_and_backward(name: str, size: tuple[int, int]) -> None:
    layout = LAYOUTS[name]
    model = MambaVision(layout, num_classes=7, in_chans=2, drop_path_rate=0.1)
    image = torch.randn(3, 2, *size)
    features = model.forward_features(image)
    assert features.shape == (3, model.num_features, *layout.feature_sizes(size)[-1])
    assert model.forward_head(features, pre_logits=True).shape == (3, model.num_features)
    logits = model(image)
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_no_classes_gives_pooled_features() -> None:
    assert MambaVision(three_stages(), num_classes=0)(torch.randn(2, 3, 16, 16)).shape == (2, 32)


def test_positions_of_the_patch_stem_follow_the_grid() -> None:
    """Without positions, attention would not see the order of the patches."""
    model = MambaVision(columnar("A"), num_classes=3).eval()
    image = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        assert not torch.allclose(model(image), model(image.flip(3)), atol=1e-5)
        assert model(torch.randn(1, 3, 8, 8)).shape == (1, 3)


def test_weights_fit_layouts_that_differ_in_strides() -> None:
    first = MambaVision(three_stages(stem_stride=4), num_classes=3)
    MambaVision(three_stages(stem_stride=1, downsample=[1, 1]), num_classes=3).load_state_dict(first.state_dict())


def test_drop_path_grows_linearly_over_all_blocks() -> None:
    layout = HybridLayout(stages=(StageLayout(blocks="CC", dim=4), StageLayout(blocks="MAA", dim=4)))
    model = MambaVision(layout, drop_path_rate=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for level in model.levels for block in level.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_dt_inits() -> None:
    layout = three_stages("M", dim=64)
    official = MambaVision(layout).levels[1].blocks[0].mixer
    assert torch.count_nonzero(official.dt_proj.bias) == 0
    assert official.dt_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
    mamba = MambaVision(layout, dt_init="mamba").levels[1].blocks[0].mixer
    steps = F.softplus(mamba.dt_proj.bias)
    assert 1e-4 <= steps.min() < 0.01 < steps.max() <= 0.1001
    assert mamba.dt_proj.weight.abs().max() <= mamba.rank**-0.5
    assert mamba.dt_proj.weight.std() > 0.1
    for mixer in (official, mamba):
        torch.testing.assert_close(-torch.exp(mixer.A_log), -torch.arange(1.0, 5.0).expand(64, 4))
        assert torch.equal(mixer.D, torch.ones(64))


def test_gated_blocks_keep_mamba_s_dt_init() -> None:
    mixer = MambaVision(three_stages("G", dim=64)).levels[1].blocks[0].mixer
    steps = F.softplus(mixer.dt_proj.bias)
    assert 1e-4 <= steps.min() < 0.01 < steps.max() <= 0.1001
    assert mixer.dt_proj.weight.std() > 0.1
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("letter", "mixer"), [("M", "mixer"), ("G", "mixer"), ("P", "mixer.mamba")])
def test_no_weight_decay_names_the_scan(letter: str, mixer: str) -> None:
    names = MambaVision(three_stages(f"{letter}A")).no_weight_decay()
    assert names == {f"levels.{i}.blocks.0.{mixer}.{name}" for i in (1, 2) for name in ("A_log", "D", "dt_proj.bias")}


def test_both_branches_of_parallel_blocks_count_alike_at_the_start() -> None:
    model = MambaVision(three_stages("P", dim=16), dt_init="mamba")
    mixer = model.levels[1].blocks[0].mixer
    assert isinstance(mixer, ParallelMixer)
    assert torch.equal(mixer.mamba_norm.weight, torch.ones(32))
    assert torch.equal(mixer.attention_norm.weight, torch.ones(32))
    steps = F.softplus(mixer.mamba.dt_proj.bias)  # as in blocks M
    assert 1e-4 <= steps.min() < steps.max() <= 0.1001
    x = torch.randn(2, 9, 32)
    branches = mixer.mamba_norm(mixer.mamba(x)), mixer.attention_norm(mixer.attention(x))
    assert branches[0].std().item() == pytest.approx(branches[1].std().item(), rel=0.15)


def test_attention_dropout_only_while_training() -> None:
    attention = Attention(8, 2, attn_drop=0.9)
    x = torch.randn(1, 30, 8)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_autocast_runs_close_to_float32() -> None:
    model = randomised(MambaVision(three_stages("MA"), num_classes=3)).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(image)
    assert (mixed.float() - plain).abs().max() < 0.1 * plain.abs().max()


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = MambaVision(three_stages(), drop_path_rate=0.1)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_exports_with_the_scan_as_one_node() -> None:
    model = MambaVision(three_stages("MA"), num_classes=3).eval()
    image = torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (image,))
    scans = [node for node in program.graph.nodes if "mambavision.selective_scan" in str(node.target)]
    assert len(scans) == 2
    torch.testing.assert_close(program.module()(image), model(image))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", -1),
        ("num_classes", 2.5),
        ("num_classes", True),
        ("num_classes", "10"),
        ("in_chans", 0),
        ("in_chans", 1.0),
        ("drop_path_rate", 1.0),
        ("drop_path_rate", None),
        ("drop_rate", "x"),
        ("dt_init", "oficial"),
        ("global_pool", "max"),
    ],
)
def test_bad_arguments_are_named(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: {value!r} is not allowed"):
        MambaVision(three_stages(), **{argument: value})


def test_what_is_no_layout_and_no_class_count_is_named() -> None:
    with pytest.raises(ValueError, match=r"^layout: a dict is not allowed"):
        MambaVision({"stages": []})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^num_classes: '3' is not allowed"):
        MambaVision(three_stages(), 2).reset_classifier("3")  # type: ignore[arg-type]


def test_an_image_smaller_than_a_patch_is_named() -> None:
    with pytest.raises(ValueError, match=r"^image: 8 × 3 px is not allowed; at least the patch, 4 px"):
        MambaVision(columnar())(torch.randn(1, 3, 8, 3))


def test_no_images_give_no_logits() -> None:
    model = MambaVision(three_stages("MA"), num_classes=3).eval()
    assert model(torch.randn(0, 3, 16, 16)).shape == (0, 3)


@pytest.mark.parametrize("letters", ["MMGA", "AMGM", "PMPG"])
def test_models_of_two_layouts_start_alike_where_they_are_alike(letters):
    def of(blocks, seed=3, **kwargs):
        stages = (StageLayout(blocks="C", dim=16), StageLayout(blocks=blocks, dim=32, heads=4, state=4))
        layout = HybridLayout(stages=stages, in_dim=8, stem_stride=2, downsample=(2,))
        torch.manual_seed(torch.randint(1000, ()).item())  # whatever the generator of the process says
        model = MambaVision(layout, num_classes=5, **kwargs)
        model.reset_parameters(seed)
        return model.state_dict()

    first, second, again, other = of("MAGM"), of(letters), of("MAGM"), of("MAGM", seed=4)
    shared = [name for name in first if name in second and first[name].shape == second[name].shape]
    assert {"head.weight", "patch_embed.conv_down.0.weight", "levels.1.blocks.3.mlp.fc1.weight"} <= set(shared)
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].is_floating_point() and first[name].std() > 0]
    assert not any(torch.equal(first[name], other[name]) for name in drawn if "A_log" not in name)


@pytest.mark.parametrize("dt_init", ["official", "mamba"])
def test_weights_drawn_anew_are_distributed_as_those_of_construction(dt_init):
    stages = (StageLayout(blocks="C", dim=64), StageLayout(blocks="MGAP", dim=128, heads=4, state=8))
    layout = HybridLayout(stages=stages, in_dim=32, downsample=(2,))
    torch.manual_seed(0)
    model = MambaVision(layout, num_classes=100, dt_init=dt_init)
    before = {name: value.clone() for name, value in model.named_parameters()}
    state = torch.get_rng_state()
    model.reset_parameters(1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.named_parameters():
        assert value.mean().item() == pytest.approx(
            before[name].mean().item(), abs=0.35 * before[name].std(correction=0).item() + 1e-7
        ), name
        assert value.std(correction=0).item() == pytest.approx(
            before[name].std(correction=0).item(), rel=0.25, abs=1e-7
        ), name
        if before[name].std(correction=0) > 0 and "A_log" not in name:
            assert not torch.equal(value, before[name]), name
