"""For people who live in Ray Tune: a `Searcher` over our space and sampler, for `tune.TuneConfig(search_alg=…)`."""

from __future__ import annotations

import logging
import math
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import parse_spec_vars

from mambavision.files import write_atomic
from mambavision.layout import HybridLayout, LayoutError
from mvsearch.driver.asking import LayoutAsker
from mvsearch.driver.trials import DIRECTIONS, OpenStudy, StoredTrials
from mvsearch.samplers import KnownCostSampler
from mvsearch.space.space import SearchSpace
from mvsearch.space.stage import SpaceError

logger = logging.getLogger(__name__)

LAYOUT = "layout"

_MODES = ("min", "max")


class LayoutSearcher(Searcher):
    """Proposes layouts of a space to Ray Tune: within the budgets, each at most once.

    The trainable finds its layout in its config, as plain data: ``HybridLayout.from_dict(config["layout"])``. It
    reports both metrics in one result; the last result of a trial counts. A trial that raises, or whose last result
    lacks a metric or holds one that is no finite number (throughput: above 0), is told FAIL with the reason in the
    attribute ``reason``; the search goes on. `study` is the Optuna study: both its directions are "maximize", its
    values the quality (minus the metric where its mode is "min") and log2 of the throughput.

    Metrics and modes are given here: `tune.TuneConfig` takes only one.

    Args:
        space: what is searched.
        metric: names of two results: quality, then throughput (img/s, or seconds with mode "min").
        mode: ``"min"`` or ``"max"`` for each, e.g. ``["min", "max"]`` for an NLL and img/s.
        sampler: of Optuna; None: `KnownCostSampler`.
        points_to_evaluate: layouts (or their plain data) that are proposed first; repetitions are left out.
        seed: of the default sampler and of uniform draws, 0 or more.
        iterations: `training_iteration` of a full training. A trial that a scheduler stops before is told PRUNED, so
            that it stands on no front; None: whatever a trial reported last is its result.

    Raises:
        ValueError: for metrics or modes that are not two; naming the argument.
        SpaceError, LayoutError: for a point outside the space or its budgets.
    """

    def __init__(
        self,
        space: SearchSpace,
        metric: Sequence[str],
        mode: Sequence[str],
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        points_to_evaluate: Sequence[HybridLayout | Mapping[str, Any]] = (),
        seed: int = 0,
        iterations: int | None = None,
    ) -> None:
        names, modes = _pair("metric", metric), _pair("mode", mode)
        for word in modes:
            if word not in _MODES:
                raise ValueError(f"mode: {word!r} is not allowed; one of min, max for each metric")
        if names[0] == names[1]:
            raise ValueError(f"metric: {names!r} is not allowed; quality and throughput are two different results")
        # Not told to Tune, which would end the whole run at the first result that lacks one of them.
        super().__init__()
        self._names, self._signs = names, [1 if word == "max" else -1 for word in modes]
        self.space = space
        self.iterations = iterations
        self._seed = seed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = InMemoryStorage()
            study = optuna.create_study(
                storage=storage, directions=DIRECTIONS, sampler=sampler or KnownCostSampler(space, seed=seed)
            )
        self._use(StoredTrials(OpenStudy(study, storage, storage.get_study_id_from_name(study.study_name))))
        for i, point in enumerate(points_to_evaluate):
            self._asker.add(self._point(i, point))

    def _use(self, trials: StoredTrials) -> None:
        """Search on with the trials of a study: what was asked for and told is read from them."""
        self._trials = trials
        # The sampler's generator is kept with the study, and people may give any sampler.
        self._asker = LayoutAsker(self.space, trials, self._seed, reseeds=False)
        self._numbers: dict[str, int] = {
            trial.user_attrs["tune_trial"]: trial.number
            for trial in trials.trials()
            if "tune_trial" in trial.user_attrs
        }

    @property
    def study(self) -> optuna.Study:
        """Every trial so far, as an Optuna study in memory."""
        return self._trials.study

    def set_search_properties(self, metric: Any, mode: Any, config: Mapping[str, Any], **spec: Any) -> bool:
        """Called by Tune with what `TuneConfig` and `param_space` hold.

        Raises:
            ValueError: if metric or mode stand there too, or `param_space` holds what is to be searched.
        """
        for name, value in (("metric", metric), ("mode", mode)):
            if value is not None:
                raise ValueError(
                    f"{name}: TuneConfig has {value!r}; leave it out there, as LayoutSearcher has two of its own"
                )
        if LAYOUT in config:
            raise ValueError(f"param_space: {LAYOUT!r} is what LayoutSearcher fills in; take another name")
        _, domains, grids = parse_spec_vars(dict(config))
        for path, _value in (*domains, *grids):
            raise ValueError(
                f"param_space: {'.'.join(map(str, path))} is to be searched, and LayoutSearcher searches the layouts "
                "of its space alone; give it one value"
            )
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next layout, as ``{"layout": …}``; `FINISHED` when the space holds no further one."""
        if trial_id in self._numbers:
            return {LAYOUT: self.space.decode(self._trials.trials()[self._numbers[trial_id]].params).to_dict()}
        asked = self._asker.ask()
        if asked is None:
            return Searcher.FINISHED
        trial, layout = asked
        trial.set_user_attr("tune_trial", trial_id)
        self._numbers[trial_id] = trial.number
        return {LAYOUT: layout.to_dict()}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A result on the way: only a trial that this searcher does not know is taken note of."""
        self._adopt(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell a trial's end: its values, PRUNED if it was stopped early, or FAIL with the reason."""
        self._adopt(trial_id, result or {})
        number = self._numbers.get(trial_id)
        if number is None or self._trials.trials()[number].state.is_finished():
            return
        values, reason = (None, "the trial raised") if error else self._values(result or {})
        reached = (result or {}).get(TRAINING_ITERATION, 0)
        if values is None:
            self._asker.fail(number, reason)
        elif self.iterations is not None and reached < self.iterations:
            self._trials.set(number, iterations=reached)
            self._trials.tell(number, state=TrialState.PRUNED)
        else:
            self._asker.complete(number, values)

    def _values(self, result: Mapping[str, Any]) -> tuple[list[float] | None, str]:
        """Quality and log2 of throughput, both to be maximised; None, and why, if they are not there."""
        measured = []
        for name in self._names:
            value = result.get(name)
            if value is None or isinstance(value, bool) or not _is_number(value):
                return None, f"{name}: {'missing from the last result' if value is None else f'{value!r} is no number'}"
            measured.append(float(value))
        if measured[1] <= 0:
            return None, f"{self._names[1]}: {measured[1]:g} is not above 0"
        return [self._signs[0] * measured[0], self._signs[1] * math.log2(measured[1])], ""

    def _adopt(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take note of a trial that Tune knows and this searcher does not.

        Tune writes its own state before a searcher's, so that a driver that dies between the two leaves such a trial.
        """
        if trial_id in self._numbers:
            return
        fields = {name.removeprefix(f"config/{LAYOUT}/"): value for name, value in result.items()}
        plain = (result.get("config") or {}).get(LAYOUT) if isinstance(result.get("config"), Mapping) else None
        try:
            layout = HybridLayout.from_dict(plain or {n: v for n, v in fields.items() if n not in result})
            params = self.space.encode(layout)
        except (LayoutError, SpaceError):
            logger.warning("Trial %s is not one of LayoutSearcher's; its result is not used.", trial_id)
            return
        self._numbers[trial_id] = len(self._trials.trials())
        self._asker.note(layout.key)
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=self.space.distributions(),
                user_attrs={"key": layout.key, "tune_trial": trial_id},
            )
        )

    def save(self, checkpoint_path: str) -> None:
        """Write the state of the search, whole or not at all; Tune does it by itself."""
        state = {"trials": self._trials, "todo": self._asker.todo}
        write_atomic(Path(os.fspath(checkpoint_path)), pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a state that `save` wrote; `tune.Tuner.restore` does it by itself.

        Trials that were under way keep their layouts: Tune runs them again under their names.

        Raises:
            ValueError: for a state that another version of mvsearch wrote.
        """
        with open(checkpoint_path, "rb") as file:
            state = pickle.load(file)
        if missing := [name for name in ("trials", "todo") if name not in state]:
            raise ValueError(f"{checkpoint_path}: written by another version of mvsearch, as it lacks {missing[0]}")
        self._use(state["trials"])
        self._asker.todo = state["todo"]

    def _point(self, i: int, point: HybridLayout | Mapping[str, Any]) -> HybridLayout:
        try:
            layout = point if isinstance(point, HybridLayout) else HybridLayout.from_dict(dict(point))
            self.space.encode(layout)
        except (LayoutError, SpaceError) as error:
            raise type(error)(f"points_to_evaluate[{i}]: {error}") from None
        if excess := self.space.excess(layout):
            raise SpaceError(f"points_to_evaluate[{i}]: over budgets.{next(iter(excess))}")
        return layout


def _pair(name: str, value: Sequence[str]) -> list[str]:
    if isinstance(value, str) or len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{name}: {value!r} is not allowed; two words, for quality and for throughput")
    return list(value)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
