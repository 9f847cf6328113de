"""The sampler's memory: an Optuna study in this process, and the storage that keeps it for the next launch.

Samplers read and write the study in memory, where nothing costs a disk or a database. The storage, which dashboards
open too, gets each trial whole when it is begun and its result when it ends.
"""

from __future__ import annotations

import json
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import optuna
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState

from mambavision.files import write_atomic
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder

# The ledger is the truth: what is complete there is asked for first, and told from there.
REMOVE = "restore it from a copy, or remove it: what was measured is kept and counts"


DIRECTIONS: list[Literal["minimize", "maximize"]] = ["maximize", "maximize"]


def connect(url: str) -> RDBStorage:
    """Connect to a database, making Optuna's tables in it if there are none.

    Args:
        url: as SQLAlchemy reads it; ``postgresql://`` means the driver psycopg.

    Raises:
        StudyError: if the URL, its driver or its server cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    full = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if full.startswith("postgresql"):
        options["connect_args"] = {"connect_timeout": 10}
    try:
        import sqlalchemy.exc
    except ImportError:
        raise StudyError("storage: a database needs the package SQLAlchemy; pip install 'mvsearch[postgres]'") from None
    try:
        return RDBStorage(full, engine_kwargs=options)
    except ImportError as error:
        raise StudyError(
            f"storage: {url} needs a package that is not here ({_first_line(error)}); pip install 'mvsearch[postgres]' "
            "for PostgreSQL"
        ) from None
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise StudyError(
            f"storage: {url} is of no database that SQLAlchemy knows ({_first_line(error)}); give postgresql://, "
            "mysql:// or sqlite://"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ValueError, RuntimeError) as error:
        raise StudyError(f"storage: {url} cannot be opened ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    while isinstance(error, optuna.exceptions.StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def open_optuna_study(folder: StudyFolder, database: RDBStorage | None = None) -> optuna.Study:
    """Open (or begin) what is kept of a study's trials. Call it under the study's lock.

    In a database, where studies of other people may have the same name, it is kept under the name of the study and
    eight random digits, which a file in the folder remembers.

    Args:
        folder: of the study.
        database: of `connect`; None: the journal in the folder.

    Raises:
        StudyError: for a journal that Optuna cannot read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if database is not None:
        if not folder.database_name.exists():
            write_atomic(folder.database_name, f"{folder.name}-{secrets.token_hex(4)}\n")
        with _written():
            return _study(folder.database_name.read_text().strip(), optuna.storages._CachedStorage(database))
    # A driver that was killed leaves the journal's own lock behind, which would cost the next one its 30 s of grace.
    for name in (".lock", ".rename"):
        folder.journal.with_name(folder.journal.name + name).unlink(missing_ok=True)
    try:
        return _study(folder.name, _journal_storage(_Journal(str(folder.journal))))
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:  # lines, but not Optuna's
        raise StudyError(f"{folder.journal}: damaged ({error!r}); {REMOVE}") from None


def _journal_storage(backend: JournalFileBackend) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(backend)


def brief_optuna_study(folder: StudyFolder) -> optuna.Study:
    """A sampler's memory that is gone with this process, for dry runs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _study(folder.name, InMemoryStorage())


def _study(name: str, storage: optuna.storages.BaseStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)


def open_dashboard(folder: StudyFolder, url: str | None, port: int, told: Callable[[str], None]) -> None:
    """Serve optuna-dashboard on what is kept of a study's trials, until the process is interrupted.

    A journal is opened for reading alone: what the page would change is refused.

    Args:
        folder: of the study.
        url: of the database; None: the journal.
        port: of this machine.
        told: called with the page's address before it is served.

    Raises:
        StudyError: if optuna-dashboard is not installed, the port is taken, or nothing is kept yet.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise StudyError(
            "dashboard: the package optuna-dashboard is not installed; pip install 'mvsearch[dashboard]'"
        ) from None
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    storage: optuna.storages.BaseStorage
    if url is not None:
        storage, kept = connect(url), folder.database_name
        name = kept.read_text().strip() if kept.exists() else ""
    else:
        kept, name = folder.journal, folder.name
        if kept.exists():
            storage = _journal_storage(_Readable(str(kept)))
    if not kept.exists():
        raise StudyError(f"{folder.path}: its sampler has no memory yet (no {kept.name}); run mvsearch launch first")

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Silent(WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    try:
        server = make_server("127.0.0.1", port, wsgi(storage), server_class=Server, handler_class=Silent)
    except OSError as error:
        raise StudyError(f"port: {port} cannot be used ({error.strerror}); choose another with --port") from None
    with server:
        study = storage.get_study_id_from_name(name)
        told(f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study}")
        server.serve_forever()


class _Readable(JournalFileBackend):
    """A journal that is only read."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse."""
        raise PermissionError("mvsearch dashboard shows a study and does not change it")


@contextmanager
def _written() -> Iterator[None]:
    """A database that fails while a search runs ends it as a full disk does: with one message, to go on later."""
    try:
        yield
    except Exception as error:
        if isinstance(error, optuna.exceptions.StorageInternalError) or type(error).__module__.startswith("sqlalchemy"):
            raise OSError(f"storage: the database does not answer ({_first_line(error)})") from error
        raise


class _Journal(JournalFileBackend):
    """A journal that does not wait for the disk: the ledger does, before a result is used, and the ledger is the truth.

    What a machine that loses its power takes from the journal's end is asked for again, and told from the ledger.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations at the end."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(text.encode())


class StoredTrials:
    """The trials of a study, for its sampler and for the next launch.

    Args:
        kept: where they are kept; a study in memory is not kept.
        metrics: names of the two objectives; None: as they are.

    Attributes:
        study: the trials in this process. Ask it; begin and tell trials through this class.
    """

    def __init__(self, kept: optuna.Study, metrics: list[str] | None = None) -> None:
        with warnings.catch_warnings(), _written():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if metrics is not None and kept.metric_names != metrics:
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
        with _written():
            noted, trials = kept._storage.get_study_system_attrs(kept._study_id), kept.get_trials(deepcopy=False)
        for name, value in noted.items():
            self.study._storage.set_study_system_attr(self.study._study_id, name, value)
            self._study_attributes.add(name)
        for trial in trials:
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
        with _written():
            if trial.number not in self._ids:
                self._keep(trial.number)
                return
            # Enqueued in the storage from outside, between two launches.
            storage, number = self._kept._storage, self._ids[trial.number]
            storage.set_trial_state_values(number, TrialState.RUNNING)
            for name, distribution in trial.distributions.items():
                storage.set_trial_param(number, name, distribution.to_internal_repr(trial.params[name]), distribution)
            # Its key above all: without it, a trial that is killed is not asked for again.
            for name, value in trial.user_attrs.items():
                storage.set_trial_user_attr(number, name, value)
            self._written[trial.number] = set(trial.user_attrs)

    def leave_out(self, count: int) -> None:
        """Begin no trial with a number below `count` that is not there yet: they are of trials that were lost."""
        while (number := len(self.trials())) < count:
            # As if interrupted: it counts for nothing.
            lost = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"interrupted": True})
            self.study.add_trial(lost)
            if self._kept is not None:
                with _written():
                    self._keep(number)

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
        with _written():
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
