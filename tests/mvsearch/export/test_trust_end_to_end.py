"""A tiny real study on digits, as a person goes through it: launch, calibrate, confirm, export, retrain."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from command_line import mvsearch, wait_for_lines
from safetensors.numpy import load_file

from mvsearch.analysis.findings import Findings
from mvsearch.study.data import load_study
from mvsearch.study.folder import find_study
from mvsearch.study.ledger import read_evaluations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


TINY = [
    *("--set", "search.trials=12", "--set", "proxy.epochs=1", "--set", "proxy.train_images=64"),
    *("--set", "proxy.val_images=60", "--set", "timing.window_s=0.005", "--set", "timing.windows=2"),
    *("--set", "proxy.data=digits", "--set", "layout.width=8", "--set", "layout.stages.1.head_dim=8"),
    *("--set", "layout.stages.2.head_dim=8", "--set", "layout.in_dim=8", "--set", "layout.stages.1.depth=[2, 3]"),
    *("--set", "layout.stages.2.depth=2", "--set", "proxy.batch_size=32", "--set", "name=tiny"),
    *("--set", "proxy.warmup_epochs=0", "--set", "search.sampler=random"),
]


CALIBRATE = ["calibrate", "tiny", "--layouts", "12", "--workers", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the study, calibrated and confirmed; what the two said is in calibrate and confirm."""
    folder = tmp_path_factory.mktemp("trust")
    mvsearch("launch", "stagewise", *TINY, "--workers", 1, cwd=folder)
    ledger = folder / "studies/tiny/evaluations.jsonl"
    running = subprocess.Popen(
        [sys.executable, "-c", "from mvsearch.cli import main; main()", *CALIBRATE],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_lines(ledger, 24 + 10)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143, errors
    assert "To go on: mvsearch calibrate tiny --layouts 12 --workers 1" in errors
    done = mvsearch(*CALIBRATE, cwd=folder)
    (folder / "calibrate").write_text(done.stdout)
    done = mvsearch("confirm", "tiny", "--layouts", 3, "--seeds", 2, "--workers", 2, cwd=folder)  # with Ray
    (folder / "confirm").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def study(home):
    return load_study(find_study("tiny", home / "studies"))


def test_a_calibration_that_was_stopped_is_whole_and_says_its_verdict(home, study):
    lines = read_evaluations(home / "studies/tiny/evaluations.jsonl")
    assert len({line.identity for line in lines}) == len(lines)
    calibrated = [line for line in lines if line.purpose == "calibrate"]
    assert len(calibrated) == 12 * 2 * 4
    assert {line.conditions["train_images"] for line in calibrated} == {64}
    assert all("test_nll" not in line.values for line in calibrated)
    found = Findings(study).calibration
    assert (len(found.layouts), found.long_epochs) == (12, 4)
    said = (home / "calibrate").read_text()
    assert f"Verdict {found.verdict}" in said
    assert f"{found.tau.tau:.2f}".replace("-", "−") in said
    # Four times the epochs are better than one, for every layout: the trainings were real.
    assert all(one.long > one.proxy_again for one in found.layouts)
    assert f",{found.verdict}," in (home / "studies/tiny/front.csv").read_text()


def test_a_confirmation_measures_the_test_split_that_nothing_else_has_seen(home, study):
    lines = read_evaluations(home / "studies/tiny/evaluations.jsonl")
    confirmed = [line for line in lines if line.purpose == "confirm"]
    assert {line.values["test_images"] for line in confirmed} == {359}
    assert all(line.values["test_nll"] != line.values["nll"] for line in confirmed)
    assert all("test_nll" not in line.values for line in lines if line.purpose != "confirm")
    assert {line.seed for line in confirmed} == {700, 701}
    found = Findings(study).confirmation
    assert {one.key for one in found.layouts} >= {record.key for record in study.baselines}
    assert "Confirmed: top-1 of fresh trainings" in (home / "confirm").read_text()


# A process in which only torch, timm and what these need can be imported, besides mambavision.
ALONE = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch, timm, mambavision
name = sys.argv[1]
from mambavision.library import load_entry_config
model = mambavision.create_model(name, pretrained=True).eval()
by_timm = timm.create_model(name, pretrained=True).eval()
split = torch.load(sys.argv[2])
config = load_entry_config(name)
mean, std = (torch.tensor(config[part]).view(1, -1, 1, 1) for part in ("mean", "std"))
images = (split["images"].float() / 255 - mean) / std
with torch.inference_mode():
    logits = model(images)
    assert torch.equal(logits, by_timm(images))
print("top-1", (logits.argmax(1) == split["labels"]).float().mean().item())
trainer = mambavision.Trainer(mambavision.create_model(name, pretrained=True), [(images[:8], split["labels"][:8])])
trainer.train(num_epochs=1)
"""


ABSENT = {
    "mvsearch",
    "optuna",
    "ray",
    "pydantic",
    "pandas",
    "plotly",
    "sklearn",
    "scipy",
    "typer",
    "rich",
    "platformdirs",
}


def test_an_export_loads_where_only_torch_and_timm_are_and_gives_its_test_accuracy(home, study, tmp_path):
    import torch

    from mambavision.data import load_data

    library = tmp_path / "library"
    done = mvsearch(
        *("export", "tiny", "--pick", "most-accurate", "--name", "found", "--force", "--onnx"),
        cwd=home,
        MAMBAVISION_LIBRARY=str(library),
    )
    assert "Written:" in done.stdout
    assert {path.name for path in (library / "found").iterdir()} == {
        "card.md",
        "config.json",
        "model.onnx",
        "model.safetensors",
    }
    assert [path.name for path in library.iterdir()] == ["found"], "nothing of the making is left"
    config = json.loads((library / "found/config.json").read_text())
    assert config["weights"] == "short proxy, confirmed"
    data = load_data("digits", image_size=32, train_images=64, val_images=60)
    torch.save({"images": data.test.images, "labels": data.test.labels}, tmp_path / "test.pt")
    alone = subprocess.run(
        [sys.executable, "-c", ALONE.format(absent=ABSENT), "found", str(tmp_path / "test.pt")],
        env=os.environ | {"MAMBAVISION_LIBRARY": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    measured = float(re.search(r"^top-1 (\S+)$", alone.stdout, re.MULTILINE)[1])
    assert measured == pytest.approx(config["results"]["test_top1"], abs=1e-6)
    card = (library / "found/card.md").read_text()
    fresh = Findings(study).confirmation.layout(config["key"])
    assert f"n = 2 fresh seeds, its test top-1 is {100 * fresh.test.top1:.2f} %" in card
    searched = mvsearch(
        *("export", "tiny", "--pick", config["key"], "--name", "old", "--force", "--weights", "searched"),
        cwd=home,
        MAMBAVISION_LIBRARY=str(library),
    )
    assert "the search's weights after 1 epoch" in searched.stdout
    first, second = (load_file(library / name / "model.safetensors") for name in ("found", "old"))
    assert any((first[part] != second[part]).any() for part in first)


def test_an_onnx_export_that_fails_leaves_no_entry(home, tmp_path, monkeypatch):
    from mambavision import ExportError, onnx_export
    from mvsearch.export.entry import export

    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(tmp_path))
    monkeypatch.setattr(onnx_export, "_verify", lambda *arguments: (_ for _ in ()).throw(ExportError("differs")))
    folder = find_study("tiny", home / "studies")
    with pytest.raises(ExportError, match="differs"):
        export(folder, Findings(load_study(folder)), "knee", force=True, onnx=True)
    assert not list(tmp_path.iterdir())


def test_retraining_goes_on_after_a_kill_and_looks_at_the_test_split_once(home, tmp_path):
    library = str(tmp_path / "library")
    command = ["export", "tiny", "--pick", "knee", "--name", "long", "--force", "--retrain", "12"]
    running = subprocess.Popen(
        [sys.executable, "-c", "from mvsearch.cli import main; main()", *command],
        cwd=home,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MAMBAVISION_LIBRARY": library},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in running.stdout:
        if line.startswith("epoch 3 of 12"):
            break
    running.kill()
    running.communicate()
    assert not (tmp_path / "library").exists()
    (folder,) = (home / "studies/tiny/retrained").iterdir()
    assert not (folder / "result.json").exists()
    done = mvsearch(*command, cwd=home, MAMBAVISION_LIBRARY=library)
    assert "going on after update" in done.stdout
    assert "trained anew for 12 epochs" in done.stdout
    result = json.loads((folder / "result.json").read_text())
    config = json.loads((tmp_path / "library/long/config.json").read_text())
    assert (config["weights"], config["results"]["test_top1"]) == ("retrained", result["test_top1"])
    rows = (folder / "log.csv").read_text().splitlines()
    assert len(rows) == 13
    before = (folder / "result.json").stat().st_mtime_ns
    again = mvsearch(*command, "--overwrite", cwd=home, MAMBAVISION_LIBRARY=library)
    assert "epoch" not in again.stdout.partition("Written")[0]
    assert (folder / "result.json").stat().st_mtime_ns == before
