"""The tables trials.csv and front.csv."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


from mambavision.files import write_atomic
from mvsearch.analysis.facts import stage_facts
from mvsearch.analysis.findings import Findings
from mvsearch.study.front import front_records
from mvsearch.study.record import TIME, TrialRecord

_COUNTS = ("params", "macs", "macs_attention", "macs_scan", "memory")


def trials_table(records: Iterable[TrialRecord], measure: str = "nll") -> pd.DataFrame:
    """One row a layout, by trial number; what was not measured is missing.

    Args:
        records: of one study.
        measure: quality by which ``on_front`` is decided, ``"nll"`` or ``"top1"``.

    Returns:
        The columns of trials.csv. ``warm_start`` says where a layout came from that the search began with. ``state`` is
        that of `TrialRecord`; ``epochs`` says how far a WAITING layout was trained, ``rung_nll`` and ``rung_top1`` what
        it reached there (the means over seeds at the last rung that every seed has reached, which for a COMPLETE layout
        are ``nll`` and ``top1``). ``top1`` is 0 to 1, ``nll`` in nats, ``memory`` in bytes, ``macs`` for one image,
        ``started`` and ``ended`` in Unix seconds; ``windows`` and ``reference_windows`` are the raw timing windows in
        img/s, ``seeds`` the seeds, joined by ``;``. Of each stage k: ``stagek_blocks``, ``stagek_attention_share``
        (0 to 1), ``stagek_state`` (missing where nothing scans), ``stagek_dim``, ``stagek_depth``.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda record: record.number)
    on_front = {record.key for record in front_records(ordered, measure)}
    depth = max((len(record.layout["stages"]) for record in ordered), default=0)
    rows = []
    for record in ordered:
        row: dict[str, Any] = {
            "number": record.number,
            "key": record.key,
            "pattern": record.pattern,
            "state": record.state,
            "baseline": record.baseline,
            "warm_start": record.warm_start,
            "on_front": record.key in on_front,
        }
        row |= {name: getattr(record, name) for name in _COUNTS}
        row |= {name: getattr(record, name) for name in ("nll", "nll_sd", "nll_se", "top1", "top1_sd", "top1_se")}
        row |= {name: getattr(record, name) for name in ("images_per_second", "ratio", "ratio_iqr")}
        row |= {name: getattr(record, name) for name in ("epochs", "images_seen", "train_seconds")}
        reached = record.rungs[-1] if record.rungs else None
        row["rung_nll"] = reached and -reached.quality("nll")
        row["rung_top1"] = reached and reached.quality("top1")
        row["seeds"] = _joined(record.seeds)
        facts = {fact.number: fact for fact in stage_facts(record.layout)}
        for number in range(1, depth + 1):
            fact = facts.get(number)
            row |= {
                f"stage{number}_blocks": fact and fact.blocks,
                f"stage{number}_attention_share": None if fact is None else fact.share,
                f"stage{number}_state": fact and fact.state,
                f"stage{number}_dim": fact and fact.dim,
                f"stage{number}_depth": fact and len(fact.blocks),
            }
        timed = next((line for line in record.evaluations if line.what == TIME), None)
        row |= {
            "latency_ms": timed.values.get("latency_ms") if timed else None,
            "timing_device": timed.device if timed else None,
            "timing_conditions": json.dumps(timed.conditions) if timed else None,
        }
        row |= {"windows": _joined(record.windows), "reference_windows": _joined(record.reference_windows)}
        row |= {"started": record.started, "ended": record.ended, "reason": record.reason}
        row["layout"] = json.dumps(record.layout)
        rows.append(row)
    columns = list(rows[0]) if rows else ["number", "key", "pattern", "state", "on_front", "ratio", "nll", "top1"]
    table = pd.DataFrame(rows, columns=columns)
    whole = [
        *_COUNTS,
        *(f"stage{number}_{what}" for number in range(1, depth + 1) for what in ("state", "dim", "depth")),
    ]
    return table.astype({name: "Int64" for name in whole if name in table})


def front_table(findings: Findings) -> pd.DataFrame:
    """The front, slowest first, with what it gains over the hand-made layouts.

    Returns:
        The columns of front.csv: those of trials.csv without timings and state, then ``top1_gain`` and ``nll_gain``
        (positive is better) over ``gain_over``, the best hand-made layout that is at least as fast, and ``speed_gain``
        (a factor) over ``speed_gain_over``, the fastest hand-made layout that is at least as good; missing where there
        is none. Then how sure it is: ``standing`` (`Standing.verdict`, missing where the noise is not known);
        of `mvsearch confirm` ``confirmed_seeds``, ``confirmed_top1`` and ``confirmed_nll`` (validation split),
        ``test_top1``, ``test_top1_sd`` (standard deviation between seeds) and ``test_nll``; of `mvsearch calibrate`
        ``verdict``, ``tau`` and ``tau_low`` (the lower end of its interval), the same in each row, with the verdict
        ``"not calibrated"`` before it.
    """
    study = findings.study
    import pandas as pd

    trials = trials_table(study.records, study.measure).set_index("key", drop=False)
    front = study.front
    left_out = {"state", "on_front", "windows", "reference_windows", "reason", "layout", "started", "ended"}
    left_out |= {"rung_nll", "rung_top1"}
    table = trials.loc[[record.key for record in front], [c for c in trials.columns if c not in left_out]].copy()
    margins = pd.DataFrame(
        [_margin_row(findings, record) for record in front], columns=list(_MARGIN), index=table.index
    )
    table = table.join(margins)
    rows = [_sureness_row(findings, record) for record in front]
    sure = pd.DataFrame(rows, columns=list(_SURENESS), index=table.index)
    table = table.join(sure)
    table["layout"] = [json.dumps(record.layout) for record in front]
    return table.reset_index(drop=True)


_MARGIN = ("top1_gain", "nll_gain", "gain_over", "speed_gain", "speed_gain_over")


def _margin_row(findings: Findings, record: TrialRecord) -> dict[str, float | str | None]:
    found = findings.margin(record)
    row: dict[str, float | str | None] = dict.fromkeys(_MARGIN)
    if found.at_speed is not None:
        row["top1_gain"] = _minus(record.top1, found.at_speed.top1)
        row["nll_gain"] = _minus(found.at_speed.nll, record.nll)
        row["gain_over"] = found.at_speed.baseline
    if found.at_quality is not None and found.at_quality.ratio and record.ratio:
        row["speed_gain"] = record.ratio / found.at_quality.ratio
        row["speed_gain_over"] = found.at_quality.baseline
    return row


_SURENESS = (
    *("standing", "confirmed_seeds", "confirmed_top1", "confirmed_nll", "test_top1", "test_top1_sd", "test_nll"),
    *("verdict", "tau", "tau_low"),
)


def _sureness_row(findings: Findings, record: TrialRecord) -> dict[str, float | str | None]:
    row: dict[str, float | str | None] = dict.fromkeys(_SURENESS)
    if record.key in findings.standings:
        row["standing"] = findings.standings[record.key].verdict
    if findings.confirmation and (fresh := findings.confirmation.layout(record.key)):
        row |= {"confirmed_seeds": findings.confirmation.seeds, "confirmed_top1": fresh.val.top1}
        row |= {"confirmed_nll": fresh.val.nll, "test_nll": fresh.test.nll}
        row |= {"test_top1": fresh.test.top1, "test_top1_sd": fresh.test.top1_sd}
    row["verdict"] = (findings.calibration and findings.calibration.verdict) or "not calibrated"
    if findings.calibration and findings.calibration.tau:
        row |= {"tau": findings.calibration.tau.tau, "tau_low": findings.calibration.tau.low}
    return row


def write_tables(findings: Findings, folder: str | Path) -> None:
    """Write ``trials.csv`` and ``front.csv``; numbers in full, so that the front can be recomputed from the first.

    Args:
        findings: what to write.
        folder: an existing folder; files of these names in it are replaced as a whole.

    Raises:
        OSError: if a file cannot be written; nothing is left half-written.
    """
    study = findings.study
    trials = trials_table(study.records, study.measure)
    write_atomic(Path(folder) / "trials.csv", trials.to_csv(index=False, lineterminator="\n"))
    write_atomic(Path(folder) / "front.csv", front_table(findings).to_csv(index=False, lineterminator="\n"))


def _joined(values: Iterable[float]) -> str:
    return ";".join(repr(value) for value in values)


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
