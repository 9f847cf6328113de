"""The code of docs/integrations.md runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "integrations.md"


def run_blocks(*, tune):
    """Run the blocks of the page in order, as a reader would; those of Ray Tune only if asked for."""
    text = PAGE.read_text()
    names: dict = {"__name__": "page"}
    before, after = text.split("\n## Ray Tune\n")
    for block in re.findall(r"```python\n(.*?)```", before + (after if tune else ""), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


@pytest.mark.slow
def test_the_optuna_example_runs_and_its_study_holds_distinct_layouts(capsys):
    names = run_blocks(tune=False)
    trials = names["study"].trials
    assert len({trial.user_attrs["key"] for trial in trials}) == len(trials) == 8
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    assert len(capsys.readouterr().out.splitlines()) == len(names["study"].best_trials)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tune_example_runs(tmp_path, monkeypatch):
    from tuners import quiet_ray

    with quiet_ray():
        # Tune writes to ~/ray_results. Only now: Ray's own processes look for their token in the home they start with.
        monkeypatch.setenv("HOME", str(tmp_path))
        names = run_blocks(tune=True)
    assert len(names["results"]) == 6
    assert not names["results"].errors
    assert len({result.config["layout"]["in_dim"] for result in names["results"]}) == 1
