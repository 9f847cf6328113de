"""The section Insight: what ratio, placement, state and width do, and what the study does not support."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from mvsearch.analysis.findings import Findings
from mvsearch.analysis.insight import CALIPER, FactorComparison, by_factor
from mvsearch.analysis.pairs import MIN_TRIALS
from mvsearch.analysis.rows import pattern_rows
from mvsearch.report import drawing
from mvsearch.report.insight_words import (
    MATCH_NAMES,
    NOT_ENOUGH,
    OUTCOME_NAMES,
    comparison_words,
    effect_words,
    factor_words,
    headlines,
    source_words,
    unsupported,
)
from mvsearch.report.parts import capital, least_difference_words, nll_words
from mvsearch.report.strip import html_strip
from mvsearch.report.words import DASH, factor, listed, percent, scaled, with_error


def insight_section(findings: Findings) -> str:
    """HTML of the section; empty where no complete layout has a hybrid stage."""
    study, insight = findings.study, findings.insight
    if not insight.stages:
        return ""
    short = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in headlines(insight))
    parts = [
        '<h2 id="insight">Insight: what ratio, placement, state and width do</h2>',
        f"<p>In short, {OUTCOME_NAMES[study.measure]} at equal parameters:</p><ul>{short}</ul>" if short else "",
        "<p>Wider layouts are better and slower whatever their order, so no plain averages here. Each dot is a kind "
        "of stage minus the reference kind, at equal parameters or at equal throughput, with its 95 % interval. "
        "Filled dots are from matched pairs: layouts equal in everything else, whose costs differ by at most "
        f"{percent(CALIPER, 0)}. Hollow dots are from a model (a Gaussian process) where the study has too few pairs. "
        f"Blue where the interval leaves out the reference, grey where it does not. Kinds with fewer than "
        f"{MIN_TRIALS} layouts that can be compared say “{NOT_ENOUGH}”.</p>",
    ]
    for (stage, by), own in by_factor(insight.comparisons).items():
        name = factor_words(by, own[0].placed)
        title = f"Stage {stage}: {name}" if stage else f"{name[0].upper()}{name[1:]}"
        parts.append(f"<h3>{title}, against {html.escape(own[0].reference)}</h3><ul>")
        parts += [f"<li>{capital(html.escape(comparison_words(one)))}</li>" for one in own]
        parts.append(f'</ul><div class="pairs">{"".join(_ratio_plot(one) for one in own if one.known)}</div>')
    parts.append(_numbers(insight.comparisons))
    parts.append(_published(findings))
    parts.append(_importance(findings))
    cannot = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in unsupported(insight))
    parts.append(f"<h3>What this study does not support</h3><ul>{cannot}</ul>")
    if insight.intervals:
        chance = math.ceil(insight.intervals / 20)
        parts.append(
            f'<p class="note">{insight.intervals} intervals at 95 %: about {chance} would leave out the reference '
            "by chance alone. The sampler chose these layouts, not a coin; a study launched with "
            "<code>--design placement</code> is balanced.</p>"
        )
    return "".join(parts)


def _ratio_plot(comparison: FactorComparison) -> str:
    heading = f"{capital(OUTCOME_NAMES[comparison.outcome])} {MATCH_NAMES[comparison.matched]}"
    label = f"{heading}, by {factor_words(comparison.factor, comparison.placed)}" + (
        f" of stage {comparison.stage}" if comparison.stage else ""
    )
    return (
        f'<figure><h4>{heading}</h4><div class="plot" data-figure="{drawing.ratio_name(comparison)}" role="img" '
        f'aria-label="{label}"></div></figure>'
    )


def _numbers(comparisons: Sequence[FactorComparison]) -> str:
    rows = []
    for one in comparisons:
        for effect in one.effects:
            where = f"{one.stage}" if one.stage else DASH
            rows.append(
                f'<tr><td class="n">{where}</td><td>{factor_words(one.factor, one.placed)}</td>'
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


def _published(findings: Findings) -> str:
    patterns = pattern_rows(findings)
    if not patterns:
        return (
            "<h3>The published patterns</h3><p>This study holds fewer than two of the patterns of the paper’s table 5 "
            "at one size.</p>"
        )
    rows = []
    for row in patterns:
        record = row.record
        rows.append(
            f"<tr><td>{row.name}</td><td>{html_strip(record.layout)}</td>"
            f'<td class="n">{with_error(record.top1, record.top1_se)}</td>'
            f'<td class="n">{nll_words(record)}</td><td class="n">{factor(record.ratio)}</td>'
            f'<td class="n">{scaled(record.params)}</td><td class="n">{percent(row.published_top1)}</td></tr>'
        )
    missing = [pattern.name for pattern in findings.insight.published() if pattern.record is None]
    absent = f" Not tried at this size: {listed(missing)}." if missing else ""
    se = findings.pooled_se
    noise = (
        "Each was trained once here: their order may be chance."
        if se is None
        else f"Differences under {least_difference_words(findings.study, se)} are within the noise between seeds."
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


def _importance(findings: Findings) -> str:
    if not findings.importance:
        return ""
    names = list(findings.importance)
    every = dict.fromkeys(factor for shares in findings.importance.values() for factor in shares)
    factors = sorted(every, key=lambda f: -_share(findings, names[0], f))
    rows = "".join(
        f"<tr><td>{html.escape(f)}</td>"
        + "".join(f'<td class="n">{percent(_share(findings, name, f), 0)}</td>' for name in names)
        + "</tr>"
        for f in factors
    )
    heads = "".join(f'<th class="n">{capital(html.escape(name))}</th>' for name in names)
    return (
        "<h3>Importance</h3><p>How much each factor decides whether a layout is among the best tenth of this study, as "
        "shares (PED-ANOVA, by Optuna). It says how much a factor mattered to this sampler’s layouts, not in which "
        "direction, and not at equal cost.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Importance"><table><thead><tr><th>Factor</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _share(findings: Findings, outcome: str, factor: str) -> float:
    return (findings.importance or {}).get(outcome, {}).get(factor, 0.0)
