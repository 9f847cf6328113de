"""Warm starts: what a search begins with beside its hand-made layouts, from another study, known models, or a prior.

The plan is made when a study begins, and kept in its folder: from then on the study stands on its own, and when it goes
on after a stop it neither reads the other study again nor draws anew. Only what was measured under the conditions of
the new study is taken over; whatever else the other study holds is no more than a suggestion.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mambavision.files import write_atomic
from mambavision.layout import HybridLayout
from mambavision.library import LibraryError, load_entry_config
from mambavision.words import plural
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.settings import differences, with_defaults
from mvsearch.space.space import SearchSpace
from mvsearch.space.stage import SpaceError
from mvsearch.study.data import deployed_image_size, load_study
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder, find_study
from mvsearch.study.front import front_records
from mvsearch.study.record import TIME, TRAIN, Evaluation, TrialRecord

RESULTS = "results"
TRAININGS = "trainings"
_TRIES_A_DRAW = 200
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class StartingLayout:
    """A layout that the search begins with.

    Attributes:
        layout: of the space, within its budgets.
        label: where it comes from: "old, trial 12", "mambavision_t", "placement".
        taken: ``"results"`` if nothing of it is measured again, ``"trainings"`` if it is only timed again, else None.
        evaluations: the ledger lines of the other study that are taken over, with their ``source``.
    """

    layout: HybridLayout
    label: str
    taken: str | None = None
    evaluations: tuple[Evaluation, ...] = ()

    def lines(self, **fields: Any) -> list[Evaluation]:
        """What is taken over, as lines of the new ledger.

        Args:
            fields: what is the new study's own: ``trial``, ``baseline``, ``cost``.
        """
        # The moment of taking over: with the other study's times, the new one would seem to have lasted since then.
        fields |= {"started": time.time(), "ended": time.time(), "warm_start": self.label}
        return [dataclasses.replace(line, **fields) for line in self.evaluations]


@dataclass(frozen=True)
class WarmStart:
    """The layouts that a search begins with, and what there is to say of them.

    Attributes:
        layouts: each key once, in the order in which they are asked for.
        notices: what was taken over, scaled and left out, as sentences.
    """

    layouts: tuple[StartingLayout, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        """How many are not trained here; they come on top of `search.trials`."""
        return sum(start.taken is not None for start in self.layouts)

    def write(self, folder: StudyFolder, source: StudyFolder | None) -> None:
        """Keep the plan in the folder of the new study, with the weights of what is taken over.

        Args:
            folder: of the new study.
            source: the study that is taken over from, or None.

        Raises:
            OSError: if a file cannot be written.
        """
        for start in self.layouts:
            name = f"{start.layout.key}.safetensors"
            if source is not None and start.taken is not None and (source.weights / name).is_file():
                shutil.copyfile(source.weights / name, folder.weights / name)
        starting = [
            {
                "label": start.label,
                "taken": start.taken,
                "layout": start.layout.to_dict(),
                "evaluations": [line.to_dict() for line in start.evaluations],
            }
            for start in self.layouts
        ]
        write_atomic(folder.warm_start, json.dumps({"notices": self.notices, "firsts": starting}, indent=1) + "\n")


def read_warm_start(config: StudyConfig, folder: StudyFolder) -> WarmStart:
    """The plan that a study began with; an empty one if it began without.

    Raises:
        StudyError: if its file is missing or damaged.
    """
    if config.warm_start is None:
        return WarmStart()
    try:
        data = json.loads(folder.warm_start.read_text())
        starting = tuple(
            StartingLayout(
                HybridLayout.from_dict(start["layout"]),
                start["label"],
                start["taken"],
                tuple(Evaluation.from_dict(line) for line in start["evaluations"]),
            )
            for start in data["firsts"]
        )
        return WarmStart(starting, tuple(data["notices"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{folder.warm_start}: the layouts that the study began with cannot be read ({error}); restore it from a "
            "copy, or start a new study with --set name=…"
        ) from None


def source_study(config: StudyConfig, folder: StudyFolder) -> StudyFolder | None:
    """The study that a new one starts from, or None.

    Args:
        config: of the new study.
        folder: of the new study; names are looked for beside it.

    Raises:
        StudyError: if there is none of that name, or it is the new study itself.
    """
    if config.warm_start is None or config.warm_start.study is None:
        return None
    try:
        source = find_study(config.warm_start.study, folder.path.parent)
    except StudyError as error:
        raise StudyError(f"warm_start.{error}") from None
    if source.path.resolve() == folder.path.resolve():
        raise StudyError(f"warm_start.study: {source.path} is this study itself; name another, or remove it")
    return source


def plan_warm_start(
    config: StudyConfig,
    space: SearchSpace,
    source: StudyFolder | None,
    environment: Mapping[str, Any] | None,
) -> WarmStart:
    """What a search begins with; nothing is written.

    Args:
        config: of the new study.
        space: of the new study.
        source: the study to start from, as `source_study` finds it.
        environment: of the new study, as for environment.json; None: nothing is taken over.

    Raises:
        StudyError: if no layout of the other study fits the space, or the library has no model of a name.
        SpaceError: if the space has no layout like a known model, or none of the placement rules.
    """
    wanted = config.warm_start
    if wanted is None:
        return WarmStart()
    starting: dict[str, StartingLayout] = {}
    notices: list[str] = []
    baselines = {layout.key: name for name, layout in space.baselines().items() if config.search.baselines}
    if source is not None:
        found, said = _from_study(config, space, source, environment, baselines)
        starting = {start.layout.key: start for start in found}
        notices.append(said)
    for name in wanted.known:
        layout, said = _scaled(space, name)
        key = layout.key
        if key in starting:
            said += f" That is the layout of {starting[key].label}."
            starting[key] = dataclasses.replace(starting[key], label=f"{starting[key].label}; {name}")
        else:
            said += f" That is the hand-made layout {baselines[key]!r}." if key in baselines else ""
            starting[key] = StartingLayout(layout, name)
        notices.append(said)
    if wanted.placement is not None:
        rng = random.Random(f"placement/{config.search.seed}")
        drawn = _drawn(space, wanted.placement, wanted.draws, {*starting, *baselines}, rng)
        starting |= {layout.key: StartingLayout(layout, "placement") for layout in drawn}
        weights = ", ".join(f"{rule} {weight:g}" for rule, weight in wanted.placement.items())
        few = "" if len(drawn) == wanted.draws else f" (of {wanted.draws}: no more were found within the budgets)"
        notices.append(f"Warm start: {plural(len(drawn), 'layout')} drawn{few} with placements {weights}.")
    # What costs nothing comes first, and what costs little, so that it is known before anything is asked for.
    ordered = sorted(starting.values(), key=lambda start: (start.taken is None, start.taken == TRAININGS))
    return WarmStart(tuple(ordered), tuple(notices))


def _from_study(
    config: StudyConfig,
    space: SearchSpace,
    source: StudyFolder,
    environment: Mapping[str, Any] | None,
    baselines: Mapping[str, str],
) -> tuple[list[StartingLayout], str]:
    """What fits of another study, and a sentence about it."""
    assert config.warm_start is not None
    there = load_study(source)
    misfits: Counter[str] = Counter()
    fitting: list[tuple[TrialRecord, HybridLayout]] = []
    for record in there.complete:
        layout, why = _fit(space, HybridLayout.from_dict(record.layout))
        if layout is None:
            misfits[why] += 1
        else:
            fitting.append((record, layout))
    if not fitting:
        why = f": {_counted(misfits)}" if misfits else "; none is trained in full there"
        raise StudyError(f"warm_start.study: no layout of {source.path} fits this space{why}")
    training, timing = ["a dry run takes nothing over"], ["a dry run takes nothing over"]
    if environment is not None:
        old, new = (with_defaults(there.config), there.environment), (config.resolved(), environment)
        training = _differing(_training_conditions(*old), _training_conditions(*new))
        timing = _differing(_timing_conditions(*old), _timing_conditions(*new))
    timed, trained, others = [], [], []
    for record, layout in fitting:
        lines = [line for line in record.evaluations if line.what == TIME and not timing]
        lines += [
            line
            for line in record.evaluations
            if line.what == TRAIN and not training and line.seed in config.training_seeds
        ]
        label = f"{source.name}, trial {record.number}"
        start = StartingLayout(layout, label, evaluations=tuple(_with_source(line, label) for line in lines))
        if training or not set(config.training_seeds) <= set(record.seeds):
            others.append((record, start))
        elif timing:
            trained.append(dataclasses.replace(start, taken=TRAININGS))
        else:
            timed.append(dataclasses.replace(start, taken=RESULTS))
    # The hand-made ones are trained anyway, with what can be taken over of them.
    again = [record for record, _ in others if record.key in baselines]
    rest = [record for record, _ in others if record.key not in baselines]
    again += _best(rest, config.objectives.quality, config.warm_start.layouts)
    by_key = {start.layout.key: start for _, start in others}
    parts = []
    if timed:
        parts.append(f"{plural(len(timed), 'layout')} taken over with their results")
    if trained:
        parts.append(f"{len(trained)} taken over with their trainings and timed again, because {_reasons(timing)}")
    if others:
        seeds = [f"the seeds are {list(config.training_seeds)} here and {list(others[0][0].seeds)} there"]
        few = f" of {len(others)}, the best and the hand-made," if len(again) < len(others) else ""
        kept = "trained and timed" if timing else "trained"
        parts.append(f"{len(again)}{few} {kept} again, because {_reasons(training or seeds)}")
    if misfits:
        parts.append(f"{misfits.total()} {'do' if misfits.total() > 1 else 'does'} not fit: {_counted(misfits)}")
    starting = [*timed, *trained, *(by_key[record.key] for record in again)]
    return starting, f"Warm start from {source.path}: {'; '.join(parts)}."


def _fit(space: SearchSpace, layout: HybridLayout) -> tuple[HybridLayout | None, str]:
    """The layout as the space writes it, or None and why it does not fit."""
    try:
        own = space.decode(space.encode(layout))
    except SpaceError as error:
        return None, str(error).partition(";")[0]
    excess = space.excess(own)
    return (None, "over " + " and ".join(f"budgets.{name}" for name in excess)) if excess else (own, "")


def _counted(reasons: Counter[str]) -> str:
    shown = [f"{why} ({count})" for why, count in reasons.most_common(_REASONS_SHOWN)]
    rest = reasons.total() - sum(count for _, count in reasons.most_common(_REASONS_SHOWN))
    return ", ".join(shown) + (f", other reasons ({rest})" if rest else "")


def _training_conditions(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that bears on a training of given seed: the data by its fingerprint, wherever it lies."""
    proxy = {name: value for name, value in config["proxy"].items() if name not in ("seeds", "root")}
    data = environment["data"]["fingerprint"]
    return {"proxy": proxy, "fidelity": config.get("fidelity"), "data": data} | _machine(environment)


def _timing_conditions(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that bears on a throughput ratio; of the data, only classes and channels do."""
    timing = config["timing"] | {"image_size": deployed_image_size(config)}
    shape = {name: environment["data"][name] for name in ("classes", "channels")}
    own = {"timing": timing, "throughput": config.get("throughput"), "reference": environment["reference"]}
    return own | {"data": shape} | _machine(environment)


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: environment["versions"].get(name) for name in ("torch", "mvsearch")}
    return {"device": environment["device"], "scan": environment["scan"], "versions": versions}


def _differing(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [f"{key} is {now!r} here and {before!r} there" for key, before, now in differences(there, here)]


def _reasons(differing: list[str]) -> str:
    return differing[0] + (f" (and {len(differing) - 1} more)" if len(differing) > 1 else "")


def _with_source(line: Evaluation, label: str) -> Evaluation:
    before = line.conditions.get("source", "measured")
    source = label if before == "measured" else f"{label}, from {before}"
    return dataclasses.replace(line, conditions={**line.conditions, "source": source})


def _best(records: Iterable[TrialRecord], measure: str, count: int) -> list[TrialRecord]:
    """The best layouts: the front, the front of the rest, and so on; of the last, evenly from slow to fast."""
    rest, found = list(records), list[TrialRecord]()
    while rest and len(found) < count:
        front = front_records(rest, measure)
        room = count - len(found)
        if len(front) > room:
            front = [front[round(i * (len(front) - 1) / max(1, room - 1))] for i in range(room)]
        found += front
        chosen = {record.key for record in front}
        rest = [record for record in rest if record.key not in chosen]
    return found


def _scaled(space: SearchSpace, name: str) -> tuple[HybridLayout, str]:
    """The layout of a model of the library, scaled into the space, and a sentence about it."""
    try:
        model = HybridLayout.from_dict(load_entry_config(name)["layout"])
    except LibraryError as error:
        raise StudyError(f"warm_start.known: {error}") from None
    layout = space.scaled(model)
    if layout is None:
        raise SpaceError(f"warm_start.known: {name}: no layout like it is within the budgets")
    return layout, f"Warm start: {name}, {_words(model)}, is scaled to {_words(layout)}."


def _words(layout: HybridLayout) -> str:
    states = "/".join(str(stage.state) for stage in layout.stages if stage.scans)
    blocks = "|".join(stage.blocks for stage in layout.stages)
    return f"{blocks} of width {layout.stages[0].dim}" + (f" and state {states}" if states else "")


def _drawn(
    space: SearchSpace, weights: Mapping[str, float], count: int, seen: set[str], rng: random.Random
) -> list[HybridLayout]:
    """Distinct layouts within the budgets, drawn by weighted placement rules; fewer where there are no more."""
    found: dict[str, HybridLayout] = {}
    for _ in range(_TRIES_A_DRAW * count):
        try:
            layout = space.placed(weights, rng)
        except SpaceError as error:
            raise SpaceError(f"warm_start.placement: {error}") from None
        if layout.key not in seen and layout.key not in found and not space.excess(layout):
            found[layout.key] = layout
            if len(found) == count:
                break
    return list(found.values())
