"""What is used of Optuna beyond its public names: each of them, with the version that is installed, and no other."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import tomllib
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import _multi_objective
from optuna.trial import TrialState, create_trial
from packaging.requirements import Requirement

from mvsearch.samplers import optuna_private
from mvsearch.samplers.optuna_private import non_domination_ranks, seed_generators, study_of_some_trials

ROOT = Path(__file__).parents[3]


RANGES = {name: CategoricalDistribution(tuple(range(9))) for name in "abc"}


SAMPLERS = {
    "random": RandomSampler,
    "tpe": lambda seed: TPESampler(multivariate=True, n_startup_trials=4, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=4, seed=seed),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=4),
}


def finished(sampler=None, count=20):
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for number in range(count):
        params = {name: (number * step) % 9 for step, name in enumerate(RANGES, start=1)}
        values = [float(number % 7), -float(number % 5)]
        study.add_trial(create_trial(params=params, distributions=RANGES, values=values))
    return study


def drawn(sampler, asks=9):
    """What a study asks for: at random first, then from what was told."""
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    found = []
    for _ in range(asks):
        trial = study.ask(RANGES)
        study.tell(trial, [float(trial.params["a"] + trial.params["b"]), -float(trial.params["a"] + trial.params["c"])])
        found.append(trial.params)
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_of_optunas_seeded_anew_draws_as_one_made_with_the_seed(name):
    seeded = SAMPLERS[name](1)
    seeded.sample_independent(finished(count=2), create_trial(state=TrialState.RUNNING), "a", RANGES["a"])
    seed_generators(seeded, 5)
    wanted = drawn(SAMPLERS[name](5))
    assert drawn(seeded) == wanted
    assert drawn(SAMPLERS[name](1)) != wanted


@pytest.mark.parametrize(
    ("sampler", "names"),
    [
        (RandomSampler(), ["_rng"]),
        (TPESampler(), ["_rng", "_random_sampler"]),
        (NSGAIISampler(), ["_rng", "_random_sampler"]),
        (GPSampler(), ["_rng", "_independent_sampler"]),
    ],
)
def test_samplers_hold_their_generators_where_they_are_seeded(sampler, names):
    assert [name for name in ("_rng", "_random_sampler", "_independent_sampler") if hasattr(sampler, name)] == names
    for name in names[1:]:
        assert isinstance(getattr(sampler, name), RandomSampler)


def test_a_sampler_without_such_a_generator_is_not_taken_for_seeded():
    with pytest.raises(AttributeError, match="_rng"):
        seed_generators(optuna.samplers.BruteForceSampler.__new__(optuna.samplers.BruteForceSampler), 0)


def test_ranks_are_the_fronts_of_what_is_left():
    assert "n_below" in inspect.signature(_multi_objective._fast_non_domination_rank).parameters
    losses = np.array([[0, 3], [3, 0], [1, 1], [2, 2], [1, 4], [4, 4], [1, 1]])
    assert list(non_domination_ranks(losses, 7)) == [0, 0, 0, 1, 1, 2, 0]
    few = non_domination_ranks(losses, 5)
    assert list(few[[0, 1, 2, 6, 3, 4]]) == [0, 0, 0, 0, 1, 1]
    assert few[5] > 1


def test_samplers_read_trials_by_the_method_that_is_replaced():
    class Bounded(TPESampler):
        def sample_relative(self, study, trial, search_space):
            part = study_of_some_trials(
                study, [one for one in study.trials if one.number < 12 or not one.state.is_finished()]
            )
            assert part.study_name == study.study_name
            return super().sample_relative(part, trial, search_space)

    part, few, all_ = (
        finished(kind(multivariate=True, seed=4), count)
        for kind, count in ((Bounded, 20), (TPESampler, 12), (TPESampler, 20))
    )
    assert hasattr(part, "_get_trials")
    params = [[study.ask(RANGES).params for _ in range(4)] for study in (part, few, all_)]
    assert params[0] == params[1] != params[2]


def test_the_installed_optuna_is_within_the_bounds_of_pyproject():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = [one.specifier for one in map(Requirement, needed) if one.name == "optuna"]
    assert bounds.contains(importlib.metadata.version("optuna"))
    assert any(bound.operator == "<" for bound in bounds)
    major = int(importlib.metadata.version("optuna").partition(".")[0])
    assert not bounds.contains(f"{major + 1}.0.0")  # nobody has looked at its names


def private(name):
    return name.startswith("_") and not name.startswith("__")


def reaches(tree, defined):
    """Lines of a module where it takes a private name of Optuna's, or of anything that is not its own.

    Args:
        tree: of the module.
        defined: private names that mvsearch defines somewhere.
    """
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    modules = [
        *(alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names),
        *(node.module or "" for node in imports if isinstance(node, ast.ImportFrom)),
    ]
    of_optuna = any(module.partition(".")[0] == "optuna" for module in modules)
    own = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            parts = [f"{getattr(node, 'module', '') or ''}.{alias.name}" for alias in node.names]
            if any(p.lstrip(".").startswith("optuna") and any(map(private, p.split("."))) for p in parts):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Attribute) and private(node.attr):
            mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            known = own if of_optuna and mine else defined
            if node.attr not in known or (of_optuna and not mine):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            words = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)]
            if node.func.id in ("getattr", "setattr", "hasattr") and any(private(str(word)) for word in words):
                yield node.lineno, ast.unparse(node)


def names_of(tree):
    """Private names that a module defines: methods, and what is set on ``self`` or in a class."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if private(name)}


def test_no_other_module_takes_a_private_name_of_optunas():
    here = Path(optuna_private.__file__)
    trees = {path: ast.parse(path.read_text()) for path in (ROOT / "mvsearch").rglob("*.py")}
    assert here in trees
    defined = set().union(*map(names_of, trees.values()))
    found = {
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path, tree in trees.items()
        if path != here
        for line, what in reaches(tree, defined)
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        "study._storage",
        "self.study._storage",
        "trial._trial_id",
        "self._file_path",
        "super()._sample",
        "optuna.storages._CachedStorage",
        "getattr(sampler, '_rng')",
        "from optuna.storages.journal._file import get_lock_file",
        "from optuna.storages import _CachedStorage",
        "import optuna.study._multi_objective",
    ],
)
def test_each_way_to_reach_for_one_is_found(line):
    assert list(reaches(ast.parse(f"import optuna\n{line}\n"), {"_storage"}))
    own = "import optuna\nclass A:\n  def f(self):\n    self._x = 1\n    return self._x"
    assert not list(reaches(ast.parse(own), set()))
