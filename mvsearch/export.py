"""From the front of a study to entries of the model library: layout, weights, configuration, card."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mambavision.card import train_further
from mambavision.layout import LETTERS, HybridLayout
from mambavision.library import free_folder, library_root, save_entry
from mvsearch.front import PICKS, pick, point_of
from mvsearch.ledger import StudyError, driver_lock
from mvsearch.record import CONFIRM, TRAIN, TrialRecord
from mvsearch.report.data import StudyData
from mvsearch.report.sentences import calibration_words
from mvsearch.report.words import percent, plural, scaled, with_error
from mvsearch.study import StudyFolder
from mvsearch.trust import RED, fresh_seeds

SEARCHED, CONFIRMED, RETRAINED = "searched", "confirmed", "retrained"


@dataclass(frozen=True)
class Weights:
    """The weights of an entry, and what they reach.

    Attributes:
        kind: ``"searched"`` (the search's own, of its first seed), ``"confirmed"`` (of the first fresh seed of
            `mvsearch confirm`) or ``"retrained"`` (`mvsearch.retrain`).
        data: safetensors.
        epochs: trained for.
        seed: of that training.
        val_top1: 0 to 1.
        val_nll: nats.
        val_images: of the validation split; None where the ledger does not say.
        test_top1: 0 to 1; None where these weights were not measured on the test split.
        test_nll: nats.
        test_images: of the test split.
        best_epoch: of a retraining, the epoch whose weights these are, chosen on the validation split.
    """

    kind: str
    data: bytes = field(repr=False)
    epochs: int
    seed: int
    val_top1: float
    val_nll: float
    val_images: int | None = None
    test_top1: float | None = None
    test_nll: float | None = None
    test_images: int | None = None
    best_epoch: int | None = None


@dataclass(frozen=True)
class Exported:
    """One entry written.

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
    study: StudyData,
    which: str,
    *,
    name: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    kind: str | None = None,
    retrain_epochs: int | None = None,
    onnx: bool = False,
) -> list[Exported]:
    """Write library entries from a study.

    Args:
        folder: of the study.
        study: what was measured.
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
    chosen = _choose(study, which)
    if kind not in (None, SEARCHED, CONFIRMED):
        raise StudyError(f"weights: {kind!r} is not allowed; {SEARCHED} or {CONFIRMED}")
    if retrain_epochs is not None and (type(retrain_epochs) is not int or retrain_epochs < 1):
        raise StudyError(f"retrain: {retrain_epochs!r} is not allowed; a number of epochs, 1 or more")
    if retrain_epochs is not None and kind is not None:
        raise StudyError(f"weights: {kind} and --retrain exclude each other; an entry has one set of weights")
    if study.calibration and study.calibration.verdict == RED and not force:
        low = study.calibration.tau.low if study.calibration.tau else float("nan")
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
        weights = [_kept(folder, study, record, kind) for record in chosen]
    else:
        weights = _retrained(folder, study, chosen, retrain_epochs)
    from safetensors.torch import load

    exported = []
    for entry, record, own in zip(names, chosen, weights, strict=True):
        layout, state = HybridLayout.from_dict(record.layout), load(own.data)
        config = entry_config(study, record, own)
        path = save_entry(
            entry,
            layout,
            state,
            num_classes=study.classes,
            in_chans=study.environment["data"]["channels"],
            config=config,
            card=card(study, record, entry, own, onnx=onnx),
            overwrite=overwrite,
            complete=_write_onnx(layout, state, study, config["input_size"][1]) if onnx else None,
        )
        exported.append(Exported(entry, path, record, own))
    return exported


def _write_onnx(layout: HybridLayout, state: dict[str, Any], study: StudyData, size: int) -> Callable[[Path], object]:
    from mambavision import MambaVision, export_onnx

    model = MambaVision(layout, num_classes=study.classes, in_chans=study.environment["data"]["channels"])
    model.load_state_dict(state)
    return lambda folder: export_onnx(model.eval(), folder / "model.onnx", size)


def _choose(study: StudyData, which: str) -> list[TrialRecord]:
    front = study.front
    if not front:
        raise StudyError(f"{study.name}: no layout has been trained in full yet, so there is nothing to export")
    by_key = {record.key: record for record in study.complete}
    if which == "all":
        return front
    if which in PICKS:
        points = [point for record in front if (point := point_of(record, study.measure))]
        return [by_key[pick(points, which).key]]
    if which in by_key:
        return [by_key[which]]
    near = difflib.get_close_matches(which, [*PICKS, "all", *by_key], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise StudyError(f"pick: {which!r} is neither {', '.join(PICKS)}, all, nor the key of a complete layout.{hint}")


def _kept(folder: StudyFolder, study: StudyData, record: TrialRecord, kind: str | None) -> Weights:
    """Weights that the study has: those of `confirm` where there are such (and others are not asked for)."""
    path = folder.confirmed_weights / f"{record.key}.safetensors"
    fresh = study.confirmation.of(record.key) if study.confirmation else None
    if kind != SEARCHED and fresh and path.is_file():
        seed = fresh_seeds(CONFIRM, study.setting("search", "seed", default=0), 1)[0]
        return Weights(
            kind=CONFIRMED,
            data=path.read_bytes(),
            epochs=int(study.setting("proxy", "epochs")),
            seed=seed,
            val_top1=fresh.val.top1s[0],
            val_nll=fresh.val.nlls[0],
            val_images=fresh.val.images,
            test_top1=fresh.test.top1s[0],
            test_nll=fresh.test.nlls[0],
            test_images=fresh.test.images,
        )
    if kind == CONFIRMED:
        raise StudyError(f"{record.key}: has no confirmed weights; run `mvsearch confirm {study.name}` first")
    path = folder.weights / f"{record.key}.safetensors"
    if not path.is_file():
        raise StudyError(
            f"{record.key}: its weights were not kept ({path} is missing); a study keeps those of its front and of the "
            "hand-made baselines"
        )
    return searched_weights(record, path.read_bytes())


def searched_weights(record: TrialRecord, data: bytes) -> Weights:
    """The weights that the search kept: the first seed's."""
    seed = min(record.seeds)
    line = next(e for e in record.evaluations if e.what == TRAIN and e.seed == seed and e.to_epoch == record.epochs)
    return Weights(
        kind=SEARCHED,
        data=data,
        epochs=record.epochs,
        seed=seed,
        val_top1=line.values["top1"],
        val_nll=line.values["nll"],
        val_images=line.values.get("val_images"),
    )


def _retrained(folder: StudyFolder, study: StudyData, records: list[TrialRecord], epochs: int) -> list[Weights]:
    from mvsearch.config import load_config
    from mvsearch.launch import load_study_data
    from mvsearch.repeat import same_data
    from mvsearch.retrain import retrain

    found = []
    with driver_lock(folder.path):
        config = load_config(folder.config)
        data = load_study_data(config, test=True)
        same_data(study, data.fingerprint)
        for record in records:
            layout = HybridLayout.from_dict(record.layout)
            done = retrain(layout, config, data, epochs, folder.retrained / f"{record.key}-{epochs}")
            values = {name: value for name, value in asdict(done).items() if name != "folder"}
            found.append(Weights(kind=RETRAINED, data=done.weights(), **values))
    return found


_NAMES = {SEARCHED: "short proxy", CONFIRMED: "short proxy, confirmed", RETRAINED: "retrained"}


def entry_config(study: StudyData, record: TrialRecord, weights: Weights) -> dict[str, Any]:
    """What config.json holds beside the layout."""
    proxy, data = study.config["proxy"], study.environment["data"]
    fresh = study.confirmation.of(record.key) if study.confirmation else None
    judged = study.calibration
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
        "input_size": [data["channels"], *[study.config["timing"]["image_size"] or proxy["image_size"]] * 2],
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


def card(study: StudyData, record: TrialRecord, name: str, weights: Weights, *, onnx: bool = False) -> str:
    """The entry's card, Markdown. Its first line says what the weights are."""
    proxy, timing, data = study.config["proxy"], study.config["timing"], study.environment["data"]
    of = f"seed {weights.seed}" + (f", n = {weights.val_images:,} images" if weights.val_images else "")
    validated = f"{percent(weights.val_top1, 2)} (NLL {weights.val_nll:.4f}, {of})"
    if weights.best_epoch is not None:
        validated += f"; of the best epoch, {weights.best_epoch}, chosen on these same images"
    tested = (
        f"{percent(weights.test_top1, 2)} (NLL {weights.test_nll:.4f}, one seed, n = {weights.test_images:,} images)"
        if weights.test_top1 is not None
        else "not measured"
    )
    speed = f"{record.images_per_second:,.0f} img/s, {record.ratio:.3f} × the reference layout `{study.reference_key}`"
    images = f"{data['train_images']:,} training and {data['val_images']:,} validation images"
    spread = (
        f"mean of {len(record.seeds)} seeds {percent(record.top1)} (standard error {percent(record.top1_se)})"
        if len(record.seeds) > 1
        else f"{percent(record.top1)} (one seed, so there is no error bar)"
    )
    stages = "\n".join(
        f"| {number} | `{stage['blocks']}` | {stage['dim']} | "
        f"{stage['state'] if any(LETTERS[b].scans for b in stage['blocks']) else '–'} | "
        f"{stage['heads'] if any(LETTERS[b].attends for b in stage['blocks']) else '–'} | "
        f"{stage['window'] or 'whole map'} |"
        for number, stage in enumerate(record.layout["stages"], start=1)
    )
    used = "".join(stage["blocks"] for stage in record.layout["stages"])
    letters = ", ".join(f"{letter} {kind.name}" for letter, kind in LETTERS.items() if letter in used)
    stem = (
        f"Stem: patches of {record.layout['patch']} px."
        if record.layout["stem"] == "patch"
        else f"Stem: two 3×3 convolutions, stride {record.layout['stem_stride']}."
    )
    stride = (
        f", stem_stride={proxy['stem_stride']}"
        if proxy["stem_stride"] not in (None, record.layout["stem_stride"])
        else ""
    )
    size = proxy["image_size"]
    trained_on = f"{data['train_images']:,} images of {data['name']} for {plural(weights.epochs, 'epoch')} at {size} px"
    head = {
        SEARCHED: f"**These are short-proxy weights**: {trained_on}, to rank layouts. Train further before use.",
        CONFIRMED: f"**These are short-proxy weights**, of the first fresh seed of `mvsearch confirm`: {trained_on}, "
        "to rank layouts. Train further before use.",
        RETRAINED: f"**These weights were trained anew**: {trained_on}, by the search's recipe with a cosine schedule.",
    }[weights.kind]
    proxy_note = (
        f"The layout is deployed with stem stride {record.layout['stem_stride']}; the proxy was trained with "
        f"{proxy['stem_stride']}, to which the accuracy above belongs.\n\n"
        if stride
        else ""
    )
    deployed = timing["image_size"] or size
    return f"""{head}

# {name}

{_confirmed_words(study, record)}

| stage | blocks | width | state | heads | window |
|--:|---|--:|--:|--:|---|
{stages}

{stem} Blocks: {letters}.

## Numbers

| | |
|---|---|
| Validation top-1 of these weights | {validated} |
| Test top-1 of these weights | {tested} |
| Validation top-1 in the search | {spread} |
{_confirmed_row(study, record)}| Parameters | {record.params:,} |
| MACs an image at {deployed} px | {scaled(record.macs)} (scan not counted: {scaled(record.macs_scan)} more) |
| Throughput | {speed} |
| Timed on | {study.device}, scan path {study.scan}, batch {timing["batch_size"]}, {deployed} px |

{proxy_note}## Trust

{_trust_words(study)}

## Data

{data["name"]} (fingerprint {data["fingerprint"]}): {images}. Licence: {data["licence"]}

## Use

```python
import torch, mambavision
from mambavision.library import load_entry_config
config = load_entry_config("{name}")
model = mambavision.create_model("{name}", pretrained=True{stride}).eval()
mean, std = (torch.tensor(config[part]).view(1, -1, 1, 1) for part in ("mean", "std"))
logits = model((images_uint8.float() / 255 - mean) / std)  # (B, {data["channels"]}, {size}, {size})
```

{_onnx_words(deployed) if onnx else ""}{train_further(name)}
## Reproduce

`{study.environment["command"]}`{_then(study, record, weights)} with mvsearch \
{study.environment["versions"]["mvsearch"]}, torch {study.environment["versions"]["torch"]}; layout key `{record.key}`.
"""


def _confirmed_words(study: StudyData, record: TrialRecord) -> str:
    fresh = study.confirmation.of(record.key) if study.confirmation else None
    if fresh is None:
        return f"Found by the search `{study.name}` of mvsearch; not confirmed with fresh seeds or on the test split."
    spread = f", standard deviation {100 * fresh.test.top1_sd:.2f} points" if fresh.test.top1_sd is not None else ""
    return (
        f"Found by the search `{study.name}` of mvsearch and confirmed: trained again as in the search with "
        f"n = {len(fresh.test.top1s)} fresh seeds, its test top-1 is {percent(fresh.test.top1, 2)} (mean{spread})."
    )


def _confirmed_row(study: StudyData, record: TrialRecord) -> str:
    fresh = study.confirmation.of(record.key) if study.confirmation else None
    if fresh is None:
        return ""
    return (
        f"| Confirmed test top-1, {plural(study.setting('proxy', 'epochs'), 'epoch')} | "
        f"{with_error(fresh.test.top1, fresh.test.top1_sd, 2)} (mean ± standard deviation of "
        f"n = {len(fresh.test.top1s)} fresh seeds, {fresh.test.images:,} images) |\n"
    )


def _trust_words(study: StudyData) -> str:
    found = study.calibration
    if found is None:
        return (
            "Not calibrated: whether the short training ranks layouts as a long one does was not measured "
            f"(`mvsearch calibrate {study.name}`)."
        )
    forced = " Exported in spite of it, with `--force`." if found.verdict == RED else ""
    return " ".join(calibration_words(found)) + forced


def _onnx_words(size: int) -> str:
    return (
        f"`model.onnx` beside this card is the same for onnxruntime: input `image`, normalised likewise, at "
        f"{size} × {size} px, any number of images; output `logits`.\n\n"
    )


def _then(study: StudyData, record: TrialRecord, weights: Weights) -> str:
    again = f"{study.name}-again"
    if weights.kind == CONFIRMED:
        return f", then `mvsearch confirm {again}`,"
    if weights.kind == RETRAINED:
        return f", then `mvsearch export {again} --pick {record.key} --retrain {weights.epochs}`,"
    return ""
