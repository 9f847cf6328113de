"""HybridLayout: validation, keys, sizes, overrides and storage."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import columnar, three_stages

from mambavision.layout import LETTERS, HybridLayout, LayoutError, StageLayout, first_part, last_half


@st.composite
def layouts(draw: st.DrawFn) -> HybridLayout:
    count = draw(st.integers(1, 4))
    stages = []
    for _ in range(count):
        blocks = draw(st.one_of(st.text("C", min_size=1, max_size=4), st.text("MGA", min_size=1, max_size=6)))
        heads = draw(st.sampled_from([1, 2, 4]))
        stages.append(
            StageLayout(
                blocks=blocks,
                dim=draw(st.integers(1, 16)) * 2 * heads,
                heads=heads,
                window=draw(st.one_of(st.none(), st.integers(1, 20))),
                state=draw(st.integers(1, 64)),
                conv_kernel=draw(st.integers(1, 7)),
                expand=draw(st.integers(1, 4)),
                mlp_ratio=draw(st.sampled_from([1, 2.5, 4.0])),
                layer_scale=draw(st.sampled_from([None, 1e-5])),
            )
        )
    return HybridLayout(
        stages=tuple(stages),
        in_dim=draw(st.integers(1, 64)),
        stem_stride=draw(st.sampled_from([1, 2, 4])),
        downsample=tuple(draw(st.lists(st.sampled_from([1, 2]), min_size=count - 1, max_size=count - 1))),
        qk_norm=draw(st.booleans()),
    )


@given(layouts())
def test_storage_round_trips(layout: HybridLayout) -> None:
    for again in (
        HybridLayout.from_dict(layout.to_dict()),
        HybridLayout.from_json(layout.to_json()),
        HybridLayout.from_yaml(layout.to_yaml()),
    ):
        assert again == layout
        assert hash(again) == hash(layout)
        assert again.key == layout.key


@given(layouts())
def test_key_is_a_safe_file_name(layout: HybridLayout) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,99}", layout.key)


def test_key_changes_with_what_has_an_effect_and_with_nothing_else() -> None:
    hybrid = three_stages("MA")
    for change in (
        {"dim": [16, 16, 32]},
        {"heads": 1},
        {"window": 4},
        {"state": 5},
        {"conv_kernel": 4},
        {"mlp_ratio": 2.0},
        {"layer_scale": 0.1},
        {"stem_stride": 1},
        {"downsample": [2, 1]},
        {"in_dim": 7},
        {"qk_norm": True},
        {"blocks": ["C", "AM", "MA"]},
    ):
        assert hybrid.override(**change).key != hybrid.key, change
    attention, mamba, conv = (
        three_stages("A"),
        three_stages("M"),
        HybridLayout(stages=(StageLayout(blocks="C", dim=8),)),
    )
    assert attention.override(state=9, conv_kernel=5).key == attention.key
    assert mamba.override(heads=4, qk_norm=True).key == mamba.key
    assert hybrid.override(expand=2).key == hybrid.key
    assert three_stages("GA").override(expand=2).key != three_stages("GA").key != hybrid.key
    parallel = three_stages("P")
    for change in ({"state": 5}, {"conv_kernel": 5}, {"heads": 4}, {"qk_norm": True}, {"window": 2}):
        assert parallel.override(**change).key != parallel.key, change
    assert parallel.override(expand=2).key == parallel.key != three_stages("M").key
    assert conv.override(window=3, mlp_ratio=2.0, state=3, heads=2).key == conv.key
    assert hybrid.override(patch=3).key == hybrid.key
    assert columnar().override(in_dim=5, stem_stride=1).key == columnar().key


def test_keys_stay_the_same_over_versions() -> None:
    """Keys name stored entries and timings; a change of form would orphan them."""
    assert three_stages("MA").key == "c-ma-ma-d8-2eaafdd6"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": "MX"}, "unknown letter 'X'"),
        ({"blocks": "CM"}, "a stage is all C, or free of C"),
        ({"blocks": ""}, "blocks: ''"),
        ({"blocks": "M" * 65}, "at most 64 blocks"),
        ({"dim": 0}, "dim: 0 is not allowed; a whole number from 1"),
        ({"dim": 8.0}, "dim: 8.0"),
        ({"dim": True}, "dim: True"),
        ({"dim": 9}, "dim: 9 is not allowed; an even width"),
        ({"blocks": "GP", "dim": 9}, "dim: 9 is not allowed; an even width, because P splits it in two halves"),
        ({"heads": 3}, "heads: 3 is not allowed; a divisor of dim 8"),
        ({"blocks": "MP", "heads": 3}, "heads: 3 is not allowed; a divisor of dim 8"),
        ({"window": 0}, "window: 0"),
        ({"state": 257}, "state: 257"),
        ({"expand": 5}, "expand: 5 is not allowed; a whole number from 1 to 4"),
        ({"conv_kernel": 16}, "conv_kernel: 16"),
        ({"mlp_ratio": 0}, "mlp_ratio: 0"),
        ({"layer_scale": -1.0}, "layer_scale: -1.0"),
    ],
)
def test_bad_stages_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(message)):
        StageLayout(**({"blocks": "MA", "dim": 8} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "convs"}, "stem: 'convs' is not allowed; one of conv, patch"),
        ({"stem": "patch"}, "exactly one stage"),
        ({"stem_stride": 3}, "stem_stride: 3 is not allowed; one of 4, 2, 1"),
        ({"downsample": [2]}, "downsample: [2] is not allowed; a list of 2 strides"),
        ({"downsample": [2, 3]}, "downsample: [2, 3]"),
        ({"qk_norm": 1}, "qk_norm: 1"),
        ({"widow": 7}, "Did you mean 'window'"),
        ({"dim": [8, 16]}, "one value, or a list of 3"),
        ({"state": [4, 4, 0]}, "stage 3: state: 0"),
    ],
)
def test_bad_layouts_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(message)):
        three_stages().override(**changes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a mapping"),
        ({}, "stages: None"),
        ({"stages": [{"dim": 8}]}, "stage 1: blocks: missing"),
        ({"stages": [{"blocks": "C", "dim": 8}, {"blocks": "M", "dim": 9}]}, "stage 2: dim: 9"),
        ({"stages": [{"blocks": "C", "dim": 8, "widht": 1}]}, "stage 1: unknown field 'widht'"),
        ({"stages": [{"blocks": "C", "dim": 8}] * 5}, "a list of one to four stages"),
    ],
)
def test_bad_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(message)):
        HybridLayout.from_dict(data)


def test_text_that_is_no_layout() -> None:
    with pytest.raises(LayoutError, match="not JSON"):
        HybridLayout.from_json("{")
    with pytest.raises(LayoutError, match="not YAML"):
        HybridLayout.from_yaml("a: [")


def test_sizes_and_tokens() -> None:
    layout = three_stages(window=[None, 4, 100])
    assert layout.feature_sizes(32) == ((16, 16), (8, 8), (4, 4))
    assert layout.feature_sizes((33, 20)) == ((17, 10), (9, 5), (5, 3))
    assert layout.tokens_per_window(32) == (256, 16, 16)
    assert layout.override(stem_stride=1, downsample=[1, 2]).feature_sizes(32) == ((32, 32), (32, 32), (16, 16))
    assert columnar(patch=8).feature_sizes((32, 41)) == ((4, 5),)
    with pytest.raises(LayoutError, match="at most the image size, 6 px"):
        columnar(patch=8).feature_sizes(6)


def test_published_order() -> None:
    assert [last_half(n) for n in (1, 2, 5, 8)] == ["M", "MA", "MMMAA", "MMMMAAAA"]
    assert three_stages("MMA").pattern == "C|MMA|MMA"


def test_columnar_order() -> None:
    assert [first_part(8, ratio) for ratio in (0, 0.5, 0.6, 1)] == ["A" * 8, "GGGGAAAA", "GGGGAAAA", "G" * 8]
    for depth, ratio, field in ((0, 0.5, "depth"), (8, 1.5, "use_mamba_ratio"), (8, True, "use_mamba_ratio")):
        with pytest.raises(LayoutError, match=f"^{field}: "):
            first_part(depth, ratio)


def test_an_odd_width_is_fine_where_no_block_halves_it() -> None:
    assert StageLayout(blocks="GA", dim=9, expand=2).scanned("G") == 18


def test_every_letter_has_a_block() -> None:
    from mambavision import blocks

    assert all(hasattr(blocks, letter.block) for letter in LETTERS.values())
