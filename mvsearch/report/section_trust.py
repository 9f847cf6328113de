"""Trust: calibration, confirmation, and which layouts cannot be told apart."""

from __future__ import annotations

import html

from mvsearch.analysis.calibration import Calibration
from mvsearch.analysis.confirmation import Confirmation, Hypervolumes
from mvsearch.analysis.findings import Findings
from mvsearch.analysis.noise import DOMINATED, ON_FRONT, UNDECIDED
from mvsearch.analysis.rows import confirmed_rows, undominated_rows
from mvsearch.report.parts import nll_words, plot, table
from mvsearch.report.sentences import calibration_words, confirmation_words
from mvsearch.report.strip import html_strip
from mvsearch.report.words import factor, fixed, percent, plural, scaled, with_error

_STANDINGS = {
    ON_FRONT: "on the front beyond noise",
    UNDECIDED: "cannot be told apart from a faster one",
    DOMINATED: "worse than a faster one",
}


_ON_FRONT = '<span class="tag on">front</span>'


def trust_section(findings: Findings) -> str:
    """HTML of what calibration and confirmation say, or how to get them; empty where no layout is complete."""
    study = findings.study
    if not study.complete:
        return ""
    name = html.escape(study.name)
    calibration, confirmation = findings.calibration, findings.confirmation
    parts = ['<h2 id="trust">Calibrated and confirmed?</h2>']
    if calibration is None:
        parts.append(
            "<p><b>Not calibrated.</b> Whether the short trainings rank layouts as long ones do has not been measured: "
            f"<code>mvsearch calibrate {name}</code> trains some layouts longer and says.</p>"
        )
    else:
        parts.append(_calibration(calibration))
    if confirmation is None:
        parts.append(
            "<p><b>Not confirmed.</b> The front is known only by the values it was chosen by: "
            f"<code>mvsearch confirm {name}</code> trains it again with fresh seeds and looks at the test split.</p>"
        )
    else:
        parts.append(_confirmation(findings, confirmation))
    parts.append(_undominated(findings))
    return "".join(parts)


def _calibration(calibration: Calibration) -> str:
    title = f"Calibration: {calibration.verdict}" if calibration.verdict else "Calibration says nothing yet"
    said = " ".join(html.escape(sentence) for sentence in calibration_words(calibration))
    text = f'<p><b class="{calibration.verdict or ""}">{title}.</b> {said}</p>'
    if calibration.verdict is None:
        return text
    caption = (
        f"Each dot a layout: quality after {calibration.epochs} epochs in the search, and after "
        f"{calibration.long_epochs} (mean of {plural(calibration.seeds, 'seed')}, bars one standard deviation). "
        f"Hollow: hand-made. n = {len(calibration.layouts)}. The verdict is green where the lower end of tau’s "
        "interval is at least 0.4, amber from 0.2; on red, export refuses."
    )
    return text + plot("calibration", caption, "Long training against the proxy")


def _confirmation(findings: Findings, confirmation: Confirmation) -> str:
    if not confirmation.layouts:
        return "<p><b>Confirmation has begun</b>, and no layout has been trained with every seed yet.</p>"
    said = " ".join(html.escape(sentence) for sentence in confirmation_words(confirmation))
    parts = [f"<p><b>Confirmed.</b> {said}</p>"]
    if confirmation.hypervolume:
        rows = [_volume_row("front", confirmation.hypervolume)]
        if confirmation.baselines_hypervolume:
            rows.append(_volume_row("hand-made layouts", confirmation.baselines_hypervolume))
        heads = [
            ("Hypervolume of", False),
            ("Observed in the search", True),
            ("Fresh seeds, validation", True),
            ("Fresh seeds, test", True),
            ("Observed above confirmed", True),
        ]
        parts.append(
            table("Observed and confirmed hypervolume", heads, rows)
            + '<p class="note">Observed less confirmed on the same split is the optimism of choosing the best of '
            "many, and what the search's seeds did to all layouts alike: the hand-made ones, which were not chosen, "
            "show the latter. The rest is how the two splits differ.</p>"
        )
    rows = []
    for row in confirmed_rows(findings):
        record, tags = row.record, []
        if row.on_front:
            tags.append('<span class="tag on">front</span>')
        if record.baseline:
            tags.append(f'<span class="tag">{html.escape(record.baseline)}</span>')
        judged = _STANDINGS[row.verdict] if row.verdict else ""
        rows.append(
            f'<tr><td class="n">{record.number}</td><td>{html_strip(record.layout, numbers=False)}</td><td>'
            f'{" ".join(tags)}</td><td class="n">{factor(record.ratio)}</td><td class="n">{percent(record.top1)}</td>'
            f'<td class="n">{percent(row.val_top1)}</td><td class="n">{with_error(row.test_top1, row.test_sd)}</td>'
            f'<td class="n">{fixed(row.test_nll)}</td><td>{judged}</td></tr>'
        )
    heads = [
        ("Trial", True),
        ("Layout", False),
        ("Kind", False),
        ("Speed", True),
        ("Search, validation top-1", True),
        ("Fresh, validation top-1", True),
        (f"Test top-1 ± sd (n = {confirmation.seeds})", True),
        ("Test NLL", True),
        ("On the test split", False),
    ]
    caption = (
        f"Filled: the mean of {plural(confirmation.seeds, 'fresh seed')} on the test split, bars one standard "
        "deviation between seeds; open squares: what the search had measured on the validation split. Hollow circles: "
        "hand-made."
    )
    parts.append(plot("confirmation", caption, "The front confirmed on the test split"))
    parts.append(f"<details><summary>Confirmed layouts in numbers</summary>{table('Confirmed', heads, rows)}</details>")
    return "".join(parts)


def _volume_row(name: str, volumes: Hypervolumes) -> str:
    cells = "".join(f'<td class="n">{fixed(v)}</td>' for v in (volumes.observed, volumes.val, volumes.test))
    return f'<tr><td>{name}</td>{cells}<td class="n">{percent(volumes.optimism)}</td></tr>'


def _undominated(findings: Findings) -> str:
    """The front with what noise cannot tell from it, layouts of equal cost as one row."""
    costs = undominated_rows(findings)
    if not costs:
        return (
            "<p><b>Which layouts cannot be told apart from the front</b> is not known: no layout was trained with "
            "two seeds, "
            "so there is no noise to judge by.</p>"
        )
    rows = []
    for row in sorted(costs, key=lambda row: row.best.ratio or 0.0):
        best = row.best
        orders = plural(row.layouts - 1, "other order") if row.layouts > 1 else ""
        rows.append(
            f'<tr><td class="n">{best.number}</td><td>{html_strip(best.layout)}</td><td>{orders}</td>'
            f'<td class="n">{scaled(best.params)}</td><td class="n">{factor(best.ratio)}</td>'
            f'<td class="n">{with_error(best.top1, best.top1_se)}</td><td class="n">{nll_words(best)}</td>'
            f"<td>{_ON_FRONT if row.on_front else ''}</td></tr>"
        )
    heads = [
        ("Trial", True),
        ("Best layout", False),
        ("Of equal cost", False),
        ("Parameters", True),
        ("Speed", True),
        ("Top-1", True),
        ("NLL", True),
        ("", False),
    ]
    kept = sum(row.layouts for row in costs)
    extra = kept - sum(row.on_front for row in costs)
    return (
        f"<details><summary>{plural(kept, 'layout')} cannot be told apart from the front "
        f'<span class="note">({extra} beside its members)</span></summary><p class="note">Judged by the noise between '
        "seeds, two-sided at 5 % over all layouts (Bonferroni). Layouts of equal cost (the same blocks in another "
        "order) "
        "are one row, the best of them "
        f"shown.</p>{table('Not told apart from the front', heads, rows, tall=True)}</details>"
    )
