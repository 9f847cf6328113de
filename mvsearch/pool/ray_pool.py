"""A pool of Ray actors: one a GPU (or a share of one), or one a core group; on this machine or on a running cluster."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mvsearch.pool.job import Done, Event, Job, Lost, Notice, Progress, Started, WorkerFactory
from mvsearch.pool.pool import PoolError, PoolFailed
from mvsearch.study.record import FAIL

PLACE_S = 10.0
"""Seconds after which a worker that has no place in the cluster yet is spoken of."""
GIVE_UP_S = 120.0
"""Seconds after which Ray, started in the background, is taken never to come up."""
STARTS = 3
"""How often a worker is started that fails to, before it is given up."""
HANG_GRACE_S = 5.0
"""Seconds over its limit after which a job is taken to hang and its worker killed; a training looks at its limit by
itself before each step."""
SMALLEST_SHARE = 1e-4
"""Of a GPU; Ray counts no finer."""


class _Actor:
    """The worker in its own process. Made a Ray actor when Ray is known to be wanted."""

    def place(self) -> str:
        """The node it runs on: quick, so that it tells a worker without a place from one that loads its libraries."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def build(self, make_worker: WorkerFactory, name: str, device: str, threads: int, data: Any) -> None:
        self._worker = make_worker(name, device, threads, data)

    def run(self, job: Job) -> Iterator[Progress | Done]:
        yield from self._worker.run(job)


@dataclass
class _Slot:
    """One actor of the pool and what is waited for from it.

    Attributes:
        actor: its handle; None while there is none.
        waits_for: of an actor that starts, `place` and then `build`; of one that works, its stream of events.
        since: when it was started.
        node: where it runs; "" until it has a place.
        built: whether it can take jobs.
        job: what it does.
        began: Unix time at which it was given the job.
        over_at: when the job is taken to hang.
        failures: how often in a row it could not be built.
    """

    name: str
    actor: Any = None
    waits_for: Any = None
    building: Any = None
    since: float = 0.0
    node: str = ""
    built: bool = False
    job: Job | None = None
    began: float = 0.0
    over_at: float = math.inf
    failures: int = 0


class RayPool:
    """Runs jobs on Ray actors that are reused, replaced when they die, and killed at the end.

    A job is given only to an actor that runs, so an actor for which there is no place (after a machine has left the
    cluster, say) keeps nobody waiting; it joins when there is one.

    Args:
        make_worker: builds each worker in its own process; picklable.
        data: put once into Ray's object store, from where each worker takes it.
        workers: how many; None: one a GPU share if there are GPUs, else one a core.
        gpus_per_trial: share of a GPU a worker takes; None: 1 where there are GPUs, else 0.
        address: of a running cluster ("auto" or "HOST:PORT"); None starts Ray on this machine.

    Raises:
        PoolError: if the cluster cannot be reached, or has less free than the workers need.
    """

    def __init__(
        self,
        make_worker: WorkerFactory,
        data: Any,
        *,
        workers: int | None = None,
        gpus_per_trial: float | None = None,
        address: str | None = None,
    ) -> None:
        early = _EARLY.pop((workers, address), None)
        if early is None:
            _connect(workers, address)
        else:
            try:
                early.result(timeout=GIVE_UP_S)
            except TimeoutError:
                raise PoolError(
                    f"workers: Ray did not come up within {GIVE_UP_S:g} s; --workers 1 needs no Ray"
                ) from None
        import ray

        self._ray = ray
        try:
            total, free = ray.cluster_resources(), ray.available_resources()
            workers, cpus, gpus_per_trial = _plan(total, free, workers, gpus_per_trial, local=address is None)
        except PoolError:
            ray.shutdown()
            raise
        self._threads = max(1, int(cpus))
        self._device = "cuda:0" if gpus_per_trial else "cpu"
        self._needs = {"CPU": cpus, "GPU": gpus_per_trial}
        self._actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus_per_trial, max_restarts=0)(_Actor)
        self._make_worker = make_worker
        self._data = ray.put(data)
        self._slots = [_Slot(f"ray-{number}") for number in range(workers)]
        self._queue: deque[Job] = deque()
        self._news: deque[Event] = deque()
        self._unplaced = 0
        self._closed = False
        for slot in self._slots:
            self._start(slot)

    @property
    def workers(self) -> int:
        """Number of actors, without those that have waited long for a place; at least 1, as shares of it are told."""
        return max(1, len(self._slots) - self._unplaced)

    @property
    def in_process(self) -> bool:
        """False."""
        return False

    @property
    def description(self) -> str:
        """For people."""
        each = f"{self._needs['GPU']:g} GPU" if self._needs["GPU"] else f"{self._threads} CPU thread(s)"
        return f"{len(self._slots)} Ray workers, {each} each"

    def idle(self) -> int:
        """How many more jobs would start at once, or when a worker that starts is ready; never 0 with nothing to do."""
        taken = sum(slot.job is not None for slot in self._slots) + len(self._queue)
        return max(0 if taken else 1, self.workers - taken)

    def submit(self, job: Job) -> None:
        """Hand in a job."""
        self._queue.append(job)
        self._assign()

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened; waits at most `timeout` seconds for the first thing."""
        until = time.monotonic() + timeout
        while True:
            self._assign()
            self._end_what_hangs()
            while self._news:
                until = 0.0
                yield self._news.popleft()
            slots = {slot.waits_for: slot for slot in self._slots if slot.waits_for is not None}
            left = until - time.monotonic()
            if not slots:
                if self._queue:
                    time.sleep(max(0.0, left))
                return
            # Never longer than a second, so that limits are looked at.
            ready, _ = self._ray.wait(list(slots), num_returns=1, timeout=min(max(0.0, left), 1.0))
            for waited_for in ready:
                self._hear(slots[waited_for])
            if not ready:  # all has been heard that there is to hear, also if nobody listened for long
                self._count_unplaced()
                if not self._news and time.monotonic() >= until:
                    return

    def now(self) -> float:
        """Real time."""
        return time.monotonic()

    def cancel(self, job_id: int) -> None:
        """Forget a job; if it runs, its actor is killed and replaced."""
        self._queue = deque(job for job in self._queue if job.id != job_id)
        self._news = deque(event for event in self._news if event.job != job_id)
        for slot in self._slots:
            if slot.job is not None and slot.job.id == job_id:
                self._start(slot)

    def close(self) -> None:
        """Kill the actors and leave Ray; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for slot in self._slots:
            self._kill(slot)
        self._queue.clear()
        self._ray.shutdown()

    def _start(self, slot: _Slot) -> None:
        """Put a new actor in a slot, in place of the one there."""
        self._kill(slot)
        slot.actor = self._actor_class.remote()
        slot.waits_for = slot.actor.place.remote()
        slot.building = slot.actor.build.remote(self._make_worker, slot.name, self._device, self._threads, self._data)
        slot.since = time.monotonic()

    def _kill(self, slot: _Slot) -> None:
        if slot.actor is not None:
            self._ray.kill(slot.actor)
        slot.actor = slot.waits_for = slot.building = slot.job = None
        slot.node, slot.built, slot.over_at = "", False, math.inf

    def _assign(self) -> None:
        for slot in self._slots:
            if not self._queue:
                return
            if slot.built and slot.job is None:
                slot.job, slot.began = self._queue.popleft(), time.time()
                slot.waits_for = slot.actor.run.options(num_returns="streaming").remote(slot.job)
                if slot.job.limit_s is not None:
                    slot.over_at = time.monotonic() + slot.job.limit_s + HANG_GRACE_S
                self._news.append(Started(slot.job.id, slot.name))

    def _hear(self, slot: _Slot) -> None:
        """Take what a slot has to say."""
        from ray.exceptions import RayActorError, RayError

        job = slot.job
        try:
            if job is not None:
                event: Progress | Done = self._ray.get(next(slot.waits_for))
            elif slot.node:
                self._ray.get(slot.waits_for)
                slot.built, slot.waits_for, slot.failures = True, None, 0
                return
            else:
                slot.node = self._ray.get(slot.waits_for)
                slot.waits_for = slot.building
                return
        except StopIteration:
            assert job is not None
            self._start(slot)
            self._news.append(Lost(job.id, f"worker {slot.name} ended the job without a result"))
        except RayError as error:
            last_line = str(error).strip().splitlines()[-1].strip()
            if self._lost_its_node(slot, error):
                self._start(slot)
                if job is not None:
                    reason = f"worker {slot.name} cannot be reached, its machine may have left the cluster"
                    self._news.append(Lost(job.id, reason, with_node=True))
            elif job is None:
                self._could_not_start(slot, last_line)
            else:
                self._start(slot)
                died = isinstance(error, RayActorError)
                reason = f"the process of worker {slot.name} died" if died else f"worker {slot.name}: {last_line}"
                self._news.append(Lost(job.id, reason))
        else:
            if isinstance(event, Done):
                slot.job, slot.waits_for, slot.over_at = None, None, math.inf
            self._news.append(event)

    def _could_not_start(self, slot: _Slot, why: str) -> None:
        """No job is lost by it; a worker that does not start again and again is given up."""
        slot.failures += 1
        if slot.failures < STARTS:
            self._start(slot)
            return
        self._kill(slot)
        self._slots.remove(slot)
        reason = f"worker {slot.name} could not start, {STARTS} times ({why})"
        if not self._slots:
            raise PoolFailed(reason)
        self._news.append(Notice(f"{reason}; the search goes on with {len(self._slots)}."))

    def _lost_its_node(self, slot: _Slot, error: Exception) -> bool:
        from ray.exceptions import ActorUnavailableError

        # Of a machine that is gone Ray says at first that the actor cannot be reached, and after seconds that the node
        # is dead.
        if isinstance(error, ActorUnavailableError) or "node has died" in str(error):
            return True
        return any(node["NodeID"] == slot.node and not node["Alive"] for node in self._ray.nodes())

    def _end_what_hangs(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.job is None or now <= slot.over_at:
                continue
            # What it has said is heard first: it may be done, and nobody has listened for long.
            if self._ray.wait([slot.waits_for], timeout=0)[0]:
                continue
            job, measured = slot.job, {"started": slot.began, "ended": time.time(), "worker": slot.name}
            self._start(slot)
            self._news.append(Done(job.id, job.evaluation(what=FAIL, reason=job.over_limit, **measured)))

    def _count_unplaced(self) -> None:
        """Count the actors that have waited long for a place in the cluster, and say if there are more than before."""
        latest = time.monotonic() - PLACE_S
        unplaced = sum(slot.actor is not None and not slot.node and slot.since < latest for slot in self._slots)
        if unplaced > self._unplaced:
            total, free = self._ray.cluster_resources(), self._ray.available_resources()
            each = " and ".join(f"{amount:g} {name}" for name, amount in self._needs.items() if amount)
            there = ", ".join(
                f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}"
                for name, amount in self._needs.items()
                if amount
            )
            rest = "the search goes on without" if unplaced < len(self._slots) else "the search waits for"
            self._news.append(
                Notice(
                    f"{unplaced} of {len(self._slots)} workers have had no place in the cluster for {PLACE_S:g} s: "
                    f"each needs {each}, and {there} are free; {rest} them."
                )
            )
        self._unplaced = unplaced


_EARLY: dict[tuple[int | None, str | None], Future[None]] = {}


@contextmanager
def connecting(workers: int | None, address: str | None) -> Iterator[None]:
    """Begin to connect to Ray, or to start it, in a thread, for a `RayPool` with these arguments that comes within.

    Does nothing where no such pool is needed. What goes wrong is said by the pool.
    """
    alone = (workers is not None and workers <= 1) or (workers is None and len(os.sched_getaffinity(0)) == 1)
    if alone and address is None:
        yield
        return
    _set_environment()
    import ray  # here, because two threads that import at the same time hinder one another

    future: Future[None] = Future()

    def connect() -> None:
        try:
            _connect(workers, address)
            future.set_result(None)
        except BaseException as error:  # raised again by whoever takes the result
            future.set_exception(error)
        # Ray's processes end with the thread that started them (PR_SET_PDEATHSIG), not with the process.
        over.wait()

    over = threading.Event()
    _EARLY[workers, address] = future
    # A daemon, and waited for with a limit: should Ray never come up, an error found meanwhile still ends the program.
    threading.Thread(target=connect, name="connecting to Ray", daemon=True).start()
    try:
        yield
    finally:
        if _EARLY.pop((workers, address), None) is not None:
            with suppress(TimeoutError):
                if future.exception(timeout=GIVE_UP_S) is None:
                    ray.shutdown()
        over.set()


def _set_environment() -> None:
    # Read by Ray when it is imported or started: no telemetry, no tips among our own output.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's workers are nice (15) by default, so that any other program on the machine would spoil a timing.
    os.environ.setdefault("RAY_worker_niceness", "0")


def _connect(workers: int | None, address: str | None) -> None:
    """Connect to a cluster, or start Ray on this machine.

    Raises:
        PoolError: if that fails.
    """
    _set_environment()
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        raise PoolError("workers: Ray runs in this process already; end it first (ray.shutdown()), or ask for 1 worker")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
    if address is None:
        cores = len(os.sched_getaffinity(0))
        options |= {"address": "local", "include_dashboard": False, "num_cpus": max(cores, workers or 1)}
    else:
        _check_reachable(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        if address is None:
            raise PoolError(
                f"workers: Ray does not start on this machine ({reason}); --workers 1 needs no Ray"
            ) from None
        raise PoolError(
            f"address: no Ray cluster can be reached at {address!r} ({reason}). A cluster with token authentication "
            "needs RAY_AUTH_MODE=token and its token (RAY_AUTH_TOKEN, or the file ~/.ray/auth_token) here too"
        ) from None


def _plan(
    total: dict[str, float],
    free: dict[str, float],
    workers: int | None,
    gpus_per_trial: float | None,
    *,
    local: bool,
) -> tuple[int, float, float]:
    """How many workers, and the CPUs and GPUs of each.

    Raises:
        PoolError: if the cluster has less than that free.
    """
    gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 0.0)
    share = (1.0 if gpus else 0.0) if gpus_per_trial is None else gpus_per_trial
    if share and not (SMALLEST_SHARE <= share <= 1 or (math.isfinite(share) and share == int(share))):
        raise PoolError(
            f"gpus-per-trial: {share:g} is not allowed; a share from {SMALLEST_SHARE:g} to 1, or a whole number"
        )
    if share and not gpus:
        raise PoolError(f"gpus-per-trial: {share:g} asked for, and there is no GPU here")
    if share:
        room = _gpu_room(free.get("GPU", 0.0), share)
        # A trial on a GPU needs little of a CPU, and cores must not limit how many are packed on it.
        each = min(1.0, math.floor(1e4 * cpus / gpus * share) / 1e4)
    else:
        room = int(free.get("CPU", 0.0))
        # On this machine the cores are divided; on a cluster each worker takes one.
        each = float(max(1, int(cpus) // workers)) if local and workers else 1.0
    if not room:
        what = f"{free.get('GPU', 0.0):g} of {gpus:g} GPUs" if share else f"{room} of {cpus:g} CPUs"
        raise PoolError(f"workers: the cluster has no free capacity, {what}; wait until something else there has ended")
    workers = room if workers is None else workers
    if share and workers > room:
        raise PoolError(
            f"gpus-per-trial: {workers} workers with {share:g} GPU each do not fit {free.get('GPU', 0.0):g} free of "
            f"{gpus:g} GPUs; {room} would"
        )
    if workers * each > free.get("CPU", 0.0) + 1e-9:
        raise PoolError(
            f"workers: {workers} need {workers * each:g} CPU, and {free.get('CPU', 0.0):g} of {cpus:g} are free; ask "
            "for fewer with --workers"
        )
    return workers, each, share


def _gpu_room(free: float, share: float) -> int:
    """Workers that fit the free GPUs; a share of one never spans two."""
    return int(free) * int(1 / share + 1e-9) if share <= 1 else int(free // share)


def _check_reachable(address: str) -> None:
    """Knock first: Ray itself waits for minutes where nobody answers."""
    if address.startswith("ray://"):
        raise PoolError(
            f"address: {address!r} is a Ray Client address, which is not supported; give HOST:PORT of the head"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and the like, which Ray resolves by itself
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise PoolError(f"address: no Ray cluster can be reached at {address!r} ({error})") from None
