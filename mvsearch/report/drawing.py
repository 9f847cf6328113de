"""Data → plotly figures. Backgrounds are transparent and greys readable on white and on black."""

from __future__ import annotations

import functools
import html
import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mambavision.look import ACCENT, GREY, GRID, TEXT, figure_style
from mvsearch.analysis.calibration import Calibration
from mvsearch.analysis.confirmation import Confirmation
from mvsearch.analysis.findings import Findings
from mvsearch.analysis.insight import MODEL, REFERENCE, Effect, FactorComparison, by_factor
from mvsearch.analysis.noise import DOMINATED, quality_se
from mvsearch.report.insight_words import (
    MATCH_NAMES,
    NOT_ENOUGH,
    OUTCOME_NAMES,
    displayed,
    effect_words,
    factor_words,
    source_words,
)
from mvsearch.report.strip import hover_strip
from mvsearch.report.words import count, factor, fixed, plural, scaled, with_error
from mvsearch.study.data import StudyData
from mvsearch.study.measure import Measure
from mvsearch.study.record import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PALE = "rgba(138,143,152,0.45)"
_DECADE = (1, 1.5, 2, 3, 5, 7)
_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


def figures(findings: Findings) -> dict[str, Figure]:
    """All figures of a report by name, each with its title, so that it can stand alone.

    ``front`` (top-1 on the axis), ``front_nll``, ``ratio`` (one row a stage and factor: quality at matched parameters,
    quality at matched throughput, throughput at matched parameters), `ratio_name` of each part of it, and
    ``hypervolume``, ``calibration``, ``confirmation``. Those that a study has no data for are left out.
    """
    study = findings.study
    insight = findings.insight
    made = page_figures(findings)
    if any(one.known for one in insight.comparisons):
        made["ratio"] = ratio_figure(study, insight.comparisons)
    return made


def page_figures(findings: Findings) -> dict[str, Figure]:
    """`figures` without ``ratio``: a page shows its parts, which a phone can stack."""
    study, insight = findings.study, findings.insight
    made: dict[str, Figure] = {}
    if not study.complete:
        return made
    made["front"] = front_figure(findings, Measure.TOP1)
    made["front_nll"] = front_figure(findings, Measure.NLL)
    for one in insight.comparisons:
        if not one.known:
            continue  # a sentence says it
        made[ratio_name(one)] = ratio_figure(study, [one])
    made["hypervolume"] = hypervolume_figure(findings)
    if findings.calibration and findings.calibration.verdict:
        made["calibration"] = calibration_figure(findings.calibration)
    if findings.confirmation and findings.confirmation.layouts:
        made["confirmation"] = confirmation_figure(study, findings.confirmation)
    return made


def ratio_name(comparison: FactorComparison) -> str:
    """Name of a comparison's figure, e.g. ``"ratio_stage2_share_nll_params"``."""
    one = comparison
    return f"ratio_stage{one.stage}_{one.factor}_{one.outcome}_{one.matched}"


def front_title(study: StudyData) -> str:
    """The front's title: scan path and device that were timed, and on a CPU that this favours attention."""
    title = f"Accuracy against throughput, {study.scan} scan path timed on {study.device}"
    if study.on_cpu:
        title += "; on a CPU the scan is a Python loop, so this front favours attention for a kernel’s reason"
    return title


def reference_speed(study: StudyData) -> float | None:
    """Throughput of the reference layout in img/s: the median of what the ratios imply; None without timings."""
    implied = [r.images_per_second / r.ratio for r in study.complete if r.images_per_second and r.ratio]
    return statistics.median(implied) if implied else None


def hover(record: TrialRecord) -> str:
    """HTML that the pointer shows of a layout: name, strip, widths and states, quality, speed, costs."""
    name = f"Trial {record.number}" + (f" · {html.escape(record.baseline)}" if record.baseline else "")
    top1 = with_error(record.top1, record.top1_se, 2)
    nll = fixed(record.nll, 4) + (f" ± {record.nll_se:.4f}" if record.nll_se is not None else "")
    iqr = f", IQR {100 * record.ratio_iqr:.1f} %" if record.ratio_iqr is not None else ""
    seeds = plural(len(record.seeds), "seed")
    return "<br>".join(
        (
            f"<b>{name}</b>",
            hover_strip(record.layout),
            f"top-1 {top1} · NLL {nll} ({seeds})",
            f"{factor(record.ratio)} · {count(record.images_per_second)} img/s{iqr}",
            f"{scaled(record.params)} parameters · {scaled(record.macs)} MACs",
        )
    )


def front_figure(findings: Findings, axis: str) -> Figure:
    """The front with quality on the vertical axis and throughput, logarithmic, on the other.

    Args:
        findings: of a study with at least one complete layout.
        axis: `Measure` on the vertical axis. Which layouts are members does not depend on it.
    """
    study = findings.study
    import plotly.graph_objects as go

    front = study.front
    members = {record.key for record in front}
    rest = [r for r in study.complete if r.key not in members and not r.baseline]
    measure, noise = Measure(axis), findings.noise_of(axis)
    figure = go.Figure(layout=base_layout(front_title(study), height=540))
    # Two lines, because a title that stands alone cannot wrap.
    title = html.escape(front_title(study)).replace("; on a CPU", ";<br>on a CPU")
    figure.update_layout(title_text=title, title_y=0.98, title_yanchor="top", margin_t=72)

    def y(record: TrialRecord) -> float | None:
        quality = record.quality(measure)
        return None if quality is None else measure.shown(quality)

    def markers(records: Sequence[TrialRecord], name: str, marker: dict[str, Any], bars: str) -> None:
        errors = [measure.scale * (quality_se(record, measure, noise) or 0) for record in records]
        thin = {"thickness": 1, "width": 0, "color": bars}
        figure.add_scatter(
            x=[record.ratio for record in records],
            y=[y(record) for record in records],
            error_x={"type": "data", "array": [(r.ratio or 0) * (r.ratio_iqr or 0) / 2 for r in records], **thin},
            error_y={"type": "data", "array": errors, "visible": any(errors), **thin},
            mode="markers",
            marker=marker,
            name=name,
            hovertext=[hover(record) for record in records],
            hovertemplate="%{hovertext}<extra></extra>",
        )

    def dominated(record: TrialRecord) -> bool:
        judged = findings.standings.get(record.key)
        return judged is None or judged.verdict == DOMINATED

    # Bars of a thousand dominated layouts would hide the front; theirs stay in the hover.
    figure.add_scatter(
        x=[record.ratio for record in rest],
        y=[y(record) for record in rest],
        mode="markers",
        marker={
            "color": [PALE if dominated(record) else "rgba(0,114,178,0.55)" for record in rest],
            "size": 7,
        },
        name="dominated",
        hovertext=[hover(record) for record in rest],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    figure.add_scatter(
        x=[record.ratio for record in front],
        y=[y(record) for record in front],
        mode="lines",
        line={"shape": "vh", "color": ACCENT, "width": 1.5},
        hoverinfo="skip",
        name="front",
    )
    markers(front, "on the front", {"color": ACCENT, "size": 10}, ACCENT)
    hollow = {"color": TEXT, "size": 14, "symbol": "circle-open", "line": {"width": 1.5}}
    markers(study.baselines, "hand-made", hollow, TEXT)

    shown = [(r.ratio, value) for r in [*front, *study.baselines] if r.ratio and (value := y(r)) is not None]
    others = sorted((value for r in rest if (value := y(r)) is not None), reverse=measure.lower_is_better)
    # The worst twentieth of the dominated layouts may lie outside, so that they do not squeeze the front.
    edge = [others[len(others) // 20]] if others else []
    values = [value for _, value in shown] + edge + others[-1:]
    ratios = [r.ratio for r in study.complete if r.ratio]
    low, high = _padded(min(values), max(values), 0.08)
    left, right = _stretched(min(ratios), max(ratios))
    bottom, top = (high, low) if measure.lower_is_better else (low, high)
    _label_points(figure, findings, y, (left, right, bottom, top))
    ticks, labels = _ratio_ticks(left, right, reference_speed(study))
    batch = study.setting("timing", "batch_size", default="unknown")
    figure.update_xaxes(
        type="log",
        range=[_log10(left), _log10(right)],
        tickvals=ticks,
        ticktext=labels,
        title_text="Throughput: × the reference, and img/s (log scale)<br>"
        f"{html.escape(study.device)}<br>{html.escape(study.scan)} scan, batch {batch}",
    )
    figure.update_yaxes(range=[bottom, top], title_text=measure.front_axis)
    return figure


def ratio_figure(study: StudyData, comparisons: Sequence[FactorComparison]) -> Figure:
    """Kinds of a stage against the reference kind: a dot and its 95 % interval, hollow where a model says it.

    Args:
        study: where the comparisons come from.
        comparisons: one alone, or those of `Insight.comparisons`: a row a stage and factor.
    """
    from plotly.subplots import make_subplots

    rows = by_factor(comparisons)
    alone = len(comparisons) == 1
    columns = max(len(row) for row in rows.values())
    heights = [len(row[0].effects) for row in rows.values()]
    height = 92 + 30 * heights[0] if alone else 48 + 30 * sum(heights) + 100 * (len(rows) - 1) + 146
    figure = make_subplots(
        rows=len(rows),
        cols=columns,
        shared_yaxes=not alone,
        horizontal_spacing=0.04,
        vertical_spacing=min(100 / (height - 146), 0.9 / (len(rows) - 1)) if len(rows) > 1 else 0.0,
        row_heights=heights,
        subplot_titles=[]
        if alone
        else [_ratio_heading(row[i], "<br>") if i < len(row) else "" for row in rows.values() for i in range(columns)],
    )
    title = "What share, place and state do, against a reference kind, at matched cost"
    figure.update_layout(base_layout(_ratio_heading(comparisons[0]) if alone else title, height=round(height)))
    if not alone:
        figure.update_layout(margin_t=84, title_y=0.995, title_yanchor="top")
        figure.update_annotations(font_size=12)
    for row, several in enumerate(rows.values(), start=1):
        for column, one in enumerate(several, start=1):
            _add_comparison(figure, one, row, column)
    return figure


def hypervolume_figure(findings: Findings) -> Figure:
    """Hypervolume over device-hours, as a multiple of the hand-made layouts' (else in its own unit)."""
    import plotly.graph_objects as go

    study, steps = findings.study, findings.hypervolume_steps
    ends = {record.number: record.ended for record in study.complete}
    relative = bool(steps) and steps[-1].multiple is not None
    spent = [findings.device_hours(ends[step.number] or 0.0) for step in steps]
    figure = go.Figure(layout=base_layout("Hypervolume over device-hours", height=320))
    figure.add_scatter(
        x=spent if any(spent) else [step.complete for step in steps],
        y=[step.multiple if relative else step.hypervolume for step in steps],
        mode="lines",
        line={"shape": "hv", "color": ACCENT, "width": 2},
        hovertext=[f"after {plural(s.complete, 'layout')} (trial {s.number})" for s in steps],
        hovertemplate="%{hovertext}: %{y:.3f}<extra></extra>",
    )
    if relative:
        figure.add_hline(y=1, line={"color": GREY, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=1, xref="paper", y=1, text="hand-made layouts = 1", showarrow=False, xanchor="right", yanchor="bottom"
        )
    what = "Device-hours: time that workers spent timing and training" if any(spent) else "Layouts complete"
    figure.update_xaxes(title_text=what, rangemode="tozero")
    figure.update_yaxes(
        title_text="Hypervolume<br>(× the hand-made layouts’)"
        if relative
        else f"Hypervolume ({study.measure.area_unit})",
        rangemode="tozero",
    )
    return figure


def calibration_figure(calibration: Calibration) -> Figure:
    """Quality after long training against the proxy's, one dot a layout."""
    import plotly.graph_objects as go

    measure = calibration.measure
    shown = measure.shown
    figure = go.Figure(layout=base_layout("Long training against the proxy", height=380))
    for name, some, marker in (
        ("searched", [one for one in calibration.layouts if not one.baseline], {"color": ACCENT, "size": 9}),
        (
            "hand-made",
            [one for one in calibration.layouts if one.baseline],
            {"color": TEXT, "size": 11, "symbol": "circle-open", "line": {"width": 1.5}},
        ),
    ):
        spread = [statistics.stdev(one.longs) if len(one.longs) > 1 else 0.0 for one in some]
        figure.add_scatter(
            x=[shown(one.proxy) for one in some],
            y=[shown(one.long) for one in some],
            error_y={
                "type": "data",
                "array": [measure.scale * s for s in spread],
                "thickness": 1,
                "width": 0,
                "color": GREY,
            },
            mode="markers",
            marker=marker,
            name=name,
            hovertext=[
                f"<b>Trial {one.number}{f' · {html.escape(one.baseline)}' if one.baseline else ''}</b><br>"
                f"{hover_strip(one.layout)}<br>proxy {shown(one.proxy):.3f}, long {shown(one.long):.3f}"
                for one in some
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    reverse = {"autorange": "reversed"} if measure.lower_is_better else {}
    figure.update_xaxes(title_text=f"Validation {measure.axis} after {calibration.epochs} epochs (better →)", **reverse)
    figure.update_yaxes(
        title_text=f"{measure.axis[0].upper()}{measure.axis[1:]} after {calibration.long_epochs} epochs", **reverse
    )
    return figure


def confirmation_figure(study: StudyData, confirmation: Confirmation) -> Figure:
    """Test top-1 of fresh seeds against throughput, with what the search had measured beside it."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=base_layout("The front confirmed on the test split", height=420))
    own = [one for one in confirmation.layouts if one.on_front]
    figure.add_scatter(
        x=[one.record.ratio for one in own],
        y=[100 * (one.record.top1 or 0) for one in own],
        mode="markers",
        marker={"color": GREY, "size": 8, "symbol": "square-open"},
        name="observed in the search",
        hovertext=[f"trial {one.record.number}: observed {100 * (one.record.top1 or 0):.1f} %" for one in own],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    hand_made = [one for one in confirmation.layouts if one.record.baseline]
    hollow = {"color": TEXT, "size": 14, "symbol": "circle-open", "line": {"width": 1.5}}
    for name, some, marker in (
        ("front", own, {"color": ACCENT, "size": 10}),
        ("hand-made", hand_made, hollow),
    ):
        figure.add_scatter(
            x=[one.record.ratio for one in some],
            y=[100 * one.test.top1 for one in some],
            error_y={
                "type": "data",
                "array": [100 * (one.test.top1_sd or 0) for one in some],
                "thickness": 1,
                "width": 0,
                "color": ACCENT if name == "front" else TEXT,
            },
            mode="markers",
            marker=marker,
            name=name,
            hovertext=[
                f"{hover(one.record)}<br>test top-1 {100 * one.test.top1:.2f} %, n = {confirmation.seeds}"
                for one in some
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    for one in hand_made:
        figure.add_annotation(
            x=_log10(one.record.ratio or 1),
            y=100 * one.test.top1,
            text=html.escape(one.record.baseline or ""),
            showarrow=False,
            yshift=16,
            font={"size": 12},
        )
    ratio_axis(figure, [one.record.ratio for one in confirmation.layouts if one.record.ratio])
    figure.update_yaxes(title_text="Top-1 (%)")
    return figure


def ratio_axis(figure: Figure, ratios: Sequence[float]) -> None:
    """A logarithmic horizontal axis of throughput ratios, with round ticks."""
    left, right = _stretched(min(ratios), max(ratios))
    ticks, labels = _ratio_ticks(left, right, None)
    figure.update_xaxes(
        type="log",
        range=[_log10(left), _log10(right)],
        tickvals=ticks,
        ticktext=labels,
        title_text="Throughput: × the reference (log scale)",
    )


# -- parts ---------------------------------------------------------------------------------------------------------


def base_layout(title: str, height: int) -> dict[str, Any]:
    """Layout of every figure here: the common look, quiet axes."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "automargin": True,
        "tickangle": 0,
        "title": {"standoff": 12, "font": {"size": 13}},
    }
    return figure_style(title, height, top=48) | {
        "xaxis": axis,
        "yaxis": axis,
        "hovermode": "closest",
        "dragmode": "zoom",
    }


_Box = tuple[float, float, float, float]


def _ratio_heading(comparison: FactorComparison, between: str = " ") -> str:
    where = f"Stage {comparison.stage}: " if comparison.stage else ""
    by = factor_words(comparison.factor, comparison.placed)
    return f"{where}{OUTCOME_NAMES[comparison.outcome]} by {by},{between}{MATCH_NAMES[comparison.matched]}"


def _add_comparison(figure: Figure, comparison: FactorComparison, row: int, column: int) -> None:
    labels = [f"{effect.label} (n = {effect.trials})" for effect in comparison.effects]
    scale = functools.partial(displayed, outcome=comparison.outcome)
    known: list[tuple[str, float, float, float, Effect]] = []
    for label, e in zip(labels, comparison.effects, strict=True):
        if e.value is not None and e.low is not None and e.high is not None:
            low, high = sorted((scale(e.low), scale(e.high)))
            known.append((label, scale(e.value), low, high, e))
    # All rows first, so that the order of the categories does not depend on which of them are known.
    origin = [scale(0.0)] * len(labels)
    figure.add_scatter(x=origin, y=labels, mode="markers", marker={"opacity": 0}, hoverinfo="skip", row=row, col=column)
    figure.add_scatter(
        x=[value for _, value, _, _, _ in known],
        y=[label for label, *_ in known],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - value for _, value, _, high, _ in known],
            "arrayminus": [value - low for _, value, low, _, _ in known],
            "thickness": 1.5,
            "width": 0,
            "color": GREY,
        },
        mode="markers",
        marker={
            "color": [ACCENT if e.clear else GREY for *_, e in known],
            "size": 10,
            "symbol": ["circle-open" if e.source == MODEL else "circle" for *_, e in known],
            "line": {"width": 2, "color": [ACCENT if e.clear else GREY for *_, e in known]},
        },
        hovertext=[
            f"{html.escape(label)}: {html.escape(effect_words(e, comparison.outcome))}, {source_words(e)}"
            for label, *_, e in known
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        row=row,
        col=column,
    )
    where = {"row": row, "col": column}
    for label, effect in zip(labels, comparison.effects, strict=True):
        if effect.low is None:
            if effect.source == REFERENCE:
                spot = {"x": _axis(scale(0.0), comparison), "text": "reference", "xanchor": "left", "xshift": 4}
            else:
                spot = {"x": 0.5, "xref": "x domain", "text": f"<i>{NOT_ENOUGH}</i>"}
            figure.add_annotation(y=label, showarrow=False, font={"size": 11}, **spot, **where)
    ends = [end for _, _, low, high, _ in known for end in (low, high)]
    low, high = min([scale(0.0), *ends]), max([scale(0.0), *ends])
    if comparison.outcome == "throughput":
        title = "Throughput (× reference; faster →)"
        left, right = _stretched(low, high) if ends else (0.5, 2.0)
        ticks, names = _ratio_ticks(left, right, None, most=5)
        figure.update_xaxes(type="log", range=[_log10(left), _log10(right)], tickvals=ticks, ticktext=names, **where)
    else:
        span = _padded(low, high, 0.08) if ends else (-1.0, 1.0)
        measure = Measure(comparison.outcome)
        title = measure.difference_axis
        span = span[::-1] if measure.lower_is_better else span
        figure.update_xaxes(range=span, showticklabels=bool(ends), nticks=5, **where)
    figure.add_vline(x=scale(0.0), line={"color": GREY, "width": 1, "dash": "dot"}, **where)
    figure.update_xaxes(
        title_text=title,
        title_standoff=8,
        title_font_size=13,
        tickangle=0,
        gridcolor=GRID,
        zeroline=False,
        automargin=True,
        **where,
    )
    figure.update_yaxes(autorange="reversed", gridcolor=GRID, automargin=True, ticksuffix="  ", **where)


def _axis(value: float, comparison: FactorComparison) -> float:
    return _log10(value) if comparison.outcome == "throughput" else value


def _log10(value: float) -> float:
    return math.log10(value)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    pad = share * (high - low) or abs(high) * share or 1.0
    return low - pad, high + pad


def _stretched(low: float, high: float) -> tuple[float, float]:
    span = max(high / low, 1.1) ** 0.1
    return low / span, high * span


def _ratio_ticks(left: float, right: float, speed: float | None, most: int = 8) -> tuple[list[float], list[str]]:
    """Round ratios inside a range, at most so many, with img/s under them where a speed of 1 is given."""
    if right / left < 4:
        step = next((step for step in _STEPS if (right - left) / step < most), _STEPS[-1])
        inside = [step * i for i in range(math.ceil(left / step), math.floor(right / step) + 1)]
    else:
        decades = [step * 10.0**power for power in range(-4, 5) for step in _DECADE]
        inside = [value for value in decades if left <= value <= right]
    while len(inside) > most:
        # Keep 1, the reference, where it is visible.
        start = min(range(len(inside)), key=lambda i: abs(inside[i] - 1)) % 2
        inside = inside[start::2]
    names = [f"{value:.4g}×" + (f"<br>{value * speed:,.0f}" if speed else "") for value in inside]
    return inside, names


def _label_points(figure: Figure, findings: Findings, y: Callable[[TrialRecord], float | None], box: _Box) -> None:
    """Name the hand-made layouts and the picks beside their points, each where it hides least (greedy)."""
    study = findings.study
    left, right, bottom, top = box
    names: dict[str, list[str]] = {}
    records = {record.key: record for record in study.complete}
    for record in study.baselines:
        names.setdefault(record.key, []).append(html.escape(record.baseline or ""))
    for which, record in findings.picks.items():
        names.setdefault(record.key, []).append(f"<b>{which.replace('-', ' ')}</b>")
    width, tall = 900.0, 400.0  # pixels of the plot on a wide page; a narrow one shifts the names a little

    def place(record: TrialRecord) -> tuple[float, float]:
        across = (_log10(record.ratio or 1) - _log10(left)) / (_log10(right) - _log10(left))
        value = y(record)
        up = 0.0 if value is None else (value - bottom) / (top - bottom)
        return across * width, up * tall

    taken = [(x - 8, v - 8, x + 8, v + 8) for x, v in (place(r) for r in study.complete[:400])]
    for key, parts in names.items():
        text = " · ".join(parts)
        x, v = place(records[key])
        half = 3.6 * len(text.replace("<b>", "").replace("</b>", "")) + 3
        spots = []
        for far in (0.0, 24.0, 48.0):
            for across, up in (
                (0.0, 1.0),
                (0.0, -1.0),
                (1.0, 0.0),
                (-1.0, 0.0),
                (1.0, 1.0),
                (-1.0, 1.0),
                (1.0, -1.0),
                (-1.0, -1.0),
            ):
                spots.append((across * (half + 12 + far), up * (20 + far * 0.8)))

        def cost(spot: tuple[float, float], x: float = x, v: float = v, half: float = half) -> float:
            mine = (x + spot[0] - half, v + spot[1] - 9, x + spot[0] + half, v + spot[1] + 9)
            outside = max(0.0, -mine[0]) + max(0.0, mine[2] - width) + max(0.0, -mine[1]) + max(0.0, mine[3] - tall)
            return 50 * outside + sum(_overlap(mine, other) for other in taken) + 0.2 * (abs(spot[0]) + abs(spot[1]))

        across, up = min(spots, key=cost)
        taken.append((x + across - half, v + up - 9, x + across + half, v + up + 9))
        # Beside its point a name needs no line to it.
        near = abs(across) <= half + 12 and abs(up) <= 20
        figure.add_annotation(
            x=_log10(records[key].ratio or 1),
            y=y(records[key]),
            text=text,
            ax=across,
            ay=-up,
            arrowcolor="rgba(0,0,0,0)" if near else GREY,
            arrowwidth=1,
            arrowhead=0,
            standoff=8,
            font={"size": 12},
        )


def _overlap(one: _Box, other: _Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)
