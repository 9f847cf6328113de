"""Random and known-cost search against each other by real searches: every layout trained, every throughput timed.

Each run is one `mvsearch launch` in one process, with a seed of its own, ended after the same training seconds. The
table (CSV) holds the hypervolume after every layout of every run, above one reference point; the figure (PNG, drawn by
Chromium) shows mean and spread over seeds. A run that is there is not done again, so the script can be stopped and
started at any moment.

    python benchmarks/real_search.py --space fashion_mnist --seeds 5 --minutes 4
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from mambavision.files import write_atomic
from mvsearch.driver.environment import processor
from mvsearch.study.data import StudyData, load_study
from mvsearch.study.folder import find_study
from mvsearch.study.front import hypervolume, pareto_front, point_of, reference_point
from mvsearch.study.record import TRAIN

SAMPLERS = ("random", "known_cost")


def launch(space: str, sampler: str, seed: int, minutes: float, folder: Path, overrides: list[str]) -> None:
    """One search in a process of its own, with one thread; goes on where it was stopped."""
    name = f"{sampler}-{seed}"
    settings = [
        f"name={name}",
        f"search.sampler={sampler}",
        f"search.seed={seed}",
        "search.trials=1000",
        f"search.device_hours={minutes / 60}",
        *overrides,
    ]
    command = [
        str(Path(sys.executable).with_name("mvsearch")),
        "launch",
        space,
        "--workers",
        "1",
        "--studies",
        str(folder),
    ]
    for setting in settings:
        command += ["--set", setting]
    log = folder / f"{name}.log"
    with log.open("a") as out:
        done = subprocess.run(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}; see {log}")
    print(f"{name}: done", flush=True)


def curve(study: StudyData, reference: tuple[float, float]) -> pd.DataFrame:
    """Hypervolume after each layout, by training seconds spent until then; hand-made layouts are part of it."""
    complete = sorted((record for record in study.records if point_of(record, study.measure)), key=lambda r: r.ended)
    rows, points, spent = [], [], 0.0
    for count, record in enumerate(complete, start=1):
        spent += sum(line.values["train_seconds"] for line in record.evaluations if line.what == TRAIN)
        points = pareto_front([*points, point_of(record, study.measure)])
        rows.append({"layouts": count, "train_seconds": round(spent, 2), "hypervolume": hypervolume(points, reference)})
    return pd.DataFrame(rows)


def at_seconds(runs: pd.DataFrame, seconds: np.ndarray) -> np.ndarray:
    """Hypervolume of each run at each moment: that of the last layout that had ended; one row a run."""
    found = []
    for _, run in runs.groupby("seed"):
        index = np.searchsorted(run["train_seconds"].to_numpy(), seconds, side="right") - 1
        values = run["hypervolume"].to_numpy()
        found.append(np.where(index >= 0, values[np.maximum(index, 0)], 0.0))
    return np.array(found)


def main() -> None:
    """Run what is missing, then write the table and print what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=4.0, help="device minutes of each run")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time; one core each")
    parser.add_argument("--studies", type=Path, default=Path("studies/real_search"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_search"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    args = parser.parse_args()
    args.studies.mkdir(parents=True, exist_ok=True)
    began = time.time()
    # The samplers take turns, so that what else happens on the machine meets both.
    runs = [(sampler, seed) for seed in range(args.seeds) for sampler in SAMPLERS]
    with ThreadPoolExecutor(args.processes) as threads:
        list(threads.map(lambda run: launch(args.space, *run, args.minutes, args.studies, args.overrides), runs))

    studies = {run: load_study(find_study(f"{run[0]}-{run[1]}", args.studies)) for run in runs}
    first = studies[runs[0]]
    # One corner for all: the slowest hand-made layout of any run.
    corners = [reference_point(study.baselines, study.classes, study.measure) for study in studies.values()]
    reference = (corners[0][0], min(corner[1] for corner in corners))
    table = pd.concat(
        curve(study, reference).assign(sampler=sampler, seed=seed) for (sampler, seed), study in studies.items()
    )
    end = table.groupby(["sampler", "seed"])["train_seconds"].max().min()
    seconds = np.linspace(0, end, 200)
    curves = {sampler: at_seconds(table[table["sampler"] == sampler], seconds) for sampler in SAMPLERS}
    last = {sampler: values[:, -1] for sampler, values in curves.items()}
    test = ttest_rel(last["known_cost"], last["random"])
    reached = np.argmax(curves["known_cost"].mean(0) >= last["random"].mean())
    conditions = {
        "space": args.space,
        "set": args.overrides,
        "data": first.config["proxy"]["data"],
        "training": {name: first.config["proxy"][name] for name in ("train_images", "val_images", "epochs", "seeds")},
        "minutes": args.minutes,
        "processes": args.processes,
        "processor": processor(),
        "torch": first.environment["versions"]["torch"],
        "reference": [round(value, 4) for value in reference],
        "date": time.strftime("%Y-%m-%d"),
    }
    columns = ["sampler", "seed", "layouts", "train_seconds", "hypervolume"]
    text = table[columns].round({"hypervolume": 5}).to_csv(index=False)
    write_atomic(args.out.with_suffix(".csv"), f"# {json.dumps(conditions)}\n{text}")
    draw(curves, seconds, args.out.with_suffix(".png"), args.seeds)
    print(f"\n{json.dumps(conditions)}\n")
    print(f"Hypervolume at {end:.0f} training seconds, {args.seeds} seeds each (mean, sd, layouts trained):")
    for sampler, values in last.items():
        counts = [len(s.complete) for (name, _), s in studies.items() if name == sampler]
        print(f"  {sampler:<11} {values.mean():.4f}  {values.std(ddof=1):.4f}  {min(counts)} to {max(counts)}")
    gain = last["known_cost"] / last["random"]
    print(f"  known_cost / random: {gain.mean():.3f} (paired t test p = {test.pvalue:.2g}, {args.seeds} pairs)")
    if curves["known_cost"].mean(0)[-1] >= last["random"].mean():
        print(f"  random's end is reached after {seconds[reached] / end:.0%} of the seconds")
    print(f"Written: {args.out.with_suffix('.csv')}, {args.out.with_suffix('.png')}; {time.time() - began:.0f} s")


def draw(curves: dict[str, np.ndarray], seconds: np.ndarray, path: Path, seeds: int) -> None:
    """Mean and 95 % t interval over seeds, by training seconds, from where every search has trained a layout."""
    import plotly.graph_objects as go
    from scipy.special import stdtrit

    figure = go.Figure()
    begun = np.concatenate(list(curves.values())).min(axis=0) > 0
    seconds = seconds[begun]
    for (sampler, values), colour in zip(curves.items(), ("#8A8F98", "#0072B2"), strict=True):
        values = values[:, begun]
        mean = values.mean(0)
        half = stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / math.sqrt(len(values))
        band = np.concatenate([mean + half, (mean - half)[::-1]])
        x = np.concatenate([seconds, seconds[::-1]])
        figure.add_scatter(x=x, y=band, fill="toself", line_width=0, fillcolor=colour, opacity=0.2, showlegend=False)
        figure.add_scatter(x=seconds, y=mean, name=sampler, line_color=colour)
    figure.update_layout(
        title=f"Hypervolume by training seconds<br><sup>mean of {seeds} searches, with its 95 % interval</sup>",
        xaxis_title="Training seconds",
        yaxis_title="Hypervolume (nats × octaves)",
        template="plotly_white",
        font_family="system-ui, sans-serif",
        legend={"x": 0.98, "y": 0.05, "xanchor": "right"},
        width=1000,
        height=560,
        margin_t=90,
    )
    sys.path.append(str(Path(__file__).parents[1] / "docs"))
    from draw_figures import write_png

    write_png(figure, path)


if __name__ == "__main__":
    main()
