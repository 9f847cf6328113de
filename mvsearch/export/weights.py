"""The weights of an entry: the search's, those of `confirm`, or trained anew."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from mambavision.layout import HybridLayout
from mvsearch.analysis.findings import Findings
from mvsearch.config.seeds import seeds_for
from mvsearch.study.data import StudyData
from mvsearch.study.files import StudyError, driver_lock
from mvsearch.study.folder import StudyFolder, same_data
from mvsearch.study.record import CONFIRM, TRAIN, TrialRecord

SEARCHED, CONFIRMED, RETRAINED = "searched", "confirmed", "retrained"


@dataclass(frozen=True)
class Weights:
    """The weights of an entry, and what they reach.

    Attributes:
        kind: ``"searched"`` (the search's own, of its first seed), ``"confirmed"`` (of the first fresh seed of
            `mvsearch confirm`) or ``"retrained"`` (`mvsearch.evaluate.retrain`).
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


def kept_weights(folder: StudyFolder, findings: Findings, record: TrialRecord, kind: str | None) -> Weights:
    """The kept weights of a layout: those of `confirm` where there are such and `kind` does not ask for others.

    Raises:
        StudyError: if the weights that are asked for were not kept.
    """
    study = findings.study
    path = folder.confirmed_weights / f"{record.key}.safetensors"
    fresh = findings.confirmation.layout(record.key) if findings.confirmation else None
    if kind != SEARCHED and fresh and path.is_file():
        (seed,) = seeds_for(CONFIRM, study.setting("search", "seed", default=0), 1)
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


def retrained_weights(folder: StudyFolder, study: StudyData, records: list[TrialRecord], epochs: int) -> list[Weights]:
    """Weights of layouts trained anew for so many epochs, in the order given; a training that was stopped goes on.

    Raises:
        StudyError: if another driver runs the study, or its data have changed.
    """
    from mvsearch.driver.settings import study_config
    from mvsearch.evaluate.images import load_study_data
    from mvsearch.evaluate.retrain import retrain

    found = []
    with driver_lock(folder.path):
        config = study_config(folder)
        data = load_study_data(config, test=True)
        same_data(study.name, study.fingerprint, data.fingerprint)
        for record in records:
            layout = HybridLayout.from_dict(record.layout)
            done = retrain(layout, config, data, epochs, folder.retrained / f"{record.key}-{epochs}")
            values = {name: value for name, value in asdict(done).items() if name != "folder"}
            found.append(Weights(kind=RETRAINED, data=done.weights(), **values))
    return found
