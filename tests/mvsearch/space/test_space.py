"""SearchSpace: parameters and layouts, counting, drawing, budgets, and spaces that are refused."""

from __future__ import annotations

import collections
import itertools
import random
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from mambavision.layout import HybridLayout, StageLayout
from mvsearch.config.sections import StudyConfig
from mvsearch.config.values import PLACEMENT_RULES
from mvsearch.space.describe import describe
from mvsearch.space.space import SearchSpace
from mvsearch.space.stage import SpaceError, place

CONV = {"blocks": "C", "depth": 1, "dim": 1}


def space(
    stages: list[dict[str, Any]], width: Any = 16, *, layout: dict[str, Any] | None = None, **sections: Any
) -> SearchSpace:
    data = {
        "name": "test",
        "layout": {"width": width, "stages": stages, **({"stem_stride": 2} if layout is None else layout)},
        **sections,
    }
    return SearchSpace(StudyConfig.model_validate(data), num_classes=10, in_chans=1)


def small(**changes: Any) -> SearchSpace:
    """Order, ratio, depth, state and width of a hybrid stage, then one whose order alone is searched."""
    hybrid = {"blocks": "MA", "depth": [2, 3], "dim": 2, "state": [4, 8], **changes}
    return space([CONV, hybrid, {"blocks": "MA", "depth": 2, "dim": 4}], [16, 32])


def one(**changes: Any) -> SearchSpace:
    """One hybrid stage, and few enough parameters to go through all of them."""
    rules = ["last", "first", "alternate"]
    hybrid = {"blocks": "MA", "depth": [2, 3], "dim": 2, "state": [4, 8], "placement": rules, **changes}
    return space([CONV, hybrid], [16, 32])


def columnar(width: Any = 16, *, patch: int = 4, **changes: Any) -> SearchSpace:
    """Order, ratio, depth, state and expansion of the one stage on patches."""
    stage = {"blocks": "GA", "depth": [2, 3], "dim": 1, "state": [4, 8], "expand": [1, 2], "flips": 1, **changes}
    return space([stage], width, layout={"stem": "patch", "patch": patch})


def values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, CategoricalDistribution)
    return list(distribution.choices)


def decoded(searched: SearchSpace) -> set[HybridLayout]:
    """Every layout there is, by brute force over the parameters."""
    ranges = {name: values(distribution) for name, distribution in searched.distributions().items()}
    return {searched.decode(dict(zip(ranges, point, strict=True))) for point in itertools.product(*ranges.values())}


SPACES: dict[str, SearchSpace] = {
    "one stage": one(),
    "two stages": small(placement="last", flips=1, state=8),
    "no flips": one(flips=0, placement=list(PLACEMENT_RULES)),
    "one flip, two rules": one(flips=1, depth=[2, 4], placement=["last", "first"]),
    "bounded ratio": one(attention={"min": 1, "max": 2}, head_dim=[8, 16]),
    "fixed ratio": one(attention=1, depth=[3, 4], flips=2, state=8),
    "listed ratios": one(attention=[0, 3], depth=3),
    "mamba only": space([CONV, {"blocks": "M", "depth": [1, 2], "dim": 2, "state": [4, 16], "conv_kernel": [3, 4]}]),
    "attention only": space(
        [CONV, {"blocks": "A", "depth": 2, "dim": [1, 2], "head_dim": [4, 8], "window": [None, 4]}]
    ),
    "same hidden widths": space([{"blocks": "MA", "depth": 2, "dim": 1, "mlp_ratio": [2, 2.01, 3]}], [16, 208]),
    "one layout": space([{"blocks": "M", "depth": 1, "dim": 1}]),
    "two layouts": space([{"blocks": "MA", "depth": 1, "dim": 1}]),
    "columnar": columnar([16, 20], state=8, placement=["last", "alternate"], head_dim=4),
    "gated Mamba": space([CONV, {"blocks": "G", "depth": [1, 2], "dim": 2, "expand": [1, 3], "conv_kernel": [3, 4]}]),
    "both Mamba letters": space(
        [
            {"blocks": "MA", "depth": 2, "dim": 1, "flips": 0},
            {"blocks": "GA", "depth": [1, 2], "dim": 2, "expand": [1, 2], "placement": "first"},
        ],
    ),
    "parallel": space(
        [CONV, {"blocks": "MP", "depth": [2, 3], "dim": 2, "state": [4, 8], "head_dim": [8, 16], "flips": 1}], [16, 32]
    ),
    "parallel only": space([CONV, {"blocks": "P", "depth": [1, 2], "dim": 2, "state": [4, 8], "head_dim": [4, 8]}]),
    "gated and parallel": columnar(blocks="GP", state=8, placement=["last", "alternate"]),
    "fractions": space([CONV, {"blocks": "MA", "depth": 2, "dim": [1.1, 2.2], "head_dim": [2, 11]}], [20, 40]),
}


every_space = pytest.mark.parametrize("searched", SPACES.values(), ids=SPACES)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    patches = draw(st.booleans())
    stages: list[dict[str, Any]] = [] if patches else [CONV]
    for dim in (1,) if patches else (2, 4)[: draw(st.integers(1, 2))]:
        letters = draw(st.sampled_from(["MA", "GA", "MP", "GP"]))
        depth = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True))
        least = draw(st.integers(0, min(depth)))
        stages.append(
            {
                "blocks": letters,
                "depth": depth,
                "dim": dim,
                "attention": {"min": least, "max": draw(st.integers(least, 7))},
                "placement": draw(st.lists(st.sampled_from(PLACEMENT_RULES), min_size=1, unique=True)),
                "flips": draw(st.none() | st.integers(0, 4)),
                "state": draw(st.lists(st.sampled_from([2, 4, 8, 16]), min_size=1, unique=True)),
                "window": draw(st.sampled_from([None, [None, 4]])),
                "head_dim": draw(st.sampled_from([16, [8, 16]])),
                "mlp_ratio": draw(st.sampled_from([4, [3, 4]])),
                **({"expand": draw(st.sampled_from([1, [1, 2, 4]]))} if letters[0] == "G" else {}),
            }
        )
    return space(stages, [16, 32, 48], layout={"stem": "patch", "patch": 4} if patches else None)


@pytest.mark.parametrize(
    ("rule", "patterns"),
    [
        ("last", ["MMMM", "MMMA", "MMAA", "MAAA", "AAAA"]),
        ("first", ["MMMM", "AMMM", "AAMM", "AAAM", "AAAA"]),
        ("even", ["MMMM", "MMAM", "MAMA", "AMAA", "AAAA"]),
        ("middle", ["MMMM", "MMAM", "MAAM", "MAAA", "AAAA"]),
        ("alternate", ["MMMM", "MMMA", "MAMA", "MAAA", "AAAA"]),
    ],
)
def test_rules(rule: str, patterns: list[str]) -> None:
    assert [place(rule, 4, attention, "M", "A") for attention in range(5)] == patterns
    gated = [pattern.replace("M", "G") for pattern in patterns]
    assert [place(rule, 4, attention, "G", "A") for attention in range(5)] == gated


@given(depth=st.integers(1, 20), data=st.data())
def test_rules_place_as_many_as_asked(depth: int, data: st.DataObject) -> None:
    attention = data.draw(st.integers(0, depth))
    for rule in PLACEMENT_RULES:
        pattern = place(rule, depth, attention, "M", "A")
        assert (len(pattern), pattern.count("A"), pattern.count("M")) == (depth, attention, depth - attention)


def test_distributions_are_of_what_is_searched() -> None:
    searched = small()
    assert {name: values(distribution) for name, distribution in searched.distributions().items()} == {
        "width": [16, 32],
        "stage2.depth": [2, 3],
        "stage2.attention": [0, 1, 2, 3],
        "stage2.placement": list(PLACEMENT_RULES),
        "stage2.state": [4, 8],
        "stage2.flip1": [-2, -1, 0, 1, 2, 3],
        "stage3.attention": [0, 1, 2],
        "stage3.placement": list(PLACEMENT_RULES),
        "stage3.flip1": [-1, 0, 1, 2],
    }


def test_a_trial_is_asked_for_every_parameter() -> None:
    searched = small()
    params = searched.encode(searched.sample(random.Random(1)))
    trial = optuna.trial.FixedTrial(params)
    assert searched.suggest(trial) == searched.decode(params)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = study.ask()
    layout = searched.suggest(asked)
    assert asked.params.keys() == searched.distributions().keys()
    assert searched.decode(asked.params) == layout


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(searched=spaces(), data=st.data())
def test_every_parameter_decodes_and_round_trips(searched: SearchSpace, data: st.DataObject) -> None:
    params = {name: data.draw(st.sampled_from(values(range_))) for name, range_ in searched.distributions().items()}
    layout = searched.decode(params)
    encoded = searched.encode(layout)
    assert searched.decode(encoded) == layout
    assert layout in searched
    for name, distribution in searched.distributions().items():
        assert encoded[name] in values(distribution)
    for number, (stage, config) in enumerate(zip(layout.stages, searched.config.layout.stages, strict=True), start=1):
        assert set(stage.blocks) <= set(config.blocks)
        if config.mixed:
            assert stage.blocks.count(config.placed) in config.attention.allowed(len(stage.blocks))
            used = [value for name, value in encoded.items() if name.startswith(f"stage{number}.flip")]
            assert all(value >= 0 for value in used)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(searched=spaces(), seed=st.integers(0, 2**32))
def test_samples_and_mutants_are_of_the_space(searched: SearchSpace, seed: int) -> None:
    rng = random.Random(seed)
    layout = searched.sample(rng)
    for _ in range(10):
        mutant = searched.mutate(layout, rng)
        assert mutant != layout or searched.count() == 1
        assert searched.decode(searched.encode(mutant)) == mutant
        layout = mutant


def test_encoding_needs_no_more_flips_than_it_must() -> None:
    searched = space([{"blocks": "MA", "depth": 6, "dim": 1}])
    for pattern, attention, rule, flips in [
        ("MMMAAA", 3, "last", [0, 0, 0]),
        ("MAMAMA", 3, "even", [0, 0, 0]),
        ("AMMMMA", None, None, [None, 0, 0]),
    ]:
        layout = searched.sample(random.Random(0)).override(blocks=pattern, heads=1)
        params = searched.encode(layout)
        if attention is not None:
            assert (params["stage1.attention"], params["stage1.placement"]) == (attention, rule)
        assert [params[f"stage1.flip{i}"] != 0 for i in (1, 2, 3)] == [flip != 0 for flip in flips]


@every_space
def test_equal_layouts_have_equal_keys(searched: SearchSpace) -> None:
    layouts = list(searched.layouts())
    assert len({layout.key for layout in layouts}) == len(set(layouts)) == len(layouts)


def test_what_has_no_effect_is_not_looked_at() -> None:
    searched = small()
    layout = next(layout for layout in searched.layouts() if layout.stages[1].blocks == "AAA")
    same = layout.override(
        state=[1, 64, layout.stages[2].state], heads=[5, layout.stages[1].heads, layout.stages[2].heads]
    )
    assert same.key == layout.key
    assert searched.decode(searched.encode(same)) == layout


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": [24, 48, 96], "heads": 1}, "width: 24 is not in the space; one of 16, 32"),
        ({"dim": [16, 48, 64], "heads": 1}, "stage2.dim: 3.0"),
        ({"blocks": ["C", "MMMM", "MM"]}, "stage2.depth: 4 is not in the space; one of 2, 3"),
        ({"blocks": ["CC", "MM", "MM"]}, "stage1.depth: 2"),
        ({"blocks": ["M", "MM", "MM"]}, "stage1.blocks: M"),
        ({"state": 16}, "stage2.state: 16 is not in the space; one of 4, 8"),
        ({"window": [None, 4, None]}, "stage2.window: 4 is not in the space; only null"),
        ({"heads": [1, 1, 1]}, "head_dim"),
        ({"mlp_ratio": 2}, "mlp_ratio: 2"),
        ({"layer_scale": 1e-5}, "layer_scale: 1e-05"),
        ({"stem_stride": 4}, "stem_stride: 4"),
        ({"in_dim": 64}, "in_dim: 64"),
        ({"downsample": (1, 1)}, "downsample"),
        ({"qk_norm": True}, "qk_norm: True"),
    ],
)
def test_layouts_outside_the_space(change: dict[str, Any], named: str) -> None:
    searched = small()
    layout = next(layout for layout in searched.layouts() if layout.pattern == "C|MMA|MA")
    outside = layout.override(**change)
    assert outside not in searched
    with pytest.raises(SpaceError, match="is not in the space") as error:
        searched.encode(outside)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patch": 8}, "patch: 8 is not in the space; only 4"),
        ({"stem": "conv"}, "stem: 'conv' is not in the space; only patch"),
        ({"stem": "conv", "dim": 18}, "stem: 'conv'"),
        ({"blocks": "MA"}, "stage1.blocks: MA is not in the space; letters are GA"),
        ({"expand": 4}, "stage1.expand: 4 is not in the space; one of 1, 2"),
    ],
)
def test_layouts_outside_a_columnar_space(change: dict[str, Any], named: str) -> None:
    searched = columnar()
    layout = next(layout for layout in searched.layouts() if layout.pattern == "GA")
    outside = layout.override(**change)
    assert outside not in searched
    with pytest.raises(SpaceError, match="is not in the space") as error:
        searched.encode(outside)
    assert named in str(error.value)


def test_a_columnar_space_looks_at_no_key_of_the_conv_stem() -> None:
    searched = columnar()
    layout = next(layout for layout in searched.layouts() if layout.pattern == "AA")
    # Nor at the expansion of a stage that turns out all attention.
    same = layout.override(stem_stride=1, in_dim=8, expand=4)
    assert same.key == layout.key
    assert searched.decode(searched.encode(same)) == layout


def test_patterns_outside_the_space() -> None:
    searched = space(
        [{"blocks": "MA", "depth": 6, "dim": 1, "attention": {"min": 2, "max": 4}, "flips": 1, "placement": "last"}]
    )
    layout = searched.sample(random.Random(0))
    for pattern, named in [("MMMMMA", "stage1.attention: 1 of MMMMMA"), ("AAMMMM", "stage1.flips: AAMMMM")]:
        with pytest.raises(SpaceError, match=named):
            searched.encode(layout.override(blocks=pattern, heads=1))
    with pytest.raises(SpaceError, match=r"stages: 2"):
        small().encode(HybridLayout(stages=layout.stages * 2))


def test_bad_parameters() -> None:
    searched = small()
    params = searched.encode(searched.sample(random.Random(0)))
    for change, named in [
        ({"width": 17}, "width: 17 is not in the space; one of 16, 32"),
        ({"stage2.flip1": 4}, "stage2.flip1: 4"),
        ({"stage2.placement": "lats"}, "stage2.placement: 'lats'"),
        ({"stage2.sate": 4}, "stage2.sate: not a parameter"),
    ]:
        with pytest.raises(SpaceError, match=named):
            searched.decode({**params, **change})
    del params["stage2.flip1"]
    with pytest.raises(SpaceError, match=r"stage2\.flip1: missing"):
        searched.decode(params)


@every_space
def test_count_is_that_of_brute_force(searched: SearchSpace) -> None:
    layouts = decoded(searched)
    assert searched.count() == len({layout.key for layout in layouts}) == len(layouts)
    assert set(searched.layouts()) == layouts


def test_count_of_a_long_stage() -> None:
    assert space([{"blocks": "MA", "depth": 14, "dim": 1}]).count() == 2**14
    # Of two letters, 14 long: rules of at most one attention block, and those with one flip more.
    few = space([{"blocks": "MA", "depth": 14, "dim": 1, "attention": {"max": 2}, "flips": 2}])
    assert few.count() == 1 + 14 + 14 * 13 // 2


@every_space
def test_samples_are_uniform_and_mutants_reach_everything(searched: SearchSpace) -> None:
    layouts = list(searched.layouts())
    rng = random.Random(0)
    draws = collections.Counter(searched.sample(rng) for _ in range(50 * len(layouts)))
    assert draws.keys() == set(layouts)
    assert all(20 < count < 90 for count in draws.values())  # 50 expected, standard deviation 7
    # From any layout, changes lead to every other.
    seen, layout = {layouts[0]}, layouts[0]
    for _ in range(200 * len(layouts)):
        if len(seen) == len(layouts):
            break
        layout = searched.mutate(layout, rng)
        seen.add(layout)
    assert seen == set(layouts)


def test_draws_repeat_with_their_seed() -> None:
    searched = small()

    def walk() -> list[str]:
        rng = random.Random(3)
        layout = searched.sample(rng)
        return [(layout := searched.mutate(layout, rng)).key for _ in range(20)]

    assert walk() == walk()


@pytest.mark.parametrize("mamba", ["M", "G"])
def test_blocks_are_swapped_where_their_number_is_fixed(mamba: str) -> None:
    stage = {"blocks": mamba + "A", "depth": 4, "dim": 1, "attention": 1, "placement": "last"}
    searched = space([stage])
    layout = next(layout for layout in searched.layouts() if layout.stages[0].blocks.index("A") == 1)
    rng = random.Random(0)
    # Flips would change the number, and the one rule leads to MMMA alone.
    places = {searched.mutate(layout, rng).stages[0].blocks.index("A") for _ in range(40)}
    assert places == {0, 2, 3}


def test_uniform_unseen_ends() -> None:
    searched = SPACES["fixed ratio"]
    rng = random.Random(0)
    seen: set[str] = set()
    while (layout := searched.uniform_unseen(seen, rng)) is not None:
        assert layout.key not in seen
        seen.add(layout.key)
    assert len(seen) == searched.count()


def test_uniform_unseen_of_a_large_space() -> None:
    searched = space([CONV, {"blocks": "MA", "depth": 14, "dim": 2, "state": [4, 8]}])
    assert searched.count() > 20_000
    layout = searched.uniform_unseen(set(), random.Random(0))
    assert layout in searched


def budgeted(**budgets: Any) -> SearchSpace:
    stages = [CONV, {"blocks": "MA", "depth": [2, 3], "dim": 2, "state": [4, 8]}]
    return space(stages, [16, 24, 32], budgets=budgets)


def test_excess_is_relative_and_named() -> None:
    searched = budgeted()
    layout = searched.sample(random.Random(0))
    cost = searched.cost(layout)
    assert cost is searched.cost(HybridLayout.from_dict(layout.to_dict()))
    assert searched.excess(layout) == {}
    assert budgeted(params={"max": cost.params}, macs={"min": cost.macs}).excess(layout) == {}
    over = budgeted(params={"max": cost.params / 2}, macs={"min": cost.macs * 2}, memory={"max": "1G"}).excess(layout)
    assert over == pytest.approx({"params": 1.0, "macs": 0.5})


def test_cost_is_as_deployed() -> None:
    stages = [CONV, {"blocks": "MA", "depth": 2, "dim": 2}]
    near = space(stages, proxy={"image_size": 32})
    far = space(stages, proxy={"image_size": 32}, timing={"image_size": 64, "batch_size": 128})
    layout = near.sample(random.Random(0))
    assert far.cost(layout).params == near.cost(layout).params
    assert far.cost(layout).macs > 3 * near.cost(layout).macs
    assert far.cost(layout).memory > 3 * near.cost(layout).memory


def test_share_within_budget_is_that_of_enumeration() -> None:
    free = budgeted()
    params = sorted(free.cost(layout).params for layout in free.layouts())
    limit = params[len(params) // 3]
    searched = budgeted(params={"max": limit})
    assert free.share_within_budget() == 1.0
    share = sum(value <= limit for value in params) / len(params)
    assert searched.share_within_budget() == pytest.approx(share)
    rng = random.Random(0)
    for _ in range(50):
        layout = searched.uniform_unseen(set(), rng)
        assert layout is not None
        assert searched.cost(layout).params <= limit


@pytest.mark.parametrize("budget", [{"params": {"max": 1000}}, {"macs": {"max": 1000}}, {"memory": {"min": "1T"}}])
def test_budgets_that_nothing_satisfies(budget: dict[str, Any]) -> None:
    searched = budgeted(**budget)
    [name] = budget
    costs = [getattr(budgeted().cost(layout), name) for layout in budgeted().layouts()]
    nearest = max(costs) if "min" in budget[name] else min(costs)
    with pytest.raises(SpaceError, match=rf"budgets\.{name}\.") as error:
        searched.check()
    assert f"{nearest:,}" in str(error.value)
    assert searched.share_within_budget() == 0
    assert searched.uniform_unseen(set(), random.Random(0)) is None
    assert searched.baselines() == {}


def test_budgets_that_contradict_each_other() -> None:
    free = budgeted()
    costs = [free.cost(layout) for layout in free.layouts()]
    small_params, many_macs = min(c.params for c in costs), max(c.macs for c in costs)
    searched = budgeted(params={"max": small_params}, macs={"min": many_macs})
    with pytest.raises(SpaceError, match="all of them; the nearest leaves"):
        searched.check()


def test_baselines() -> None:
    searched = space(
        [
            CONV,
            {"blocks": "MA", "depth": [3, 4, 5], "dim": 2, "state": [4, 8, 16]},
            {"blocks": "MA", "depth": 3, "dim": 4},
        ],
        [16, 24, 32],
    )
    baselines = searched.baselines()
    assert {name: layout.pattern for name, layout in baselines.items()} == {
        "all Mamba": "C|MMMM|MMM",
        "all attention": "C|AAAA|AAA",
        "last half": "C|MMAA|MMA",
        "first half": "C|AAMM|AMM",
        "alternating": "C|MAMA|MAM",
    }
    assert {layout.stages[0].dim for layout in baselines.values()} == {24}
    assert baselines["last half"].stages[1].state == 8
    for layout in baselines.values():
        assert searched.decode(searched.encode(layout)) == layout
    assert searched.reference() == baselines["last half"]


def test_baselines_of_gated_mamba_have_its_own_last_half() -> None:
    searched = columnar(depth=5, expand=[1, 2, 4])
    baselines = searched.baselines()
    assert {name: layout.pattern for name, layout in baselines.items()} == {
        "all Mamba": "GGGGG",
        "all attention": "AAAAA",
        "last half": "GGAAA",
        "first half": "AAAGG",
        "alternating": "GAGAG",
    }
    assert baselines["last half"].stages[0].expand == 2
    assert searched.reference() == baselines["last half"]
    assert (searched.reference().stem, searched.reference().patch) == ("patch", 4)


def test_baselines_of_parallel_blocks_have_them_in_the_part_of_attention() -> None:
    stages = [CONV, {"blocks": "MP", "depth": 4, "dim": 2}, {"blocks": "GP", "depth": 3, "dim": 4}]
    assert {name: layout.pattern for name, layout in space(stages).baselines().items()} == {
        "all Mamba": "C|MMMM|GGG",
        "all parallel": "C|PPPP|PPP",
        "last half": "C|MMPP|GPP",
        "first half": "C|PPMM|PPG",
        "alternating": "C|MPMP|GPG",
    }
    beside = space([*stages[:2], {"blocks": "A", "depth": 2, "dim": 4}]).baselines()
    assert {name: layout.pattern for name, layout in beside.items() if "all" in name} == {
        "all parallel and attention": "C|PPPP|AA"
    }


def test_what_only_gated_blocks_have_is_not_searched_in_parallel_ones() -> None:
    searched = columnar(blocks="GP", depth=2, flips=0, placement="last", expand=[1, 2])
    patterns = collections.Counter(layout.pattern for layout in searched.layouts())
    assert patterns == {"GG": 4, "GP": 4, "PP": 2}


def test_a_model_outside_keeps_its_order_in_other_letters() -> None:
    searched = space([CONV, {"blocks": "MP", "depth": 5, "dim": 2, "head_dim": 8}])
    for blocks, pattern in (("MMAA", "MMMPP"), ("AAMM", "PPMMM"), ("PPPP", "PPPPP"), ("GGAA", "MMMPP")):
        model = HybridLayout(
            stages=(StageLayout(blocks="C", dim=16), StageLayout(blocks=blocks, dim=32, heads=4)), stem_stride=2
        )
        assert searched.scaled(model).pattern == f"C|{pattern}"


def test_baselines_keep_to_the_budget_and_the_space() -> None:
    free = budgeted()
    limit = max(free.cost(layout).params for layout in free.baselines().values()) - 1
    narrow = budgeted(params={"max": limit}).baselines()
    assert {layout.stages[0].dim for layout in narrow.values()} == {16}
    assert narrow.keys() == free.baselines().keys()
    assert one(flips=0, depth=4, placement="first").baselines().keys() == {"all Mamba", "all attention", "first half"}
    assert one(attention=2, depth=4).baselines().keys() == {"last half", "first half", "alternating"}
    for searched in SPACES.values():
        for layout in [*searched.baselines().values(), searched.reference()]:
            assert layout in searched


def test_a_space_without_a_hand_made_layout_has_a_reference() -> None:
    assert SPACES["mamba only"].baselines().keys() == {"all Mamba"}
    assert SPACES["gated Mamba"].baselines().keys() == {"all Mamba"}
    assert SPACES["attention only"].baselines().keys() == {"all attention"}
    assert SPACES["parallel only"].baselines().keys() == {"all parallel"}
    for odd in (space([{"blocks": "MA", "depth": 6, "dim": 1, "attention": 1}]), columnar(depth=6, attention=1)):
        assert odd.baselines().keys() == {"middle"}
        assert odd.reference() in odd


def test_proxy_layout_keeps_the_tokens() -> None:
    searched = space(
        [CONV], layout={"stem_stride": 4}, proxy={"image_size": 32, "stem_stride": 2}, timing={"image_size": 64}
    )
    layout = searched.sample(random.Random(0))
    assert searched.config.proxy.as_trained(layout).feature_sizes(32) == layout.feature_sizes(64)
    assert small().config.proxy.as_trained(layout) == layout


@pytest.mark.parametrize(
    ("hybrid", "keys"),
    [
        ({"blocks": "MA", "depth": 3}, "order and ratio are"),
        ({"blocks": "MA", "depth": 3, "attention": 1}, "order is"),
        ({"blocks": "M", "depth": 3, "state": [4, 8]}, "state is"),
        ({"blocks": "A", "depth": 3, "head_dim": [8, 16]}, "head_dim is"),
    ],
)
def test_too_few_tokens(hybrid: dict[str, Any], keys: str) -> None:
    searched = space([CONV, CONV | {"dim": 2}, {**hybrid, "dim": 4}], layout={"stem_stride": 4})
    with pytest.raises(SpaceError) as error:
        searched.check()
    message = str(error.value)
    assert f"stage 3: its {keys} searched, but it sees 4 tokens a window at the proxy's 32 px" in message
    assert "layout.stem_stride: 2 or proxy.image_size: 49" in message
    for mend in ({"layout": {"stem_stride": 2}}, {"layout": {"stem_stride": 4}, "proxy": {"image_size": 49}}):
        space([CONV, CONV | {"dim": 2}, {**hybrid, "dim": 4}], **mend).check()  # type: ignore[arg-type]


def test_too_few_tokens_of_patches() -> None:
    with pytest.raises(SpaceError) as error:
        columnar(patch=16).check()
    message = str(error.value)
    assert "stage 1: its order, ratio and state are searched, but it sees 4 tokens a window at the proxy's" in message
    assert message.endswith("set layout.patch: 8 or proxy.image_size: 64")
    columnar(patch=8).check()
    stage = {"blocks": "GA", "depth": 2, "dim": 1}
    for size, timing in ((64, {}), (64, {"image_size": 64})):
        space([stage], layout={"stem": "patch"}, proxy={"image_size": size}, timing=timing).check()
    with pytest.raises(SpaceError, match=r"the deployed 48 px.*set layout\.patch: 12 or timing\.image_size: 64"):
        space([stage], layout={"stem": "patch"}, proxy={"image_size": 64}, timing={"image_size": 48}).check()


def test_too_few_tokens_do_not_matter_for_depth_and_width() -> None:
    stage = {"blocks": "M", "depth": [1, 2], "dim": [1, 2], "mlp_ratio": [2, 4]}
    space([CONV, stage], [16, 32], layout={"stem_stride": 4}, proxy={"image_size": 8}).check()


def test_too_few_tokens_of_a_window() -> None:
    with pytest.raises(SpaceError, match=r"sees 9 tokens .*set layout\.stages\.1\.window to 4 or more"):
        space([CONV, {"blocks": "MA", "depth": 2, "dim": 2, "window": [None, 3]}]).check()


def test_too_few_tokens_at_deployment_alone() -> None:
    stages = [CONV, {"blocks": "MA", "depth": 2, "dim": 2}]
    searched = space(
        stages, layout={"stem_stride": 4}, proxy={"image_size": 16, "stem_stride": 1}, timing={"image_size": 16}
    )
    with pytest.raises(SpaceError, match=r"the deployed 16 px.*layout\.stem_stride: 2 or timing\.image_size: 25"):
        searched.check()
    proxy = space(
        stages, layout={"stem_stride": 4}, proxy={"image_size": 16, "stem_stride": 4}, timing={"image_size": 32}
    )
    with pytest.raises(SpaceError, match=r"the proxy's 16 px.*proxy\.stem_stride: 2 or proxy\.image_size: 25"):
        proxy.check()


@pytest.mark.parametrize(
    ("stages", "width", "named"),
    [
        ([{"blocks": "A", "depth": 2, "dim": 1}], [16, 24], r"stage 1: 24 channels .* head_dim 16; head_dim 8 divides"),
        ([{"blocks": "M", "depth": 2, "dim": 1}], [16, 17], "stage 1: 17 channels .* odd"),
        ([CONV, {"blocks": "M", "depth": 2, "dim": 1.3}], 16, r"stage 2: 20\.8 channels .* whole"),
    ],
)
def test_channels_that_do_not_divide(stages: list[dict[str, Any]], width: Any, named: str) -> None:
    with pytest.raises(SpaceError, match=named):
        space(stages, width).check()


def test_gated_mamba_may_have_odd_channels() -> None:
    space([{"blocks": "GA", "depth": 2, "dim": 1, "head_dim": 5}], [15, 25]).check()


@pytest.mark.parametrize("field", ["num_classes", "in_chans"])
def test_sizes_of_the_data_are_checked(field: str) -> None:
    with pytest.raises(SpaceError, match=f"{field}: 0"):
        SearchSpace(small().config, **{"num_classes": 10, "in_chans": 1, field: 0})


def test_describe() -> None:
    searched = small()
    said = describe(searched, samples=4)
    assert said.count == searched.count()
    assert said.searched["stage2.state"] == (4, 8)
    assert said.proxy_tokens == ((256, 256), (64, 64), (16, 16))
    params = [searched.cost(layout).params for layout in searched.layouts()]
    assert said.cost_range["params"] == (min(params), max(params))
    assert len({layout.key for layout in said.samples}) == 4
    assert len(describe(SPACES["two layouts"], samples=4).samples) == 2
