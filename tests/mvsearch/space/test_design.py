"""The design of placements and ratios: exactly its layouts, every one with every seed, and nothing else changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes import MakeFakeWorker

from mambavision.layout import HybridLayout
from mvsearch.analysis.insight import PAIRS, Insight
from mvsearch.config.reading import load_config
from mvsearch.config.values import ConfigError
from mvsearch.driver.search import Search
from mvsearch.pool.inline import InlinePool
from mvsearch.report.insight_words import unsupported
from mvsearch.space.design import SEEDS, design_layouts, stage_patterns, with_design
from mvsearch.space.space import SearchSpace
from mvsearch.study.data import StudyData
from mvsearch.study.folder import StudyFolder
from mvsearch.study.record import COMPLETE, TIME, TRAIN, Evaluation, trial_records


def designed(*overrides, source="stagewise"):
    config = load_config(source, list(overrides))
    return with_design(config, "placement", name=None, classes=10, channels=1)


def space_of(config):
    return SearchSpace(config, num_classes=10, in_chans=1)


def test_a_design_is_a_study_of_its_own_with_seeds_and_as_many_trials_as_layouts():
    config = designed()
    assert config.name == "stagewise-placement"
    assert config.proxy.seeds == SEEDS
    assert config.search.trials == len(design_layouts(space_of(config)))
    assert designed("proxy.seeds=5").proxy.seeds == 5


def test_only_blocks_differ_and_one_stage_at_a_time_but_for_the_published_patterns():
    longer = ("layout.stages.1.depth=8", "layout.stages.1.attention={min: 0, max: 8}", "layout.stages.1.flips=null")
    config = designed(*longer, "budgets.params.max=null", "budgets.macs.max=null")
    space = space_of(config)
    layouts, reference = design_layouts(space), space.reference()
    assert len({layout.key for layout in layouts}) == len(layouts)
    for layout in layouts:
        assert layout in space
        for stage, of_reference in zip(layout.stages, reference.stages, strict=True):
            assert (stage.dim, len(stage.blocks)) == (of_reference.dim, len(of_reference.blocks))
            assert stage.state == of_reference.state or not stage.scans
    # Stage 3 has two blocks and no quarters; the patterns that need them are tried in stage 2 alone.
    alone = {layout.stages[1].blocks for layout in layouts if layout.stages[2] == reference.stages[2]}
    assert alone == set(stage_patterns(8, "M", "A"))
    assert {"MMMMAAAA", "AAAAMMMM", "MAMAMAMA", "MMMMMMAA", "MMAAAAAA", "MMMMMMMM", "AAAAAAAA"} <= alone


def test_patterns_are_balanced_over_ratios():
    counts = [pattern.count("A") for pattern in stage_patterns(8, "M", "A")]
    assert sorted(set(counts)) == [0, 2, 4, 6, 8]
    assert [counts.count(n) for n in (2, 4, 6)] == [4, 4, 4]
    assert stage_patterns(2, "G", "A") == ["GG", "GA", "AG", "AA"]


def test_what_the_budgets_forbid_is_left_out():
    free = {layout.key for layout in design_layouts(space_of(designed()))}
    space = space_of(designed())
    limit = sorted(space.cost(layout).params for layout in design_layouts(space))[3]
    tight = space_of(designed(f"budgets.params.max={limit}", "layout.width=16"))
    kept = design_layouts(tight)
    assert 0 < len(kept) < len(free)
    assert not any(tight.excess(layout) for layout in kept)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fidelity={eta: 2, rungs: 2}", "search.sampler=random", "proxy.epochs=4"], "fidelity: rungs are not allowed"),
        (
            [
                "layout.stages=[{blocks: C, depth: 1, dim: 1}, {blocks: A, depth: 2, dim: 2, head_dim: 8}]",
                "layout.downsample=null",
            ],
            "needs a stage whose blocks are MA, GA, MP or GP",
        ),
    ],
)
def test_spaces_without_a_design_are_refused_with_a_reason(overrides, message):
    with pytest.raises(ConfigError, match=message):
        designed(*overrides)


def test_another_design_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"search\.design: 'ratio' is not allowed; null or one of placement"):
        load_config("stagewise", ["search.design=ratio"])


def search_in(path, config, make=None):
    folder = StudyFolder(path / config.name)
    folder.path.mkdir(exist_ok=True)
    folder.begin(config.resolved_yaml())
    return Search(config, space_of(config), folder, InlinePool(make or MakeFakeWorker(), None))


def test_a_launch_trains_exactly_the_design_and_a_second_one_nothing_more(tmp_path):
    config = designed()
    search = search_in(tmp_path, config)
    outcome = search.run()
    wanted = {layout.key for layout in design_layouts(search.space)}
    assert {record.key for record in search.records()} == wanted
    assert outcome.complete == len(wanted)
    assert not outcome.exhausted
    assert all(len(record.seeds) == SEEDS for record in search.records())
    assert {r.baseline for r in search.records()} >= {"last half", "first half", "all Mamba"}
    log = tmp_path / "log"
    again = search_in(tmp_path, config, MakeFakeWorker(log=log))
    assert again.run().complete == len(wanted)
    assert not log.exists()


def test_a_larger_number_of_trials_does_not_make_a_design_a_search(tmp_path):
    config = designed()
    more = config.model_copy(update={"search": config.search.model_copy(update={"trials": config.search.trials + 5})})
    assert search_in(tmp_path, more).run().complete == config.search.trials


def test_a_failed_layout_is_not_replaced(tmp_path):
    config = designed()
    bad = design_layouts(space_of(config))[-1].key
    search = search_in(tmp_path, config, MakeFakeWorker(faults=((bad, "raise"),)))
    outcome = search.run()
    assert (outcome.failed, outcome.complete) == (1, config.search.trials - 1)


def test_the_analysis_pairs_trainings_of_one_seed_and_finds_the_effect():
    config = designed("layout.stages.1.depth=6", "budgets.params.max=null", "budgets.macs.max=null")
    space = space_of(config)
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.2, size=SEEDS)  # what a seed does to all layouts alike
    lines = []
    for number, layout in enumerate(design_layouts(space)):
        common = {"key": layout.key, "layout": layout.to_dict(), "trial": number, "cost": _cost(space, layout)}
        lines.append(Evaluation(what=TIME, values={"images_per_second": 1.0, "ratio": 1.0}, **common))
        late = 0.05 if layout.stages[1].blocks.startswith("M") and layout.stages[1].blocks.endswith("AA") else 0.0
        for seed in range(SEEDS):
            nll = 1.0 - late + seeds[seed] + rng.normal(0, 0.005)
            values = {"nll": nll, "top1": 0.5, "images_seen": 1, "train_seconds": 1.0}
            lines.append(Evaluation(what=TRAIN, seed=seed, to_epoch=config.proxy.epochs, values=values, **common))
    records = trial_records(lines, epochs=config.proxy.epochs, seeds=SEEDS)
    assert all(record.state == COMPLETE for record in records)
    study = StudyData(
        name="made",
        records=records,
        config=config.resolved(),
        environment={},
        reference_point=(-2.3, -1.0),
        reference_key=space.reference().key,
        classes=10,
        started=0.0,
        ended=0.0,
    )
    insight = Insight(study)
    first = next(e for e in insight.compare(2, "placement", "nll", "params").effects if e.label == "first")
    assert first.source == PAIRS
    assert first.trials == 4  # at three ratios, and once more in the published "first N/2"
    assert first.high - first.low < 0.03  # the seeds' own 0.2 has cancelled
    assert first.value == pytest.approx(-0.05, abs=0.01)
    assert any("another width may answer otherwise" in sentence for sentence in unsupported(insight))
    searched = dataclasses.replace(study, config={**study.config, "search": {}})
    by_layout = next(
        e for e in Insight(searched).compare(2, "placement", "nll", "params").effects if e.label == "first"
    )
    assert by_layout.pairs < first.pairs


def _cost(space: SearchSpace, layout: HybridLayout) -> dict[str, int]:
    cost = space.cost(layout)
    return {"params": cost.params, "macs": cost.macs, "memory": cost.memory}
