"""Samplers compared by replay: which finds the front with fewest trials, and where ours gets its gain from.

    python benchmarks/samplers.py run synthetic                     every sampler, 30 seeds (hours; resumable)
    python benchmarks/samplers.py run synthetic --samplers random known_cost --seeds 0 10
    python benchmarks/samplers.py run benchmarks/tabular/fashion_mnist.csv
    python benchmarks/samplers.py run TABLE.csv --rungs             rungs or none, at equal training seconds
    python benchmarks/samplers.py models synthetic                  the two models inside ours, by themselves
    python benchmarks/samplers.py report synthetic                  one table, one figure

Each run is a line of `benchmarks/results/samplers/NAME.csv`; what is there is not run again, so that it may be done in
pieces and by several processes at once. No sampler is given the hand-made layouts. A layout asked for twice is told
PRUNED and does not count, as in a launch; after 50 in a row one is drawn.

Regret is 1 − HV/HV*, of the true values of the layouts on the front of what was measured.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from landscape import Synthetic, Table
from optuna.trial import TrialState
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table as Printed
from scipy.stats import wilcoxon

from mambavision.layout import HybridLayout
from mvsearch.config.reading import load_config
from mvsearch.models.features import Features
from mvsearch.models.gaussian_process import QualityModel, fit_hyperparameters
from mvsearch.models.throughput import ThroughputModel, made_of
from mvsearch.samplers import KnownCostSampler
from mvsearch.samplers.halving import Halving, Run
from mvsearch.samplers.known_cost import _Known
from mvsearch.samplers.observation import Observation
from mvsearch.space.space import SearchSpace
from mvsearch.study.data import load_study
from mvsearch.study.folder import find_study
from mvsearch.study.front import Point, hypervolume, pareto_front, point_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "samplers"
TRIALS = 100
MAX_REFUSALS = 50
POPULATION = 12
PARALLEL = 8
ETA = 3

Landscape = Synthetic | Table


# -- the samplers, and ours with a part left out ---------------------------------------------------------------------


class WithoutCostModel(KnownCostSampler):
    """Throughput is as unknown as quality: a Gaussian process over the same features."""

    def _fit_throughput(self, timed: list[Observation]) -> Any:
        rows = self._quality_rows([o.layout for o in timed])
        values = np.array([o.throughput for o in timed], dtype=float)
        zeros = np.zeros(len(values))
        model = QualityModel(rows, values, zeros, fit_hyperparameters(rows, values, zeros, seed=0))

        class Predictor:
            def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                found = model.predict(rows)
                return found.means, found.deviations

        return Predictor()

    def _made_of(self, layouts: Sequence[HybridLayout]) -> np.ndarray:
        return self._quality_rows(layouts)


class WithoutMutations(KnownCostSampler):
    """Candidates are as many, but all drawn at random. In a small space, which is enumerated, this changes nothing."""

    def _mutations(self, parents: list[HybridLayout]) -> list[HybridLayout]:
        return [self._space.sample(self._rng) for _ in range(len(super()._mutations(parents)))]


class WithoutRules(KnownCostSampler):
    """The first layouts are drawn at random."""

    def _rule_layout(self, seen: set[str]) -> HybridLayout | None:
        return None


class WithoutFantasies(KnownCostSampler):
    """Layouts under way are not asked for again, but change nothing else."""

    def _best(self, known: _Known, length: int) -> list[HybridLayout]:
        return super()._best(dataclasses.replace(known, pending=[]), length)


class WithoutLowerRungs(KnownCostSampler):
    """A layout that was stopped early says nothing."""

    def _known(self, study: optuna.Study, trial: Any) -> _Known:
        known = super()._known(study, trial)
        full = [o for o in known.observations if o.rung is None or o.rung == self._rungs - 1]
        return dataclasses.replace(known, observations=full)


class TimedFirst(KnownCostSampler):
    """Every layout of a table was timed before any was trained, as seconds a layout allow."""

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table.space, seed=seed, reference=table.reference)
        self._timings = [Observation(layout, table.true(layout)[1], source="timings") for layout in table.layouts]

    def _known(self, study: optuna.Study, trial: Any) -> _Known:
        known = super()._known(study, trial)
        return dataclasses.replace(known, observations=[*known.observations, *self._timings])


@dataclass(frozen=True)
class Contender:
    """A sampler and how it is run.

    Attributes:
        make: from the landscape and a seed.
        parallel: trials under way at once.
    """

    make: Callable[..., optuna.samplers.BaseSampler]
    parallel: int = 1


def _ours(kind: type[KnownCostSampler]) -> Callable[..., optuna.samplers.BaseSampler]:
    return lambda landscape, seed, **more: kind(landscape.space, seed=seed, reference=landscape.reference, **more)


CONTENDERS = {
    "random": Contender(lambda _, seed: optuna.samplers.RandomSampler(seed=seed)),
    "tpe": Contender(lambda _, seed: optuna.samplers.TPESampler(multivariate=True, seed=seed)),
    "nsga2": Contender(lambda _, seed: optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)),
    "gp": Contender(lambda _, seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)),
    "known_cost": Contender(_ours(KnownCostSampler)),
    "known_cost, timed first": Contender(lambda table, seed: TimedFirst(table, seed)),
    "without cost model": Contender(_ours(WithoutCostModel)),
    "without mutations": Contender(_ours(WithoutMutations)),
    "without rules first": Contender(_ours(WithoutRules)),
    f"known_cost, {PARALLEL} at once": Contender(_ours(KnownCostSampler), PARALLEL),
    f"without fantasies, {PARALLEL} at once": Contender(_ours(WithoutFantasies), PARALLEL),
}
SETTINGS = (
    f"TPE multivariate; NSGA-II with a population of {POPULATION}; GP: Optuna's GPSampler; known_cost as it ships, and "
    "told the corner from which hypervolume is measured."
)


# -- replay ----------------------------------------------------------------------------------------------------------


class _Progress:
    """The hypervolume of what was found, after each trial: of the true values of the front of what was measured."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        self.measured: list[Point] = []
        self.true: dict[str, Point] = {}
        self.shares: list[float] = []

    def add(self, layout: HybridLayout, measured: tuple[float, float]) -> None:
        self.true[layout.key] = Point(layout.key, *self.landscape.true(layout))
        self.measured = pareto_front([*self.measured, Point(layout.key, *measured)])
        found = [self.true[point.key] for point in self.measured]
        self.shares.append(hypervolume(found, self.landscape.reference) / self.landscape.best)


def ask(study: optuna.Study, space: SearchSpace, seen: set[str], rng: random.Random) -> tuple[Any, HybridLayout] | None:
    """The next layout not seen before; None when there is none."""
    for _ in range(MAX_REFUSALS):
        trial = study.ask()
        layout = space.suggest(trial)
        if layout.key not in seen and not space.excess(layout):
            return trial, layout
        study.tell(trial, state=TrialState.PRUNED)
    drawn = space.uniform_unseen(seen, rng)
    if drawn is None:
        return None
    study.enqueue_trial(space.encode(drawn))
    trial = study.ask()
    return trial, space.suggest(trial)


def replay(landscape: Landscape, contender: Contender, seed: int, trials: int) -> dict[str, Any]:
    """One study: the share of the optimal hypervolume and the training seconds spent, after each trial."""
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=contender.make(landscape, seed))
    noise, rng = np.random.default_rng([seed, 1]), random.Random(f"drawn {seed}")
    progress = _Progress(landscape)
    seen: set[str] = set()
    under_way: list[tuple[Any, HybridLayout]] = []
    seconds, asking = [], 0.0
    while len(progress.shares) < trials:
        while len(under_way) < contender.parallel and len(seen) < trials:
            began = time.process_time()
            asked = ask(study, landscape.space, seen, rng)
            asking += time.process_time() - began
            assert asked is not None
            seen.add(asked[1].key)
            under_way.append(asked)
        trial, layout = under_way.pop(0)
        values = landscape.measure(layout, noise)
        study.tell(trial, values)
        progress.add(layout, values)
        if isinstance(landscape, Table):
            seconds.append(round((seconds[-1] if seconds else 0.0) + landscape.seconds(layout), 1))
    return {"shares": [round(share, 5) for share in progress.shares], "seconds": seconds, "asking": round(asking, 2)}


RUNG_CONTENDERS: dict[str, tuple[Callable[..., Any], bool]] = {
    "random": (CONTENDERS["random"].make, False),
    "random, rungs": (CONTENDERS["random"].make, True),
    "known_cost": (CONTENDERS["known_cost"].make, False),
    "known_cost, rungs": (_ours(KnownCostSampler), True),
    "known_cost, rungs not read": (_ours(WithoutLowerRungs), True),
}


def replay_rungs(table: Table, name: str, seed: int, budget_s: float) -> dict[str, Any]:
    """One study with rungs, one layout at a time, until the training seconds are spent.

    What counts is trained to the last rung. Promotion is `mvsearch.samplers.halving`, as in a launch.
    """
    make, rungs = RUNG_CONTENDERS[name]
    last = len(table.rungs) - 1
    runs: dict[str, Run] = {}
    layouts: dict[str, HybridLayout] = {}
    halving = Halving(last + 1, ETA)

    def observations() -> list[Observation]:
        return [Observation(layouts[key], run.throughput, run.qualities) for key, run in runs.items()]

    ours = {} if name.startswith("random") else {"observations": observations}
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=make(table, seed, **ours))
    progress, rng = _Progress(table), random.Random(f"drawn {seed}")
    seconds, spent = [], 0.0
    while True:
        chosen = halving.choose(runs.values(), table.reference) if rungs else None
        if chosen is not None:
            layout, rung = layouts[chosen.key], len(chosen.qualities)
        else:
            asked = ask(study, table.space, set(layouts), rng)
            if asked is None:
                break
            trial, layout = asked
            rung = 0 if rungs else last
            study.tell(trial, table.true(layout))
        before = table.seconds(layout, rung - 1) if rungs and rung else 0.0
        spent += table.seconds(layout, rung) - before
        if spent > budget_s:
            break
        layouts[layout.key] = layout
        qualities = tuple(table.qualities(layout, i) for i in range(rung + 1)) if rungs else ()
        if not rungs:
            qualities = (*[()] * last, table.qualities(layout, last))
        runs[layout.key] = Run(layout.key, table.throughput[layout.key], qualities)
        if rung == last:
            progress.add(layout, table.true(layout))
        seconds.append(round(spent, 1))
        if rung != last:
            progress.shares.append(progress.shares[-1] if progress.shares else 0.0)
    return {"shares": [round(share, 5) for share in progress.shares], "seconds": seconds, "asking": 0.0}


# -- results ---------------------------------------------------------------------------------------------------------


def open_landscape(name: str, seed: int = 0) -> Landscape:
    """The synthetic landscape, whose pairwise terms are other ones for each seed, or a table."""
    return Synthetic(landscape=seed) if name == "synthetic" else Table(Path(name))


def results_path(name: str, rungs: bool = False) -> Path:
    return RESULTS / f"{Path(name).stem}{'_rungs' if rungs else ''}.csv"


def read_results(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=["sampler", "seed", "shares", "seconds", "asking"])
    found = pd.read_csv(path)
    for column in ("shares", "seconds"):
        found[column] = found[column].map(json.loads)
    return found.drop_duplicates(["sampler", "seed"])


def append_result(path: Path, sampler: str, seed: int, found: dict[str, Any]) -> None:
    """Add the line of one run, and the heads where it is the first."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["sampler", "seed", "shares", "seconds", "asking"])
        writer.writerow([sampler, seed, json.dumps(found["shares"]), json.dumps(found["seconds"]), found["asking"]])


def run(name: str, samplers: Sequence[str], seeds: range, trials: int | None, rungs: bool) -> None:
    """Run what is missing; one line a run, appended at once."""
    path = results_path(name, rungs)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = None if name == "synthetic" else Table(Path(name))
    for seed in seeds:
        for sampler in samplers:
            done = read_results(path)
            if ((done.sampler == sampler) & (done.seed == seed)).any():
                continue
            landscape = table or Synthetic(landscape=seed)
            if rungs:
                assert table is not None
                budget = 0.5 * sum(table.seconds(layout) for layout in table.layouts)
                found = replay_rungs(table, sampler, seed, budget)
            else:
                count = trials or (TRIALS if table is None else math.ceil(0.4 * len(table.layouts)))
                found = replay(landscape, CONTENDERS[sampler], seed, count)
            append_result(path, sampler, seed, found)
            print(f"{sampler}, seed {seed}: {found['shares'][-1]:.3f} of the optimum", flush=True)


# -- what they say ---------------------------------------------------------------------------------------------------


def marks(name: str) -> list[tuple[str, int]]:
    """Where regret is looked at: what to call it, and after how many trials."""
    if name == "synthetic":
        return [(f"{count}", count) for count in (25, 50, 100)]
    size = len(Table(Path(name)).layouts)
    return [(f"{share} %", round(share / 100 * size)) for share in (5, 10, 20, 30)]


def first_reaching(shares: Sequence[float], level: float) -> float:
    """After how many trials a level is reached; infinite if it never is."""
    return next((i for i, share in enumerate(shares, start=1) if share >= level), math.inf)


def report(name: str, out: Console) -> None:
    """The table of one landscape, and its figure."""
    found = read_results(results_path(name))
    curves = {
        sampler: np.array(list(group.sort_values("seed").shares))
        for sampler, group in found.groupby("sampler", sort=False)
    }
    seeds = {sampler: list(group.sort_values("seed").seed) for sampler, group in found.groupby("sampler", sort=False)}
    at = marks(name)
    target = None
    if name == "synthetic" and "random" in curves:
        target = float(curves["random"][:, TRIALS - 1].mean())
    printed = Printed(title=f"Regret on {Path(name).stem}: mean over seeds, and p against known_cost", width=118)
    printed.add_column("sampler", no_wrap=True)
    for column in ("seeds", *(f"{label}" for label, _ in at), "random@100 in", *(f"p {label}" for label, _ in at[1:3])):
        printed.add_column(column, justify="right")
    printed.add_column("ms an ask", justify="right")
    for sampler in (s for s in CONTENDERS if s in curves):
        shares = curves[sampler]
        # A slow sampler may have been run for fewer trials.
        ran = [count if count <= shares.shape[1] else None for _, count in at]
        row = [sampler, str(len(shares)), *(f"{1 - shares[:, count - 1].mean():.3f}" if count else "" for count in ran)]
        reached = "" if target is None else np.median([first_reaching(run, target) for run in shares])
        row.append(f"{reached:.0f}" if target is not None else "")
        row += [_p_value(curves, seeds, sampler, count) if count else "" for count in ran[1:3]]
        asking = found[found.sampler == sampler].asking.mean() / shares.shape[1] * 1000
        printed.add_row(*row, f"{asking:.0f}")
    out.print(printed)
    out.print(SETTINGS)
    if target is not None and "known_cost" in curves:
        ours = curves["known_cost"][:, TRIALS - 1].mean()
        out.print(
            f"True hypervolume after {TRIALS} trials: known_cost {ours:.3f} of the optimum, random {target:.3f}, "
            f"{ours / target:.2f}x. The level of random's mean after {TRIALS} trials is reached by known_cost in "
            f"{np.median([first_reaching(run, target) for run in curves['known_cost']]):.0f} trials (median)."
        )
    picture = results_path(name).with_suffix(".png")
    write_picture(figure(name, found), picture)
    out.print(f"Written: {picture}")


def _p_value(curves: dict[str, np.ndarray], seeds: dict[str, list[int]], sampler: str, count: int) -> str:
    """Wilcoxon's signed ranks over the seeds that both ran: is known_cost's regret lower?"""
    if sampler == "known_cost" or "known_cost" not in curves:
        return ""
    both = [seed for seed in seeds[sampler] if seed in seeds["known_cost"]]
    theirs = [curves[sampler][seeds[sampler].index(seed), count - 1] for seed in both]
    ours = [curves["known_cost"][seeds["known_cost"].index(seed), count - 1] for seed in both]
    if np.allclose(ours, theirs):
        return "1"
    p = wilcoxon(ours, theirs, alternative="greater").pvalue
    return f"{p:.0e}" if p < 0.001 else f"{p:.3f}"


def report_rungs(name: str, out: Console) -> None:
    """Regret at equal training seconds, with rungs and without."""
    found = read_results(results_path(name, rungs=True))
    table = Table(Path(name))
    whole = sum(table.seconds(layout) for layout in table.layouts)
    printed = Printed(title=f"Regret on {Path(name).stem} by training seconds: mean over seeds", width=118)
    printed.add_column("sampler")
    shares_of_whole = (0.05, 0.1, 0.2, 0.3)
    for column in ("seeds", *(f"{share:.0%}" for share in shares_of_whole)):
        printed.add_column(column, justify="right")
    for sampler in RUNG_CONTENDERS:
        runs = found[found.sampler == sampler]
        if len(runs):
            row = []
            for share in shares_of_whole:
                reached = [_share_after(r.shares, r.seconds, share * whole) for r in runs.itertuples()]
                row.append(f"{1 - np.mean(reached):.3f}")
            printed.add_row(sampler, str(len(runs)), *row)
    out.print(printed)
    out.print(f"100 % is the training of the whole table, {whole:,.0f} seconds. Rungs end after {table.rungs} epochs.")


def _share_after(shares: Sequence[float], seconds: Sequence[float], limit: float) -> float:
    return next((share for share, spent in zip(shares[::-1], seconds[::-1], strict=True) if spent <= limit), 0.0)


COLOURS = {
    "known_cost": "#0072B2",
    "tpe": "#E69F00",
    "nsga2": "#CC79A7",
    "gp": "#009E73",
    "random": "#8A8F98",
}


def figure(name: str, found: pd.DataFrame) -> go.Figure:
    """Regret against trials, and for a table against training seconds too: means, and the band of 80 % of the seeds."""
    runs = {s: group for s, group in found.groupby("sampler", sort=False) if s in COLOURS}
    axes = [("Trials (trainings)", {s: _by_trials(group) for s, group in runs.items()})]
    if all(seconds for group in runs.values() for seconds in group.seconds):
        axes.append(("Training seconds", _by_seconds(runs)))
    drawn = make_subplots(cols=len(axes), shared_yaxes=True, horizontal_spacing=0.16)
    top = max(float(regret[:, 7].mean()) for _, regret in axes[0][1].values())
    for column, (label, curves) in enumerate(axes, start=1):
        ends: list[tuple[float, str, str]] = []
        for sampler, colour in COLOURS.items():
            if sampler not in curves:
                continue
            x, regret = curves[sampler]
            low, high = np.quantile(regret, [0.1, 0.9], axis=0)
            shade = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.13)"
            where = {"row": 1, "col": column}
            band = np.r_[high, low[::-1]]
            drawn.add_scatter(x=np.r_[x, x[::-1]], y=band, fill="toself", fillcolor=shade, line_width=0, **where)
            drawn.add_scatter(x=x, y=regret.mean(axis=0), mode="lines", line={"color": colour, "width": 2.5}, **where)
            ends.append((float(regret[:, -1].mean()), f"{sampler} (n = {len(regret)})", colour))
        last = max(x[-1] for x, _ in curves.values())
        below = -math.inf
        for end, text, colour in sorted(ends):
            below = max(end, below + 0.055 * top)  # labels do not lie on each other
            drawn.add_annotation(
                x=last,
                y=below,
                text=text,
                font_color=colour,
                showarrow=False,
                xanchor="left",
                xshift=6,
                row=1,
                col=column,
            )
        drawn.update_xaxes(range=[min(x[0] for x, _ in curves.values()), last], title=label, row=1, col=column)
    title = "the synthetic landscape" if name == "synthetic" else f"the table {Path(name).stem}"
    drawn.update_layout(
        title=f"Regret on {title}<br><sup>1 − HV/HV*; lines: mean over n seeds, bands: 80 % of the seeds</sup>",
        showlegend=False,
        template="plotly_white",
        font_family="system-ui, sans-serif",
        width=1000 if len(axes) == 1 else 1400,
        height=560,
        margin_r=170,
        margin_t=90,
    )
    # The first trials, which are alike for all, may leave the picture.
    drawn.update_yaxes(range=[0, 1.3 * top])
    drawn.update_yaxes(title="Regret of the hypervolume", col=1)
    return drawn


def _by_trials(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    regret = 1 - np.array(list(runs.shares))
    return np.arange(1, regret.shape[1] + 1), regret


def _by_seconds(runs: dict[str, pd.DataFrame]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Regret of each run at moments that all runs of its sampler have reached."""
    found = {}
    for sampler, group in runs.items():
        end = min(seconds[-1] for seconds in group.seconds)
        moments = np.linspace(end / 100, end, 100)
        regret = [[1 - _share_after(r.shares, r.seconds, m) for m in moments] for r in group.itertuples()]
        found[sampler] = moments, np.array(regret)
    return found


def write_picture(drawn: go.Figure, path: Path) -> None:
    sys.path.append(str(HERE.parent / "docs"))
    from draw_figures import write_png

    write_png(drawn, path)


# -- the two models by themselves ------------------------------------------------------------------------------------


def models(name: str, out: Console) -> None:
    """Leave-one-out error and interval coverage of the quality model, error of the throughput regression."""
    printed = Printed(title=f"Models on {name}", width=118)
    for column in ("layouts", "quality: error / sd", "noise / sd (fitted)", "90 % intervals hold", "throughput: error"):
        printed.add_column(column, justify="right")
    for count in (15, 30, 60, 100, 200):
        rows = [row for seed in range(5) if (row := _models_of(name, count, seed)) is not None]
        if rows:
            error, noise, inside, throughput = np.mean(rows, axis=0)
            printed.add_row(str(count), f"{error:.2f}", f"{noise:.2f}", f"{inside:.0%}", f"{throughput:.2%}")
    out.print(printed)
    out.print(
        "Each layout predicted from the others (leave-one-out; hyperparameters from all), mean of 5 draws of layouts. "
        "Error: root mean square; of quality over the standard deviation of what was measured, of throughput relative."
    )
    if name.endswith(".csv") and len((table := Table(Path(name))).seeds) > 1:
        out.print(f"The front of one seed of all layouts, judged by another seed, has a regret of {floor(table):.3f}.")


def floor(table: Table) -> float:
    """Regret of the front that one seed of all layouts gives, judged by another seed; mean over ordered pairs of seeds.

    What whole knowledge of one training of each layout is worth: below it lies the luck of single trainings.
    """
    qualities = np.array([table.qualities(layout, len(table.rungs) - 1) for layout in table.layouts])
    keys = [layout.key for layout in table.layouts]

    def points(seed: int) -> dict[str, Point]:
        return {key: Point(key, q, table.throughput[key]) for key, q in zip(keys, qualities[:, seed], strict=True)}

    regrets = []
    for first, second in itertools.permutations(range(len(table.seeds)), 2):
        judged = points(second)
        found = [judged[point.key] for point in pareto_front(points(first).values())]
        best = hypervolume(list(judged.values()), table.reference)
        regrets.append(1 - hypervolume(found, table.reference) / best)
    return float(np.mean(regrets))


def _models_of(name: str, count: int, seed: int) -> tuple[float, float, float, float] | None:
    rng = random.Random(f"models {seed}")
    if name == "synthetic":
        landscape = Synthetic(landscape=seed)
        space, noise = landscape.space, np.random.default_rng(seed)
        layouts = [space.sample(rng) for _ in range(count)]
        pairs = [landscape.measure(layout, noise) for layout in layouts]
        # Back from a share of the range to octaves, so that the error is one of throughput.
        pairs = [(quality, throughput * landscape.octaves) for quality, throughput in pairs]
    elif name.endswith(".csv"):
        table = Table(Path(name))
        space, layouts = table.space, table.layouts
        pairs = [table.true(layout) for layout in layouts]
    else:
        folder = find_study(name)
        study = load_study(folder)
        space = SearchSpace(load_config(folder.config), num_classes=study.classes, in_chans=1)
        points = [(record, point_of(record, "nll")) for record in study.records]
        layouts = [HybridLayout.from_dict(record.layout) for record, point in points if point]
        pairs = [(point.quality, point.throughput) for _, point in points if point]
    if count > len(layouts):
        return None
    chosen = rng.sample(range(len(layouts)), count)
    layouts = [layouts[i] for i in chosen]
    values = np.array([pairs[i] for i in chosen], dtype=float)
    rows, zeros = Features(space).quality(layouts), np.zeros(count)
    hyper = fit_hyperparameters(rows, values[:, 0], zeros, seed)
    means, deviations = QualityModel(rows, values[:, 0], zeros, hyper).left_out()
    errors = means - values[:, 0]
    inside = np.abs(errors) < 1.645 * deviations
    parts = np.array([made_of(layout) for layout in layouts])
    missed = []
    for i in range(count):
        others = np.arange(count) != i
        predicted, _ = ThroughputModel(parts[others], values[others, 1]).predict(parts[i : i + 1])
        missed.append(2 ** (predicted[0] - values[i, 1]) - 1)
    return (
        math.sqrt((errors**2).mean()) / values[:, 0].std(),
        math.sqrt(hyper.noise),
        inside.mean(),
        math.sqrt(np.mean(np.square(missed))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report", "models"])
    parser.add_argument("landscape", help="synthetic, a table's CSV, or (models only) a study")
    parser.add_argument("--samplers", nargs="+")
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 30], metavar=("FIRST", "END"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--rungs", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    out = Console(width=118, highlight=False)
    if args.what == "run":
        known = RUNG_CONTENDERS if args.rungs else CONTENDERS
        samplers = args.samplers or list(known)
        for sampler in samplers:
            if sampler not in known:
                parser.error(f"--samplers: {sampler!r} is not allowed; of {', '.join(known)}")
        run(args.landscape, samplers, range(*args.seeds), args.trials, args.rungs)
    elif args.what == "models":
        models(args.landscape, out)
    elif args.rungs:
        report_rungs(args.landscape, out)
    else:
        report(args.landscape, out)


if __name__ == "__main__":
    main()
