"""The page of `mvsearch compare`."""

from __future__ import annotations

import html
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.files import write_atomic
from mambavision.look import GREY
from mvsearch.analysis.comparison import Attainment, Comparison, study_rows
from mvsearch.report.parts import capital, plot, table
from mvsearch.report.strip import html_strip
from mvsearch.report.words import duration, factor, fixed, listed, percent, plural
from mvsearch.study.measure import Measure
from mvsearch.study.record import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe-Ito again; studies beyond the sixth repeat them."""


def compare_words(comparison: Comparison) -> list[str]:
    """What the table and the common layouts say, in plain sentences."""
    quality, throughput = comparison.reference_point
    corner = comparison.measure.quality_text(quality)
    said = [
        f"Hypervolumes are above one corner for all: {corner} (a guess), and {factor(2**throughput)} the "
        "reference’s speed."
    ]
    rows = study_rows(comparison)
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
        said.append(
            f"{plural(len(comparison.common), 'layout')} trained in two or more: one layout differs between studies by "
            f"{comparison.measure.difference_text(sd, long=True)} (sd) in quality and by a factor of {2**ratio:.3f} in "
            "throughput."
        )
    return said


def compare_figures(comparison: Comparison) -> dict[str, Figure]:
    """``fronts`` (with attainment bands where a group holds several studies) and ``progress`` (hypervolume over
    layouts)."""
    return {"fronts": _fronts(comparison), "progress": _progress(comparison)}


def compare_page(comparison: Comparison) -> str:
    """The comparison as one HTML page that works offline."""
    from mvsearch.report.page import document

    rows = study_rows(comparison)
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
    name = capital(comparison.measure.label)
    common_heads = [("Layout", False), ("Key", False)]
    common_heads += [(f"{name}, {study}", True) for study in comparison.names]
    common_heads += [(f"Speed, {study}", True) for study in comparison.names]
    common = [
        f"<tr><td>{html_strip(next(iter(one.records.values())).layout)}</td><td><code>{html.escape(one.key)}</code></td>"
        + "".join(
            f'<td class="n">{_quality_text(one.records.get(at), comparison.measure)}</td>' for at in range(len(rows))
        )
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


def _quality_text(record: TrialRecord | None, measure: Measure) -> str:
    return "" if record is None else measure.choose(nll=fixed(record.nll), top1=percent(record.top1))


def _fronts(comparison: Comparison) -> Figure:
    import plotly.graph_objects as go

    from mvsearch.report.drawing import base_layout, hover, ratio_axis

    figure = go.Figure(layout=base_layout("Fronts", height=520))
    measure = comparison.measure
    shown = measure.shown
    for number, group in enumerate(comparison.groups):
        colour = COLOURS[group.studies[0] % len(COLOURS)]
        if len(group.studies) > 1:
            _add_band(figure, comparison.attainment(group), colour, group.name, shown)
        for at in group.studies:
            study = comparison.studies[at]
            alone = len(group.studies) == 1
            figure.add_scatter(
                x=[record.ratio for record in study.front],
                y=[shown(record.quality(measure) or 0.0) for record in study.front],
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
        y=[shown(record.quality(measure) or 0.0) for record in named.values()],
        mode="markers",
        marker={"color": GREY, "size": 11, "symbol": "circle-open", "line": {"width": 1.5}},
        name="hand-made",
        hovertext=[hover(record) for record in named.values()],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    ratio_axis(figure, [r.ratio for study in comparison.studies for r in [*study.front, *study.baselines] if r.ratio])
    figure.update_yaxes(title_text=measure.front_axis, autorange="reversed" if measure.lower_is_better else True)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.08, "x": 0})
    return figure


def _add_band(figure: Figure, attainment: Attainment, colour: str, name: str, shown: Any) -> None:
    """The median as a step line and the band between the quantiles, as steps towards the slower."""
    import plotly.graph_objects as go

    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    ratios = [2**throughput for throughput in attainment.throughput]
    for values, fill in ((attainment.high, None), (attainment.low, "tonexty")):
        # Where the lower edge is not reached there is no band.
        both = zip(ratios, values, attainment.low, strict=True)
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
    known = [(x, shown(v)) for x, v in zip(ratios, attainment.median, strict=True) if v is not None]
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
        steps = comparison.hypervolume_steps(study)
        figure.add_scatter(
            x=[step.complete for step in steps],
            y=[step.hypervolume for step in steps],
            mode="lines",
            line={"shape": "hv", "width": 1.8, "color": COLOURS[at % len(COLOURS)]},
            name=html.escape(comparison.names[at]),
        )
    figure.update_xaxes(title_text="Layouts complete", rangemode="tozero")
    figure.update_yaxes(title_text=f"Hypervolume ({comparison.measure.area_unit})")
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.12, "x": 0})
    return figure
