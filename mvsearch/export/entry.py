"""From the front of a study to entries of the model library: layout, weights, configuration, card."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambavision.layout import HybridLayout
from mambavision.library import free_folder, library_root, save_entry
from mvsearch.analysis.calibration import RED
from mvsearch.analysis.findings import Findings
from mvsearch.export.card import card
from mvsearch.export.weights import CONFIRMED, RETRAINED, SEARCHED, Weights, kept_weights, retrained_weights
from mvsearch.study.data import StudyData
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder
from mvsearch.study.front import PICKS
from mvsearch.study.record import TrialRecord


@dataclass(frozen=True)
class ExportedEntry:
    """One entry of the model library that an export has written.

    Attributes:
        name: what `mambavision.create_model` takes.
        folder: the entry's folder.
        record: the trial it came from.
        weights: what was written.
    """

    name: str
    folder: Path
    record: TrialRecord
    weights: Weights


def export(
    folder: StudyFolder,
    findings: Findings,
    which: str,
    *,
    name: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    kind: str | None = None,
    retrain_epochs: int | None = None,
    onnx: bool = False,
) -> list[ExportedEntry]:
    """Write library entries from a study.

    Args:
        folder: of the study.
        findings: what was measured.
        which: ``"knee"``, ``"fastest"``, ``"most-accurate"``, ``"all"`` (the whole front), or a layout's key.
        name: of the entry; default the study's name and the layout's key. Not with ``"all"``.
        overwrite: replace entries of the same name.
        force: export although the calibration's verdict is red.
        kind: ``"searched"`` or ``"confirmed"``; None: confirmed where there are such, else searched.
        retrain_epochs: train the layouts anew for so many epochs, and export those weights.
        onnx: also write ``model.onnx`` into the entry.

    Raises:
        StudyError: nothing to export, an unknown key (the nearest is named), weights that were not kept, a red verdict
            without `force`, a busy study, or data that have changed.
        LibraryError: a name that is not allowed or taken.
        ExportError: the model cannot be written as ONNX, or a package for it is missing.
        TrainingError, TrainingDiverged, KeyboardInterrupt, SystemExit: of a retraining.
    """
    study = findings.study
    chosen = _choose(findings, which)
    if kind not in (None, SEARCHED, CONFIRMED):
        raise StudyError(f"weights: {kind!r} is not allowed; {SEARCHED} or {CONFIRMED}")
    if retrain_epochs is not None and (type(retrain_epochs) is not int or retrain_epochs < 1):
        raise StudyError(f"retrain: {retrain_epochs!r} is not allowed; a number of epochs, 1 or more")
    if retrain_epochs is not None and kind is not None:
        raise StudyError(f"weights: {kind} and --retrain exclude each other; an entry has one set of weights")
    if findings.calibration and findings.calibration.verdict == RED and not force:
        low = findings.calibration.tau.low if findings.calibration.tau else float("nan")
        raise StudyError(
            f"{study.name}: its calibration is red (the lower end of Kendall's tau is {low:.2f}, below 0.2): the proxy "
            "does not rank layouts as long training does. Lengthen the proxy and search again, or export with --force"
        )
    if name is not None and len(chosen) > 1:
        raise StudyError(f"name: {name!r} cannot name {len(chosen)} entries; leave it out, or pick one layout")
    names = [name or f"{study.name[: 99 - len(record.key)]}-{record.key}" for record in chosen]
    taken = [entry for entry in names if (library_root() / entry).exists()]
    if taken and not overwrite:
        raise StudyError(f"name: {taken[0]!r} exists already in {library_root()}; choose another, or --overwrite it")
    for entry in names:
        free_folder(entry, overwrite=overwrite)
    if onnx:
        from mambavision.onnx_export import check_packages

        check_packages()
    # Everything is read (or trained) before anything is written, so that `all` is not left half done.
    if retrain_epochs is None:
        weights = [kept_weights(folder, findings, record, kind) for record in chosen]
    else:
        weights = retrained_weights(folder, study, chosen, retrain_epochs)
    from safetensors.torch import load

    exported = []
    for entry, record, own in zip(names, chosen, weights, strict=True):
        layout, state = HybridLayout.from_dict(record.layout), load(own.data)
        config = entry_config(findings, record, own)
        path = save_entry(
            entry,
            layout,
            state,
            num_classes=study.classes,
            in_chans=study.environment["data"]["channels"],
            config=config,
            card=card(findings, record, entry, own, onnx=onnx),
            overwrite=overwrite,
            complete=_write_onnx(layout, state, study, config["input_size"][1]) if onnx else None,
        )
        exported.append(ExportedEntry(entry, path, record, own))
    return exported


def _write_onnx(layout: HybridLayout, state: dict[str, Any], study: StudyData, size: int) -> Callable[[Path], object]:
    from mambavision import MambaVision, export_onnx

    model = MambaVision(layout, num_classes=study.classes, in_chans=study.environment["data"]["channels"])
    model.load_state_dict(state)
    return lambda folder: export_onnx(model.eval(), folder / "model.onnx", size)


def _choose(findings: Findings, which: str) -> list[TrialRecord]:
    study, front = findings.study, findings.study.front
    if not front:
        raise StudyError(f"{study.name}: no layout has been trained in full yet, so there is nothing to export")
    by_key = {record.key: record for record in study.complete}
    if which == "all":
        return front
    if which in PICKS:
        return [findings.picks[which]]
    if which in by_key:
        return [by_key[which]]
    near = difflib.get_close_matches(which, [*PICKS, "all", *by_key], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise StudyError(f"pick: {which!r} is neither {', '.join(PICKS)}, all, nor the key of a complete layout.{hint}")


_NAMES = {SEARCHED: "short proxy", CONFIRMED: "short proxy, confirmed", RETRAINED: "retrained"}


def entry_config(findings: Findings, record: TrialRecord, weights: Weights) -> dict[str, Any]:
    """What config.json holds beside the layout."""
    study = findings.study
    proxy, data = study.config["proxy"], study.environment["data"]
    fresh = findings.confirmation.layout(record.key) if findings.confirmation else None
    judged = findings.calibration
    results = {
        "val_top1": weights.val_top1,
        "val_nll": weights.val_nll,
        "test_top1": weights.test_top1,
        "test_nll": weights.test_nll,
        "seed": weights.seed,
        "epochs": weights.epochs,
        "seeds_in_mean": len(record.seeds),
        "mean_top1": record.top1,
        "mean_nll": record.nll,
        "params": record.params,
        "macs": record.macs,
        "images_per_second": record.images_per_second,
        "ratio": record.ratio,
    }
    return {
        # As deployed: with a proxy stride of its own, the proxy saw smaller images and the same tokens.
        "input_size": [data["channels"], *[study.deployed_image_size] * 2],
        "mean": data["mean"],
        "std": data["std"],
        "classes": data["class_names"],
        "weights": _NAMES[weights.kind],
        "study": study.name,
        "key": record.key,
        "proxy": proxy,
        "data": {name: data[name] for name in ("name", "fingerprint", "licence", "train_images", "val_images")},
        "results": results,
        "confirmed": fresh
        and {"seeds": len(fresh.test.top1s), "test_top1": list(fresh.test.top1s), "test_images": fresh.test.images},
        "calibration": judged
        and {"verdict": judged.verdict, "tau": judged.tau and [judged.tau.low, judged.tau.tau, judged.tau.high]},
    }
