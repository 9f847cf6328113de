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
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from mambavision.files import write_atomic
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder

# The ledger is the truth: what is complete there is asked for first, and told from there.
REMOVE = "restore it from a copy, or remove it: what was measured is kept and counts"


OWNER = "folder"
"""Attribute of a study in a database: the inode of the folder that it is kept for."""

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


@dataclass(frozen=True)
class OpenStudy:
    """An Optuna study and the storage that it lies in, which is ours to ask.

    Attributes:
        study: the study.
        storage: where it lies.
        id: its number there.
    """

    study: optuna.Study
    storage: BaseStorage
    id: int


def open_optuna_study(
    folder: StudyFolder, database: RDBStorage | None = None, notice: Callable[[str], None] | None = None
) -> OpenStudy:
    """Open (or begin) what is kept of a study's trials. Call it under the study's lock.

    A journal belongs to the folder that it lies in, whatever name it was begun under. In a database, where studies of
    other people may have the same name, it is kept under the name of the study and eight random digits, which a file in
    the folder remembers; a copy of the folder gets a name of its own there.

    Args:
        folder: of the study.
        database: of `connect`; None: the journal in the folder.
        notice: called with a sentence if a copy begins a memory of its own.

    Raises:
        StudyError: for a journal that Optuna cannot read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if database is not None:
        with _written():
            name = _name_in_database(folder, database)
            if name is None:
                name = f"{folder.name}-{secrets.token_hex(4)}"
                if folder.database_name.exists() and notice is not None:
                    before = folder.database_name.read_text().strip()
                    notice(f"This folder was copied from the study {before} of the database; it is {name} there now.")
                write_atomic(folder.database_name, f"{name}\n")
            opened = _study(name, database)
            if OWNER not in opened.study.user_attrs:
                database.set_study_user_attr(opened.id, OWNER, folder.path.stat().st_ino)
            return opened
    # A driver that was killed leaves the journal's own lock behind, which would cost the next one its 30 s of grace.
    for name in (".lock", ".rename"):
        folder.journal.with_name(folder.journal.name + name).unlink(missing_ok=True)
    try:
        storage = _journal_storage(_Journal(str(folder.journal)))
        return _study(_name_in_journal(folder, storage), storage)
    except StudyError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:  # lines, but not Optuna's
        raise StudyError(f"{folder.journal}: damaged ({error!r}); {REMOVE}") from None


def _name_in_database(folder: StudyFolder, database: RDBStorage) -> str | None:
    """Under which name a database keeps the trials of a folder.

    The study there knows the inode of its folder, which stays when a folder is renamed, and which no copy has.

    Returns:
        The name; None if the folder has none yet, or that of the study which it is a copy of.
    """
    if not folder.database_name.exists():
        return None
    name = folder.database_name.read_text().strip()
    try:
        study = database.get_study_id_from_name(name)
    except KeyError:  # the storage was changed: it begins there
        return name
    owner = database.get_study_user_attrs(study).get(OWNER)
    if owner is None:  # begun before owners were noted
        return name if name.rpartition("-")[0] == folder.name else None
    return name if owner == folder.path.stat().st_ino else None


def _name_in_journal(folder: StudyFolder, storage: JournalStorage) -> str:
    """The name of the only study in a journal; that of the folder in an empty one, or where there are others too.

    Raises:
        StudyError: if there are several, none of them of this name.
    """
    names = [study.study_name for study in storage.get_all_studies()]
    if folder.name in names or not names:
        return folder.name
    if len(names) > 1:
        raise StudyError(f"{folder.journal}: holds {', '.join(names)}, and which is this study is not known; {REMOVE}")
    return names[0]


def _journal_storage(backend: JournalFileBackend) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(backend)


def brief_optuna_study(folder: StudyFolder) -> OpenStudy:
    """A sampler's memory that is gone with this process, for dry runs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _study(folder.name, InMemoryStorage())


def _study(name: str, storage: BaseStorage) -> OpenStudy:
    study = optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)
    return OpenStudy(study, storage, storage.get_study_id_from_name(name))


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

    storage: BaseStorage
    if url is not None:
        storage = database = connect(url)
        name = _name_in_database(folder, database)
    elif folder.journal.exists():
        storage = journal = _journal_storage(_Readable(str(folder.journal)))
        name = _name_in_journal(folder, journal)
    else:
        name = None
    if name is None:
        missing = folder.journal.name if url is None else "study of its own in the database"
        raise StudyError(f"{folder.path}: its sampler has no memory yet (no {missing}); run mvsearch launch first")

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

    def __init__(self, path: str) -> None:
        self._path = path
        self._exclusive = JournalFileSymlinkLock(path)
        super().__init__(path, self._exclusive)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations at the end."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._exclusive.acquire()
        try:
            with open(self._path, "ab") as file:
                file.write(text.encode())
        finally:
            self._exclusive.release()


class StoredTrials:
    """The trials of a study, for its sampler and for the next launch.

    Args:
        kept: where they are kept; a study in memory is not kept.
        metrics: names of the two objectives; None: as they are.

    Attributes:
        study: the trials in this process. Ask it; begin and tell trials through this class.
    """

    def __init__(self, kept: OpenStudy, metrics: list[str] | None = None) -> None:
        with warnings.catch_warnings(), _written():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if metrics is not None and kept.study.metric_names != metrics:
                kept.study.set_metric_names(metrics)
        # Of the trials that are kept: all their numbers; of those not told yet, their ids, and which attributes are
        # written.
        self._numbers: set[int] = set()
        self._ids: dict[int, int] = {}
        self._written: dict[int, set[str]] = {}
        self._study_attributes: set[str] = set()
        brief = isinstance(kept.storage, InMemoryStorage)
        self._kept = None if brief else kept
        self._here = kept if brief else _study(kept.study.study_name, InMemoryStorage())
        self.study = self._here.study
        if brief:
            return
        with _written():
            noted, trials = kept.storage.get_study_system_attrs(kept.id), kept.study.get_trials(deepcopy=False)
        for name, value in noted.items():
            self._here.storage.set_study_system_attr(self._here.id, name, value)
            self._study_attributes.add(name)
        for trial in trials:
            self.study.add_trial(trial)
            self._numbers.add(trial.number)
            if not trial.state.is_finished():
                with _written():
                    self._ids[trial.number] = _trial_id(kept, trial.number)
                self._written[trial.number] = set(trial.user_attrs)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, by number; all of them if none are named. Not to be changed."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def begin(self, trial: optuna.Trial) -> None:
        """Keep a trial that was asked for, with all its parameters at once."""
        if self._kept is None:
            return
        with _written():
            if trial.number not in self._numbers:
                self._keep(trial.number)
                return
            # Enqueued in the storage from outside, between two launches.
            storage, number = self._kept.storage, self._ids[trial.number]
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
        trial = _trial_id(self._here, number)
        for name, value in attributes.items():
            self._here.storage.set_trial_user_attr(trial, name, value)

    def tell(self, number: int, values: Sequence[float] | None = None, state: TrialState | None = None) -> None:
        """End a trial; see `optuna.Study.tell`. One that was not begun is kept as it is now."""
        self.study.tell(number, values, state)
        if self._kept is None:
            return
        with _written():
            if number not in self._numbers:
                self._keep(number)
                return
            frozen, storage = self._trial(number), self._kept.storage
            for name, value in frozen.user_attrs.items():
                if name not in self._written[number]:
                    storage.set_trial_user_attr(self._ids[number], name, value)
            storage.set_trial_state_values(self._ids[number], frozen.state, frozen.values)
        del self._written[number], self._ids[number]

    def _trial(self, number: int) -> FrozenTrial:
        return self._here.storage.get_trial(_trial_id(self._here, number))

    def _keep(self, number: int) -> None:
        assert self._kept is not None
        # What a sampler noted about the study, such as the parents that NSGA-II chose for a generation.
        noted = self._here.storage.get_study_system_attrs(self._here.id)
        for name in noted.keys() - self._study_attributes:
            self._kept.storage.set_study_system_attr(self._kept.id, name, noted[name])
            self._study_attributes.add(name)
        frozen = self._trial(number)
        trial = self._kept.storage.create_new_trial(self._kept.id, template_trial=frozen)
        self._numbers.add(number)
        if not frozen.state.is_finished():
            self._ids[number] = trial
            self._written[number] = set(frozen.user_attrs)


def _trial_id(opened: OpenStudy, number: int) -> int:
    return opened.storage.get_trial_id_from_study_id_trial_number(opened.id, number)
