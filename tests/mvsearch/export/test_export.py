"""What an export says and refuses; that its weights load is in the slow tests."""

from __future__ import annotations

import dataclasses

import pytest
import study_factory
from study_factory import calibrated, confirmed

from mambavision.layout import HybridLayout
from mvsearch.analysis.findings import Findings
from mvsearch.config.sections import StudyConfig
from mvsearch.export.card import card
from mvsearch.export.entry import entry_config, export
from mvsearch.export.weights import Weights, searched_weights
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder

DATA = {
    "name": "digits",
    "fingerprint": "f00dfeed",
    "classes": 10,
    "channels": 1,
    "train_images": 2560,
    "val_images": 1000,
    "class_names": list("0123456789"),
    "mean": [0.5],
    "std": [0.5],
    "licence": "CC BY 4.0",
}


def as_stored(study):
    """A synthetic study with what environment.json and study.yaml of a real one hold besides."""
    environment = study.environment | {"data": DATA, "command": "mvsearch launch x"}
    environment["versions"] = environment["versions"] | {"mvsearch": "0.1.0"}
    config = study.config | {"proxy": study.config["proxy"] | {"stem_stride": None, "data": "digits"}}
    records = [dataclasses.replace(r, macs_scan=1) if r.state == "COMPLETE" else r for r in study.records]
    return dataclasses.replace(study, environment=environment, config=config, records=records)


def test_a_red_calibration_is_refused_without_force(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(tmp_path))
    study = as_stored(calibrated(16, lambda record: -record.nll))
    folder = StudyFolder(tmp_path / "study")
    with pytest.raises(StudyError, match=r"calibration is red .*below 0\.2.* --force"):
        export(folder, Findings(study), "knee")
    with pytest.raises(StudyError, match="its weights were not kept"):  # the next thing that is looked at
        export(folder, Findings(study), "knee", force=True)
    for good in (as_stored(calibrated(16, lambda record: record.nll)), as_stored(calibrated(11, lambda r: -r.nll))):
        with pytest.raises(StudyError, match="its weights were not kept"):
            export(folder, Findings(good), "knee")


def test_the_card_of_an_unconfirmed_winner_says_so():
    study = as_stored(calibrated(16, lambda record: -record.nll))
    record = study.front[0]
    text = card(Findings(study), record, "found", searched_weights(record, b""))
    assert text.startswith("**These are short-proxy weights**: 2,560 images of digits for 6 epochs at 32 px")
    assert "not confirmed with fresh seeds or on the test split" in text
    assert "| Test top-1 of these weights | not measured |" in text
    assert "Verdict red" in text
    assert "with `--force`" in text
    assert "Confirmed test top-1" not in text
    unjudged = as_stored(confirmed())
    assert "Not calibrated: " in card(Findings(unjudged), record, "found", searched_weights(record, b""))


def test_the_card_of_a_confirmed_winner_carries_its_test_accuracy_with_n_and_spread():
    study = as_stored(confirmed())
    record = study.front[0]
    fresh = Findings(study).confirmation.layout(record.key)
    weights = Weights(
        "confirmed",
        b"",
        6,
        700,
        fresh.val.top1s[0],
        fresh.val.nlls[0],
        1000,
        fresh.test.top1s[0],
        fresh.test.nlls[0],
        2000,
    )
    text = card(Findings(study), record, "found", weights, onnx=True)
    mean, sd = 100 * fresh.test.top1, 100 * fresh.test.top1_sd
    assert f"n = 3 fresh seeds, its test top-1 is {mean:.2f} % (mean, standard deviation {sd:.2f} points)" in text
    assert f"{mean:.2f} ± {sd:.2f} % (mean ± standard deviation of n = 3 fresh seeds, 2,000 images)" in text
    assert "not confirmed" not in text
    assert "`mvsearch confirm synthetic-again`" in text
    assert "model.onnx" in text
    config = entry_config(Findings(study), record, weights)
    assert config["confirmed"] == {"seeds": 3, "test_top1": list(fresh.test.top1s), "test_images": 2000}
    assert (config["weights"], config["calibration"]) == ("short proxy, confirmed", None)
    assert config["results"]["test_top1"] == fresh.test.top1s[0]


def test_the_card_of_retrained_weights_says_how_they_were_chosen():
    study = as_stored(confirmed())
    record = study.front[0]
    weights = Weights("retrained", b"", 40, 900, 0.9, 0.3, 1000, 0.88, 0.35, 2000, best_epoch=37)
    text = card(Findings(study), record, "found", weights)
    assert text.startswith("**These weights were trained anew**: 2,560 images of digits for 40 epochs at 32 px")
    assert "of the best epoch, 37, chosen on these same images" in text
    assert "| Test top-1 of these weights | 88.00 % (NLL 0.3500, one seed, n = 2,000 images) |" in text
    assert f"--pick {record.key} --retrain 40`" in text


def test_front_csv_says_how_sure_it_is():
    from mvsearch.report import front_table

    judged = calibrated(16, lambda record: record.nll)
    table = front_table(Findings(judged))
    assert set(table["verdict"]) == {"green"}
    assert set(table["tau"]) == {1.0}
    assert table["test_top1"].isna().all()
    fresh = confirmed()
    table = front_table(Findings(fresh))
    assert set(table["verdict"]) == {"not calibrated"}
    for row in table.itertuples():
        one = Findings(fresh).confirmation.layout(row.key)
        assert (row.test_top1, row.test_top1_sd, row.confirmed_seeds) == (one.test.top1, one.test.top1_sd, 3)
        assert row.standing == Findings(fresh).standings[row.key].verdict


@pytest.mark.parametrize("stride", [None, 1, 4])
@pytest.mark.parametrize("size", [None, 48])
def test_a_stored_study_tells_the_size_and_stride_that_its_configuration_meant(stride, size):
    config = StudyConfig.model_validate(
        {
            "name": "x",
            "layout": {"stem_stride": 2, "width": 16, "stages": [{"blocks": "MA", "depth": 2, "dim": 1}]},
            "proxy": {"image_size": 32, "stem_stride": stride},
            "timing": {"image_size": size},
        }
    )
    stored = dataclasses.replace(study_factory.study(), config=config.resolved())
    layout = HybridLayout.from_dict(stored.complete[0].layout).override(stem_stride=2)
    assert stored.deployed_image_size == config.deployed_image_size == (size or 32)
    assert stored.trained_stride(layout.to_dict()) == config.proxy.as_trained(layout).stem_stride == (stride or 2)
