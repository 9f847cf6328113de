"""From the front of a study to entries of the model library: layout, weights, configuration, card."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambavision.card import train_further
from mambavision.layout import LETTERS, HybridLayout
from mambavision.library import library_root, save_entry
from mvsearch.front import PICKS, pick, point_of
from mvsearch.ledger import StudyError
from mvsearch.record import TRAIN, TrialRecord
from mvsearch.report.data import StudyData
from mvsearch.report.words import percent, plural, scaled
from mvsearch.study import StudyFolder


@dataclass(frozen=True)
class Exported:
    """One entry written.

    Attributes:
        name: what `mambavision.create_model` takes.
        folder: the entry's folder.
        record: the trial it came from.
    """

    name: str
    folder: Path
    record: TrialRecord


def export(
    folder: StudyFolder, study: StudyData, which: str, *, name: str | None = None, overwrite: bool = False
) -> list[Exported]:
    """Write library entries from a study.

    Args:
        folder: of the study.
        study: what was measured.
        which: ``"knee"``, ``"fastest"``, ``"most-accurate"``, ``"all"`` (the whole front), or a layout's key.
        name: of the entry; default the study's name and the layout's key. Not with ``"all"``.
        overwrite: replace entries of the same name.

    Raises:
        StudyError: nothing to export, an unknown key (the nearest is named), or weights that were not kept.
        LibraryError: a name that is not allowed or taken.
    """
    chosen = _choose(study, which)
    if name is not None and len(chosen) > 1:
        raise StudyError(f"name: {name!r} cannot name {len(chosen)} entries; leave it out, or pick one layout")
    # Everything is read before anything is written, so that `all` is not left half done for a missing file.
    contents = [(record, _weights(folder, record)) for record in chosen]
    from safetensors.torch import load

    names = [name or f"{study.name[: 99 - len(record.key)]}-{record.key}" for record in chosen]
    taken = [entry for entry in names if (library_root() / entry).exists()]
    if taken and not overwrite:
        raise StudyError(f"name: {taken[0]!r} exists already in {library_root()}; choose another, or --overwrite it")
    exported = []
    for entry, (record, weights) in zip(names, contents, strict=True):
        path = save_entry(
            entry,
            HybridLayout.from_dict(record.layout),
            load(weights),
            num_classes=study.classes,
            in_chans=study.environment["data"]["channels"],
            config=_config(study, record),
            card=card(study, record, entry),
            overwrite=overwrite,
        )
        exported.append(Exported(entry, path, record))
    return exported


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


def _weights(folder: StudyFolder, record: TrialRecord) -> bytes:
    path = folder.weights / f"{record.key}.safetensors"
    if not path.is_file():
        raise StudyError(
            f"{record.key}: its weights were not kept ({path} is missing); a study keeps those of its front and of the "
            "hand-made baselines"
        )
    return path.read_bytes()


def _trained(record: TrialRecord) -> dict[str, Any]:
    """Values of the training whose weights are kept: the first seed's."""
    seed = min(record.seeds)
    line = next(e for e in record.evaluations if e.what == TRAIN and e.seed == seed and e.to_epoch == record.epochs)
    return {"seed": seed, **line.values}


def _config(study: StudyData, record: TrialRecord) -> dict[str, Any]:
    proxy, data = study.config["proxy"], study.environment["data"]
    trained = _trained(record)
    return {
        # As deployed: with a proxy stride of its own, the proxy saw smaller images and the same tokens.
        "input_size": [data["channels"], *[study.config["timing"]["image_size"] or proxy["image_size"]] * 2],
        "mean": data["mean"],
        "std": data["std"],
        "classes": data["class_names"],
        "weights": "short proxy",
        "study": study.name,
        "key": record.key,
        "proxy": proxy,
        "data": {name: data[name] for name in ("name", "fingerprint", "licence", "train_images", "val_images")},
        "results": {
            "val_top1": trained["top1"],
            "val_nll": trained["nll"],
            "seed": trained["seed"],
            "seeds_in_mean": len(record.seeds),
            "mean_top1": record.top1,
            "mean_nll": record.nll,
            "params": record.params,
            "macs": record.macs,
            "images_per_second": record.images_per_second,
            "ratio": record.ratio,
        },
    }


def card(study: StudyData, record: TrialRecord, name: str) -> str:
    """The entry's card, Markdown. Its first line says what the weights are."""
    proxy, timing, data = study.config["proxy"], study.config["timing"], study.environment["data"]
    trained = _trained(record)
    validated = (
        f"{percent(trained['top1'], 2)} (NLL {trained['nll']:.4f}, seed {trained['seed']}, "
        f"n = {trained['val_images']:,} images)"
    )
    speed = f"{record.images_per_second:,.0f} img/s, {record.ratio:.3f} × the reference layout `{study.reference_key}`"
    images = f"{data['train_images']:,} training and {data['val_images']:,} validation images"
    spread = (
        f"mean of {len(record.seeds)} seeds {percent(record.top1)} (standard error {percent(record.top1_se)})"
        if len(record.seeds) > 1
        else "one seed, so there is no error bar"
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
    trained_on = (
        f"{data['train_images']:,} images of {data['name']} for {plural(proxy['epochs'], 'epoch')} at {size} px"
    )
    proxy_note = (
        f"The layout is deployed with stem stride {record.layout['stem_stride']}; the proxy was trained with "
        f"{proxy['stem_stride']}, to which the accuracy above belongs.\n\n"
        if stride
        else ""
    )
    deployed = timing["image_size"] or size
    return f"""**These are short-proxy weights**: {trained_on}, to rank layouts. Train further before use.

# {name}

Found by the search `{study.name}` of mvsearch; not confirmed with fresh seeds or on the test split.

| stage | blocks | width | state | heads | window |
|--:|---|--:|--:|--:|---|
{stages}

{stem} Blocks: {letters}.

## Numbers

| | |
|---|---|
| Validation top-1 of these weights | {validated} |
| Spread | {spread} |
| Parameters | {record.params:,} |
| MACs an image at {deployed} px | {scaled(record.macs)} (scan not counted: {scaled(record.macs_scan)} more) |
| Throughput | {speed} |
| Timed on | {study.device}, scan path {study.scan}, batch {timing["batch_size"]}, {deployed} px |

{proxy_note}## Data

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

{train_further(name)}
## Reproduce

`{study.environment["command"]}` with mvsearch {study.environment["versions"]["mvsearch"]}, torch \
{study.environment["versions"]["torch"]}; layout key `{record.key}`.
"""
