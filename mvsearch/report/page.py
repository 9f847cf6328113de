"""Data and figures → one HTML page that needs no other file and asks nothing of the network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavision.files import write_atomic
from mvsearch.analysis.findings import Findings
from mvsearch.report import drawing
from mvsearch.report.assets import CSS, SCRIPT
from mvsearch.report.parts import plot, trial_names
from mvsearch.report.section_first import first_screen
from mvsearch.report.section_insight import insight_section
from mvsearch.report.section_trials import layouts_json, trials_section
from mvsearch.report.section_trust import trust_section
from mvsearch.report.strip import html_strip, strip_css
from mvsearch.report.words import count, duration, factor, listed, plural, scaled
from mvsearch.study.data import StudyData
from mvsearch.study.record import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Even a text that slipped through unescaped could not load anything or send anything anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def write_report(findings: Findings, path: str | Path) -> None:
    """Write the report as one HTML file; it works offline and from a folder.

    Args:
        findings: what to report.
        path: the file, in an existing folder; replaced as a whole.

    Raises:
        OSError: if the file cannot be written; nothing is left half-written.
    """
    write_atomic(Path(path), page(findings))


def page(findings: Findings) -> str:
    """The report as HTML text, about 5 MB, nearly all of it plotly.js."""
    study = findings.study
    sections = [
        first_screen(findings),
        _front(findings),
        trust_section(findings),
        insight_section(findings),
        _search(study),
        _failures(study),
        trials_section(study),
        _conditions(study),
    ]
    drawn = drawing.page_figures(findings)
    return document(f"{study.name}: search report", "".join(sections), drawn, layouts_json(study))


def document(title: str, body: str, drawn: Mapping[str, Figure], layouts: str) -> str:
    """A whole page around a body.

    Args:
        title: plain text.
        body: HTML.
        drawn: the figures that the body has places for, by name.
        layouts: JSON for the copy buttons, safe inside a script element.
    """
    from plotly.offline import get_plotlyjs

    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{CSS}{strip_css()}</style>
</head>
<body>
<main>
{body}
</main>
<script>{get_plotlyjs()}</script>
<script type="application/json" id="figures">{_figures_json(drawn)}</script>
<script type="application/json" id="layouts">{layouts}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


# -- the front -----------------------------------------------------------------------------------------------------


def _front(findings: Findings) -> str:
    study = findings.study
    if not study.complete:
        return ""
    own, other = study.measure.label, study.measure.other.label
    found = findings.reordering
    if not found.gained and not found.lost and not found.swapped:
        order = f"Ordered by {other} instead of {own}, the front has the same members in the same order."
    else:
        texts = []
        if found.gained:
            texts.append("gain " + trial_names(found.gained))
        if found.lost:
            texts.append("lose " + trial_names(found.lost))
        change = f"the front would {' and '.join(texts)}" if texts else "the front keeps its members"
        order = (
            f"Ordered by {other} instead of {own}, {change}; {found.swapped} of {plural(found.pairs, 'pair')} of "
            f"such layouts "
            "change places."
        )
    bars = (
        "Vertical bars: one standard error over seeds."
        if study.seeds > 1
        else "No vertical bars: one seed."
        if findings.noise is None
        else "Vertical bars: one standard error, from the noise between repeated trainings."
    )
    if findings.standings:
        bars += " Pale blue: cannot be told apart from the front."
    caption = (
        f"The front is decided by {own} and throughput. Filled: members of the front, joined by steps; hollow: "
        f"hand-made; pale: dominated. "
        f"n = {len(study.complete)} layouts, {plural(study.seeds, 'seed')} each. {bars} Horizontal bars: "
        f"interquartile range of the timing "
        "windows. Throughput 1× is the reference layout, timed beside each layout. The worst twentieth of the "
        "dominated layouts may lie outside the frame."
    )
    main = plot("front", caption, "Front of top-1 against throughput")
    lower = "The same members; lower NLL is better and drawn upwards."
    folded = plot("front_nll", lower, "Front of NLL against throughput")
    return (
        f'<h2 id="front">The front</h2>'
        f"<h3>{html.escape(drawing.front_title(study))}</h3>{main}<p>{html.escape(order)}</p>"
        f"<details><summary>The same front with NLL on the axis</summary>{folded}</details>"
    )


# -- search, failures, conditions, trials --------------------------------------------------------------------------


def _search(study: StudyData) -> str:
    if not study.complete:
        return ""
    low_quality, low_throughput = study.reference_point
    corner = study.measure.quality_text(low_quality)
    caption = (
        f"Area that the front dominates above the study’s reference point ({corner}, a uniform guess among "
        f"{study.classes} classes; "
        f"{factor(2**low_throughput)}, half the speed of the slowest hand-made layout). Measured values: noise "
        f"makes it look larger than it is."
    )
    return f"<h2>How the search went</h2>{_began_with(study)}{plot('hypervolume', caption, 'Hypervolume over trials')}"


def _began_with(study: StudyData) -> str:
    """What a warm start brought, by where it came from; nothing without one."""
    sources: dict[str, list[TrialRecord]] = {}
    for record in study.records:
        if record.warm_start is not None:
            sources.setdefault(record.warm_start.partition(", trial ")[0], []).append(record)
    if not sources:
        return ""
    parts = []
    for source, records in sources.items():
        taken = sum(record.taken_over for record in records)
        kept = f" ({taken} with their results, not trained again)" if taken else ""
        parts.append(f"{plural(len(records), 'layout')} from {html.escape(source)}{kept}")
    return f"<p>Warm start: {listed(parts)}.</p>"


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
    return f"""<h2>Timing and environment</h2>
<p>{protocol}</p>
<p>Started {when}, took {duration(study.ended - study.started)}. Budgets: {html.escape(limits)}.</p>
<details><summary>Environment</summary><div class="scroll"><table><tbody>{rows}</tbody></table></div></details>
<details><summary>Configuration, resolved</summary><pre>{html.escape(_yaml(study.config))}</pre></details>
<h2 id="again">Run it again</h2>
<p>{_reproduce(study)}</p><pre>{html.escape(command)}</pre>
<p>This page, its tables and every number here are made from the study’s ledger, <code>evaluations.jsonl</code>, without
training anything: <code>mvsearch report {html.escape(study.name)}</code>.</p>"""


def _reproduce(study: StudyData) -> str:
    """What has to be the same for the same numbers."""
    versions = study.environment.get("versions")
    named = (
        ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "optuna", "ray") if name in versions)
        if isinstance(versions, Mapping)
        else ""
    )
    commit = study.environment.get("git_commit")
    facts = [f"seed {study.setting('search', 'seed', default=0)}"]
    facts += [f"commit {str(commit)[:12]}"] if commit else []
    facts += [named] if named else []
    facts += [f"data fingerprint {study.fingerprint}"] if study.fingerprint else []
    return html.escape(
        f"The same layouts are asked for, in the same order where one worker runs, with {'; '.join(facts)}. "
        "Throughputs are of this device, so elsewhere another front is right."
    )


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


# -- parts ---------------------------------------------------------------------------------------------------------


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
