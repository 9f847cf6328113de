"""Ray Tune with our searcher, small."""

from __future__ import annotations

from contextlib import contextmanager

import optuna
import ray
from ray import tune
from tune_trainable import trainable

from mvsearch.config.reading import load_config
from mvsearch.integrations.tune import LayoutSearcher
from mvsearch.space.space import SearchSpace

METRIC, MODE = ["nll", "speed"], ["min", "max"]


def space_of(*overrides):
    return SearchSpace(load_config("stagewise", overrides), num_classes=10, in_chans=1)


def searcher_of(*overrides, sampler="random", **more):
    sampler = {"random": optuna.samplers.RandomSampler(seed=0), "ours": None}[sampler]
    return LayoutSearcher(space_of(*overrides), METRIC, MODE, sampler=sampler, **more)


TINY = (
    *("layout.width=16", "layout.stages.1.depth=2", "layout.stages.1.flips=0", "layout.stages.1.state=8"),
    *("layout.stages.1.attention={min: 0, max: 2}", "layout.stages.2.depth=1", "layout.stages.2.state=8"),
    "layout.stages.2.attention={min: 0, max: 1}",
)


@contextmanager
def quiet_ray():
    """Ray on this machine, ended afterwards: a pool of the same process starts its own."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def tuner_in(folder, samples):
    return tune.Tuner(
        trainable,
        param_space={"rate": 0.1},
        tune_config=tune.TuneConfig(search_alg=searcher_of(sampler="ours"), num_samples=samples),
        run_config=tune.RunConfig(name="run", storage_path=str(folder), verbose=0),
    )
