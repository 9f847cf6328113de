"""What a report says, as plain frozen values, and the tables trials.csv and front.csv."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.layout import LETTERS
from mvsearch.front import (
    PICKS,
    Point,
    SeedNoise,
    Standing,
    complete_records,
    difference_noise,
    front_records,
    pick,
    point_of,
    standings,
)
from mvsearch.ledger import write_atomic
from mvsearch.record import FAILED, PARTIAL, TIME, WAITING, Evaluation, TrialRecord
from mvsearch.trust import Calibration, Confirmation, calibration, confirmation, study_difference_noise, study_noise

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """Everything that a report reads.

    Attributes:
        name: the study's name.
        records: one for each layout, in any order.
        config: the resolved YAML as plain data.
        environment: what the study ran on, as plain data. ``device``, ``scan`` and ``command`` are read from it;
            everything in it is shown.
        reference_point: (quality, log2 ratio) from which hypervolume is measured.
        reference_key: key of the layout that throughput is a ratio to.
        classes: classes of the data set.
        started: Unix time of the search's first evaluation, seconds.
        ended: Unix time of its last, seconds.
        workers: how many workers trained at once.
        evaluations: every line of the ledger, whatever it was measured for (`Evaluation.purpose`).
        importance: of each outcome (``"quality"``, ``"throughput"``, ``"both"``), the share of each factor, adding up
            to 1; None where it was not computed. By `mvsearch.integrations.importance`.
    """

    name: str
    records: list[TrialRecord]
    config: dict[str, Any]
    environment: dict[str, Any]
    reference_point: tuple[float, float]
    reference_key: str
    classes: int
    started: float
    ended: float
    workers: int = 1
    evaluations: tuple[Evaluation, ...] = field(default=(), repr=False)
    importance: Mapping[str, Mapping[str, float]] | None = None

    def setting(self, *path: str, default: Any = None) -> Any:
        """A value of the config, e.g. ``study.setting("proxy", "epochs")``; the default where it is absent."""
        value: Any = self.config
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                return default
            value = value[name]
        return value

    @property
    def measure(self) -> str:
        """The study's quality measure, ``"nll"`` or ``"top1"``."""
        return "top1" if self.setting("objectives", "quality") == "top1" else "nll"

    @cached_property
    def complete(self) -> list[TrialRecord]:
        """Layouts timed, and trained in full with every seed."""
        return complete_records(self.records, self.measure)

    @cached_property
    def baselines(self) -> list[TrialRecord]:
        """Complete hand-made layouts."""
        return [record for record in self.complete if record.baseline]

    @cached_property
    def front(self) -> list[TrialRecord]:
        """Complete layouts that no other dominates, slowest first."""
        return front_records(self.records, self.measure)

    @cached_property
    def facts(self) -> list[tuple[TrialRecord, list[StageFacts]]]:
        """Complete layouts with the facts of their stages."""
        return [(record, stage_facts(record.layout)) for record in self.complete]

    @cached_property
    def calibration(self) -> Calibration | None:
        """Whether the proxy ranks layouts as long training does; None before `mvsearch calibrate`."""
        return calibration(self)

    @cached_property
    def confirmation(self) -> Confirmation | None:
        """The front with fresh seeds on the test split; None before `mvsearch confirm`."""
        return confirmation(self)

    @cached_property
    def noise(self) -> SeedNoise | None:
        """Noise between seeds of a full training, in quality; None where no layout was trained twice."""
        return study_noise(self)

    @cached_property
    def difference_noise(self) -> SeedNoise | None:
        """The same for differences between layouts, from which what a seed does to all alike is taken out."""
        return study_difference_noise(self)

    @cached_property
    def standings(self) -> dict[str, Standing]:
        """Each complete layout's `front.Standing` by its key; empty where the noise is not known."""
        points = [point for record in self.complete if (point := point_of(record, self.measure))]
        if self.difference_noise is None or self.difference_noise.sd == 0:
            return {}
        seeds = {record.key: len(record.seeds) for record in self.complete}
        return {standing.key: standing for standing in standings(points, seeds, self.difference_noise)}

    @property
    def failed(self) -> list[TrialRecord]:
        """Layouts whose trial ended as FAIL."""
        return [record for record in self.records if record.state == FAILED]

    @property
    def partial(self) -> list[TrialRecord]:
        """Layouts still on their way."""
        return [record for record in self.records if record.state == PARTIAL]

    @property
    def waiting(self) -> list[TrialRecord]:
        """Layouts that were trained to the end of a rung that is not the last, and no further yet."""
        return [record for record in self.records if record.state == WAITING]

    @property
    def seeds(self) -> int:
        """Trainings behind the least trained complete layout; what the config asks for where none is complete."""
        asked = self.setting("proxy", "seeds", default=1)
        return min((len(record.seeds) for record in self.complete), default=asked if isinstance(asked, int) else 1)

    @property
    def scan(self) -> str:
        """The scan path that was timed, as the timings (else the environment) say it."""
        paths = {
            str(line.conditions["scan"])
            for record in self.records
            for line in record.evaluations
            if line.what == TIME and "scan" in line.conditions
        }
        return ", ".join(sorted(paths)) or str(self.environment.get("scan", "unknown"))

    @property
    def device(self) -> str:
        """The device that was timed, as the environment (else the timings) say it."""
        named = self.environment.get("device")
        lines = {line.device for record in self.records for line in record.evaluations if line.what == TIME}
        if any("cuda" in device for device in lines) or "not recorded" in lines:
            named = None  # timings taken elsewhere, or on a cluster: the launching machine says nothing about them
        return str(named or ", ".join(sorted(filter(None, lines))) or "unknown device")

    @property
    def on_cpu(self) -> bool:
        """True if throughput was timed on a CPU."""
        lines = {line.device for record in self.records for line in record.evaluations if line.what == "time"}
        return all(device.lower().startswith("cpu") for device in filter(None, lines or {self.device}))


# -- what the first screen says ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Margin:
    """One layout against the hand-made ones; quality and throughput in the units of `Point`.

    Attributes:
        at_speed: the best hand-made layout that is at least as fast; None if there is none.
        at_quality: the fastest hand-made layout that is at least as good; None if there is none.
    """

    at_speed: TrialRecord | None
    at_quality: TrialRecord | None


def margin(record: TrialRecord, baselines: Iterable[TrialRecord], measure: str) -> Margin:
    """What hand-made layouts reach at the record's speed or faster, and at its quality or better."""
    own = point_of(record, measure)
    others = [(other, point) for other in baselines if (point := point_of(other, measure))]
    if own is None:
        return Margin(None, None)
    fast = [pair for pair in others if pair[1].throughput >= own.throughput]
    good = [pair for pair in others if pair[1].quality >= own.quality]
    at_speed = max(fast, key=lambda pair: pair[1].quality, default=None)
    at_quality = max(good, key=lambda pair: pair[1].throughput, default=None)
    return Margin(at_speed and at_speed[0], at_quality and at_quality[0])


@dataclass(frozen=True)
class Gain:
    """What the front offers in place of one hand-made layout; the same layout where it offers nothing better.

    Attributes:
        baseline: the hand-made layout.
        better: the best member of the front that is at least as fast as it.
        faster: the fastest member of the front that is at least as good as it.
    """

    baseline: TrialRecord
    better: TrialRecord
    faster: TrialRecord


@dataclass(frozen=True)
class Difference:
    """One layout minus another in quality, with half of a 95 % interval where seeds allow one.

    Attributes:
        nll: difference in NLL, nats; negative is better.
        nll_half: half of its interval; None where no layout was trained twice.
        top1: difference in top-1, 0 to 1; positive is better.
        top1_half: half of its interval.
        seeds: fresh trainings of each on the test split, where both were confirmed; None: as the search measured it.
    """

    nll: float
    nll_half: float | None
    top1: float
    top1_half: float | None
    seeds: int | None = None

    def clear(self, measure: str) -> bool | None:
        """Whether the interval of a measure leaves out nought; None without an interval."""
        value, half = (self.top1, self.top1_half) if measure == "top1" else (self.nll, self.nll_half)
        return None if half is None else abs(value) > half


def difference(study: StudyData, record: TrialRecord, other: TrialRecord) -> Difference | None:
    """Compare two layouts: by fresh seeds on the test split where both were confirmed, else as the search measured.

    The noise is that of differences between layouts of the same seeds, pooled (`front.difference_noise`); intervals are
    Student's t at 95 %.
    """
    confirmed = study.confirmation
    mine = confirmed.of(record.key) if confirmed else None
    theirs = confirmed.of(other.key) if confirmed else None
    if confirmed and mine and theirs:
        n = confirmed.seeds
        noises = [difference_noise([[one.test.qualities(m) for one in confirmed.layouts]]) for m in ("nll", "top1")]
        halves = [_half(noise, n, n) for noise in noises]
        nll, top1 = mine.test.nll - theirs.test.nll, mine.test.top1 - theirs.test.top1
        return Difference(nll, halves[0], top1, halves[1], seeds=n)
    if record.nll is None or other.nll is None or record.top1 is None or other.top1 is None:
        return None
    halves = [_half(study_difference_noise(study, m), len(record.seeds), len(other.seeds)) for m in ("nll", "top1")]
    return Difference(record.nll - other.nll, halves[0], record.top1 - other.top1, halves[1])


def _half(noise: SeedNoise | None, first: int, second: int) -> float | None:
    from scipy.special import stdtrit

    if noise is None or not first or not second:
        return None
    return float(stdtrit(noise.df, 0.975)) * noise.sd * math.sqrt(1 / first + 1 / second)


def named_baseline(study: StudyData) -> TrialRecord | None:
    """The hand-made layout that others are measured by: the reference ("last half"), else the best one."""
    reference = next((r for r in study.baselines if r.key == study.reference_key), None)
    return reference or max(study.baselines, key=lambda r: r.quality(study.measure) or -math.inf, default=None)


def gains(study: StudyData) -> list[Gain]:
    """One for each complete hand-made layout, slowest first. Every one is met or beaten by the front, by definition."""
    found = []
    members = [(record, point) for record in study.front if (point := point_of(record, study.measure))]
    for baseline in sorted(study.baselines, key=lambda record: record.ratio or 0.0):
        own = point_of(baseline, study.measure)
        if own is None:
            continue
        fast = [pair for pair in members if pair[1].throughput >= own.throughput]
        good = [pair for pair in members if pair[1].quality >= own.quality]
        better = max(fast, key=lambda pair: pair[1].quality)
        faster = max(good, key=lambda pair: pair[1].throughput)
        found.append(Gain(baseline, better[0], faster[0]))
    return found


def picks(study: StudyData) -> dict[str, TrialRecord]:
    """The knee, the fastest and the most accurate member of the front; empty where no layout is complete."""
    by_point: dict[Point, TrialRecord] = {}
    for record in study.front:
        point = point_of(record, study.measure)
        if point:
            by_point[point] = record
    return {which: by_point[pick(list(by_point), which)] for which in PICKS} if by_point else {}


def pooled_se(records: Sequence[TrialRecord], measure: str) -> float | None:
    """Standard error of a layout's mean over seeds, pooled over layouts: steadier than one from two seeds.

    The variance between seeds is averaged over the layouts, weighted by their degrees of freedom, and divided by the
    smallest number of seeds. None where no layout has two seeds.
    """
    pairs = [(se, len(r.seeds)) for r in records if (se := r.quality_se(measure)) is not None and len(r.seeds) > 1]
    if not pairs:
        return None
    variance = sum(se**2 * n * (n - 1) for se, n in pairs) / sum(n - 1 for _, n in pairs)
    return math.sqrt(variance / min(n for _, n in pairs))


def validation_images(study: StudyData) -> int | None:
    """Images that a layout's quality was measured on, as the trainings (else the config) say it."""
    for record in study.records:
        for line in record.evaluations:
            if line.values.get("val_images"):
                return int(line.values["val_images"])
    asked = study.setting("proxy", "val_images")
    return asked if isinstance(asked, int) else None


def device_hours(study: StudyData) -> Callable[[float], float]:
    """Hours that all workers together had spent timing and training by a moment given in Unix seconds."""
    done = (line for record in study.records for line in record.evaluations if 0 < line.started < line.ended)
    lines = sorted((line.ended, line.ended - line.started) for line in done)
    ends = [end for end, _ in lines]
    spent = list(itertools.accumulate((seconds / 3600 for _, seconds in lines), initial=0.0))
    return lambda moment: spent[bisect.bisect_right(ends, moment)]


@dataclass(frozen=True)
class Reordering:
    """Where top-1 and NLL disagree.

    Attributes:
        gained: layouts on the front by the other measure only.
        lost: layouts on the front by the study's measure only.
        pairs: pairs of front members (of either measure) that both measures order.
        swapped: how many of them the two measures order differently.
    """

    gained: tuple[TrialRecord, ...] = ()
    lost: tuple[TrialRecord, ...] = ()
    pairs: int = 0
    swapped: int = 0


def reordering(study: StudyData) -> Reordering:
    """Compare the front by the study's measure with the front by the other one."""
    other = "nll" if study.measure == "top1" else "top1"
    own_front, other_front = study.front, front_records(study.complete, other)
    own_keys, other_keys = {r.key for r in own_front}, {r.key for r in other_front}
    gained = tuple(r for r in other_front if r.key not in own_keys)
    members = [r for r in [*own_front, *gained] if r.nll is not None and r.top1 is not None]
    pairs = swapped = 0
    for position, first in enumerate(members):
        for second in members[position + 1 :]:
            by_nll = (second.nll or 0.0) - (first.nll or 0.0)
            by_top1 = (first.top1 or 0.0) - (second.top1 or 0.0)
            pairs += by_nll != 0 and by_top1 != 0
            swapped += by_nll * by_top1 < 0
    return Reordering(gained, tuple(r for r in own_front if r.key not in other_keys), pairs, swapped)


# -- the stages of a layout ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageFacts:
    """What the order of one stage's blocks says, counted from 1.

    Attributes:
        number: the stage, from 1.
        blocks: its letters.
        dim: channels.
        state: SSM state size; None where no block scans.
        share: blocks with attention over all blocks, 0 to 1.
        placement: name of the order, see `placement`.
        centre: mean position of the attention blocks, 0 (first block) to 1 (last); None without any, and in a stage
            of one block.
        hybrid: False for a convolutional stage.
    """

    number: int
    blocks: str
    dim: int
    state: int | None
    share: float
    placement: str
    centre: float | None
    hybrid: bool = field(default=True)


ALL_SCAN, ALL_ATTENTION = "all Mamba", "all attention"
PLACEMENTS = (ALL_SCAN, "last", "first", "alternating", "middle", "both ends", "mixed", ALL_ATTENTION)


def placement(attends: Sequence[bool]) -> str:
    """Name of an order of blocks.

    ``"all Mamba"`` and ``"all attention"``; ``"last"`` and ``"first"`` (all attention blocks in one run at that end);
    ``"alternating"`` (no two neighbours alike, at least three blocks); ``"middle"`` (one run that touches neither end);
    ``"both ends"`` (one run of Mamba that touches neither end); else ``"mixed"``.

    Args:
        attends: True for each block with attention, in order; at least one block.
    """
    if all(attends):
        return ALL_ATTENTION
    if not any(attends):
        return ALL_SCAN
    changes = sum(a != b for a, b in itertools.pairwise(attends))
    if changes == 1:
        return "last" if attends[-1] else "first"
    if changes == len(attends) - 1:
        return "alternating"
    if changes == 2:
        return "both ends" if attends[0] else "middle"
    return "mixed"


def stage_facts(layout: Mapping[str, Any]) -> list[StageFacts]:
    """The facts of every stage of a layout's plain data."""
    facts = []
    for number, stage in enumerate(layout["stages"], start=1):
        kinds = [LETTERS.get(letter) for letter in stage["blocks"]]
        attends = [kind is not None and kind.attends for kind in kinds]
        at = [i for i, yes in enumerate(attends) if yes]
        facts.append(
            StageFacts(
                number=number,
                blocks=stage["blocks"],
                dim=stage["dim"],
                state=stage.get("state", 8) if any(kind and kind.scans for kind in kinds) else None,
                share=len(at) / len(attends),
                placement=placement(attends),
                centre=sum(at) / len(at) / (len(attends) - 1) if at and len(attends) > 1 else None,
                hybrid=all(kind is None or kind.mixes_tokens for kind in kinds),
            )
        )
    return facts


# -- tables --------------------------------------------------------------------------------------------------------

_COUNTS = ("params", "macs", "macs_attention", "macs_scan", "memory")


def trials_table(records: Iterable[TrialRecord], measure: str = "nll") -> pd.DataFrame:
    """One row a layout, by trial number; what was not measured is missing.

    Args:
        records: of one study.
        measure: quality by which ``on_front`` is decided, ``"nll"`` or ``"top1"``.

    Returns:
        The columns of trials.csv. ``warm_start`` says where a layout came from that the search began with. ``state`` is
        that of `TrialRecord`; ``epochs`` says how far a WAITING layout was trained, ``rung_nll`` and ``rung_top1`` what
        it reached there (the means over seeds at the last rung that every seed has reached, which for a COMPLETE layout
        are ``nll`` and ``top1``). ``top1`` is 0 to 1, ``nll`` in nats, ``memory`` in bytes, ``macs`` for one image,
        ``started`` and ``ended`` in Unix seconds; ``windows`` and ``reference_windows`` are the raw timing windows in
        img/s, ``seeds`` the seeds, joined by ``;``. Of each stage k: ``stagek_blocks``, ``stagek_attention_share``
        (0 to 1), ``stagek_state`` (missing where nothing scans), ``stagek_dim``, ``stagek_depth``.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda record: record.number)
    on_front = {record.key for record in front_records(ordered, measure)}
    depth = max((len(record.layout["stages"]) for record in ordered), default=0)
    rows = []
    for record in ordered:
        row: dict[str, Any] = {
            "number": record.number,
            "key": record.key,
            "pattern": record.pattern,
            "state": record.state,
            "baseline": record.baseline,
            "warm_start": record.warm_start,
            "on_front": record.key in on_front,
        }
        row |= {name: getattr(record, name) for name in _COUNTS}
        row |= {name: getattr(record, name) for name in ("nll", "nll_sd", "nll_se", "top1", "top1_sd", "top1_se")}
        row |= {name: getattr(record, name) for name in ("images_per_second", "ratio", "ratio_iqr")}
        row |= {name: getattr(record, name) for name in ("epochs", "images_seen", "train_seconds")}
        reached = record.rungs[-1] if record.rungs else None
        row["rung_nll"] = reached and -reached.quality("nll")
        row["rung_top1"] = reached and reached.quality("top1")
        row["seeds"] = _joined(record.seeds)
        facts = {fact.number: fact for fact in stage_facts(record.layout)}
        for number in range(1, depth + 1):
            fact = facts.get(number)
            row |= {
                f"stage{number}_blocks": fact and fact.blocks,
                f"stage{number}_attention_share": None if fact is None else fact.share,
                f"stage{number}_state": fact and fact.state,
                f"stage{number}_dim": fact and fact.dim,
                f"stage{number}_depth": fact and len(fact.blocks),
            }
        timed = next((line for line in record.evaluations if line.what == TIME), None)
        row |= {
            "latency_ms": timed.values.get("latency_ms") if timed else None,
            "timing_device": timed.device if timed else None,
            "timing_conditions": json.dumps(timed.conditions) if timed else None,
        }
        row |= {"windows": _joined(record.windows), "reference_windows": _joined(record.reference_windows)}
        row |= {"started": record.started, "ended": record.ended, "reason": record.reason}
        row["layout"] = json.dumps(record.layout)
        rows.append(row)
    columns = list(rows[0]) if rows else ["number", "key", "pattern", "state", "on_front", "ratio", "nll", "top1"]
    table = pd.DataFrame(rows, columns=columns)
    whole = [
        *_COUNTS,
        *(f"stage{number}_{what}" for number in range(1, depth + 1) for what in ("state", "dim", "depth")),
    ]
    return table.astype({name: "Int64" for name in whole if name in table})


def front_table(study: StudyData) -> pd.DataFrame:
    """The front, slowest first, with what it gains over the hand-made layouts.

    Returns:
        The columns of front.csv: those of trials.csv without timings and state, then ``top1_gain`` and ``nll_gain``
        (positive is better) over ``gain_over``, the best hand-made layout that is at least as fast, and ``speed_gain``
        (a factor) over ``speed_gain_over``, the fastest hand-made layout that is at least as good; missing where there
        is none. Then how sure it is: ``standing`` (`front.Standing.verdict`, missing where the noise is not known);
        of `mvsearch confirm` ``confirmed_seeds``, ``confirmed_top1`` and ``confirmed_nll`` (validation split),
        ``test_top1``, ``test_top1_sd`` (standard deviation between seeds) and ``test_nll``; of `mvsearch calibrate`
        ``verdict``, ``tau`` and ``tau_low`` (the lower end of its interval), the same in each row, with the verdict
        ``"not calibrated"`` before it.
    """
    import pandas as pd

    trials = trials_table(study.records, study.measure).set_index("key", drop=False)
    front = study.front
    left_out = {"state", "on_front", "windows", "reference_windows", "reason", "layout", "started", "ended"}
    left_out |= {"rung_nll", "rung_top1"}
    table = trials.loc[[record.key for record in front], [c for c in trials.columns if c not in left_out]].copy()
    margins = pd.DataFrame([_margin_row(study, record) for record in front], columns=list(_MARGIN), index=table.index)
    table = table.join(margins)
    sure = pd.DataFrame([_sureness_row(study, record) for record in front], columns=list(_SURENESS), index=table.index)
    table = table.join(sure)
    table["layout"] = [json.dumps(record.layout) for record in front]
    return table.reset_index(drop=True)


_MARGIN = ("top1_gain", "nll_gain", "gain_over", "speed_gain", "speed_gain_over")


def _margin_row(study: StudyData, record: TrialRecord) -> dict[str, float | str | None]:
    found = margin(record, study.baselines, study.measure)
    row: dict[str, float | str | None] = dict.fromkeys(_MARGIN)
    if found.at_speed is not None:
        row["top1_gain"] = _minus(record.top1, found.at_speed.top1)
        row["nll_gain"] = _minus(found.at_speed.nll, record.nll)
        row["gain_over"] = found.at_speed.baseline
    if found.at_quality is not None and found.at_quality.ratio and record.ratio:
        row["speed_gain"] = record.ratio / found.at_quality.ratio
        row["speed_gain_over"] = found.at_quality.baseline
    return row


_SURENESS = (
    *("standing", "confirmed_seeds", "confirmed_top1", "confirmed_nll", "test_top1", "test_top1_sd", "test_nll"),
    *("verdict", "tau", "tau_low"),
)


def _sureness_row(study: StudyData, record: TrialRecord) -> dict[str, float | str | None]:
    row: dict[str, float | str | None] = dict.fromkeys(_SURENESS)
    if record.key in study.standings:
        row["standing"] = study.standings[record.key].verdict
    if study.confirmation and (fresh := study.confirmation.of(record.key)):
        row |= {"confirmed_seeds": study.confirmation.seeds, "confirmed_top1": fresh.val.top1}
        row |= {"confirmed_nll": fresh.val.nll, "test_nll": fresh.test.nll}
        row |= {"test_top1": fresh.test.top1, "test_top1_sd": fresh.test.top1_sd}
    row["verdict"] = (study.calibration and study.calibration.verdict) or "not calibrated"
    if study.calibration and study.calibration.tau:
        row |= {"tau": study.calibration.tau.tau, "tau_low": study.calibration.tau.low}
    return row


def write_tables(study: StudyData, folder: str | Path) -> None:
    """Write ``trials.csv`` and ``front.csv``; numbers in full, so that the front can be recomputed from the first.

    Args:
        study: what to write.
        folder: an existing folder; files of these names in it are replaced as a whole.

    Raises:
        OSError: if a file cannot be written; nothing is left half-written.
    """
    trials = trials_table(study.records, study.measure)
    write_atomic(Path(folder) / "trials.csv", trials.to_csv(index=False, lineterminator="\n"))
    write_atomic(Path(folder) / "front.csv", front_table(study).to_csv(index=False, lineterminator="\n"))


def _joined(values: Iterable[float]) -> str:
    return ";".join(repr(value) for value in values)


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
