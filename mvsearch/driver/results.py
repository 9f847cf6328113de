"""What a study's folder shows of its ledger: tables, page, importance."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

from mambavision.files import write_atomic
from mvsearch.analysis.findings import Findings
from mvsearch.driver.importance import importances
from mvsearch.study.data import load_study
from mvsearch.study.folder import StudyFolder


def write_results(folder: StudyFolder) -> Findings:
    """Write trials.csv, front.csv, report.html and importance.json of a study from its ledger."""
    from mvsearch.report import write_report, write_tables

    findings = _with_importance(folder)
    write_tables(findings, folder.path)
    write_report(findings, folder.report)
    return findings


def read_findings(folder: StudyFolder) -> Findings:
    """The findings of a study; its importance is computed and kept where the ledger has grown since it last was."""
    study = load_study(folder)
    if study.importance is not None:
        return Findings(study)
    with suppress(OSError):  # a folder that is only read
        return _with_importance(folder)
    return Findings(dataclasses.replace(study, importance=importances(study)))


def _with_importance(folder: StudyFolder) -> Findings:
    study = load_study(folder)
    found = importances(study)
    content = {"layouts": len(study.complete), "importance": found}
    write_atomic(folder.importance, json.dumps(content, indent=2) + "\n")
    return Findings(dataclasses.replace(study, importance=found))
