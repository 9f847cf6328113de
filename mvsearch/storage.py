"""The sampler's memory: an Optuna study in this process, and the storage that keeps it for the next launch.

Samplers read and write the study in memory, where nothing costs a disk or a database. The storage, which dashboards
open too, gets each trial whole when it is begun and its result when it ends.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState

from mvsearch.study import StudyFolder

DIRECTIONS: list[Literal["minimize", "maximize"]] = ["maximize", "maximize"]


def open_optuna_study(folder: StudyFolder) -> optuna.Study:
    """Open (or begin) what is kept of a study's trials. Call it under the study's lock."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A driver that was killed leaves the journal's own lock behind, which would cost the next one its 30 s of grace.
    for name in (".lock", ".rename"):
        folder.journal.with_name(folder.journal.name + name).unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(_Journal(str(folder.journal)))
    return _study(folder.name, storage)


def brief_optuna_study(folder: StudyFolder) -> optuna.Study:
    """A sampler's memory that is gone with this process, for dry runs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _study(folder.name, InMemoryStorage())


def _study(name: str, storage: optuna.storages.BaseStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)


class _Journal(JournalFileBackend):
    """A journal that does not wait for the disk: the ledger does, before a result is used, and the ledger is the truth.

    What a machine that loses its power takes from the journal's end is asked for again, and told from the ledger.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations at the end."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(text.encode())


class Memory:
    """The trials of a study, for its sampler and for the next launch.

    Args:
        kept: where they are kept; a study in memory is not kept.
        metrics: names of the two objectives.

    Attributes:
        study: the trials in this process. Ask it; begin and tell trials through this class.
    """

    def __init__(self, kept: optuna.Study, metrics: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if kept.metric_names != metrics:
                kept.set_metric_names(metrics)
        self._kept: optuna.Study | None = None
        # Of each kept trial its id there; of those not told yet, which attributes are written.
        self._ids: dict[int, int] = {}
        self._written: dict[int, set[str]] = {}
        self._study_attributes: set[str] = set()
        if isinstance(kept._storage, InMemoryStorage):
            self.study = kept
            return
        self._kept = kept
        self.study = _study(kept.study_name, InMemoryStorage())
        for name, value in kept._storage.get_study_system_attrs(kept._study_id).items():
            self.study._storage.set_study_system_attr(self.study._study_id, name, value)
            self._study_attributes.add(name)
        for trial in kept.get_trials(deepcopy=False):
            self.study.add_trial(trial)
            self._ids[trial.number] = trial._trial_id
            if not trial.state.is_finished():
                self._written[trial.number] = set(trial.user_attrs)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, by number; all of them if none are named. Not to be changed."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def begin(self, trial: optuna.Trial) -> None:
        """Keep a trial that was asked for, with all its parameters at once."""
        if self._kept is None:
            return
        if trial.number in self._ids:  # enqueued in the storage from outside
            storage, number = self._kept._storage, self._ids[trial.number]
            storage.set_trial_state_values(number, TrialState.RUNNING)
            for name, distribution in trial.distributions.items():
                storage.set_trial_param(number, name, distribution.to_internal_repr(trial.params[name]), distribution)
            return
        self._keep(trial.number)

    def set(self, number: int, **attributes: Any) -> None:
        """Set attributes of a trial; they are kept when it is told."""
        frozen = self._trial(number)
        for name, value in attributes.items():
            self.study._storage.set_trial_user_attr(frozen._trial_id, name, value)

    def tell(self, number: int, values: Sequence[float] | None = None, state: TrialState | None = None) -> None:
        """End a trial; see `optuna.Study.tell`. One that was not begun is kept as it is now."""
        self.study.tell(number, values, state)
        if self._kept is None:
            return
        if number not in self._ids:
            self._keep(number)
            return
        frozen, storage = self._trial(number), self._kept._storage
        for name, value in frozen.user_attrs.items():
            if name not in self._written[number]:
                storage.set_trial_user_attr(self._ids[number], name, value)
        storage.set_trial_state_values(self._ids[number], frozen.state, frozen.values)
        del self._written[number]

    def _trial(self, number: int) -> FrozenTrial:
        storage, study = self.study._storage, self.study._study_id
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study, number))

    def _keep(self, number: int) -> None:
        assert self._kept is not None
        storage, study = self._kept._storage, self._kept._study_id
        # What a sampler noted about the study, such as the parents that NSGA-II chose for a generation.
        noted = self.study._storage.get_study_system_attrs(self.study._study_id)
        for name in noted.keys() - self._study_attributes:
            storage.set_study_system_attr(study, name, noted[name])
            self._study_attributes.add(name)
        frozen = self._trial(number)
        self._ids[number] = storage.create_new_trial(study, template_trial=frozen)
        if not frozen.state.is_finished():
            self._written[number] = set(frozen.user_attrs)
