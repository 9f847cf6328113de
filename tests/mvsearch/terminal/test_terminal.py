"""What the terminal shows, as text."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console
from study_factory import study

from mvsearch.driver.view import LaunchState
from mvsearch.study.record import COMPLETE
from mvsearch.terminal import live, tables


def state_of(data, **changes):
    state = LaunchState(
        finished=12,
        failed=1,
        wanted=40,
        running={"ray-0": "trial 13: timing", "ray-1": "trial 12: epoch 2 of 6, training loss 1.234"},
        front=data.front,
        hypervolume=1.234,
        utilisation=0.97,
        elapsed=200.0,
        remaining=500.0,
    )
    return dataclasses.replace(state, **changes)


def shown(renderable, width=80, colour=None):
    out = Console(file=io.StringIO(), width=width, color_system=colour, force_terminal=colour is not None)
    out.print(renderable)
    return out.file.getvalue()


def test_the_panel_says_how_far_it_is_within_80_columns():
    panel = live.panel(state_of(study()))
    text = shown(panel)
    assert all(len(line) <= 80 for line in text.splitlines())
    for part in ("13 of 40 layouts", "1 failed", "3 min 20 s", "about 8 min 20 s left", "workers busy 97 %"):
        assert part in text
    assert "hypervolume 1.23× the baselines'" in text
    assert "epoch 2 of 6, training loss 1.234" in text


def test_letters_are_coloured_on_a_terminal_only():
    table = live.front_lines(study().front)
    assert "\x1b[" not in shown(table, 160)
    assert "48;2;0;114;178" in shown(table, 160, "truecolor"), "M is #0072B2"


def test_the_line_of_a_trial_tells_layouts_apart_that_differ_in_state_only():
    data = study()
    record = next(r for r in data.complete if live.states_text(r))
    stages = [stage | {"state": 2 * stage["state"]} for stage in record.layout["stages"]]
    other = dataclasses.replace(record, layout=record.layout | {"stages": stages})
    lines = [live.record_line(r, state_of(data)).plain for r in (record, other)]
    assert f"  state {live.states_text(record)}  top-1" in lines[0]
    assert lines[0] != lines[1]


def test_a_plain_view_prints_one_line_a_trial_and_failures_with_their_reason():
    data = study()
    out = Console(file=io.StringIO(), width=200)
    view = live.LaunchView(out)
    with view.running():
        for record in (data.complete[0], data.failed[0]):
            view.trial_ended(record, state_of(data))
        view.update(state_of(data))
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 2
    assert data.complete[0].state == COMPLETE
    assert data.complete[0].baseline in lines[0]
    assert f"Trial {data.failed[0].number} failed: {data.failed[0].reason}" in lines[1]


def test_gated_mamba_has_its_colour_and_state_in_the_table():
    first = study().front[0]
    stage = {**first.layout["stages"][1], "blocks": "GGA", "state": 16, "expand": 2}
    record = dataclasses.replace(first, layout={**first.layout, "stem": "patch", "stages": [stage]})
    table = live.front_lines([record])
    assert "48;2;86;180;233" in shown(table, 160, "truecolor"), "G is #56B4E9"
    plain = shown(table, 160)
    assert "G G A" in plain
    assert [str(stage["dim"]), "16"] == plain.splitlines()[2].split()[3:5]


def test_a_columnar_space_is_shown_with_its_tokens():
    from mvsearch.config.reading import load_config
    from mvsearch.space.describe import describe
    from mvsearch.space.space import SearchSpace

    searched = SearchSpace(load_config("columnar"), num_classes=10, in_chans=1)
    out = Console(file=io.StringIO(), width=160)
    tables.print_space(out, describe(searched, samples=1))
    tables.print_start(out, searched, "2 workers", new=True, done=0)
    text = out.file.getvalue()
    assert "Tokens a window: stage 1: 64" in text
    assert "stage1.state" in text
    assert "G G A A" in text
