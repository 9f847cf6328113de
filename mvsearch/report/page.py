"""Data and figures → one HTML page that needs no other file and asks nothing of the network."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvsearch.ledger import write_atomic
from mvsearch.record import COMPLETE, WAITING, TrialRecord
from mvsearch.report import drawing
from mvsearch.report.assets import CSS, SCRIPT
from mvsearch.report.data import (
    StudyData,
    gains,
    margin,
    picks,
    pooled_se,
    reordering,
    validation_images,
)
from mvsearch.report.insight import (
    CALIPER,
    FACTOR_NAMES,
    MATCH_NAMES,
    MIN_TRIALS,
    NOT_ENOUGH,
    OUTCOME_NAMES,
    Comparison,
    Insight,
    comparison_words,
    effect_words,
    source_words,
    unsupported,
)
from mvsearch.report.words import (
    DASH,
    count,
    duration,
    factor,
    fixed,
    listed,
    percent,
    plural,
    points,
    scaled,
    with_error,
)
from mvsearch.strip import html_strip, strip_css

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Even a text that slipped through unescaped could not load anything or send anything anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_PICK_TITLES = {"knee": "Best trade-off (the knee)", "fastest": "Fastest", "most-accurate": "Most accurate"}


def write_report(study: StudyData, path: str | Path) -> None:
    """Write the report as one HTML file; it works offline and from a folder.

    Args:
        study: what to report.
        path: the file, in an existing folder; replaced as a whole.

    Raises:
        OSError: if the file cannot be written; nothing is left half-written.
    """
    write_atomic(Path(path), page(study))


def page(study: StudyData) -> str:
    """The report as HTML text, about 5 MB, nearly all of it plotly.js."""
    from plotly.offline import get_plotlyjs

    insight = Insight(study)
    sections = [
        _first_screen(study),
        _front(study),
        _insight(study, insight),
        _search(study),
        _failures(study),
        _conditions(study),
        _trials(study),
    ]
    title = html.escape(f"{study.name}: search report")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{CSS}{strip_css()}</style>
</head>
<body>
<main>
{"".join(sections)}
</main>
<script>{get_plotlyjs()}</script>
<script type="application/json" id="figures">{_figures_json(drawing.page_figures(study, insight))}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


# -- first screen --------------------------------------------------------------------------------------------------


def _first_screen(study: StudyData) -> str:
    complete, front = study.complete, study.front
    took = duration(study.ended - study.started)
    lede = (
        f"{plural(len(complete), 'layout')} trained in full ({len(study.baselines)} of them hand-made) and timed "
        f"in {took} with "
        f"{plural(study.workers, 'worker')} on {study.device}"
    )
    lede += f"; {plural(len(front), 'layout')} on the front." if front else "."
    seeds = "one seed, so no error bars" if study.seeds <= 1 else f"mean of {study.seeds} seeds"
    lede += f" Short proxy trainings, {seeds}." if complete else ""
    parts = [f'<h1>{html.escape(study.name)}</h1><p class="lede">{html.escape(lede)}</p>']
    if not complete:
        first = next((r.reason for r in study.failed if r.reason), None)
        why = f" The first failure: {html.escape(first)}" if first else ""
        return "".join(
            [*parts, f'<p class="bad"><b>No layout is complete, so there is nothing to recommend.</b>{why}</p>']
        )
    chosen: dict[str, list[str]] = {}
    for which, record in picks(study).items():
        chosen.setdefault(record.key, []).append(which)
    records = {record.key: record for record in front}
    widest = max(stage["dim"] for record in front for stage in record.layout["stages"])
    parts.append("<h2>Which layout to take</h2>")
    cards = "".join(_card(study, records[key], which, widest) for key, which in chosen.items())
    parts.append(f'<div class="picks">{cards}</div>')
    parts.append(_gained(study))
    parts.append("<h2>How sure this is</h2>" + "".join(f"<p>{sentence}</p>" for sentence in _how_sure(study)))
    return "".join(parts)


def _card(study: StudyData, record: TrialRecord, which: Sequence[str], widest: int) -> str:
    titles = [_PICK_TITLES[name] for name in which]
    title = titles[0] + "".join(f", {t[0].lower()}{t[1:]}" for t in titles[1:])
    speed = f"{factor(record.ratio)} the reference, {count(record.images_per_second)} img/s"
    return f"""<section class="pick"><h3>{html.escape(title)}</h3>
<div class="scroll">{html_strip(record.layout, scale=widest)}</div>
<p class="big">{_quality_words(study, record)}</p>
<p>{speed} · {scaled(record.params)} parameters · {scaled(record.macs)} MACs</p>
{"".join(f"<p>{sentence}</p>" for sentence in _margin_words(study, record))}
<p class="note">Trial {record.number}, <code>{html.escape(record.key)}</code></p></section>"""


def _quality_words(study: StudyData, record: TrialRecord) -> str:
    top1 = f"top-1 {with_error(record.top1, record.top1_se)}"
    nll = f"NLL {fixed(record.nll)}" + (f" ± {fixed(record.nll_se)}" if record.nll_se is not None else "")
    return f"{top1}, {nll}" if study.measure == "top1" else f"{nll}, {top1}"


def _margin_words(study: StudyData, record: TrialRecord) -> list[str]:
    """Against the hand-made layouts: at its speed or faster, and at its quality or better."""
    baselines = study.baselines
    if not baselines:
        return ["No hand-made layout is complete, so there is nothing to compare it with."]
    if record.baseline:
        return [f"This is the hand-made layout “{html.escape(record.baseline)}”: the search found none better here."]
    found = margin(record, baselines, study.measure)
    fastest = max(baselines, key=lambda r: r.ratio or 0)
    best = max(baselines, key=lambda r: r.quality(study.measure) or -math.inf)
    sentences = []
    if found.at_speed:
        gain = _quality_gain(study, record, found.at_speed)
        sentences.append(f"At this speed or faster, the best hand-made layout is {_name(found.at_speed)}: {gain}.")
    else:
        gain = _quality_gain(study, record, fastest)
        sentences.append(
            f"{_times(record, fastest)} the speed of the fastest hand-made layout, {_name(fastest)}: {gain}."
        )
    if found.at_quality:
        if found.at_speed or found.at_quality.key != fastest.key:
            times = _times(record, found.at_quality)
            name = _name(found.at_quality)
            sentences.append(f"At this quality or better, the fastest hand-made layout is {name}: {times} its speed.")
    elif best.key in {fastest.key, found.at_speed.key if found.at_speed else fastest.key}:
        sentences.append(
            f"No hand-made layout is as good; this one runs at {_times(record, best)} the speed of {_name(best)}."
        )
    else:
        gain = _quality_gain(study, record, best)
        sentences.append(
            f"No hand-made layout is as good; against the best, {_name(best)}: {gain}, at {_times(record, best)} "
            f"its speed."
        )
    return sentences


def _times(record: TrialRecord, other: TrialRecord) -> str:
    return factor((record.ratio or 0) / (other.ratio or 1))


def _quality_gain(study: StudyData, record: TrialRecord, other: TrialRecord) -> str:
    """The difference in both measures, and whether it is within the noise where that is known."""
    texts = []
    if record.top1 is not None and other.top1 is not None:
        texts.append(f"top-1 {points(record.top1 - other.top1)}")
    if record.nll is not None and other.nll is not None:
        texts.append(f"NLL {record.nll - other.nll:+.3f}".replace("-", "−"))
    words = listed(texts if study.measure == "top1" else texts[::-1])
    return words + _noise_words(study, record, other)


def _noise_words(study: StudyData, record: TrialRecord, other: TrialRecord) -> str:
    se = pooled_se(study.complete, study.measure)
    mine, theirs = record.quality(study.measure), other.quality(study.measure)
    if se is None or mine is None or theirs is None:
        return ""
    return " (within the noise between seeds)" if abs(mine - theirs) < 2 * math.sqrt(2) * se else ""


def _name(record: TrialRecord) -> str:
    return f"“{html.escape(record.baseline or record.key)}”"


def _gained(study: StudyData) -> str:
    found = gains(study)
    if not found:
        return ""
    rows = []
    for gain in found:
        base = gain.baseline
        kept = "stays on the front"
        quality, times = _quality_gain(study, gain.better, base), _times(gain.faster, base)
        better = kept if gain.better.key == base.key else _replacement(gain.better, quality)
        faster = kept if gain.faster.key == base.key else _replacement(gain.faster, times)
        rows.append(
            f"<tr><td>{html.escape(base.baseline or '')}<br>{html_strip(base.layout, numbers=False)}</td>"
            f'<td class="n">{percent(base.top1)}</td><td class="n">{fixed(base.nll)}</td><td '
            f'class="n">{factor(base.ratio)}</td>'
            f"<td>{better}</td><td>{faster}</td></tr>"
        )
    return (
        "<h2>What it gained</h2><p>Each hand-made layout, and what the front offers in its place: "
        "the best layout that is at least as fast, and the speed of the fastest that is at least as good.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Gains over the hand-made '
        'layouts"><table><thead><tr>'
        '<th>Hand-made layout</th><th class="n">Top-1</th><th class="n">NLL</th>'
        '<th class="n">Speed</th><th>Quality, at its speed or faster</th><th>Speed, at its quality or better</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _replacement(record: TrialRecord, gain: str) -> str:
    return f"{gain} (trial {record.number})<br>{html_strip(record.layout, numbers=False)}"


def _how_sure(study: StudyData) -> list[str]:
    sentences = []
    images = validation_images(study)
    if study.seeds <= 1:
        sentences.append(
            "<b>Each layout was trained once (n = 1 seed), so no error bars are available</b>: how far a value "
            "would move "
            "with another seed is not known from this study, and small differences may be chance."
        )
    else:
        se = pooled_se(study.complete, study.measure)
        amount = "an unknown amount" if se is None else _apart_words(study, se)
        sentences.append(
            f"Each value is the mean of n = {study.seeds} seeds; error bars are one standard error. Two layouts "
            f"that differ by less "
            f"than {amount} (two standard errors of a difference, pooled over layouts) cannot be told apart."
        )
    if images:
        best = max((r.top1 for r in study.complete if r.top1 is not None), default=None)
        if best is not None:
            error = math.sqrt(best * (1 - best) / images)
            sentences.append(
                f"Quality is measured on {count(images)} validation images; at a top-1 of {percent(best)} so few "
                f"images alone leave a "
                f"standard error of {100 * error:.1f} points."
            )
    epochs, train_images = study.setting("proxy", "epochs"), study.setting("proxy", "train_images")
    size = study.setting("proxy", "image_size")
    how = ", ".join(
        text
        for text in (
            plural(epochs, "epoch") if isinstance(epochs, int) else "",
            plural(train_images, "training image") if isinstance(train_images, int) else "",
            f"{size} px" if size else "",
        )
        if text
    )
    sentences.append(
        f"The trainings are short proxies{f' ({html.escape(how)})' if how else ''}: they are meant to rank "
        f"layouts. Accuracy after a full "
        "training will be another, and so may be the order."
    )
    if len(study.complete) > len(study.baselines):
        sentences.append(
            f"The front is the best of {count(len(study.complete))} measured values. The best of many noisy values "
            f"looks better than it is, "
            "so expect part of the gain to vanish when these layouts are trained again."
        )
    if study.on_cpu:
        sentences.append(
            "Throughput was timed on a CPU, where the scan is a Python loop; on a GPU with a fused scan the order "
            "by speed may differ."
        )
    return sentences


# -- the front -----------------------------------------------------------------------------------------------------


def _front(study: StudyData) -> str:
    if not study.complete:
        return ""
    other = "NLL" if study.measure == "top1" else "top-1"
    own = "top-1" if study.measure == "top1" else "NLL"
    found = reordering(study)
    if not found.gained and not found.lost and not found.swapped:
        order = f"Ordered by {other} instead of {own}, the front has the same members in the same order."
    else:
        texts = []
        if found.gained:
            texts.append("gain " + _trial_names(found.gained))
        if found.lost:
            texts.append("lose " + _trial_names(found.lost))
        change = f"the front would {' and '.join(texts)}" if texts else "the front keeps its members"
        order = (
            f"Ordered by {other} instead of {own}, {change}; {found.swapped} of {plural(found.pairs, 'pair')} of "
            f"such layouts "
            "change places."
        )
    bars = "Vertical bars: one standard error over seeds." if study.seeds > 1 else "No vertical bars: one seed."
    caption = (
        f"The front is decided by {own} and throughput. Filled: members of the front, joined by steps; hollow: "
        f"hand-made; pale: dominated. "
        f"n = {len(study.complete)} layouts, {plural(study.seeds, 'seed')} each. {bars} Horizontal bars: "
        f"interquartile range of the timing "
        "windows. Throughput 1× is the reference layout, timed beside each layout. The worst twentieth of the "
        "dominated layouts may lie outside the frame."
    )
    main = _plot("front", caption, "Front of top-1 against throughput")
    lower = "The same members; lower NLL is better and drawn upwards."
    folded = _plot("front_nll", lower, "Front of NLL against throughput")
    return (
        f"<h2>The front</h2><h3>{html.escape(drawing.front_title(study))}</h3>{main}<p>{html.escape(order)}</p>"
        f"<details><summary>The same front with NLL on the axis</summary>{folded}</details>"
    )


def _trial_names(records: Sequence[TrialRecord], most: int = 5) -> str:
    names = [f"trial {record.number}" for record in records[:most]]
    return listed([*names, f"{len(records) - most} more"] if len(records) > most else names)


# -- insight -------------------------------------------------------------------------------------------------------


def _insight(study: StudyData, insight: Insight) -> str:
    if not insight.stages:
        return ""
    groups: dict[tuple[int, str], list[Comparison]] = {}
    for one in insight.comparisons:
        groups.setdefault((one.stage, one.factor), []).append(one)
    parts = [
        '<h2 id="insight">Insight: what ratio, placement, state and width do</h2>',
        "<p>Wider layouts are better and slower whatever their order, so no plain averages here. Each dot is a kind "
        "of stage minus the reference kind, at equal parameters or at equal throughput, with its 95 % interval. "
        "Filled dots are from matched pairs: layouts equal in everything else, whose costs differ by at most "
        f"{percent(CALIPER, 0)}. Hollow dots are from a model (a Gaussian process) where the study has too few pairs. "
        f"Blue where the interval leaves out the reference, grey where it does not. Kinds with fewer than "
        f"{MIN_TRIALS} layouts that can be compared say “{NOT_ENOUGH}”.</p>",
    ]
    for (stage, by), own in groups.items():
        name = FACTOR_NAMES[by]
        title = f"Stage {stage}: {name}" if stage else f"{name[0].upper()}{name[1:]}"
        parts.append(f"<h3>{title}, against {html.escape(own[0].reference)}</h3><ul>")
        parts += [f"<li>{_capital(html.escape(comparison_words(one)))}</li>" for one in own]
        parts.append(f'</ul><div class="pairs">{"".join(_ratio_plot(one) for one in own)}</div>')
    parts.append(_numbers(insight.comparisons))
    parts.append(_published(study, insight))
    parts.append(_importance(study))
    cannot = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in unsupported(insight))
    parts.append(f"<h3>What this study does not support</h3><ul>{cannot}</ul>")
    known = sum(len(one.known) for one in insight.comparisons)
    if known:
        parts.append(
            f'<p class="note">{known} intervals at 95 %: about {math.ceil(known / 20)} would leave out the reference '
            "by chance alone. The sampler chose these layouts, not a coin; a study launched with "
            "<code>--design placement</code> is balanced.</p>"
        )
    return "".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ratio_plot(one: Comparison) -> str:
    heading = f"{_capital(OUTCOME_NAMES[one.outcome])} {MATCH_NAMES[one.matched]}"
    label = f"{heading}, by {FACTOR_NAMES[one.factor]}" + (f" of stage {one.stage}" if one.stage else "")
    return (
        f'<figure><h4>{heading}</h4><div class="plot" data-figure="{drawing.ratio_name(one)}" role="img" '
        f'aria-label="{label}"></div></figure>'
    )


def _numbers(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for one in comparisons:
        for effect in one.effects:
            where = f"{one.stage}" if one.stage else DASH
            rows.append(
                f'<tr><td class="n">{where}</td><td>{FACTOR_NAMES[one.factor]}</td>'
                f'<td class="w">{html.escape(effect.label)}</td><td class="n">{effect.trials}</td>'
                f"<td>{OUTCOME_NAMES[one.outcome]} {MATCH_NAMES[one.matched]}</td>"
                f'<td class="n">{html.escape(effect_words(effect, one.outcome))}</td>'
                f"<td>{source_words(effect)}</td></tr>"
            )
    if not rows:
        return ""
    return (
        "<details><summary>All effects in numbers</summary>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Effects in numbers"><table><thead><tr>'
        '<th class="n">Stage</th><th>Factor</th><th>Kind</th><th class="n">Layouts</th><th>Outcome</th>'
        '<th class="n">Against the reference (95 %)</th><th>From</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _published(study: StudyData, insight: Insight) -> str:
    patterns = insight.published()
    found = [one for one in patterns if one.record]
    if len(found) < 2:
        return (
            "<h3>The published patterns</h3><p>This study holds fewer than two of the patterns of the paper’s table 5 "
            "at one size.</p>"
        )
    rows = []
    for one in sorted(found, key=lambda one: -_quality(study, one.record)):
        record = one.record
        assert record is not None
        rows.append(
            f"<tr><td>{one.name}</td><td>{html_strip(record.layout)}</td>"
            f'<td class="n">{with_error(record.top1, record.top1_se)}</td>'
            f'<td class="n">{_nll_words(record)}</td><td class="n">{factor(record.ratio)}</td>'
            f'<td class="n">{scaled(record.params)}</td><td class="n">{percent(one.published)}</td></tr>'
        )
    missing = [one.name for one in patterns if not one.record]
    absent = f" Not tried at this size: {listed(missing)}." if missing else ""
    se = pooled_se(study.complete, study.measure)
    noise = (
        "Each was trained once here: their order may be chance."
        if se is None
        else f"Differences under {_apart_words(study, se)} are within the noise between seeds."
    )
    return (
        "<h3>The published patterns</h3><p>The patterns of table 5 of the MambaVision paper as they came out here, at "
        f"one width and state, best first. {noise}{absent} The paper’s own numbers are one run each of "
        "MambaVision-T on ImageNet-1K (300 epochs); there only “late attention” stands out of the noise.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="The published patterns"><table><thead><tr>'
        '<th>Pattern</th><th>Layout</th><th class="n">Top-1</th><th class="n">NLL</th><th class="n">Speed</th>'
        '<th class="n">Parameters</th><th class="n">Paper: top-1</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _quality(study: StudyData, record: TrialRecord | None) -> float:
    quality = None if record is None else record.quality(study.measure)
    return -math.inf if quality is None else quality


def _importance(study: StudyData) -> str:
    if not study.importance:
        return ""
    names = list(study.importance)
    factors = sorted({f for one in study.importance.values() for f in one}, key=lambda f: -_share(study, names[0], f))
    rows = "".join(
        f"<tr><td>{html.escape(f)}</td>"
        + "".join(f'<td class="n">{percent(_share(study, name, f), 0)}</td>' for name in names)
        + "</tr>"
        for f in factors
    )
    heads = "".join(f'<th class="n">{_capital(html.escape(name))}</th>' for name in names)
    return (
        "<h3>Importance</h3><p>How much each factor decides whether a layout is among the best tenth of this study, as "
        "shares (PED-ANOVA, by Optuna). It says how much a factor mattered to this sampler’s layouts, not in which "
        "direction, and not at equal cost.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Importance"><table><thead><tr><th>Factor</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _share(study: StudyData, outcome: str, factor: str) -> float:
    return (study.importance or {}).get(outcome, {}).get(factor, 0.0)


def _nll_words(record: TrialRecord) -> str:
    return fixed(record.nll) + (f" ± {fixed(record.nll_se)}" if record.nll_se is not None else "")


def _apart_words(study: StudyData, se: float) -> str:
    """The smallest difference of two layouts that is not within the noise between seeds."""
    apart = 2 * math.sqrt(2) * se
    return points(apart).lstrip("+") if study.measure == "top1" else f"{apart:.3f} nats"


# -- search, failures, conditions, trials --------------------------------------------------------------------------


def _search(study: StudyData) -> str:
    if not study.complete:
        return ""
    low_quality, low_throughput = study.reference_point
    corner = percent(low_quality) if study.measure == "top1" else f"NLL {-low_quality:.3f}"
    caption = (
        f"Area that the front dominates above the study’s reference point ({corner}, a uniform guess among "
        f"{study.classes} classes; "
        f"{factor(2**low_throughput)}, half the speed of the slowest hand-made layout). Measured values: noise "
        f"makes it look larger than it is."
    )
    return f"<h2>How the search went</h2>{_plot('hypervolume', caption, 'Hypervolume over trials')}"


def _failures(study: StudyData) -> str:
    failed, partial = study.failed, study.partial
    waiting = f" {plural(len(partial), 'layout')} still on the way." if partial else ""
    waiting += f" {plural(len(study.waiting), 'layout')} stopped at an earlier rung." if study.waiting else ""
    if not failed:
        return f"<h2>Failures</h2><p>No trial failed.{waiting}</p>"
    rows = "".join(
        f'<tr><td class="n">{r.number}</td><td>{html_strip(r.layout)}</td><td class="n">{r.epochs}</td>'
        f'<td class="wide">{html.escape(r.reason or "no reason was recorded")}</td></tr>'
        for r in failed
    )
    return (
        f'<h2>Failures</h2><p><span class="bad">{plural(len(failed), "trial")} failed</span> of '
        f"{count(len(study.records))}.{waiting}</p>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Failed trials"><table><thead><tr><th '
        'class="n">Trial</th>'
        f'<th>Layout</th><th class="n">Epochs '
        f"done</th><th>Reason</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _conditions(study: StudyData) -> str:
    timing, budgets = study.setting("timing", default={}), study.setting("budgets", default={})
    protocol = (
        "Each layout is timed in inference mode on the deployment image size and batch, input already on the "
        "device, after a warm-up: "
        f"median of {timing.get('windows', '?')} windows of {timing.get('window_s', '?')} s, with nothing else "
        f"running on the device. The "
        f"reference layout (<code>{html.escape(study.reference_key)}</code>) is timed beside it, and the ratio of "
        f"the two is compared."
        if isinstance(timing, Mapping)
        else ""
    )
    limits = _budget_words(budgets)
    command = str(study.environment.get("command") or f"mvsearch launch studies/{study.name}/study.yaml")
    when = datetime.fromtimestamp(study.started, UTC).strftime("%Y-%m-%d %H:%M UTC") if study.started else "unknown"
    rows = "".join(f"<tr><td>{name}</td><td class='wide'>{value}</td></tr>" for name, value in _flat(study.environment))
    return f"""<h2>Conditions</h2>
<p>{protocol}</p>
<p>Started {when}, took {duration(study.ended - study.started)}. Budgets: {html.escape(limits)}.</p>
<p>To run it again:</p><pre>{html.escape(command)}</pre>
<details><summary>Environment</summary><div class="scroll"><table><tbody>{rows}</tbody></table></div></details>
<details><summary>Configuration, resolved</summary><pre>{html.escape(_yaml(study.config))}</pre></details>"""


def _budget_words(budgets: object) -> str:
    """``"params at most 1.5 M, memory at most 64 MB"``; anything else as JSON."""
    if not budgets:
        return "none"
    texts = []
    for name, limits in budgets.items() if isinstance(budgets, Mapping) else ():
        for end, word in (("min", "at least"), ("max", "at most")):
            value = limits.get(end) if isinstance(limits, Mapping) else None
            if isinstance(value, (int, float)):
                texts.append(f"{name} {word} {scaled(value, 'B' if name == 'memory' else '')}")
    return ", ".join(texts) or json.dumps(budgets, default=str)


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as escaped (dotted name, value) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in data.items():
        label = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{label}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            pairs.append((html.escape(label), html.escape(text)))
    return pairs


def _yaml(data: Mapping[str, Any]) -> str:
    import yaml

    try:
        return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # values that are no plain data
        return json.dumps(data, indent=2, default=str)


_COLUMNS = (
    ("Trial", True),
    ("Layout", False),
    ("", False),
    ("Top-1", True),
    ("NLL", True),
    ("Speed", True),
    ("img/s", True),
    ("Parameters", True),
    ("MACs", True),
    ("Memory", True),
    ("Training", True),
)


def _trials(study: StudyData) -> str:
    if not study.records:
        return ""
    members = {record.key for record in study.front}
    widest = max(stage["dim"] for record in study.records for stage in record.layout["stages"])
    heads = "".join(
        f'<th scope="col"{" class=n" if number else ""}><button '
        f'type="button">{html.escape(name or "Kind")}</button></th>'
        for name, number in _COLUMNS
    )
    rows = "".join(_trial_row(record, members, widest) for record in sorted(study.records, key=lambda r: r.number))
    return (
        f"<h2>All trials</h2><details><summary>{plural(len(study.records), 'layout')} <span class=note>(sorted by "
        f"any column)</span></summary>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="All trials"><table class="sortable"><thead>'
        f"<tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _trial_row(record: TrialRecord, members: set[str], widest: int) -> str:
    def number(value: float | None, text: str) -> str:
        return f'<td class="n" data-v="{"" if value is None else repr(value)}">{text}</td>'

    tags = ['<span class="tag on">front</span>'] if record.key in members else []
    tags += [f'<span class="tag">{html.escape(record.baseline)}</span>'] if record.baseline else []
    state = f"stopped after {plural(record.epochs, 'epoch')}" if record.state == WAITING else record.state
    tags += [f'<span class="tag">{html.escape(state)}</span>'] if record.state != COMPLETE else []
    seconds = record.train_seconds or None
    cells = (
        number(record.number, str(record.number)),
        f"<td>{html_strip(record.layout, scale=widest)}</td><td>{' '.join(tags)}</td>",
        number(record.top1, percent(record.top1, 2)),
        number(record.nll, fixed(record.nll, 4)),
        number(record.ratio, factor(record.ratio)),
        number(record.images_per_second, count(record.images_per_second)),
        number(record.params, scaled(record.params)),
        number(record.macs, scaled(record.macs)),
        number(record.memory, scaled(record.memory, "B")),
        number(seconds, DASH if seconds is None else duration(seconds)),
    )
    return f"<tr>{''.join(cells)}</tr>"


# -- parts ---------------------------------------------------------------------------------------------------------


def _plot(name: str, caption: str, label: str) -> str:
    return (
        f'<figure><div class="plot" data-figure="{name}" role="img" aria-label="{html.escape(label)}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _figures_json(drawn: Mapping[str, Figure]) -> str:
    """The figures without titles (the page has headings), safe inside a script element."""
    specs = {}
    for name, figure in drawn.items():
        spec = json.loads(figure.to_json())
        spec["layout"].pop("title", None)
        spec["layout"]["margin"]["t"] = 28  # the mode bar's
        specs[name] = spec
    text = json.dumps(specs, separators=(",", ":"))
    # JSON lets "/" be escaped; "<!" would begin a comment, inside which a script element does not end.
    return text.replace("</", "<\\/").replace("<!", "\\u003c!")
