"""Two multi-fidelity optimizers from elsewhere, on the tables that `samplers.py` replays: MOASHA and PriMO.

    python benchmarks/peer_samplers.py run benchmarks/tabular/fashion_mnist.csv
    python benchmarks/peer_samplers.py run TABLE.csv --peers MOASHA "MOASHA, 8 at once" --seeds 0 10
    python benchmarks/peer_samplers.py report benchmarks/tabular/fashion_mnist.csv

Neither is a dependency of this project; `run` wants an environment of its own, `report` does not. NePS wants an older
pandas and networkx, syne-tune more than MOASHA imports; this works (Python 3.11, torch 2.14.1, numpy 2.4.6):

    python -m venv peers && peers/bin/pip install -c constraints.txt -e .
    peers/bin/pip install neural-pipeline-search==0.17.0          # pandas 2.3.3, networkx 2.8.8, botorch 0.12.0
    peers/bin/pip install --no-deps syne-tune==0.16.0 dill==0.4.1 sortedcontainers

Each run is a line of `benchmarks/results/samplers/NAME_peers.csv`, as in `samplers.py`; what is there is not run again.
Cost is what devices are busy: the clock times the trainings under way at once. What counts is trained to the last
rung. A layout asked for again costs nothing and does not count; after 50 in a row one is drawn. Both are told both
objectives over their range in the table, which a user would not know: their distances and sums depend on it.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import itertools
import logging
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from landscape import Table
from optuna.distributions import CategoricalDistribution, IntDistribution
from rich.console import Console
from rich.table import Table as Printed
from samplers import (
    ETA,
    MAX_REFUSALS,
    PARALLEL,
    RESULTS,
    RUNG_CONTENDERS,
    _p_value,
    _Progress,
    _share_after,
    append_result,
    read_results,
    results_path,
)

from mambavision.layout import HybridLayout
from mvsearch.space.space import SearchSpace

MARKS = (0.05, 0.1, 0.2, 0.3)
"""Shares of the training of the whole table at which regret is looked at; runs end at the last."""

Losses = tuple[float, float]
"""NLL and minus log2 throughput, from 0 to 1 over the layouts of the table at the last rung."""


@dataclass(frozen=True)
class Proposal:
    """A layout to be trained to the end of a rung, and what its peer knows it by."""

    handle: Any
    layout: HybridLayout
    rung: int


class Peer(Protocol):
    """An optimizer from elsewhere, asked and told."""

    def ask(self) -> Proposal:
        """The next proposal, which may be a layout seen before."""

    def drawn(self, layout: HybridLayout) -> Proposal:
        """A proposal for a layout that was drawn, since the peer knew no new one."""

    def accept(self, proposal: Proposal) -> None:
        """What was asked for is trained."""

    def refuse(self, proposal: Proposal, losses: Losses) -> None:
        """What was asked for had been trained before, with these losses."""

    def tell(self, proposal: Proposal, losses: Losses) -> bool:
        """What came out; whether the same layout goes on to the next rung at once."""


# -- parameters: those of the space, whole numbers counted from 0 ----------------------------------------------------


def sizes(space: SearchSpace) -> dict[str, int | list[Any]]:
    """Of each parameter how many whole numbers it may be, or its categories."""
    found: dict[str, int | list[Any]] = {}
    for name, distribution in space.distributions().items():
        if isinstance(distribution, IntDistribution):
            found[name] = (distribution.high - distribution.low) // distribution.step + 1
        elif isinstance(distribution, CategoricalDistribution):
            found[name] = list(distribution.choices)
    return found


def decode(space: SearchSpace, config: Mapping[str, Any]) -> HybridLayout:
    """The layout of a peer's configuration."""
    params = {}
    for name, distribution in space.distributions().items():
        params[name] = config[name]
        if isinstance(distribution, IntDistribution):
            params[name] = distribution.low + distribution.step * int(config[name])
    return space.decode(params)


def encode(space: SearchSpace, layout: HybridLayout) -> dict[str, Any]:
    """A peer's configuration of a layout."""
    config = space.encode(layout)
    for name, distribution in space.distributions().items():
        if isinstance(distribution, IntDistribution):
            config[name] = (config[name] - distribution.low) // distribution.step
    return config


# -- the peers -------------------------------------------------------------------------------------------------------


class Moasha:
    """Syne Tune's MOASHA: random layouts; from each rung go on those that a non-dominated sort has in the first third.

    Args:
        table: its rungs must be those that MOASHA makes of the first, the last and `ETA`.
        ranks: as shipped (0.16.0), `NonDominatedPriority` returns the indices of the sorted layouts where the rung
            expects the priority of each; with this the priority is what its docstring says.
    """

    def __init__(self, table: Table, *, ranks: bool) -> None:
        from syne_tune.config_space import choice, randint
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
        from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import MOPriority
        from syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority import (
            compute_epsilon_net,
            nondominated_sort,
        )

        class Ranks(MOPriority):
            def priority_unsafe(self, objectives: np.ndarray) -> np.ndarray:
                priorities, better = np.zeros(len(objectives), dtype=int), 0
                for members in nondominated_sort(objectives, dim=0, flatten=False):
                    priorities[members] = better + compute_epsilon_net(objectives[members], dim=0)
                    better += len(members)
                return priorities

        self._table = table
        domains = {k: choice(n) if isinstance(n, list) else randint(0, n - 1) for k, n in sizes(table.space).items()}
        self._scheduler = MOASHA(
            domains,
            metrics=["nll", "slowness"],
            time_attr="epoch",
            multiobjective_priority=Ranks() if ranks else None,
            grace_period=table.rungs[0],
            max_t=table.rungs[-1],
            reduction_factor=ETA,
        )
        rungs = sorted(level for level, _ in self._scheduler.brackets[0].rungs)
        if rungs != table.rungs:
            raise ValueError(f"rungs: {table.rungs} of the table are not MOASHA's, {rungs}")
        self._numbers = itertools.count()

    def _proposal(self, config: dict[str, Any], layout: HybridLayout) -> Proposal:
        from syne_tune.backend.trial_status import Trial

        return Proposal(Trial(next(self._numbers), config, datetime.datetime.now()), layout, 0)

    def ask(self) -> Proposal:
        config = self._scheduler.suggest().config
        return self._proposal(config, decode(self._table.space, config))

    def drawn(self, layout: HybridLayout) -> Proposal:
        return self._proposal(encode(self._table.space, layout), layout)

    def accept(self, proposal: Proposal) -> None:
        self._scheduler.on_trial_add(proposal.handle)

    def refuse(self, proposal: Proposal, losses: Losses) -> None:
        """Its draws do not depend on what it is told."""

    def tell(self, proposal: Proposal, losses: Losses) -> bool:
        result = {"epoch": self._table.rungs[proposal.rung], "nll": losses[0], "slowness": losses[1]}
        if proposal.rung == len(self._table.rungs) - 1:
            self._scheduler.on_trial_complete(proposal.handle, result)
            return False
        if self._scheduler.on_trial_result(proposal.handle, result) == "CONTINUE":
            return True
        self._scheduler.on_trial_remove(proposal.handle)
        return False


class Primo:
    """NePS's PriMO: its own MOASHA for as many full trainings as parameters, then a Gaussian process on a weighted sum.

    Without priors: PriMO takes a configuration thought to be good for each objective, and no sampler here is given any.
    A layout seen before is told again, as PriMO would ask for it for ever. One at a time: with two under way it gives
    both the same id (0.17.0, as trials without a result are left out before ids are counted).

    Args:
        table: its rungs must be those of the first, the last and `ETA`.
        enumerated: the acquisition is looked at for every layout not trained to the last rung, and the best is taken.
            As shipped it is climbed from 20 starts, which takes seconds and may end at a layout seen before.
        anew: as shipped (0.17.0) the weights are drawn once a run, so that one point of the front is sought; with this
            they are drawn for each layout.
    """

    def __init__(self, table: Table, *, enumerated: bool, anew: bool) -> None:
        import neps
        from neps.optimizers.algorithms import primo
        from neps.space import SearchSpace as NepsSpace
        from neps.space.parameters import HPOCategorical, HPOInteger

        elements = {
            name: HPOCategorical(size) if isinstance(size, list) else HPOInteger(0, size - 1)
            for name, size in sizes(table.space).items()
        }
        elements["epoch"] = HPOInteger(table.rungs[0], table.rungs[-1], is_fidelity=True)
        self._table, self._enumerated, self._anew = table, enumerated, anew
        self._primo = primo(NepsSpace(elements), eta=ETA, prior_centers={})
        rungs = sorted(self._primo.bracket_optimizer.rung_to_fid.values())
        if rungs != table.rungs:
            raise ValueError(f"rungs: {table.rungs} of the table are not PriMO's, {rungs}")
        self._trials = neps.AskAndTell(self._primo)
        self._left = {layout.key: encode(table.space, layout) for layout in table.layouts}

    def _best_left(self, acq_fn: Any, encoder: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of NePS's `optimize_acq`: of the layouts left, the row (1, D) with the best acquisition."""
        rows_ND = encoder.encode(list(self._left.values()))
        with torch.no_grad():
            values_N = acq_fn(rows_ND[:, None])
        best = int(values_N.argmax())
        return rows_ND[best : best + 1], values_N[best]

    def ask(self) -> Proposal:
        import neps.optimizers.models.gp as neps_gp

        if self._anew:
            self._primo.scalarization_weights = None
        climb = self._best_left if self._enumerated else neps_gp.optimize_acq
        with mock.patch.object(neps_gp, "optimize_acq", climb):
            trial = self._trials.ask()
        rung = self._table.rungs.index(trial.config["epoch"])
        return Proposal(trial.id, decode(self._table.space, trial.config), rung)

    def drawn(self, layout: HybridLayout) -> Proposal:
        return Proposal(None, layout, len(self._table.rungs) - 1)

    def accept(self, proposal: Proposal) -> None:
        """It knows what it has asked for."""

    def refuse(self, proposal: Proposal, losses: Losses) -> None:
        self.tell(proposal, losses)

    def tell(self, proposal: Proposal, losses: Losses) -> bool:
        if proposal.rung == len(self._table.rungs) - 1:
            self._left.pop(proposal.layout.key, None)
        if proposal.handle is not None:
            self._trials.tell(proposal.handle, list(losses))
            return False
        number = 1 + max(int(trial.split("_")[0]) for trial in self._trials.trials)
        config = {**encode(self._table.space, proposal.layout), "epoch": self._table.rungs[proposal.rung]}
        self._trials.tell_custom(config_id=str(number), config=config, result=list(losses))
        return False


PEERS: dict[str, tuple[Callable[[Table], Peer], int]] = {
    "MOASHA": (lambda table: Moasha(table, ranks=False), 1),
    f"MOASHA, {PARALLEL} at once": (lambda table: Moasha(table, ranks=False), PARALLEL),
    "MOASHA, ranks": (lambda table: Moasha(table, ranks=True), 1),
    f"MOASHA, ranks, {PARALLEL} at once": (lambda table: Moasha(table, ranks=True), PARALLEL),
    "PriMO": (lambda table: Primo(table, enumerated=False, anew=False), 1),
    "PriMO, enumerated": (lambda table: Primo(table, enumerated=True, anew=False), 1),
    "PriMO, enumerated, weights anew": (lambda table: Primo(table, enumerated=True, anew=True), 1),
}
"""How each is made, and how many layouts it has under way at once. Both draw from global generators."""


# -- replay ----------------------------------------------------------------------------------------------------------


class Objectives:
    """The losses of a table's layouts."""

    def __init__(self, table: Table) -> None:
        self._table = table
        values = np.array([table.true(layout) for layout in table.layouts])
        self._best, self._range = values.max(axis=0), np.ptp(values, axis=0)

    def __call__(self, layout: HybridLayout, rung: int) -> Losses:
        values = np.mean(self._table.qualities(layout, rung)), self._table.throughput[layout.key]
        nll, slowness = (self._best - values) / self._range
        return float(nll), float(slowness)


def replay_peer(table: Table, name: str, seed: int, budget_s: float) -> dict[str, Any]:
    """One run until the training seconds are spent: the share of the optimal hypervolume after each rung's end."""
    make, parallel = PEERS[name]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (what both draw from)
    torch.manual_seed(seed)
    peer, losses = make(table), Objectives(table)
    progress, rng = _Progress(table), random.Random(f"drawn {seed}")
    last = len(table.rungs) - 1
    reached: dict[str, int] = {}  # the highest rung of each layout, trained or under way
    under_way: list[tuple[float, int, Proposal]] = []
    order = itertools.count()
    seconds, clock, asking = [], 0.0, 0.0

    def ask() -> Proposal | None:
        for _ in range(MAX_REFUSALS):
            proposal = peer.ask()
            if reached.get(proposal.layout.key, -1) < proposal.rung:
                return proposal
            peer.refuse(proposal, losses(proposal.layout, proposal.rung))
        layout = table.space.uniform_unseen(set(reached), rng)
        return None if layout is None else peer.drawn(layout)

    def train(proposal: Proposal) -> None:
        """A layout that was trained to a lower rung goes on from there."""
        key = proposal.layout.key
        before = table.seconds(proposal.layout, reached[key]) if key in reached else 0.0
        reached[key] = proposal.rung
        end = clock + table.seconds(proposal.layout, proposal.rung) - before
        heapq.heappush(under_way, (end, next(order), proposal))

    while True:
        while len(under_way) < parallel:
            began = time.process_time()
            proposal = ask()
            asking += time.process_time() - began
            if proposal is None:
                break
            peer.accept(proposal)
            train(proposal)
        if not under_way or under_way[0][0] * parallel > budget_s:
            break
        clock, _, proposal = heapq.heappop(under_way)
        if proposal.rung == last:
            progress.add(proposal.layout, table.true(proposal.layout))
        else:
            progress.shares.append(progress.shares[-1] if progress.shares else 0.0)
        seconds.append(round(clock * parallel, 1))
        if peer.tell(proposal, losses(proposal.layout, proposal.rung)):
            train(replace(proposal, rung=proposal.rung + 1))
    return {"shares": [round(share, 5) for share in progress.shares], "seconds": seconds, "asking": round(asking, 2)}


def whole(table: Table) -> float:
    """Training seconds of the whole table."""
    return sum(table.seconds(layout) for layout in table.layouts)


def peers_path(name: str) -> Path:
    return RESULTS / f"{Path(name).stem}_peers.csv"


def run(name: str, peers: Sequence[str], seeds: range) -> None:
    """Run what is missing; one line a run, appended at once."""
    path, table = peers_path(name), Table(Path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for peer in peers:
            done = read_results(path)
            if ((done.sampler == peer) & (done.seed == seed)).any():
                continue
            found = replay_peer(table, peer, seed, MARKS[-1] * whole(table))
            append_result(path, peer, seed, found)
            print(f"{peer}, seed {seed}: {found['shares'][-1]:.3f} of the optimum", flush=True)


# -- what they say ---------------------------------------------------------------------------------------------------


def report(name: str, out: Console) -> None:
    """Regret at equal training seconds: the peers, and what `samplers.py --rungs` left of random and known_cost."""
    table = Table(Path(name))
    total = whole(table)
    curves, seeds = {}, {}
    for path, names in ((results_path(name, rungs=True), RUNG_CONTENDERS), (peers_path(name), PEERS)):
        found = read_results(path)
        for sampler in names:
            runs = found[found.sampler == sampler].sort_values("seed")
            if len(runs):
                seeds[sampler] = list(runs.seed)
                curves[sampler] = np.array(
                    [
                        [_share_after(run.shares, run.seconds, mark * total) for mark in MARKS]
                        for run in runs.itertuples()
                    ]
                )
    against = {"known_cost": "no rungs", "known_cost, rungs": "rungs"}
    printed = Printed(title=f"Regret on {Path(name).stem} by training seconds: mean over seeds", width=118)
    printed.add_column("sampler", no_wrap=True)
    printed.add_column("seeds", justify="right")
    for mark in MARKS:
        printed.add_column(f"{mark:.0%}", justify="right")
    tested = [(label, ours, i) for ours, label in against.items() if ours in curves for i in (1, 3)]
    for label, _, i in tested:
        printed.add_column(f"p {label} {MARKS[i]:.0%}", justify="right")
    for sampler, shares in curves.items():
        row = [sampler, str(len(shares)), *(f"{1 - share:.3f}" for share in shares.mean(axis=0))]
        for _, ours, i in tested:
            both = {"known_cost": curves[ours], "peer": shares}
            p = _p_value(both, {"known_cost": seeds[ours], "peer": seeds[sampler]}, "peer", i + 1)
            row.append("" if sampler == ours else p)
        printed.add_row(*row)
    out.print(printed)
    trainings = ", ".join(f"{mark * len(table.layouts):.1f}" for mark in MARKS)
    out.print(
        f"100 % is the training of the whole table, {total:,.0f} seconds; the marks are {trainings} full trainings. "
        f"Rungs end after {table.rungs} epochs. p: Wilcoxon's signed ranks over the seeds that both ran, one-sided: "
        "is known_cost's regret, without rungs and with them, lower?"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("table", help="a table's CSV")
    parser.add_argument("--peers", nargs="+", default=list(PEERS))
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 30], metavar=("FIRST", "END"))
    args = parser.parse_args()
    for peer in args.peers:
        if peer not in PEERS:
            parser.error(f"--peers: {peer!r} is not allowed; of {', '.join(PEERS)}")
    if args.what == "report":
        report(args.table, Console(width=118, highlight=False))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    run(args.table, args.peers, range(*args.seeds))


if __name__ == "__main__":
    main()
