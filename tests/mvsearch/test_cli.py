"""The command line as a person uses it: one tiny real study, then every verb on it, and bad input."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from command_line import mvsearch, wait_for_lines
from PIL import Image
from typer.testing import CliRunner

from mvsearch.cli import app

QUICK = [
    *("--set", "search.trials=6", "--set", "proxy.epochs=2", "--set", "proxy.train_images=320"),
    *("--set", "proxy.val_images=100", "--set", "timing.window_s=0.01", "--set", "timing.windows=2"),
    *("--set", "proxy.data=digits", "--set", "layout.width=[8, 12]", "--set", "layout.stages.1.head_dim=8"),
    *("--set", "layout.stages.2.head_dim=8", "--set", "layout.in_dim=8", "--set", "name=quick"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with one finished study in studies/quick, and the output of its launch."""
    folder = tmp_path_factory.mktemp("work")
    done = mvsearch("launch", "stagewise", *QUICK, "--workers", 1, cwd=folder)
    (folder / "output").write_text(done.stdout)
    return folder


def test_a_launch_shows_its_trials_its_front_and_what_to_type_next(home):
    output = (home / "output").read_text()
    assert "distinct layouts" in output
    assert "stage 2: 64, stage 3: 16" in output
    assert re.search(r"6 of 6 .*top-1", output)
    assert "Pareto front" in output
    assert output.strip().splitlines()[-1] == "Next: open studies/quick/report.html, or mvsearch export quick"
    folder = home / "studies" / "quick"
    assert {"study.yaml", "environment.json", "evaluations.jsonl", "trials.csv", "front.csv", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["scan"] == "loop"
    assert environment["versions"]["optuna"].startswith("5")
    assert re.fullmatch(r"[0-9a-f]{16}", environment["data"]["fingerprint"])
    assert len(environment["launches"]) == 1
    resolved = yaml.safe_load((folder / "study.yaml").read_text())
    assert (resolved["search"]["trials"], resolved["proxy"]["data"]) == (6, "digits")


def test_the_front_is_what_brute_force_finds_in_trials_csv(home):
    with (home / "studies/quick/trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "COMPLETE"]
    assert len(rows) == 6
    points = {row["key"]: (-float(row["nll"]), float(row["ratio"])) for row in rows}

    def dominated(point):
        return any(all(a >= b for a, b in zip(o, point, strict=True)) and o != point for o in points.values())

    expected = {key for key, point in points.items() if not dominated(point)}
    listed = mvsearch("front", "quick", "--format", "csv", cwd=home).stdout
    assert {row["key"] for row in csv.DictReader(listed.splitlines())} == expected
    assert {
        row["key"] for row in json.loads(mvsearch("front", "quick", "--format", "json", cwd=home).stdout)
    } == expected
    with (home / "studies/quick/front.csv").open() as file:
        assert {row["key"] for row in csv.DictReader(file)} == expected
    assert {row["key"] for row in rows if row["on_front"] == "True"} == expected
    assert all(row["epochs"] == "2" and int(row["images_seen"]) == 640 for row in rows)
    assert all(len(row["windows"].split(";")) == 2 for row in rows)


def test_the_same_command_goes_on_and_finds_everything_done(home):
    ledger = (home / "studies/quick/evaluations.jsonl").read_text()
    for name in ("evaluations.jsonl", "journal.log"):
        with (home / "studies/quick" / name).open("a") as file:
            file.write('{"torn": ')
    done = mvsearch("launch", "stagewise", *QUICK, "--workers", 1, cwd=home)
    assert "going on after 6 layouts" in done.stdout
    assert "evaluations.jsonl: its last 9 bytes were torn" in done.stdout
    assert "journal.log: its last 9 bytes were torn" in done.stdout
    assert (home / "studies/quick/evaluations.jsonl").read_text() == ledger
    more = mvsearch("launch", "stagewise", *QUICK, "--set", "search.trials=7", "--workers", 1, cwd=home)
    assert "7 of 7" in more.stdout
    lines = (home / "studies/quick/evaluations.jsonl").read_text()
    assert lines.startswith(ledger)
    assert len(lines.splitlines()) == 14


def test_other_settings_under_the_same_name_are_refused(home):
    done = mvsearch("launch", "stagewise", *QUICK, "--set", "proxy.epochs=3", "--workers", 1, cwd=home, check=False)
    assert done.returncode == 2
    assert "proxy.epochs = 2, and now it is 3" in done.stderr


def test_report_and_list(home):
    (home / "studies/quick/report.html").unlink()
    mvsearch("report", "quick", cwd=home)
    page = (home / "studies/quick/report.html").read_text()
    assert "<html" in page
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(?!data:)', page), (
        "the page needs nothing from outside"
    )
    assert re.search(r"quick +7 of 7 layouts", mvsearch("list", cwd=home).stdout)


LOADED = """
import json, sys, torch, mambavision
from mambavision.data import load_data
from mambavision.library import load_entry_config
name, = sys.argv[1:]
config = load_entry_config(name)
proxy = config["proxy"]
limits = {part: proxy[part] for part in ("image_size", "train_images", "val_images")}
data = load_data(proxy["data"], **limits)
assert data.fingerprint == config["data"]["fingerprint"]
model = mambavision.create_model(name, pretrained=True).eval()
mean, std = (torch.tensor(config[part]).view(1, -1, 1, 1) for part in ("mean", "std"))
with torch.inference_mode():
    logits = model((data.val.images.float() / 255 - mean) / std)
print((logits.argmax(1) == data.val.labels).float().mean().item(), config["results"]["val_top1"])
"""


@pytest.mark.slow
def test_an_exported_model_gives_its_recorded_accuracy_in_a_new_process(home, tmp_path):
    library = str(tmp_path / "library")
    done = mvsearch("export", "quick", "--pick", "most-accurate", cwd=home, MAMBAVISION_LIBRARY=library)
    (entry,) = (tmp_path / "library").iterdir()
    assert f'create_model("{entry.name}", pretrained=True)' in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED, entry.name],
        env=os.environ | {"MAMBAVISION_LIBRARY": library},
        capture_output=True,
        text=True,
        check=True,
    )
    measured, recorded = map(float, loaded.stdout.split())
    assert measured == pytest.approx(recorded, abs=1e-6)
    card = (entry / "card.md").read_text()
    assert card.splitlines()[0].startswith("**These are short-proxy weights**")
    again = mvsearch("export", "quick", "--pick", "most-accurate", cwd=home, check=False, MAMBAVISION_LIBRARY=library)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    everything = mvsearch("export", "quick", "--pick", "all", "--overwrite", cwd=home, MAMBAVISION_LIBRARY=library)
    front = json.loads(mvsearch("front", "quick", "--format", "json", cwd=home).stdout)
    assert everything.stdout.count("Written:") == len(front)
    key = front[0]["key"]
    mvsearch("export", "quick", "--pick", key, "--name", "mine", cwd=home, MAMBAVISION_LIBRARY=library)
    assert (tmp_path / "library" / "mine" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_search_over_parallel_blocks_ends_in_a_model(tmp_path):
    library = str(tmp_path / "library")
    stages = [f"layout.stages.{i}.blocks=MP" for i in (1, 2)]
    settings = [*QUICK[:-1], "name=side", *(part for stage in stages for part in ("--set", stage))]
    short = ["--set", "proxy.epochs=1", "--set", "proxy.train_images=64"]
    done = mvsearch("launch", "stagewise", *settings, *short, "--workers", 1, cwd=tmp_path)
    assert re.search(r"6 of 6 .*top-1", done.stdout)
    rows = list(csv.DictReader((tmp_path / "studies/side/trials.csv").open()))
    assert {row["baseline"] for row in rows} >= {"all Mamba", "all parallel", "last half"}
    assert {letter for row in rows for letter in row["pattern"]} == {*"CMP|"}
    assert "Stage 2: parallel share" in mvsearch("insight", "side", cwd=tmp_path).stdout
    assert "parallel share" in (tmp_path / "studies/side/report.html").read_text()
    key = next(row["key"] for row in rows if row["baseline"] == "all parallel")
    mvsearch("export", "side", "--pick", key, "--name", "side", cwd=tmp_path, MAMBAVISION_LIBRARY=library)
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED, "side"],
        env=os.environ | {"MAMBAVISION_LIBRARY": library},
        capture_output=True,
        text=True,
        check=True,
    )
    measured, recorded = map(float, loaded.stdout.split())
    assert measured == pytest.approx(recorded, abs=1e-6)
    assert "P Mamba and attention in parallel" in (tmp_path / "library/side/card.md").read_text()


@pytest.mark.parametrize("verb", [["--help"], ["list"], ["front", "quick"], ["launch", "--help"]])
def test_light_verbs_import_neither_torch_nor_the_configuration(home, verb):
    # Typer itself reads arguments with pydantic since 0.29, so pydantic is looked for through our module that needs it.
    code = (
        "import sys\nfrom mvsearch.cli import app\n"
        f"try: app({verb!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'mvsearch.config.sections', 'optuna', 'ray', 'timm', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_insight_of_a_small_study_says_that_it_is_small(monkeypatch, home):
    monkeypatch.chdir(home)
    done = CliRunner().invoke(app, ["insight", "quick"])
    assert done.exit_code == 0, done.output
    assert "not enough trials to say" in done.output
    assert "too few for a model" in done.output
    assert done.output.strip().splitlines()[-1] == "Next: mvsearch report quick, and its section Insight"
    rows = json.loads(CliRunner().invoke(app, ["insight", "quick", "--format", "json"]).stdout)
    assert {row["factor"] for row in rows} >= {"share", "placement"}
    assert {row["source"] for row in rows} == {None}


BAD = {
    "no such file": (["launch", "nowhere.yaml"], "nowhere.yaml"),
    "a directory": (["launch", "."], "."),
    "unknown key": (["launch", "stagewise", "--set", "search.trails=3"], "Did you mean 'trials'"),
    "wrong type": (["launch", "stagewise", "--set", "proxy.epochs=many"], "proxy.epochs"),
    "empty range": (["launch", "stagewise", "--set", "layout.width=[]"], "layout.width"),
    "impossible budget": (["launch", "stagewise", "--set", "budgets.params.max=10"], "budgets.params"),
    "too few tokens": (["launch", "stagewise", "--set", "layout.stem_stride=4"], "stage 3"),
    "a name that leaves studies": (["launch", "stagewise", "--set", "name=../../etc"], "name"),
    "absent data": (
        ["launch", "stagewise", "--set", "proxy.data=fashion_mnist", "--set", "proxy.root=nowhere"],
        "dataset-fashion-mnist",
    ),
    "no images": (["launch", "stagewise", "--set", "proxy.data=folder", "--set", "proxy.root=nowhere"], "nowhere"),
    "no GPU": (["launch", "stagewise", "--gpus-per-trial", "1", "--workers", "1"], "GPU"),
    "no workers": (["launch", "stagewise", "--workers", "0"], "workers"),
    "no timings": (["launch", "stagewise", "--timings", "nowhere.csv"], "nowhere.csv"),
    "no study": (["report", "nothing"], "nothing"),
    "no study for insight": (["insight", "nothing"], "nothing"),
    "no studies to compare": (["compare", "nothing", "else"], "nothing"),
    "one study to compare": (["compare", "nothing"], "two or more"),
    "no such design": (["launch", "stagewise", "--set", "search.design=ratio"], "search.design"),
    "a design with rungs": (
        [
            *("launch", "stagewise", "--design", "placement", "--set", "search.sampler=random"),
            *("--set", "proxy.epochs=4", "--set", "fidelity={eta: 2, rungs: 2}"),
        ],
        "fidelity",
    ),
    "no study to export": (["export", "nothing"], "nothing"),
    "no folder for init": (["init", "--data", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_exit_code_2(tmp_path, monkeypatch, case):
    arguments, named = BAD[case]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "studies").exists() or not list((tmp_path / "studies").glob("*/evaluations.jsonl"))


def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("name: x\nlayout: {width: [1, 2\nsearch: 3\n")
    done = CliRunner().invoke(app, ["launch", "bad.yaml"])
    assert done.exit_code == 2
    assert "bad.yaml" in done.stderr
    assert re.search(r"line \d", done.stderr)


@pytest.mark.slow
def test_init_writes_a_space_for_a_folder_of_images_that_can_be_launched(tmp_path):
    for name, colour in (("cat", (200, 40, 40)), ("dog", (40, 40, 200))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            shade = tuple(min(255, c + number) for c in colour)
            Image.new("RGB", (70, 50), shade).save(tmp_path / "images" / name / f"{number}.png")
    mvsearch("init", "--data", "images", "--out", "mine.yaml", cwd=tmp_path)
    assert mvsearch("init", "--data", "images", "--out", "mine.yaml", cwd=tmp_path, check=False).returncode == 2
    assert "distinct layouts" in mvsearch("space", "mine.yaml", cwd=tmp_path).stdout
    quick = ["--set", "search.trials=1", "--set", "search.baselines=false", "--set", "proxy.epochs=1"]
    quick += ["--set", "proxy.warmup_epochs=0", "--set", "proxy.batch_size=8", "--set", "layout.width=8"]
    quick += ["--set", "timing.batch_size=2", "--set", "timing.window_s=0.01", "--set", "timing.windows=1"]
    head = [("--set", f"layout.stages.{i}.head_dim=8") for i in (1, 2)]
    done = mvsearch("launch", "mine.yaml", *quick, *sum(head, ()), "--workers", 1, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", "from mvsearch.cli import main; main()", "launch", "stagewise", *QUICK, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_terminated_launch_says_how_to_go_on_and_a_second_driver_is_refused(tmp_path):
    long = ("--set", "search.trials=500", "--workers", "1")
    running = start(tmp_path, *long)
    wait_for_lines(tmp_path / "studies/quick/evaluations.jsonl", 3)
    second = mvsearch("launch", "stagewise", *QUICK, *long, cwd=tmp_path, check=False)
    assert second.returncode == 2
    assert f"another driver (process {running.pid})" in second.stderr
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "To go on: mvsearch launch stagewise" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_in_the_middle_of_a_training_loses_nothing(tmp_path, workers):
    """With both pools: exit code 130, the command to go on, no traceback, and no layout marked as failed."""
    running = start(tmp_path, "--set", "search.trials=500", "--set", "proxy.epochs=40", "--workers", workers)
    wait_for_lines(tmp_path / "studies/quick/evaluations.jsonl", 2)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 130, errors
    assert "To go on: mvsearch launch stagewise" in errors
    assert "Traceback" not in errors
    lines = (tmp_path / "studies/quick/evaluations.jsonl").read_text().splitlines()
    assert {json.loads(line)["what"] for line in lines} <= {"time", "train"}


def test_a_refused_launch_binds_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["launch", "stagewise", *QUICK, "--workers", "0"]).exit_code == 2
    other = CliRunner().invoke(app, ["launch", "stagewise", *QUICK, "--set", "proxy.epochs=3", "--workers", "0"])
    assert "workers: 0 is not allowed" in other.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_ends_the_launch_and_loses_nothing(tmp_path):
    """The study lies on a file system too small for its weights; given more room, the same command goes on."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        command = ["launch", "stagewise", *QUICK, "--workers", 1, "--studies", small]
        full = mvsearch(*command, cwd=tmp_path, check=False)
        assert full.returncode == 1, full.stderr
        assert "No space left on device" in full.stderr
        assert "To go on: mvsearch launch" in full.stderr
        before = (small / "quick/evaluations.jsonl").read_text()
        assert all(json.loads(line) for line in before.splitlines())
        assert not [path for path in (small / "quick").rglob("*") if path.name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        done = mvsearch(*command, cwd=tmp_path)
        assert "6 of 6" in done.stdout
        assert (small / "quick/evaluations.jsonl").read_text().startswith(before)
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_two_ray_workers_survive_kill_9_of_the_driver_and_of_a_worker(tmp_path):
    """The whole product with Ray: the driver is killed, a worker is killed, and everything is there once at the end."""
    ledger = tmp_path / "studies/quick/evaluations.jsonl"
    running = start(tmp_path, "--workers", "2")
    wait_for_lines(ledger, 5)
    running.kill()
    running.communicate(timeout=60)
    running = start(tmp_path, "--workers", "2")
    wait_for_lines(ledger, 8)
    _kill_a_busy_actor(running.pid)
    out, errors = running.communicate(timeout=200)
    assert running.returncode == 0, errors
    assert "6 of 6" in out
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    identities = [(line["what"], line["key"], line["seed"]) for line in lines]
    assert len(set(identities)) == len(identities) == 12


def _kill_a_busy_actor(driver: int, seconds: float = 60):
    """SIGKILL to a worker process of this driver's own Ray (they share its session), found by name and ancestry."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for process in psutil.Process(driver).children(recursive=True):
            if "_Actor.run" in " ".join(process.cmdline()):
                process.kill()
                return
        time.sleep(0.01)
    pytest.fail("no actor was seen at work")
