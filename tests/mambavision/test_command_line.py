"""`mambavision list`, `show` and `train` as a person uses them, and bad input."""

from __future__ import annotations

import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from layouts import three_stages
from pictures import draw
from safetensors.torch import load_file
from typer.testing import CliRunner

from mambavision import create_model
from mambavision.card import train_further
from mambavision.cli import app
from mambavision.data import RANDAUGMENT
from mambavision.fine_tuning import FineTuneOptions
from mambavision.library import SHIPPED, library_root, list_models, load_entry_config, save_entry
from mambavision.model import MambaVision
from mambavision.training import Trainer, read_checkpoint

CONFIG = {"input_size": [3, 16, 16], "mean": [0.3] * 3, "std": [0.2] * 3}


def entry(name: str = "small", width: int = 10, **config: Any) -> MambaVision:
    torch.manual_seed(0)
    model = MambaVision(three_stages(), num_classes=width)
    card = f"card of {name}\n\n{train_further(name)}"
    save_entry(name, model.layout, model.state_dict(), num_classes=width, in_chans=3, config=CONFIG | config, card=card)
    return model


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw(tmp_path / "pictures" / "train", 8)
    draw(tmp_path / "pictures" / "val", 4)
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, line: str, code: int = 0) -> Any:
    arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", ["mambavision", *arguments])
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


QUICK = "--batch-size 8 --workers 0 --lr 0.004"


def test_list_and_show(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    entry()
    library_root().joinpath("broken").mkdir()
    library_root().joinpath("broken", "config.json").write_text("{")
    lines = call(monkeypatch, "list").output.splitlines()
    assert [line.split()[0] for line in lines[1:] if "×" in line or "damaged" in line] == list_models()
    assert re.search(
        r"mambavision_t +31.8 M +3 × 224 × 224 +– +C │ C C C │ M M M M A A A A │ M M A A", "\n".join(lines)
    )
    assert re.search(r"broken .*damaged .*cannot be read", "\n".join(lines))
    assert lines[-1] == "Next: mambavision show broken"
    shown = call(monkeypatch, "show mambavision_t --html diagram.html").output
    assert "31,794,248 parameters, 4.56 G MACs at 3 × 224 × 224" in shown
    assert re.search(r"stage 3 +MMMMAAAA +320 × 14 × 14 +14 +8 +8 +10.9 M +1.96 G", shown)
    assert "plotly" in (folder / "diagram.html").read_text()
    own = call(monkeypatch, "show small --image-size 32").output
    assert "card of small" in own
    assert re.search(r"stage 2 +MA +16 × 8 × 8", own)


def test_help_and_list_import_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['mambavision', {!r}]\nfrom mambavision.cli import main\ntry: main()\n"
        "except SystemExit: pass\nassert not {{'torch', 'timm', 'plotly'}} & set(sys.modules), sys.modules.keys()"
    )
    for verb in ("--help", "list"):
        subprocess.run([sys.executable, "-c", code.format(verb)], check=True, capture_output=True)


def test_train_augments_as_the_loaders_do() -> None:
    assert FineTuneOptions.randaugment == RANDAUGMENT


def test_an_entry_is_trained_and_saved(monkeypatch: pytest.MonkeyPatch, pictures: Path, folder: Path) -> None:
    start = entry()
    line = f"train small --data {pictures} --epochs 4 {QUICK} --randaugment none --name pets --ema 0.5 --mixup 0.1"
    lines = call(monkeypatch, line).output.splitlines()
    assert lines[0].startswith(
        "small from the weights of small: 24 training and 12 validation images in 3 classes, batch 8"
    )
    assert [one.split("  ")[0] for one in lines[1:5]] == [f"epoch {n} of 4" for n in (1, 2, 3, 4)]
    best = re.fullmatch(r"Best: epoch (\d).*, top-1 (.*) % of 12 validation images", lines[5])
    assert best
    assert float(best[2]) > 60, "three colours"
    assert lines[-1] == 'Next: mambavision show pets, or mambavision.create_model("pets", pretrained=True)'
    saved = create_model("pets", pretrained=True)
    weights = load_file(folder / "trained" / "small" / "best.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in saved.state_dict().items())
    # It began from the entry's weights: it is nearer to them than to a fresh start.
    fresh = MambaVision(three_stages(), num_classes=3)
    far = [
        sum((saved.levels[0].blocks[0].conv1.weight - m.levels[0].blocks[0].conv1.weight).pow(2).sum() for m in [o])
        for o in (start, fresh)
    ]  # type: ignore[index,union-attr,operator]
    assert far[0] < 0.5 * far[1]
    config = load_entry_config("pets")
    assert config["classes"] == ["cat", "dog", "owl"]
    assert config["mean"] == [0.3] * 3
    card = (library_root() / "pets" / "card.md").read_text()
    assert card.startswith("**Trained on images of one's own**: 24 images in 3 classes for 4 epochs at 16 × 16 px")
    assert f"`mambavision {line}`" in card
    assert "mambavision train pets --data PATH" in card
    call(monkeypatch, line + " --overwrite")
    done = call(monkeypatch, line, 2)
    assert "'pets' exists already" in done.output
    again = call(monkeypatch, f"train small --data {pictures} --epochs 4 {QUICK} --ema 0.5 --randaugment none", 2)
    assert "is of another training (mixup" in again.output
    assert "--no-resume" in again.output


def test_a_shipped_layout_is_trained_from_fresh_weights(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    monkeypatch.setitem(SHIPPED, "tiny", SHIPPED["mambavision_t"] | {"layout": three_stages().to_dict()})
    line = f"train tiny --data {pictures} --epochs 1 {QUICK} --image-size 16 --mixup 0 --ema 0 --schedule constant"
    output = call(monkeypatch, line).output
    assert output.startswith("tiny from fresh weights")
    assert "Next: the same command with --name NEW" in output


def test_other_classes_get_a_fresh_classifier(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    # What training begins with, in three cases: as many classes of the same names, of other names, from scratch.
    begun = []

    def train(self: Trainer, num_epochs: int) -> None:
        begun.append({name: value.clone() for name, value in self.model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", train)
    weights = {
        n: entry(n, 3, classes=c).state_dict() for n, c in (("a", ["cat", "dog", "owl"]), ("b", ["x", "y", "z"]))
    }
    for line in ("a", "b", "a --from-scratch --seed 5"):
        call(monkeypatch, f"train {line} --data {pictures} --epochs 1 {QUICK}", 130)
    first, head = "levels.0.blocks.0.conv1.weight", "head.weight"
    assert torch.equal(begun[0][first], weights["a"][first])
    assert torch.equal(begun[0][head], weights["a"][head])
    assert torch.equal(begun[1][first], weights["b"][first])
    assert not torch.equal(begun[1][head], weights["b"][head])
    assert not torch.equal(begun[2][head], weights["a"][head])


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, pictures: Path, folder: Path) -> None:
    entry()
    line = f"train small --data {pictures} --epochs 3 {QUICK} --no-resume"
    update = Trainer._update

    def interrupted(self: Trainer, epoch: int, group: list[Any]) -> None:
        update(self, epoch, group)
        if self.step == 5:
            os.kill(os.getpid(), kind)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    kind = signal.SIGTERM
    call(monkeypatch, line, 143)
    kind = signal.SIGINT
    done = call(monkeypatch, line, 130)
    going_on = f"train small --data {pictures} --epochs 3 {QUICK}"
    assert done.output.splitlines()[-1] == f"Stopped. To go on: mambavision {going_on}"
    assert read_checkpoint(folder / "trained" / "small" / "checkpoint.pt")["step"] == 5
    assert "going on after update 5 (1 of 3 epochs done)" in call(monkeypatch, going_on).output


def test_other_options_are_refused_and_named(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    entry()
    line = f"train small --data {pictures} --epochs 2 {QUICK}"
    call(monkeypatch, line)
    for changed, message in (
        ("--epochs 3", r"\(scheduler.t_initial: 6 there, 9 here: .*On the command line: --epochs"),
        ("--randaugment none", r"\(train_data.randaugment: 'rand-m9.*' there, None here\).*: --randaugment"),
        ("--image-size 32", r"\(train_data.input_size: \[3, 16, 16\] there, \[3, 32, 32\] here\).*: --image-size"),
        ("--smoothing 0.3", r"\(mixup.label_smoothing: 0.1 there, 0.3 here\).*--smoothing"),
        ("--batch-size 4", r"\(train_loader.batch_size: 8 there, 4 here\).*--batch-size"),
        ("--clip-norm 1", r"\(clip_norm: 5.0 there, 1.0 here\).*--clip-norm"),
    ):
        said = call(monkeypatch, f"{line} {changed}", 2).stderr.strip().splitlines()
        assert len(said) == 1
        assert re.search(message, said[0]), said
    assert "all 2 epochs were done before" in call(monkeypatch, line).output


def test_a_diagram_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "page.html").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        done = call(monkeypatch, "show mambavision_t --html page.html", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.stderr.strip() == "error: page.html: cannot be written (File too large)"
    assert (folder / "page.html").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["page.html"]
    for path, reason in (("no/page.html", "No such file or directory"), ("x" * 300, "File name too long")):
        done = call(monkeypatch, f"show mambavision_t --html {path}", 1)
        assert done.stderr.strip() == f"error: {path}: cannot be written ({reason})"


def test_a_full_disk_while_training_names_the_file(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    entry()

    def full(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    done = call(monkeypatch, f"train small --data {pictures} --epochs 1 {QUICK}", 1)
    assert done.stderr.startswith("error: trained/small/checkpoint.pt: cannot be written (PytorchStreamWriter failed")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("show mambavision_tt", "no model 'mambavision_tt'.*Did you mean 'mambavision_t"),
        ("show ../x", "name: '../x' is not allowed"),
        ("show small --image-size 0", "image_size: 0 is not allowed; a whole number, 1 or more"),
        ("train smal --data DATA --epochs 1", "no model 'smal'.*Did you mean 'small'"),
        ("train small --data nowhere --epochs 1", "'nowhere' is not a folder"),
        ("train small --data DATA --epochs 0", "epochs: 0 is not allowed; a whole number, 1 or more"),
        ("train small --data DATA --epochs 1 --batch-size 1", "batch_size: 1 is not allowed"),
        ("train small --data DATA --epochs 1 --accumulate 0", "accumulate: 0 is not allowed"),
        ("train small --data DATA --epochs 1 --lr -1", "lr: -1.0 is not allowed; a number from 0 to 1000"),
        ("train small --data DATA --epochs 1 --mixup -1", "mixup: -1.0 is not allowed; a number from 0 to 100"),
        ("train small --data DATA --epochs 1 --ema 2", "ema: 2.0 is not allowed"),
        ("train small --data DATA --epochs 1 --randaugment rand-x", "randaugment: 'rand-x' is not allowed"),
        ("train small --data DATA --epochs 1 --seed -1", "seed: -1 is not allowed"),
        ("train small --data DATA --epochs 1 --workers -1", "workers: -1 is not allowed"),
        ("train small --data DATA --epochs 1 --device abacus", "device: 'abacus' is not allowed"),
        ("train small --data DATA --epochs 1 --name a/b", "name: 'a/b' is not allowed"),
        ("train small --data DATA --epochs 1 --name mambavision_t", "is a name of the library's own"),
        ("train small --data DATA --epochs 1 --name small", "'small' exists already"),
        ("train small --data DATA --epochs 1 --output file", "output: 'file' cannot be written; it is not a folder"),
        (
            "train small --data DATA --epochs 1 --output file/x",
            "output: 'file/x' cannot be written; '.*/file' is not a",
        ),
        (
            f"train small --data DATA --epochs 1 --output {'x' * 300}",
            "output: 'x+' cannot be written .File name too long",
        ),
        ("show latin", "latin/card.md: is not UTF-8 text"),
        ("train grown --data DATA --epochs 1", "grown: .*no valid layout"),
        ("train small --data DATA --epochs many", "--epochs"),
        ("train small --data DATA --epochs 1 --schedule linear", "--schedule"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, pictures: Path, folder: Path
) -> None:
    entry()
    entry("grown")
    entry("latin")
    (library_root() / "latin" / "card.md").write_bytes("Größe".encode("latin-1"))
    config = library_root() / "grown" / "config.json"
    config.write_text(config.read_text().replace('"blocks": "C"', '"blocks": "Z"'))
    (folder / "file").write_text("")
    done: Result = call(monkeypatch, line.replace("DATA", str(pictures)), 2)
    said = done.stderr.strip().splitlines()
    assert re.search(message, said[-1]), done.output
    assert len(said) == 1 or "Usage" in said[0]
    assert "Traceback" not in done.output
    assert sorted(path.name for path in folder.iterdir() if path.name != "pictures") == ["file"]


def test_a_broken_image_is_named_also_by_a_worker(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    entry()
    (pictures / "val" / "dog" / "0.png").write_bytes(b"no image")
    done = call(monkeypatch, f"train small --data {pictures} --epochs 1 --batch-size 8 --workers 1", 2)
    said = done.stderr.strip().splitlines()
    assert len(said) == 1
    assert re.search(r"error: data: cannot read .*dog/0.png", said[0])


def test_a_training_that_diverges_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    entry()
    monkeypatch.setattr("mambavision.training.trainer.train_step", lambda *_, **__: torch.tensor(math.nan))
    done = call(monkeypatch, f"train small --data {pictures} --epochs 9 {QUICK}", 1)
    assert done.stderr.strip() == "error: loss became nan in epoch 1, update 1 (learning rate 0.004)"


def test_the_cards_six_lines_run(pictures: Path, folder: Path) -> None:
    entry()
    card = (library_root() / "small" / "card.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    assert len(code.strip().splitlines()) == 6
    names: dict[str, Any] = {}
    exec(code.replace('"PATH"', repr(str(pictures))).replace("num_epochs=20", "num_epochs=1"), names)
    assert len(names["metrics"]["val_top1"]) == 1
    assert (folder / "small-further" / "best.safetensors").is_file()
