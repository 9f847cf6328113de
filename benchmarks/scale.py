"""What the driver costs when it serves many devices: pretended trials of a minute, the driver's own work for real.

Usage: python benchmarks/scale.py [--devices 16 64 256 512] [--trials 10000] [--sampler random] [--rungs] [--folder DIR]

Trials are made up (with --rungs a minute to the end of the first) and their minutes pass in virtual time, but every
second that the driver really works (asks, tells, journal, ledger, promotions) passes on the same clock, while devices
that have nothing to do stand idle. Each row is a process of its own.

utilisation: time in which devices worked over all devices' time, from the ledger's lines, after every device has had
its first job and before the last layout is begun: at the end less is left than there are devices. "all" is from the
first job to the last result, the end included.

With --clock cpu only the driver's CPU seconds count, not what it waits for the disk (two flushes of the ledger a trial)
or for other programs.

driver ms: the driver's seconds a trial, everything included; "at end" is for the last tenth of the trials.
MB: the highest resident memory of the process.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import platform
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mvsearch.config.reading import load_config
from mvsearch.driver.search import Search
from mvsearch.driver.trials import connect, open_optuna_study
from mvsearch.driver.view import LaunchState, View
from mvsearch.pool.job import Done, Event, Job, Progress
from mvsearch.pool.replay import ReplayPool, ReplayWorker, Synthetic, _share
from mvsearch.space.space import SearchSpace
from mvsearch.study.folder import StudyFolder
from mvsearch.study.record import TIME, TRAIN, TrialRecord

TIMING_S, TRAINING_S = 5.0, 55.0
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = "{:>8} {:>7} {:>6}  {:>9} {:>11} {:>6}  {:>12} {:>10} {:>8} {:>8}"


class PacedPool(ReplayPool):
    """A replay in which the driver's own seconds count: devices work on, or stand idle, while it is busy."""

    def __init__(self, *args: Any, clock: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self.start()

    def start(self) -> None:
        """From here on the driver's seconds count."""
        self._left = self._clock()

    def _arrive(self) -> None:
        """The driver comes back: what it needed has passed."""
        self._now += self._clock() - self._left
        self._left = self._clock()

    def submit(self, job: Job) -> None:
        self._arrive()
        super().submit(job)
        self._assign()
        self._left = self._clock()

    def events(self, timeout: float) -> Iterator[Event]:
        self._arrive()
        if self._coming and self._coming[0][0] > self._now:
            self._now = self._coming[0][0]  # nothing to do until then
        for event in self._due():
            self._left = self._clock()
            yield event
            self._arrive()
        self._left = self._clock()

    def now(self) -> float:
        return self._now + self._clock() - self._left


class Minute(ReplayWorker):
    """Made-up values; a timing takes 5 s and a training to the first rung 55 s, each ± 30 %, drawn by the layout."""

    def __init__(self, synthetic: Synthetic, epochs: int) -> None:
        super().__init__(synthetic=synthetic)
        self.epochs = epochs

    def run(self, job: Job) -> Iterator[Progress | Done]:
        for event in super().run(job):
            if isinstance(event, Done):
                share = 1.0 if job.what == TIME else (job.to_epoch - job.from_epoch) / self.epochs
                draw = 0.7 + 0.6 * _share("seconds", job.layout.key, job.what)
                seconds = draw * (TIMING_S if job.what == TIME else TRAINING_S * share)
                evaluation = dataclasses.replace(event.evaluation, started=0.0, ended=seconds)
                event = dataclasses.replace(event, evaluation=evaluation)
            yield event


def run(
    devices: int, trials: int, sampler: str, rungs: bool, folder: Path, storage: str, clock: Callable[[], float]
) -> dict[str, float]:
    """One search; what its driver cost."""
    settings = [f"search.sampler={sampler}", f"search.trials={trials}", "proxy.epochs=9", "name=scale"]
    settings += ["layout.stages.1.depth=[6, 7, 8, 9, 10]", "layout.stages.2.depth=[2, 3, 4, 5, 6]"]
    settings += ["budgets.params.max=null", f"storage={storage}"] if storage else ["budgets.params.max=null"]
    if rungs:
        # So many that are begun: with eta 3 and three rungs about a ninth is trained in full.
        settings += ["fidelity={eta: 3, rungs: 3}", f"search.trials={trials // 9}"]
    config = load_config("stagewise", settings)
    space = SearchSpace(config, num_classes=10, in_chans=1)
    study = StudyFolder(folder / config.name)
    study.path.mkdir(parents=True)
    study.begin(config.resolved_yaml())
    cost = space.cost(space.reference())
    synthetic = Synthetic(10, {"params": cost.params, "macs": cost.macs}, epochs=9)
    pool = PacedPool(lambda *_: Minute(synthetic, config.rung_epochs[0]), devices=devices, clock=clock)
    database = connect(storage) if storage else None
    marks: list[tuple[int, float]] = []

    class Count(View):
        def trial_ended(self, record: TrialRecord, state: LaunchState) -> None:
            marks.append((len(marks) + 1, clock()))

    search = Search(config, space, study, pool, view=Count(), study=open_optuna_study(study, database))
    began, cpu = clock(), time.process_time()
    pool.start()
    outcome = search.run()
    seconds, cpu = clock() - began, time.process_time() - cpu
    lines = search.ledger.evaluations
    ended = max(line.ended for line in lines)
    last_start = max(line.started for line in lines if line.what == TIME)
    full = sorted(min(line.started for line in lines if line.worker == name) for name in {x.worker for x in lines})[-1]
    within = sum(max(0.0, min(line.ended, last_start) - max(line.started, full)) for line in lines)
    tenth = len(marks) // 10
    return {
        "devices": devices,
        "layouts": len(search.records()),
        "trials": len(marks),
        "full": outcome.complete,
        "utilisation": within / (devices * (last_start - full)),
        "utilisation_all": sum(line.ended - line.started for line in lines) / (devices * ended),
        "trials_a_second": len(marks) / ended,
        "ms_a_trial": 1000 * seconds / len(marks),
        "ms_a_trial_at_end": 1000 * (marks[-devices - 1][1] - marks[-devices - 1 - tenth][1]) / tenth,
        "cpu_ms_a_trial": 1000 * cpu / len(marks),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,  # kB on Linux
        "trained": sum(line.what == TRAIN for line in lines),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, nargs="+", default=[16, 64, 256, 512])
    parser.add_argument("--trials", type=int, default=10_000, help="with rungs: about so many are begun")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--rungs", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the study is written; default: the system's own")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: where other programs take the machine; see above"
    )
    parser.add_argument("--storage", default="", help="a database URL instead of the journal")
    parser.add_argument("--profile", action="store_true", help="print where the driver's time went")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            profile = cProfile.Profile() if args.profile else None
            call = (
                args.devices[0],
                args.trials,
                args.sampler,
                args.rungs,
                Path(folder),
                args.storage,
                CLOCKS[args.clock],
            )
            print(json.dumps(profile.runcall(run, *call) if profile else run(*call)))
            if profile:
                pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
        return
    import optuna

    what = "three rungs, eta 3" if args.rungs else "all in full"
    print(f"sampler {args.sampler}, {what}; {platform.machine()}, Python {platform.python_version()}, ", end="")
    print(f"optuna {optuna.__version__}, study in {args.folder or tempfile.gettempdir()}, {args.clock} clock")
    heads = "devices", "trials", "full", "trials/s", "utilisation", "all", "driver ms", "at end", "CPU ms", "MB"
    print(COLUMNS.format(*heads))
    for devices in args.devices:
        command = [sys.executable, __file__, "--one", "--devices", str(devices), "--trials", str(args.trials)]
        command += ["--sampler", args.sampler, *(["--rungs"] if args.rungs else [])]
        command += ["--profile"] if args.profile else []
        command += ["--folder", str(args.folder)] if args.folder else []
        command += ["--storage", args.storage] if args.storage else []
        command += ["--clock", args.clock]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(
            COLUMNS.format(
                devices,
                found["trials"],
                found["full"],
                f"{found['trials_a_second']:.2f}",
                f"{found['utilisation']:.1%}",
                f"{found['utilisation_all']:.1%}",
                f"{found['ms_a_trial']:.1f}",
                f"{found['ms_a_trial_at_end']:.1f}",
                f"{found['cpu_ms_a_trial']:.1f}",
                f"{found['memory_mb']:,.0f}",
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
