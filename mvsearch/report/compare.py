"""Compare studies: fronts, hypervolumes above one corner, attainment over seeds of one space, layouts in common.

Studies may differ in space, sampler, seed and size. What bears on the meaning of a number (data, proxy, objectives,
timing, device, reference layout) must be equal, or the comparison is refused.
"""

from __future__ import annotations

import html
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.look import GREY
from mvsearch.front import Point, front_records, hypervolume, hypervolume_history, pareto_front, point_of
from mvsearch.ledger import StudyError, write_atomic
from mvsearch.record import TrialRecord
from mvsearch.report.data import StudyData, device_hours
from mvsearch.report.parts import plot, table
from mvsearch.report.words import duration, factor, fixed, listed, percent, plural
from mvsearch.strip import html_strip

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe-Ito again; studies beyond the sixth repeat them."""
_FREE = {"proxy": ("root", "seeds"), "timing": ()}
_BAND = 0.25


@dataclass(frozen=True)
class Group:
    """Studies that differ in their seed (and size) alone.

    Attributes:
        name: of its first study, with how many there are.
        studies: their positions among the studies compared.
    """

    name: str
    studies: tuple[int, ...]


@dataclass(frozen=True)
class Attainment:
    """What the studies of a group reach, at one throughput after another.

    Attributes:
        throughput: log2 of the ratio, rising.
        median: quality that half of the studies reach at this throughput or faster; None where fewer do.
        low: quality that three quarters reach (all of them, where there are fewer than four).
        high: quality that a quarter reaches (the best study, where there are fewer than four).
    """

    throughput: tuple[float, ...]
    median: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class Common:
    """A layout that several studies have trained.

    Attributes:
        key: of the layout.
        records: what each study measured, by the study's position.
    """

    key: str
    records: Mapping[int, TrialRecord]


class Comparison:
    """Several studies side by side.

    Args:
        studies: two or more, each with a complete layout.

    Raises:
        StudyError: if they cannot be compared; it names the two studies, the field and both values.
    """

    def __init__(self, studies: Sequence[StudyData]) -> None:
        if len(studies) < 2:
            raise StudyError(f"compare: {plural(len(studies), 'study', 'studies')} given; two or more are needed")
        for study in studies:
            if not study.complete:
                raise StudyError(f"compare: {study.name} has no complete layout yet")
        first = studies[0]
        for other in studies[1:]:
            if other is first or (other.name == first.name and other.started == first.started):
                raise StudyError(f"compare: {first.name} is given twice")
            _check(first, other)
        self.studies = tuple(studies)
        self.names = _distinct([study.name for study in studies])
        self.measure = first.measure

    @cached_property
    def reference_point(self) -> tuple[float, float]:
        """One corner below all: the quality of a guess, and the slowest of the studies' own corners."""
        points = [study.reference_point for study in self.studies]
        return min(quality for quality, _ in points), min(throughput for _, throughput in points)

    def hypervolume(self, records: Sequence[TrialRecord]) -> float:
        """Of some layouts, above `reference_point`."""
        points = [point for record in records if (point := point_of(record, self.measure))]
        return hypervolume(points, self.reference_point)

    @cached_property
    def baselines(self) -> float:
        """Hypervolume of all hand-made layouts of all studies."""
        return self.hypervolume([record for study in self.studies for record in study.baselines])

    @cached_property
    def joint_front(self) -> list[tuple[int, TrialRecord]]:
        """The front of all studies together, slowest first: the study's position and its record."""
        owners = {id(record): at for at, study in enumerate(self.studies) for record in study.complete}
        everything = [record for study in self.studies for record in study.complete]
        return [(owners[id(record)], record) for record in front_records(everything, self.measure)]

    @cached_property
    def groups(self) -> list[Group]:
        """Studies of one space, sampler and design, that is, seeds of the same search."""
        found: dict[str, list[int]] = {}
        for at, study in enumerate(self.studies):
            search = {k: study.setting("search", k) for k in ("sampler", "baselines", "design")}
            same = {k: study.setting(k) for k in ("layout", "budgets", "fidelity")} | search
            found.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(at)
        return [
            Group(self.names[own[0]] + (f" and {len(own) - 1} more" if len(own) > 1 else ""), tuple(own))
            for own in found.values()
        ]

    def attainment(self, group: Group) -> Attainment:
        """The attainment surfaces of a group (the empirical attainment function, cut at its quantiles)."""
        fronts = [
            pareto_front(p for r in self.studies[at].complete if (p := point_of(r, self.measure)))
            for at in group.studies
        ]
        at_all = sorted({point.throughput for front in fronts for point in front})
        rows = [[_reached(front, throughput) for front in fronts] for throughput in at_all]
        n = len(fronts)
        share = 0.0 if n < 4 else _BAND
        return Attainment(
            tuple(at_all),
            tuple(_attained(row, 0.5) for row in rows),
            tuple(_attained(row, 1 - share) for row in rows),
            tuple(_attained(row, share) for row in rows),
        )

    @cached_property
    def common(self) -> list[Common]:
        """Layouts complete in two studies or more, best first."""
        found: dict[str, dict[int, TrialRecord]] = {}
        for at, study in enumerate(self.studies):
            for record in study.complete:
                found.setdefault(record.key, {})[at] = record
        shared = [Common(key, records) for key, records in found.items() if len(records) > 1]
        return sorted(shared, key=lambda one: -max(r.quality(self.measure) or -math.inf for r in one.records.values()))

    @cached_property
    def disagreement(self) -> tuple[float, float] | None:
        """Standard deviation of quality, and of log2 throughput, of one layout between studies; None without common
        ones. Where the studies have the same seed, the trainings were the same, and the first says little."""
        if not self.common:
            return None
        squares = [0.0, 0.0]
        df = 0
        for one in self.common:
            values = [(r.quality(self.measure) or 0.0, r.log2_ratio or 0.0) for r in one.records.values()]
            df += len(values) - 1
            for i in range(2):
                squares[i] += statistics.variance(v[i] for v in values) * (len(values) - 1)
        return math.sqrt(squares[0] / df), math.sqrt(squares[1] / df)


@dataclass(frozen=True)
class Row:
    """One study in the table of a comparison.

    Attributes:
        name: of the study.
        sampler: that proposed its layouts, or its design.
        seed: of the search.
        layouts: trained in full.
        hours: device-hours spent.
        front: members of its front.
        hypervolume: above the common corner.
        multiple: the same over that of all hand-made layouts; None without them.
        joint: members of its front that stand on the front of all studies.
    """

    name: str
    sampler: str
    seed: int
    layouts: int
    hours: float
    front: int
    hypervolume: float
    multiple: float | None
    joint: int


def rows_of(comparison: Comparison) -> list[Row]:
    """The table, one row a study, in the order given."""
    rows = []
    for at, study in enumerate(comparison.studies):
        volume = comparison.hypervolume(study.complete)
        rows.append(
            Row(
                name=comparison.names[at],
                sampler=str(study.setting("search", "design") or study.setting("search", "sampler", default="–")),
                seed=int(study.setting("search", "seed", default=0)),
                layouts=len(study.complete),
                hours=device_hours(study)(math.inf),
                front=len(study.front),
                hypervolume=volume,
                multiple=volume / comparison.baselines if comparison.baselines > 0 else None,
                joint=sum(owner == at for owner, _ in comparison.joint_front),
            )
        )
    return rows


def compare_words(comparison: Comparison) -> list[str]:
    """What the table and the common layouts say, in plain sentences."""
    quality, throughput = comparison.reference_point
    corner = percent(quality) if comparison.measure == "top1" else f"NLL {-quality:.3f}"
    said = [
        f"Hypervolumes are above one corner for all: {corner} (a guess), and {factor(2**throughput)} the "
        "reference’s speed."
    ]
    rows = rows_of(comparison)
    for group in comparison.groups:
        if len(group.studies) > 1:
            values = [rows[at].hypervolume for at in group.studies]
            spread = f", sd {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            said.append(
                f"{plural(len(values), 'seed')} of one search ({listed([rows[at].name for at in group.studies])}): "
                f"hypervolume {statistics.fmean(values):.3f} on average{spread}."
            )
    sizes = {row.layouts for row in rows}
    if len(sizes) > 1:
        said.append(
            f"They trained {min(sizes)} to {max(sizes)} layouts: a larger study reaches more by its size alone; "
            "the curves "
            "over layouts compare them at equal numbers."
        )
    seeds = {study.seeds for study in comparison.studies}
    if len(seeds) > 1:
        said.append(f"Their values are means of {listed([str(n) for n in sorted(seeds)])} seeds, so not equally noisy.")
    if comparison.disagreement is None:
        said.append("No layout was trained in two of them.")
    else:
        sd, ratio = comparison.disagreement
        unit = f"{100 * sd:.1f} points of top-1" if comparison.measure == "top1" else f"{sd:.3f} nats"
        said.append(
            f"{plural(len(comparison.common), 'layout')} trained in two or more: one layout differs between studies by "
            f"{unit} (sd) in quality and by a factor of {2**ratio:.3f} in throughput."
        )
    return said


def compare_figures(comparison: Comparison) -> dict[str, Figure]:
    """``fronts`` (with attainment bands where a group holds several studies) and ``progress`` (hypervolume over
    layouts)."""
    return {"fronts": _fronts(comparison), "progress": _progress(comparison)}


def compare_page(comparison: Comparison) -> str:
    """The comparison as one HTML page that works offline."""
    from mvsearch.report.page import document

    rows = rows_of(comparison)
    heads = [
        ("Study", False),
        ("Sampler", False),
        ("Seed", True),
        ("Layouts", True),
        ("Device time", True),
        ("Front", True),
        ("On the joint front", True),
        ("Hypervolume", True),
        ("× the hand-made", True),
    ]
    cells = [
        '<tr><td><span class="tag" '
        f'style="border-color:{COLOURS[at % len(COLOURS)]}">{html.escape(row.name)}</span></td>'
        f'<td>{html.escape(row.sampler)}</td><td class="n">{row.seed}</td><td class="n">{row.layouts}</td>'
        f'<td class="n">{duration(3600 * row.hours)}</td><td class="n">{row.front}</td><td class="n">{row.joint}</td>'
        f'<td class="n">{fixed(row.hypervolume)}</td><td class="n">{factor(row.multiple)}</td></tr>'
        for at, row in enumerate(rows)
    ]
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in compare_words(comparison))
    name = "NLL" if comparison.measure == "nll" else "Top-1"
    common_heads = [("Layout", False), ("Key", False)]
    common_heads += [(f"{name}, {study}", True) for study in comparison.names]
    common_heads += [(f"Speed, {study}", True) for study in comparison.names]
    common = [
        f"<tr><td>{html_strip(next(iter(one.records.values())).layout)}</td><td><code>{html.escape(one.key)}</code></td>"
        + "".join(f'<td class="n">{_quality_text(one.records.get(at), name)}</td>' for at in range(len(rows)))
        + "".join(
            f'<td class="n">{factor(found.ratio if (found := one.records.get(at)) else None)}</td>'
            for at in range(len(rows))
        )
        + "</tr>"
        for one in comparison.common[:200]
    ]
    shared = (
        f"<h2>Layouts in common</h2>{table('Layouts in common', common_heads, common, tall=True)}" if common else ""
    )
    n = max(len(group.studies) for group in comparison.groups)
    band = (
        " Where a search was run with several seeds: the line is what half of them reach at that speed or faster, "
        "the band " + ("from three quarters of them to a quarter." if n >= 4 else "from all of them to the best.")
        if n > 1
        else ""
    )
    body = (
        f"<h1>{html.escape(' against '.join(comparison.names))}</h1>"
        f'<p class="lede">{len(rows)} studies on the same data, proxy, device and timing conditions.</p>'
        f"<ul>{said}</ul>{table('Studies', heads, cells)}"
        f"<h2>Fronts</h2>{plot('fronts', f'Steps: fronts. Hollow: hand-made.{band}', 'Fronts of all studies')}"
        "<h2>Hypervolume over layouts</h2>"
        + plot("progress", "After each complete layout, above the common corner.", "Hypervolume over layouts")
        + shared
    )
    return document(f"{' against '.join(comparison.names)}: studies compared", body, compare_figures(comparison), "{}")


def write_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write `compare_page`, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    write_atomic(Path(path), compare_page(comparison))


# -- parts ---------------------------------------------------------------------------------------------------------


def _check(first: StudyData, other: StudyData) -> None:
    """Refuse two studies whose numbers do not mean the same."""
    fields: dict[str, tuple[Any, Any]] = {
        "objectives.quality": (first.measure, other.measure),
        "data (fingerprint)": (_fingerprint(first), _fingerprint(other)),
        "classes": (first.classes, other.classes),
    }
    for section, free in _FREE.items():
        mine, theirs = first.setting(section, default={}), other.setting(section, default={})
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            if key not in free:
                fields[f"{section}.{key}"] = (mine.get(key), theirs.get(key))
    fields["device"] = (first.device, other.device)
    fields["scan"] = (first.scan, other.scan)
    fields["reference layout"] = (first.reference_key, other.reference_key)
    for name, (mine, theirs) in fields.items():
        if mine != theirs:
            why = "speeds are ratios to it" if name == "reference layout" else "their numbers do not mean the same"
            raise StudyError(
                f"compare: {first.name} and {other.name} cannot be compared: {name} is {mine!r} in the one and "
                f"{theirs!r} in the other, so {why}"
            )


def _fingerprint(study: StudyData) -> Any:
    data = study.environment.get("data")
    return data.get("fingerprint") if isinstance(data, Mapping) else None


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of folders may be equal; such get a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _reached(front: Sequence[Point], throughput: float) -> float:
    """Best quality at a throughput or faster; minus infinity where there is none."""
    return max((point.quality for point in front if point.throughput >= throughput), default=-math.inf)


def _attained(values: Sequence[float], share: float) -> float | None:
    """The quality that this share of the studies (one at least) reaches; None where it is not reached."""
    ranked = sorted(values, reverse=True)
    value = ranked[max(1, math.ceil(share * len(ranked))) - 1]
    return value if math.isfinite(value) else None


def _quality_text(record: TrialRecord | None, name: str) -> str:
    if record is None:
        return ""
    return fixed(record.nll) if name == "NLL" else percent(record.top1)


def _fronts(comparison: Comparison) -> Figure:
    import plotly.graph_objects as go

    from mvsearch.report.drawing import base_layout, hover, ratio_axis

    figure = go.Figure(layout=base_layout("Fronts", height=520))
    nll = comparison.measure == "nll"

    def shown(quality: float) -> float:
        return -quality if nll else 100 * quality

    for number, group in enumerate(comparison.groups):
        colour = COLOURS[group.studies[0] % len(COLOURS)]
        if len(group.studies) > 1:
            _add_band(figure, comparison.attainment(group), colour, group.name, shown)
        for at in group.studies:
            study = comparison.studies[at]
            alone = len(group.studies) == 1
            figure.add_scatter(
                x=[record.ratio for record in study.front],
                y=[shown(record.quality(comparison.measure) or 0.0) for record in study.front],
                mode="lines+markers" if alone else "markers",
                line={"shape": "vh", "width": 1.5},
                marker={"color": colour, "size": 8 if alone else 5, "opacity": 1 if alone else 0.6},
                line_color=colour,
                name=html.escape(comparison.names[at] if alone else f"{comparison.names[at]}, front"),
                legendgroup=str(number),
                showlegend=alone,
                hovertext=[f"<b>{html.escape(comparison.names[at])}</b><br>{hover(r)}" for r in study.front],
                hovertemplate="%{hovertext}<extra></extra>",
            )
    named = {record.key: record for study in comparison.studies for record in study.baselines}
    figure.add_scatter(
        x=[record.ratio for record in named.values()],
        y=[shown(record.quality(comparison.measure) or 0.0) for record in named.values()],
        mode="markers",
        marker={"color": GREY, "size": 11, "symbol": "circle-open", "line": {"width": 1.5}},
        name="hand-made",
        hovertext=[hover(record) for record in named.values()],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    ratio_axis(figure, [r.ratio for study in comparison.studies for r in [*study.front, *study.baselines] if r.ratio])
    title = "Validation NLL (nats, up is better)" if nll else "Validation top-1 (%)"
    figure.update_yaxes(title_text=title, autorange="reversed" if nll else True)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.08, "x": 0})
    return figure


def _add_band(figure: Figure, found: Attainment, colour: str, name: str, shown: Any) -> None:
    """The median as a step line and the band between the quantiles, as steps towards the slower."""
    import plotly.graph_objects as go

    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    ratios = [2**throughput for throughput in found.throughput]
    for values, fill in ((found.high, None), (found.low, "tonexty")):
        # Where the lower edge is not reached there is no band.
        both = zip(ratios, values, found.low, strict=True)
        known = [(x, shown(v)) for x, v, low in both if v is not None and low is not None]
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in known],
                y=[y for _, y in known],
                mode="lines",
                line={"width": 0, "shape": "vh"},
                fill=fill,
                fillcolor=f"rgba({red},{green},{blue},0.18)",
                hoverinfo="skip",
                showlegend=False,
            )
        )
    known = [(x, shown(v)) for x, v in zip(ratios, found.median, strict=True) if v is not None]
    figure.add_scatter(
        x=[x for x, _ in known],
        y=[y for _, y in known],
        mode="lines",
        line={"width": 2, "shape": "vh", "color": colour},
        name=html.escape(f"{name}: median"),
        hoverinfo="skip",
    )


def _progress(comparison: Comparison) -> Figure:
    import plotly.graph_objects as go

    from mvsearch.report.drawing import base_layout

    figure = go.Figure(layout=base_layout("Hypervolume over layouts", height=340))
    for at, study in enumerate(comparison.studies):
        steps = hypervolume_history(study.records, comparison.reference_point, comparison.measure)
        figure.add_scatter(
            x=[step.complete for step in steps],
            y=[step.hypervolume for step in steps],
            mode="lines",
            line={"shape": "hv", "width": 1.8, "color": COLOURS[at % len(COLOURS)]},
            name=html.escape(comparison.names[at]),
        )
    unit = "nats × octaves" if comparison.measure == "nll" else "top-1 × octaves"
    figure.update_xaxes(title_text="Layouts complete", rangemode="tozero")
    figure.update_yaxes(title_text=f"Hypervolume ({unit})")
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.12, "x": 0})
    return figure
