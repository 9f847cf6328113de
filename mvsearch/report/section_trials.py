"""All trials: a table to sort, search and copy layouts from."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping
from typing import Any

from mambavision.layout import HybridLayout, StageLayout
from mvsearch.report.parts import copy_button, table
from mvsearch.report.strip import html_strip
from mvsearch.report.words import DASH, count, duration, factor, fixed, percent, plural, scaled
from mvsearch.study.data import StudyData
from mvsearch.study.record import COMPLETE, FAILED, WAITING, TrialRecord

_COLUMNS = (
    ("Trial", True),
    ("Layout", False),
    ("Kind", False),
    ("Top-1", True),
    ("NLL", True),
    ("Speed", True),
    ("img/s", True),
    ("Parameters", True),
    ("MACs", True),
    ("Memory", True),
    ("Training", True),
    ("Copy", False),
)


def trials_section(study: StudyData) -> str:
    """HTML of a folded table of all trials with a search field and filters; empty without trials."""
    if not study.records:
        return ""
    members = {record.key for record in study.front}
    widest = max(stage["dim"] for record in study.records for stage in record.layout["stages"])
    rows = [_row(record, members, widest) for record in sorted(study.records, key=lambda r: r.number)]
    present = {kind for record in study.records for kind in _kinds(record, members)}
    kinds = ["all", *(kind for kind in ("front", "hand-made", "failed") if kind in present)]
    buttons = "".join(
        f'<button type="button" data-kind="{kind}" aria-pressed="{str(kind == "all").lower()}">{kind}</button>'
        for kind in kinds
    )
    return (
        f'<h2 id="trials">All trials</h2><details id="trials-table"><summary>{plural(len(study.records), "layout")} '
        '<span class="note">(sort by any column, search, copy a layout)</span></summary>'
        '<div class="find"><label>Search <input type="search" id="find" placeholder="MMAA, last half, 17, FAIL" '
        f'autocomplete="off"></label><span role="group" aria-label="Kind">{buttons}</span>'
        f'<span id="found" class="note" role="status">{len(rows)} of {len(rows)}</span></div>'
        f"{table('All trials', _COLUMNS, rows, tall=True, kind='sortable')}</details>"
    )


def layouts_json(study: StudyData) -> str:
    """Layouts by trial number for the copy buttons, safe inside a script element."""
    layouts = {str(record.number): json.dumps(_without_defaults(record.layout)) for record in study.records}
    return json.dumps(layouts, separators=(",", ":")).replace("</", "<\\/").replace("<!", "\\u003c!")


def _without_defaults(layout: Mapping[str, Any]) -> dict[str, Any]:
    """What `HybridLayout.from_json` fills in again is left out: a page may hold thousands of layouts."""

    def own(data: Mapping[str, Any], kind: type) -> dict[str, Any]:
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        return {name: value for name, value in data.items() if name not in defaults or value != defaults[name]}

    return own(layout, HybridLayout) | {"stages": [own(stage, StageLayout) for stage in layout["stages"]]}


def _kinds(record: TrialRecord, members: set[str]) -> list[str]:
    kinds = ["front"] if record.key in members else []
    kinds += ["hand-made"] if record.baseline else []
    return kinds + (["failed"] if record.state == FAILED else [])


def _row(record: TrialRecord, members: set[str], widest: int) -> str:
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
        f"<td>{copy_button(record)}</td>",
    )
    words = " ".join(
        (f"{record.number}", record.pattern, record.key, record.baseline or "", record.state, *_kinds(record, members))
    )
    kinds = " ".join(_kinds(record, members))
    return f'<tr data-t="{html.escape(words.lower())}" data-k="{kinds}">{"".join(cells)}</tr>'
