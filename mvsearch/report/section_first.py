"""The first screen: which layout to take, what it gained, how sure this is."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from mvsearch.analysis.calibration import RED
from mvsearch.analysis.findings import Findings
from mvsearch.report.parts import (
    baseline_name,
    capital,
    copy_button,
    difference_words,
    interval_words,
    least_difference_words,
    quality_words,
    speed_words,
    table,
)
from mvsearch.report.strip import html_strip
from mvsearch.report.words import count, duration, factor, fixed, percent, plural, scaled
from mvsearch.study.record import TrialRecord

PICK_TITLES = {"knee": "Best trade-off", "fastest": "Fastest", "most-accurate": "Most accurate"}
_NAV = (
    ("gained", "Gained"),
    ("sure", "How sure"),
    ("front", "Front"),
    ("insight", "Insight"),
    ("trials", "Trials"),
    ("again", "Run it again"),
)


def first_screen(findings: Findings) -> str:
    """HTML of the first screen: name, layout to take, verdicts, gains, how sure this is; without a complete layout,
    that there is nothing to recommend."""
    study = findings.study
    complete, front = study.complete, study.front
    took = duration(study.ended - study.started)
    data = study.setting("proxy", "data", default="")
    lede = (
        f"{plural(len(complete), 'layout')}{f' on {data}' if data else ''} trained in full "
        f"({len(study.baselines)} of them hand-made) and timed in {took} with {plural(study.workers, 'worker')} on "
        f"{study.device}" + (f"; {plural(len(front), 'layout')} on the front." if front else ".")
    )
    parts = [f'<h1>{html.escape(study.name)}</h1><p class="lede">{html.escape(lede)}</p>']
    if not complete:
        first = next((r.reason for r in study.failed if r.reason), None)
        why = f" The first failure: {html.escape(first)}" if first else ""
        return "".join(
            [*parts, f'<p class="bad"><b>No layout is complete, so there is nothing to recommend.</b>{why}</p>']
        )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in _NAV)
    parts.append(f'<nav aria-label="Sections">{links}</nav>')
    chosen: dict[str, list[str]] = {}
    for which, record in findings.picks.items():
        chosen.setdefault(record.key, []).append(which)
    records = {record.key: record for record in front}
    widest = max(stage["dim"] for record in front for stage in record.layout["stages"])
    (best, names), *others = [(records[key], which) for key, which in chosen.items()]
    parts.append(f'<div class="answer">{_answer(findings, best, names, widest)}{_verdicts(findings, best)}</div>')
    if others:
        cards = "".join(_card(findings, record, which, widest) for record, which in others)
        parts.append(f'<h2>Or, at the ends of the front</h2><div class="picks">{cards}</div>')
    parts.append(_gained(findings))
    parts.append('<h2 id="sure">How sure this is</h2>' + "".join(f"<p>{text}</p>" for text in _how_sure(findings)))
    return "".join(parts)


def _answer(findings: Findings, record: TrialRecord, which: Sequence[str], widest: int) -> str:
    """The layout to take: its strip, its numbers, its margin over the named hand-made layout."""
    study = findings.study
    title = _title(which)
    confirmed = findings.confirmation.layout(record.key) if findings.confirmation else None
    if confirmed:
        sd = confirmed.test.top1_sd
        spread = f" ± {100 * sd:.1f}" if sd is not None else ""
        seeds = plural(len(confirmed.test.top1s), "fresh seed")
        quality = f"test top-1 {100 * confirmed.test.top1:.1f}{spread} % (sd, {seeds}), NLL {fixed(confirmed.test.nll)}"
    else:
        quality = f"validation {quality_words(study, record)}"
    return (
        f'<section class="take"><h2>Take this layout <span class="note">{html.escape(title)}</span></h2>'
        f'<div class="scroll big-strip">{html_strip(record.layout, scale=widest)}</div>'
        f"{_warning(findings)}{''.join(f'<p>{sentence}</p>' for sentence in margin_words(findings, record))}"
        f"<p>{capital(quality)} · {count(record.images_per_second)} img/s · {scaled(record.params)} parameters · "
        f"{scaled(record.macs)} MACs</p>"
        f'<p class="note">{copy_button(record)} Trial {record.number}, <code>{html.escape(record.key)}</code></p>'
        "</section>"
    )


def _warning(findings: Findings) -> str:
    """On red the answer is not one."""
    if findings.calibration is None or findings.calibration.verdict != RED:
        return ""
    return (
        '<p class="bad"><b>The short trainings do not rank layouts as long ones do, so the order here is no reason to '
        "take this layout.</b></p>"
    )


def _verdicts(findings: Findings, best: TrialRecord) -> str:
    """Three lines: does the proxy rank, does the winner hold, how far seeds move it."""
    study = findings.study
    name = html.escape(study.name)
    calibration, confirmation = findings.calibration, findings.confirmation
    if calibration is None:
        proxy = ("none", "Not calibrated", f"Whether short trainings rank as long ones do: mvsearch calibrate {name}")
    elif calibration.verdict is None or calibration.tau is None:
        layouts = plural(len(calibration.layouts), "layout")
        proxy = ("none", "Not calibrated", f"{layouts} trained long so far: too few to say")
    else:
        tau = calibration.tau
        proxy = (
            calibration.verdict,
            f"Calibration {calibration.verdict}",
            f"short and long trainings rank alike with tau {fixed(tau.tau, 2)} "
            f"({fixed(tau.low, 2)} to {fixed(tau.high, 2)}, n = {len(calibration.layouts)})",
        )
    if confirmation is None or not confirmation.layouts:
        winner = ("none", "Not confirmed", f"Its numbers are those it was chosen by: mvsearch confirm {name}")
    elif confirmation.layout(best.key) is None:
        winner = ("none", "This layout is not confirmed", f"others of the front are: mvsearch confirm {name}")
    else:
        winner = (
            "green",
            "Confirmed",
            f"trained again with {plural(confirmation.seeds, 'fresh seed')}, on the test split",
        )
    noise = findings.noise
    if study.seeds > 1:
        seeds = ("plain", f"n = {study.seeds} seeds a layout", "")
    else:
        seeds = ("plain", "n = 1 seed a layout", "in the search: small differences there may be chance")
    if noise and noise.sd > 0:
        seeds = (*seeds[:2], f"one training moves by {study.measure.difference_text(noise.sd)} (sd) with its seed")
    lines = "".join(
        f'<li class="{kind}"><b>{title}</b>{f"<br>{text}" if text else ""}</li>'
        for kind, title, text in (proxy, winner, seeds)
    )
    return f'<aside class="verdicts" aria-label="How sure this is"><ul>{lines}</ul></aside>'


def _title(which: Sequence[str]) -> str:
    titles = [PICK_TITLES[name] for name in which]
    return titles[0] + "".join(f", {t[0].lower()}{t[1:]}" for t in titles[1:])


def _card(findings: Findings, record: TrialRecord, which: Sequence[str], widest: int) -> str:
    study = findings.study
    speed = f"{factor(record.ratio)} the reference, {count(record.images_per_second)} img/s"
    return f"""<section class="pick"><h3>{html.escape(_title(which))}</h3>
<div class="scroll">{html_strip(record.layout, scale=widest)}</div>
<p class="big">{quality_words(study, record)}</p>
<p>{speed} · {scaled(record.params)} parameters · {scaled(record.macs)} MACs</p>
{"".join(f"<p>{sentence}</p>" for sentence in margin_words(findings, record))}
<p class="note">{copy_button(record)} Trial {record.number}, <code>{html.escape(record.key)}</code></p></section>"""


def margin_words(findings: Findings, record: TrialRecord) -> list[str]:
    """Sentences of HTML that compare a layout with the hand-made ones: the named one, the best that is at least as
    fast, the fastest that is at least as good."""
    study = findings.study
    named = findings.named_baseline
    if named is None:
        return ["No hand-made layout is complete, so there is nothing to compare it with."]
    if record.baseline and record.key == named.key:
        return [f"This is the hand-made layout {baseline_name(record)} itself: the search found none better here."]
    against = findings.difference(record, named)
    sentences = [
        f'<b class="big">{speed_words(record, named)} the speed of the hand-made {baseline_name(named)}, '
        f"{difference_words(study, against)}</b> <span class=note>({interval_words(against)})</span>"
    ]
    if record.baseline:
        sentences.append(f"It is itself hand-made, {baseline_name(record)}: the search found none better here.")
        return sentences
    found = findings.margin(record)
    if found.at_speed and found.at_speed.key != named.key:
        gain = difference_words(study, findings.difference(record, found.at_speed))
        sentences.append(
            f"The best hand-made layout at its speed or faster is {baseline_name(found.at_speed)}: {gain}."
        )
    if found.at_quality and found.at_quality.key != named.key:
        speed = speed_words(record, found.at_quality)
        name = baseline_name(found.at_quality)
        sentences.append(f"The fastest hand-made layout at its quality or better is {name}: {speed} its speed.")
    none = [word for word, other in (("fast", found.at_speed), ("good", found.at_quality)) if other is None]
    if none:
        sentences.append(f"No hand-made layout is as {' or as '.join(none)}.")
    return sentences


def _gained(findings: Findings) -> str:
    study = findings.study
    if not findings.gains:
        return ""
    rows, interval = [], ""
    for gain in findings.gains:
        base = gain.baseline
        kept = "stays on the front"
        against = findings.difference(gain.better, base)
        if gain.better.key != base.key:
            interval = interval or interval_words(against)
        better = kept if gain.better.key == base.key else _replacement(gain.better, difference_words(study, against))
        faster = (
            kept
            if gain.faster.key == base.key
            else _replacement(gain.faster, f"{speed_words(gain.faster, base)} its speed")
        )
        rows.append(
            f"<tr><td>{html.escape(base.baseline or '')}<br>{html_strip(base.layout, numbers=False)}</td>"
            f'<td class="n">{percent(base.top1)}</td><td class="n">{fixed(base.nll)}</td><td '
            f'class="n">{factor(base.ratio)}</td>'
            f"<td>{better}</td><td>{faster}</td></tr>"
        )
    heads = [
        ("Hand-made layout", False),
        ("Top-1", True),
        ("NLL", True),
        ("Speed", True),
        ("Quality, at its speed or faster", False),
        ("Speed, at its quality or better", False),
    ]
    return (
        '<h2 id="gained">What it gained</h2><p>Each hand-made layout, and what the front offers in its place: '
        "the best layout that is at least as fast, and the speed of the fastest that is at least as good"
        f"{f' ({interval})' if interval else ''}.</p>{table('Gains over the hand-made layouts', heads, rows)}"
    )


def _replacement(record: TrialRecord, gain: str) -> str:
    return f"{gain} (trial {record.number})<br>{html_strip(record.layout, numbers=False)}"


def _how_sure(findings: Findings) -> list[str]:
    study = findings.study
    sentences = []
    images = findings.validation_images
    if study.seeds <= 1:
        known = "" if findings.noise is None else " in the search"
        sentences.append(
            f"<b>Each layout was trained once{known} (n = 1 seed), so no error bars are available</b>: how far a value "
            "would move with another seed is not known from this study, and small differences may be chance."
            if findings.noise is None or findings.noise.sd == 0
            else "<b>Each layout was trained once in the search (n = 1 seed)</b>; trainings repeated by calibrate or "
            "confirm say how far a value moves with its seed. Error bars are that noise, pooled over layouts."
        )
    else:
        se = findings.pooled_se
        amount = "an unknown amount" if se is None else least_difference_words(study, se)
        sentences.append(
            f"Each value is the mean of n = {study.seeds} seeds; error bars are one standard error. Two layouts "
            f"that differ by less than {amount} (two standard errors of a difference, pooled over layouts) cannot be "
            "told apart."
        )
    if images:
        best = max((r.top1 for r in study.complete if r.top1 is not None), default=None)
        if best is not None:
            error = math.sqrt(best * (1 - best) / images)
            sentences.append(
                f"Quality is measured on {count(images)} validation images; at a top-1 of {percent(best)} so few "
                f"images alone leave a standard error of {100 * error:.1f} points."
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
        f"The trainings are short proxies{f' ({html.escape(how)})' if how else ''}: they are meant to rank layouts. "
        "Accuracy after a full training will be another, and so may be the order."
    )
    if len(study.complete) > len(study.baselines):
        sentences.append(
            f"The front is the best of {count(len(study.complete))} measured values. The best of many noisy values "
            "looks better than it is, so expect part of the gain to vanish when these layouts are trained again."
        )
    if study.on_cpu:
        sentences.append(
            "Throughput was timed on a CPU, where the scan is a Python loop; on a GPU with a fused scan the order by "
            "speed may differ."
        )
    return sentences
