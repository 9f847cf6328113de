"""A pool of Ray actors: one a GPU (or a share of one), or one a core group; on this machine or on a running cluster."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from mvsearch.evaluate.job import Done, Event, Job, Lost, Progress, Started, WorkerFactory
from mvsearch.pool import PoolError


class _Actor:
    """The worker in its own process. Made a Ray actor when Ray is known to be wanted."""

    def __init__(self, make_worker: WorkerFactory, name: str, device: str, threads: int, data: Any) -> None:
        self._worker = make_worker(name, device, threads, data)

    def run(self, job: Job) -> Iterator[Progress | Done]:
        yield from self._worker.run(job)


class RayPool:
    """Runs jobs on Ray actors that are reused, replaced when they die, and killed at the end.

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
        # Read by Ray when it is imported or started: no telemetry, no tips among our own output.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray's workers are nice (15) by default, so that any other program on the machine would spoil a timing.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        self._ray = ray
        cores = len(os.sched_getaffinity(0))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
        if address is None:
            options |= {"address": "local", "include_dashboard": False, "num_cpus": max(cores, workers or 1)}
        else:
            _check_reachable(address)
            options |= {"address": address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise PoolError(
                    f"workers: Ray does not start on this machine ({error}); --workers 1 needs no Ray"
                ) from None
            raise PoolError(
                f"address: no Ray cluster can be reached at {address!r} ({error}). A cluster with token authentication "
                "needs RAY_AUTH_MODE=token in this environment too"
            ) from None
        try:
            total, free = ray.cluster_resources(), ray.available_resources()
            gpus = total.get("GPU", 0.0)
            if gpus_per_trial is None:
                gpus_per_trial = 1.0 if gpus else 0.0
            if gpus_per_trial > 1 and gpus_per_trial != int(gpus_per_trial):
                raise PoolError(
                    f"gpus-per-trial: {gpus_per_trial:g} is not allowed; a share up to 1, or a whole number"
                )
            if gpus_per_trial and not gpus:
                raise PoolError(f"gpus-per-trial: {gpus_per_trial:g} asked for, and there is no GPU here")
            room = _gpu_room(free.get("GPU", 0.0), gpus_per_trial) if gpus_per_trial else int(free.get("CPU", 0.0))
            workers = room if workers is None else workers
            if gpus_per_trial and not 1 <= workers <= room:
                raise PoolError(
                    f"gpus-per-trial: {max(1, workers)} workers with {gpus_per_trial:g} GPU each do not fit "
                    f"{free.get('GPU', 0.0):g} free of {gpus:g} GPUs; {room} would"
                )
            # On the local machine the cores are divided; on a cluster each worker takes one.
            self._threads = max(1, cores // workers) if address is None and workers and not gpus_per_trial else 1
            needed = {"CPU": float(workers), "GPU": workers * gpus_per_trial}
            for resource, amount in needed.items():
                if amount > free.get(resource, 0.0) + 1e-9 or workers < 1:
                    raise PoolError(
                        f"workers: {workers} need {amount:g} {resource}, and {free.get(resource, 0.0):g} of "
                        f"{total.get(resource, 0.0):g} are free; ask for fewer with --workers"
                    )
        except PoolError:
            ray.shutdown()
            raise
        self._device = "cuda:0" if gpus_per_trial else "cpu"
        self._gpus_per_trial = gpus_per_trial
        self._actor_class = ray.remote(num_cpus=1, num_gpus=gpus_per_trial, max_restarts=0)(_Actor)
        self._make_worker = make_worker
        self._data = ray.put(data)
        self._actors = {f"ray-{number}": self._start(f"ray-{number}") for number in range(workers)}
        self._busy: dict[str, tuple[Job, Any]] = {}
        self._queue: deque[Job] = deque()
        self._news: deque[Event] = deque()
        self._closed = False

    @property
    def workers(self) -> int:
        """Number of actors."""
        return len(self._actors)

    @property
    def in_process(self) -> bool:
        """False."""
        return False

    @property
    def description(self) -> str:
        """For people."""
        each = f"{self._gpus_per_trial:g} GPU" if self._gpus_per_trial else f"{self._threads} CPU thread(s)"
        return f"{self.workers} Ray workers, {each} each"

    def idle(self) -> int:
        """How many more jobs would start at once."""
        return max(0, len(self._actors) - len(self._busy) - len(self._queue))

    def submit(self, job: Job) -> None:
        """Hand in a job."""
        self._queue.append(job)
        self._assign()

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened; waits at most `timeout` seconds for the first thing."""
        self._assign()
        while self._news:
            yield self._news.popleft()
            timeout = 0.0
        while self._busy:
            streams = {stream: name for name, (_, stream) in self._busy.items()}
            ready, _ = self._ray.wait(list(streams), num_returns=1, timeout=timeout)
            if not ready:
                return
            timeout = 0.0
            for stream in ready:
                event = self._next_event(streams[stream], stream)
                if event is not None:
                    yield event
            self._assign()
            while self._news:
                yield self._news.popleft()

    def now(self) -> float:
        """Real time."""
        return time.monotonic()

    def cancel(self, job_id: int) -> None:
        """Forget a job; if it runs, its actor is killed and replaced."""
        self._queue = deque(job for job in self._queue if job.id != job_id)
        for name, (job, _) in list(self._busy.items()):
            if job.id == job_id:
                del self._busy[name]
                self._ray.kill(self._actors[name])
                self._actors[name] = self._start(name)

    def close(self) -> None:
        """Kill the actors and leave Ray; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._busy.clear()
        self._queue.clear()
        self._ray.shutdown()

    def _start(self, name: str) -> Any:
        return self._actor_class.remote(self._make_worker, name, self._device, self._threads, self._data)

    def _assign(self) -> None:
        for name, actor in self._actors.items():
            if not self._queue:
                return
            if name not in self._busy:
                job = self._queue.popleft()
                stream = actor.run.options(num_returns="streaming").remote(job)
                self._busy[name] = (job, stream)
                self._news.append(Started(job.id, name))

    def _next_event(self, name: str, stream: Any) -> Event | None:
        from ray.exceptions import RayActorError, RayError

        job = self._busy[name][0]
        try:
            event: Event = self._ray.get(next(stream))
        except StopIteration:
            # Normal after a Done, which has freed the worker already; otherwise the worker broke its word.
            del self._busy[name]
            return Lost(job.id, f"worker {name} ended the job without a result")
        except RayError as error:
            del self._busy[name]
            last_line = str(error).strip().splitlines()[-1].strip()
            if not isinstance(error, RayActorError):
                return Lost(job.id, f"worker {name}: {last_line}")
            self._actors[name] = self._start(name)
            if "creation task" in str(error):
                return Lost(job.id, f"worker {name} could not start ({last_line})")
            return Lost(job.id, f"the process of worker {name} died")
        if isinstance(event, Done):
            del self._busy[name]
        return event


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
