"""Pieces of HTML that the sections of the page share. Every text from a study is escaped here or by the caller."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from mvsearch.analysis.gains import Difference
from mvsearch.report.words import factor, fixed, listed, plural, points, with_error
from mvsearch.study.data import StudyData
from mvsearch.study.record import TrialRecord


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def plot(name: str, caption: str, label: str) -> str:
    """HTML of an empty place that the page's script draws a figure in, with its caption and its spoken label."""
    return (
        f'<figure><div class="plot" data-figure="{html.escape(name)}" role="img" aria-label="{html.escape(label)}">'
        f"</div><figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(
    label: str, heads: Sequence[tuple[str, bool]], rows: Sequence[str], *, tall: bool = False, kind: str = ""
) -> str:
    """A table that scrolls by itself on a narrow screen and by keyboard.

    Args:
        label: what is read aloud.
        heads: plain text of each column, and whether it holds numbers.
        rows: HTML of each row, ``<tr>`` included.
        tall: whether it scrolls down by itself too, under a head that stays.
        kind: a class; ``"sortable"`` makes buttons of the heads.
    """
    cells = []
    for text, number in heads:
        inner = html.escape(text)
        if kind == "sortable":
            inner = f'<button type="button">{inner}</button>'
        cells.append(f'<th scope="col"{" class=n" if number else ""}>{inner}</th>')
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f"<table{f' class={kind}' if kind else ''}><thead><tr>{''.join(cells)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def copy_button(record: TrialRecord) -> str:
    """A button that copies the layout as JSON, for `HybridLayout.from_json`."""
    return f'<button type="button" class="copy" data-layout="{record.number}">Copy layout</button>'


def baseline_name(record: TrialRecord) -> str:
    """A hand-made layout's name in quotes, escaped."""
    return f"“{html.escape(record.baseline or record.key)}”"


def trial_names(records: Sequence[TrialRecord], most: int = 5) -> str:
    """``"trial 3, trial 5 and 2 more"``."""
    names = [f"trial {record.number}" for record in records[:most]]
    return listed([*names, f"{len(records) - most} more"] if len(records) > most else names)


def quality_words(study: StudyData, record: TrialRecord) -> str:
    """NLL and top-1 with their errors, the study's measure first."""
    top1 = f"top-1 {with_error(record.top1, record.top1_se)}"
    nll = f"NLL {nll_words(record)}"
    return study.measure.choose(nll=f"{nll}, {top1}", top1=f"{top1}, {nll}")


def nll_words(record: TrialRecord) -> str:
    """``"0.681 ± 0.004"``; without the error where there is none."""
    return fixed(record.nll) + (f" ± {fixed(record.nll_se)}" if record.nll_se is not None else "")


def speed_words(record: TrialRecord, other: TrialRecord) -> str:
    """A layout's throughput over another's, ``"1.26×"``."""
    return factor((record.ratio or 0) / (other.ratio or 1))


def difference_words(study: StudyData, difference: Difference | None) -> str:
    """``"NLL −0.045 ± 0.012 and top-1 +1.5 ± 0.6 points"``, the study's measure first, as HTML.

    ``"not measured"`` for None; a difference whose interval holds zero is said to be within the noise.
    """
    if difference is None:
        return "not measured"
    nll = f"NLL {difference.nll:+.3f}" + (f" ± {difference.nll_half:.3f}" if difference.nll_half is not None else "")
    amount = points(difference.top1)
    if difference.top1_half is not None:
        amount = f"{100 * difference.top1:+.1f} ± {100 * difference.top1_half:.1f} points"
    # A line may not break at the hyphen of "top-1".
    texts = [f'<span class="nb">{nll}</span>', f'<span class="nb">top-1 {amount}</span>']
    words = listed(study.measure.choose(nll=texts, top1=texts[::-1])).replace("-0", "−0").replace(" -", " −")
    return words + (" (within the noise between seeds)" if difference.clear(study.measure) is False else "")


def interval_words(difference: Difference | None) -> str:
    """Where the interval of a difference comes from, or why there is none."""
    if difference is None:
        return ""
    if difference.seeds:
        return f"± half of a 95 % interval, {plural(difference.seeds, 'fresh seed')} each on the test split"
    if difference.nll_half is None:
        return "one training each, so there is no interval"
    return "± half of a 95 % interval, noise between seeds pooled"


def least_difference_words(study: StudyData, se: float) -> str:
    """The smallest difference of two layouts that is not within the noise between seeds."""
    return study.measure.difference_text(2 * math.sqrt(2) * se)
