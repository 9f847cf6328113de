"""Every shipped search space loads, passes its check, and holds what it promises."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mvsearch.config.reading import load_config, shipped
from mvsearch.config.template import write_template
from mvsearch.space.describe import describe
from mvsearch.space.space import SearchSpace

DATA = {"stagewise": (10, 1), "columnar": (10, 1), "fashion_mnist": (10, 1), "image_folder": (100, 3)}


def load(name: str) -> SearchSpace:
    classes, channels = DATA[name]
    return SearchSpace(load_config(name), num_classes=classes, in_chans=channels)


def test_all_are_shipped() -> None:
    assert shipped().keys() == DATA.keys()


@pytest.mark.parametrize("name", DATA)
def test_shipped_spaces_can_be_searched(name: str) -> None:
    space = load(name)
    space.check()
    assert space.config.name == name
    assert space.share_within_budget(200) > 0.5
    assert space.count() > 20 * space.config.search.trials
    assert space.baselines().keys() == {"all Mamba", "all attention", "last half", "first half", "alternating"}
    described = describe(space, samples=3)
    assert len(described.samples) == 3
    # What is trained sees the tokens of what is deployed.
    assert described.proxy_tokens == described.deployed_tokens


@pytest.mark.parametrize("name", DATA)
def test_order_ratio_state_and_width_are_searched(name: str) -> None:
    searched = load(name).searched()
    last = f"stage{len(load(name).config.layout.stages)}"
    assert {"width", f"{last}.attention", f"{last}.placement"} <= searched.keys()
    assert any(key.endswith(".state") for key in searched)


def test_stagewise_sees_64_and_16_tokens() -> None:
    assert describe(load("stagewise"), samples=1).proxy_tokens[1:] == ((64, 64), (16, 16))


def test_columnar_is_the_form_of_one_stage_on_patches() -> None:
    space = load("columnar")
    assert describe(space, samples=1).proxy_tokens == ((64, 64),)
    # Every order of 2, 3 and 4 blocks, with three states where Mamba is among them, at four widths.
    assert space.count() == 4 * sum((2**depth - 1) * 3 + 1 for depth in (2, 3, 4))
    reference = space.reference()
    assert (reference.stem, reference.patch, reference.pattern) == ("patch", 4, "GAA")
    assert (reference.stages[0].conv_kernel, reference.stages[0].expand) == (4, 2)


def test_fashion_mnist_sees_49_tokens() -> None:
    assert describe(load("fashion_mnist"), samples=1).proxy_tokens[1] == (49, 49)


@pytest.mark.parametrize("name", DATA)
def test_layouts_of_shipped_spaces_round_trip(name: str) -> None:
    space = load(name)
    rng = random.Random(0)
    for _ in range(50):
        layout = space.mutate(space.sample(rng), rng)
        assert space.decode(space.encode(layout)) == layout


def test_the_template_can_be_searched(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
    config = load_config(write_template(tmp_path / "data", tmp_path / "mine.yaml"))
    space = SearchSpace(config, num_classes=2, in_chans=3)
    space.check()
    assert space.share_within_budget(200) > 0.5
    assert len(space.baselines()) == 5
