"""The card of an exported layout: what it says about training further is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pictures import draw

from mambavision.layout import HybridLayout
from mambavision.library import save_entry
from mambavision.model import MambaVision
from mvsearch.analysis.findings import Findings
from mvsearch.export.card import card
from mvsearch.export.entry import entry_config
from mvsearch.export.weights import searched_weights
from mvsearch.study.data import load_study
from mvsearch.study.folder import find_study

STUDIES = Path(__file__).parents[3] / "studies" / "reference"


def test_the_lines_of_a_real_card_train_the_entry_further(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study(find_study("fashion_mnist", STUDIES))
    record = min(study.front, key=lambda record: record.params)
    kept = searched_weights(record, b"")
    text = card(Findings(study), record, "found", kept)
    assert "`mambavision train found --data PATH --epochs 20`" in text
    layout = HybridLayout.from_dict(record.layout)
    channels = study.environment["data"]["channels"]
    weights = MambaVision(layout, num_classes=study.classes, in_chans=channels).state_dict()
    save_entry(
        "found",
        layout,
        weights,
        num_classes=study.classes,
        in_chans=channels,
        config=entry_config(Findings(study), record, kept),
        card=text,
    )
    section = text.partition("## Train further")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len(code.strip().splitlines()) == 6
    names = {}
    data = repr(str(draw(tmp_path / "images", 4, grey=True)))
    exec(code.replace('"PATH"', data).replace("num_epochs=20", "num_epochs=2"), names)
    assert names["metrics"]["epoch"] == [1, 2]
    assert names["model"].num_classes == 3
    # It began with the entry's weights: two updates at 0.001 move none of them far.
    moved = (
        names["model"].state_dict()["patch_embed.conv_down.0.weight"] - weights["patch_embed.conv_down.0.weight"]
    ).abs()
    assert 0 < moved.max() == pytest.approx(0, abs=0.01)
    assert torch.isfinite(torch.tensor(names["metrics"]["val_loss"])).all()
