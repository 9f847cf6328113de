"""Cost in closed form against published numbers, built models and measured memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import columnar, three_stages
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mambavision.cost import MIXERS, SCAN_SLAB, cost
from mambavision.layout import LETTERS, HybridLayout, StageLayout
from mambavision.library import PUBLISHED, load_entry_config
from mambavision.model import MambaVision
from mambavision.scan import loop

# name, parameters, G multiply-adds, and those of attention, counted on the published models.
MEASURED = [
    ("mambavision_t", 31_794_248, 4.565, 0.104),
    ("mambavision_t2", 35_104_008, 5.235, 0.129),
    ("mambavision_s", 50_140_584, 7.578, 0.096),
    ("mambavision_b", 97_685_288, 15.162, 0.207),
    ("mambavision_l", 227_961_048, 35.160, 0.316),
    ("mambavision_l2", 241_554_824, 37.880, 0.376),
    ("mambavision_l2_512", 241_554_824, 206.204, 10.276),
    ("mambavision_l3", 739_570_472, 123.547, 1.426),
    ("mambavision_l3_512", 739_570_472, 511.293, 22.817),
]


@pytest.mark.parametrize(("name", "params", "macs", "attention"), MEASURED)
def test_published_costs(name: str, params: int, macs: float, attention: float) -> None:
    config = load_entry_config(name)
    found = cost(HybridLayout.from_dict(config["layout"]), config["input_size"][1])
    assert found.params == params
    assert found.macs / 1e9 == pytest.approx(macs, rel=1e-3)
    assert found.macs_attention / 1e9 == pytest.approx(attention, abs=6e-4)
    assert found.macs_scan < 0.005 * found.macs


def test_padding_counts() -> None:
    tiny = HybridLayout.from_dict(PUBLISHED["mambavision_t"]["layout"])
    assert cost(tiny, 512).macs / 1e9 == pytest.approx(34.28, rel=1e-3)
    assert cost(tiny.override(window=[None, None, 32, 16]), 512).macs / 1e9 == pytest.approx(26.15, rel=1e-3)


def numbers_alive(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def measured_bytes(model: torch.nn.Module, image: torch.Tensor) -> int:
    """Weights, buffers, image and the peak of what the allocator hands out during one forward pass."""
    with torch.inference_mode():
        model(image)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(image)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return numbers_alive(model) + image.nbytes + peak


def macs_counted(model: torch.nn.Module, image: torch.Tensor) -> int:
    # The counter knows attention only in its plain form.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


CASES = {
    "M": (three_stages("M", 16), 32, 64),
    "A": (three_stages("A", 16), 32, 64),
    "G": (three_stages("G", 16), 32, 64),
    "G, expand 2": (three_stages("G", 32, expand=2, conv_kernel=5, mlp_ratio=1.0), 32, 64),
    "GMA": (three_stages("GMA", 32, mlp_ratio=1.0), 32, 64),
    "columnar, gated": (columnar("GGAA", 64).override(expand=2, conv_kernel=5, state=16), 32, 64),
    "P": (three_stages("P", 32, mlp_ratio=1.0), 32, 64),
    "P, qk_norm": (three_stages("P", 32, mlp_ratio=1.0, qk_norm=True, conv_kernel=5), 32, 64),
    "P, large state": (three_stages("P", 32, mlp_ratio=0.5, state=64), 32, 64),
    "P, padded windows": (three_stages("PM", 32, mlp_ratio=1.0, window=3), 32, 64),
    "P, wide MLP, with G and A": (columnar("PPGA", 64), 32, 64),
    "MMAA": (three_stages("MMAA", 32), 32, 64),
    "wide": (three_stages("MA", 64), 32, 64),
    "large batch": (three_stages("MA", 24), 32, 256),
    "exact windows": (three_stages("MA", 32, window=4), 32, 64),
    "padded windows": (three_stages("MA", 32, window=3), 32, 64),
    "narrow MLP": (three_stages("MA", 32, mlp_ratio=1.0), 32, 64),
    "narrow MLP, large state": (three_stages("M", 32, mlp_ratio=1.0, state=32), 32, 64),
    "qk_norm": (three_stages("A", 32, mlp_ratio=1.0, qk_norm=True), 32, 64),
    "layer scale": (three_stages("MA", 32, layer_scale=0.1), 32, 64),
    "stem stride 1": (three_stages("MA", 8, stem_stride=1), 32, 32),
    "no downsample": (three_stages("MA", 32, stem_stride=4, downsample=[1, 1]), 48, 32),
    "conv only": (HybridLayout(stages=(StageLayout(blocks="CCC", dim=32),), in_dim=16), 64, 32),
    "columnar": (columnar("MMAA", 64), 32, 64),
    "T, one image": (HybridLayout.from_dict(PUBLISHED["mambavision_t"]["layout"]), 224, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_cost_equals_the_built_model(case: str) -> None:
    layout, size, batch = CASES[case]
    found = cost(layout, size, num_classes=10, batch_size=batch)
    model = MambaVision(layout, num_classes=10).eval()
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    assert found.macs == pytest.approx(macs_counted(model, torch.randn(1, 3, size, size)), rel=1e-9)
    assert found.memory == pytest.approx(measured_bytes(model, torch.randn(batch, 3, size, size)), rel=0.05)


def test_every_letter_that_mixes_tokens_has_its_costs() -> None:
    assert {letter: mixer.around_scan is not None for letter, mixer in MIXERS.items()} == {
        letter: kind.scans for letter, kind in LETTERS.items() if kind.mixes_tokens
    }


@st.composite
def layouts(draw: st.DrawFn) -> HybridLayout:
    stages = []
    for _ in range(draw(st.integers(1, 4))):
        blocks = draw(st.one_of(st.text("C", min_size=1, max_size=3), st.text("MGAP", min_size=1, max_size=4)))
        heads = draw(st.integers(1, 3))
        stages.append(
            StageLayout(
                blocks=blocks,
                dim=2 * heads * draw(st.integers(1, 9)),
                heads=heads,
                state=draw(st.integers(1, 9)),
                conv_kernel=draw(st.integers(1, 5)),
                expand=draw(st.integers(1, 3)),
                mlp_ratio=draw(st.sampled_from([0.5, 2.7, 4.0])),
                layer_scale=draw(st.sampled_from([None, 0.1])),
            )
        )
    return HybridLayout(stages=tuple(stages), in_dim=draw(st.integers(1, 9)), qk_norm=draw(st.booleans()))


@settings(deadline=None, max_examples=20)
@given(layout=layouts(), num_classes=st.integers(0, 12), in_chans=st.integers(1, 4))
def test_parameters_and_buffers_of_any_layout(layout: HybridLayout, num_classes: int, in_chans: int) -> None:
    with torch.device("meta"):
        model = MambaVision(layout, num_classes, in_chans)
    assert cost(layout, 32, num_classes, in_chans).params == sum(parameter.numel() for parameter in model.parameters())


def test_half_precision_halves_all_but_the_scan() -> None:
    layout = three_stages("A", 32)
    assert cost(layout, 32, 10, batch_size=8, bytes_per_value=2).memory * 2 == cost(layout, 32, 10, batch_size=8).memory


def test_slab_is_the_loop_s_own() -> None:
    assert SCAN_SLAB == loop.SLAB


def test_importing_cost_imports_no_torch() -> None:
    code = "import sys, mambavision.cost, mambavision.layout; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
