"""The card of an entry."""

from __future__ import annotations

from mambavision.card import train_further
from mambavision.layout import LETTERS
from mvsearch.analysis.calibration import RED
from mvsearch.analysis.findings import Findings
from mvsearch.export.weights import CONFIRMED, RETRAINED, SEARCHED, Weights
from mvsearch.report.sentences import calibration_words
from mvsearch.report.words import percent, plural, scaled, with_error
from mvsearch.study.data import StudyData
from mvsearch.study.record import TrialRecord


def card(findings: Findings, record: TrialRecord, name: str, weights: Weights, *, onnx: bool = False) -> str:
    """The entry's card, Markdown. Its first line says what the weights are."""
    study = findings.study
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
    trained_stride = study.trained_stride(record.layout)
    stride = f", stem_stride={trained_stride}" if trained_stride != record.layout["stem_stride"] else ""
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
        f"{trained_stride}, to which the accuracy above belongs.\n\n"
        if stride
        else ""
    )
    deployed = study.deployed_image_size
    return f"""{head}

# {name}

{_confirmed_words(findings, record)}

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
{_confirmed_row(findings, record)}| Parameters | {record.params:,} |
| MACs an image at {deployed} px | {scaled(record.macs)} (scan not counted: {scaled(record.macs_scan)} more) |
| Throughput | {speed} |
| Timed on | {study.device}, scan path {study.scan}, batch {timing["batch_size"]}, {deployed} px |

{proxy_note}## Trust

{_trust_words(findings)}

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


def _confirmed_words(findings: Findings, record: TrialRecord) -> str:
    study = findings.study
    fresh = findings.confirmation.layout(record.key) if findings.confirmation else None
    if fresh is None:
        return f"Found by the search `{study.name}` of mvsearch; not confirmed with fresh seeds or on the test split."
    spread = f", standard deviation {100 * fresh.test.top1_sd:.2f} points" if fresh.test.top1_sd is not None else ""
    return (
        f"Found by the search `{study.name}` of mvsearch and confirmed: trained again as in the search with "
        f"n = {len(fresh.test.top1s)} fresh seeds, its test top-1 is {percent(fresh.test.top1, 2)} (mean{spread})."
    )


def _confirmed_row(findings: Findings, record: TrialRecord) -> str:
    study = findings.study
    fresh = findings.confirmation.layout(record.key) if findings.confirmation else None
    if fresh is None:
        return ""
    return (
        f"| Confirmed test top-1, {plural(study.setting('proxy', 'epochs'), 'epoch')} | "
        f"{with_error(fresh.test.top1, fresh.test.top1_sd, 2)} (mean ± standard deviation of "
        f"n = {len(fresh.test.top1s)} fresh seeds, {fresh.test.images:,} images) |\n"
    )


def _trust_words(findings: Findings) -> str:
    study = findings.study
    found = findings.calibration
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
