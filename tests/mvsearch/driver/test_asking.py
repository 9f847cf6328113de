"""Asking a study: what its trials count for, what is refused, drawn and promoted, and what is asked again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mvsearch.config.reading import load_config
from mvsearch.driver.asking import MAX_REFUSALS, LayoutAsker
from mvsearch.driver.trials import StoredTrials, brief_optuna_study
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder
from mvsearch.study.record import TIME, Evaluation, trial_records

SEED = 5


def space_of(*overrides):
    return SearchSpace(load_config("stagewise", overrides), num_classes=10, in_chans=1)


SPACE = space_of("layout.width=16", "layout.stages.1.depth=2", "layout.stages.1.flips=0", "layout.stages.2.depth=1")


FIRST, SECOND, THIRD, FOURTH = list(SPACE.layouts())[:4]


def record_of(layout, number):
    """Of a layout that was only timed."""
    values = {"images_per_second": 1.0, "ratio": 1.0}
    line = Evaluation(what=TIME, key=layout.key, layout=layout.to_dict(), trial=number, values=values)
    return trial_records([line], epochs=9, seeds=1)[0]


class Constant(optuna.samplers.BaseSampler):
    """Always suggests the same layout, and notes the seeds it was given."""

    def __init__(self, layout=FIRST):
        self.params, self.seeds = SPACE.encode(layout), []

    def reseed(self, seed):
        self.seeds.append(seed)

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.params[param_name]


def trials_of(*trials, sampler=None):
    """The trials of a study in memory."""
    stored = StoredTrials(brief_optuna_study(StudyFolder(Path("study"))))
    stored.study.sampler = sampler or Constant()
    for trial in trials:
        stored.study.add_trial(trial)
    return stored


def trial(state, layout=FIRST, **attributes):
    return create_trial(
        state=state,
        params=SPACE.encode(layout),
        distributions=SPACE.distributions(),
        values=[0.0, 0.0] if state == TrialState.COMPLETE else None,
        user_attrs={"key": layout.key, **attributes},
    )


def over_budget():
    study = trials_of().study
    asked = study.ask()
    SPACE.suggest(asked)
    asked.set_user_attr("key", FIRST.key)
    asked.set_constraint("params", 7.0)
    study.tell(asked, state=TrialState.PRUNED)
    return study.trials[0]


DUPLICATE = trial(TrialState.PRUNED, duplicate_of=FIRST.key)


AT_RUNG = trial(TrialState.PRUNED, rung=0, epoch=1)


# (trial, asked, ended, seen, settled), as in the table of mvsearch/driver/asking.py.
STATES = {
    "running": (trial(TrialState.RUNNING), 1, 0, True, False),
    "complete": (trial(TrialState.COMPLETE), 1, 1, True, True),
    "failed": (trial(TrialState.FAIL), 1, 1, True, True),
    "interrupted": (trial(TrialState.FAIL, interrupted=True), 0, 0, False, False),
    "duplicate": (DUPLICATE, 1, 0, False, False),
    "over budget": (over_budget(), 1, 0, False, True),
    "at a rung": (AT_RUNG, 1, 0, True, True),
    "stopped by Tune": (trial(TrialState.PRUNED, iterations=3), 1, 0, True, True),
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_trial_counts_for(name):
    """Whether its layout is refused, how many asks and ends there were, and whether a stop makes it asked again."""
    frozen, asked, ended, seen, settled = STATES[name]
    trials = trials_of(frozen)
    asker = LayoutAsker(SPACE, trials, SEED)
    assert asker.ended == ended
    asker.add(FIRST)
    asker.add(SECOND)
    _, layout = asker.ask()
    assert layout == (SECOND if seen else FIRST)
    first_seed = int(np.random.SeedSequence([SEED, asked]).generate_state(1)[0])
    assert trials.study.sampler.seeds[0] == first_seed

    again = LayoutAsker(SPACE, trials_of(trial(TrialState.FAIL, interrupted=True), frozen), SEED)
    again.recover({}, [], 0)
    assert [attributes["key"] for _, attributes in again.todo] == ([] if settled else [FIRST.key])


def test_what_was_enqueued_is_asked_for_and_settled_and_counts_for_nothing_before():
    trials = trials_of(trial(TrialState.FAIL, interrupted=True))
    trials.study.enqueue_trial(SPACE.encode(SECOND), user_attrs={"key": FIRST.key})
    asker = LayoutAsker(SPACE, trials, SEED)
    asker.recover({}, [], 0)
    assert (list(asker.todo), asker.ended, asker.next_is_fixed) == ([], 0, True)
    assert asker.ask()[1] == SECOND
    assert not asker.next_is_fixed
    assert trials.study.sampler.seeds == [int(np.random.SeedSequence([SEED, 0]).generate_state(1)[0])]


def test_refusals_say_why():
    sizes = sorted(SPACE.cost(layout).params for layout in SPACE.layouts())
    space = space_of(
        *("layout.width=16", "layout.stages.1.depth=2", "layout.stages.1.flips=0", "layout.stages.2.depth=1"),
        f"budgets.params.max={sizes[-1] - 1}",
    )
    large = next(layout for layout in space.layouts() if space.excess(layout))
    small = next(layout for layout in space.layouts() if not space.excess(layout))
    trials = trials_of(sampler=Constant(small))
    asker = LayoutAsker(space, trials, SEED)
    for layout in (large, small, small):
        asker.add(layout)
    assert asker.ask()[1] == small
    asker.ask()
    refused = trials.trials(TrialState.PRUNED)
    assert refused[0].user_attrs["key"] == large.key
    assert refused[0].constraints["params"] > 0
    assert {one.user_attrs["duplicate_of"] for one in refused[1:]} == {small.key}


def test_after_so_many_refusals_a_layout_is_drawn_until_there_is_none():
    asker = LayoutAsker(SPACE, trials_of(), SEED)
    assert asker.ask()[1] == FIRST
    drawn, layout = asker.ask()
    assert drawn.number == 1 + MAX_REFUSALS
    assert drawn.user_attrs["drawn"] == "uniform"
    assert layout != FIRST
    keys = {FIRST.key, layout.key}
    while (asked := asker.ask()) is not None:
        assert asked[1].key not in keys
        keys.add(asked[1].key)
    assert keys == {layout.key for layout in SPACE.layouts()}


@pytest.mark.parametrize(
    ("between", "refusals"),
    [
        ((), 1),
        ((trial(TrialState.FAIL, interrupted=True),), 1),
        ((AT_RUNG,), MAX_REFUSALS),
        ((trial(TrialState.COMPLETE),), MAX_REFUSALS),
    ],
)
def test_refusals_in_a_row_are_counted_over_a_stop(between, refusals):
    """What was measured ends the row, also if it was only to the end of a rung; what was cut short does not."""
    before = [trial(TrialState.COMPLETE), *[DUPLICATE] * (MAX_REFUSALS - 1), *between]
    asked, _ = LayoutAsker(SPACE, trials_of(*before), SEED).ask()
    assert asked.number == len(before) + refusals


def test_a_layout_that_waits_at_a_rung_is_asked_for_once_more_with_what_it_continues():
    trials = trials_of(sampler=Constant(SECOND))
    asker = LayoutAsker(SPACE, trials, SEED)
    asked, layout = asker.ask()
    asker.leave_at_rung(asked, rung=0, epoch=3)
    assert trials.trials()[0].user_attrs == {"key": layout.key, "rung": 0, "epoch": 3}
    # The layout itself, and one whose trial the journal has lost.
    for waiting, number in ((layout, 0), (THIRD, 40)):
        asker.promote(record_of(waiting, 40), rung=1)
        asked, again = asker.ask()
        assert (again, asked.user_attrs) == (waiting, {"key": waiting.key, "continues": number, "rung": 1})
    assert asker.ended == 0


def test_ends_are_told_and_counted():
    trials = trials_of()
    asker = LayoutAsker(SPACE, trials, SEED)
    asker.add(FIRST, baseline="all")
    asker.add(SECOND)
    (one, _), (other, _) = asker.ask(), asker.ask()
    asker.complete(one.number, [-1.5, 2.0], params=7)
    asker.fail(other.number, "it broke")
    complete, failed = trials.trials()
    assert (complete.values, complete.user_attrs) == ([-1.5, 2.0], {"key": FIRST.key, "baseline": "all", "params": 7})
    assert (failed.state, failed.user_attrs["reason"], asker.ended) == (TrialState.FAIL, "it broke", 2)


def test_what_goes_on_asks_first_for_what_was_cut_short_then_for_what_is_given_then_for_what_the_ledger_holds():
    trials = trials_of(trial(TrialState.COMPLETE, FIRST), trial(TrialState.RUNNING, SECOND, baseline="half", junk=1))
    asker = LayoutAsker(SPACE, trials, SEED)
    records = [record_of(layout, number) for number, layout in ((0, FIRST), (1, SECOND), (5, FOURTH))]
    starting = {layout.key: (layout, {"baseline": name}) for name, layout in (("a", FIRST), ("b", THIRD))}
    asker.recover(starting, records, trials_used=6)
    assert [attributes for _, attributes in asker.todo] == [
        {"key": SECOND.key, "baseline": "half"},
        {"key": THIRD.key, "baseline": "b"},
        {"key": FOURTH.key},
    ]
    assert asker.ended == 1
    states = [one.state for one in trials.trials()]
    assert states == [TrialState.COMPLETE, *[TrialState.FAIL] * 5], "trials that were lost keep their numbers"
    assert asker.ask()[0].number == 6
    asker.release_running()
    assert trials.trials()[6].user_attrs["interrupted"]


def test_a_sampler_whose_generator_is_kept_is_not_reseeded():
    trials = trials_of()
    asker = LayoutAsker(SPACE, trials, SEED, reseeds=False)
    asker.note(FIRST.key)
    asker.add(SECOND)
    assert asker.ask()[1] == SECOND
    asker.ask()
    assert trials.study.sampler.seeds == []
    assert all(one.user_attrs.get("duplicate_of") == FIRST.key for one in trials.trials(TrialState.PRUNED))
