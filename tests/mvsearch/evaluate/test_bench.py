"""`mvsearch bench`: models of any kind side by side, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest
import timm
import torch
from typer.testing import CliRunner

from mambavision.layout import HybridLayout, StageLayout
from mvsearch import cli
from mvsearch.config.reading import load_config
from mvsearch.driver.launch import launch
from mvsearch.driver.view import View
from mvsearch.evaluate.bench import BenchError, bench, load
from mvsearch.pool.opening import Resources
from mvsearch.study.files import StudyError
from mvsearch.study.timings import check_conditions, read_timings

QUICK = {"image_size": 32, "batch_size": 2, "window_s": 0.01, "windows": 2}


@pytest.fixture
def layout(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    small = HybridLayout(stages=(StageLayout(blocks="C", dim=8), StageLayout(blocks="MA", dim=16)), in_dim=8)
    path.write_text(small.to_yaml())
    return str(path)


def test_a_layout_beside_a_timm_model(layout: str) -> None:
    seen = []
    rows, conditions = bench(
        [layout, "resnet18", layout], **QUICK, latency=True, on_row=lambda row, _: seen.append(row)
    )
    assert seen == rows
    assert [row.name for row in rows] == [layout, "resnet18", layout]
    small, resnet, again = rows
    assert resnet.params == sum(parameter.numel() for parameter in timm.create_model("resnet18").parameters())
    # 1.82 G multiply-adds at 224 px (its paper rounds to 1.8), a 49th of that at 32 px.
    assert resnet.macs == pytest.approx(1.82e9 / 49, rel=0.05)
    assert resnet.ratio < 0.7 < 1 / 0.7
    assert small.params == again.params
    assert all(row.latency_ms > 0 and row.images_per_second > 0 for row in rows)
    assert conditions["batch_size"] == 2
    assert conditions["torch"] == torch.__version__


def test_the_command_prints_tables_for_people_and_programs(layout: str) -> None:
    options = ["--image-size", "32", "--batch-size", "2", "--window", "0.01", "--windows", "1"]
    run = CliRunner()
    shown = run.invoke(cli.app, ["bench", layout, "resnet18", *options])
    assert shown.exit_code == 0, shown.output
    assert "resnet18" in shown.output
    assert "ratio" in shown.output
    read = run.invoke(cli.app, ["bench", layout, *options, "--format", "json"])
    (row,) = json.loads(read.stdout)
    assert {"name", "images_per_second", "ratio", "iqr", "device", "scan"} <= set(row)


SMALL = """
layout:
  stem_stride: 1
  in_dim: 8
  width: [8, 16]
  stages: [{blocks: MA, depth: 2, dim: 1, head_dim: 8, state: [4, 8]}]
proxy: {data: digits, image_size: 8, train_images: 100, epochs: 1}
timing: {window_s: 0.001, windows: 1, batch_size: 2}
"""


@pytest.mark.slow
def test_a_table_of_one_device_serves_a_search_on_another(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    table = tmp_path / "table.csv"
    command = ["timings", str(tmp_path / "small.yaml"), "--layouts", "7", "--out", str(table), "--device", "cpu"]
    ran = CliRunner().invoke(cli.app, command)
    assert ran.exit_code == 0, ran.output
    assert "7 layouts" in ran.output
    assert "throughput.others=skip" in ran.output
    assert CliRunner().invoke(cli.app, command).exit_code == 2, "a table is not written over"

    there = pandas.read_csv(table).assign(device="cuda:0 NVIDIA H100")
    there.to_csv(table, index=False)
    config = load_config(tmp_path / "small.yaml", [f"throughput.file={table}", "search.trials=5"])
    options = {"studies": tmp_path, "resources": Resources(workers=1), "timings": None, "view": View()}
    with pytest.raises(StudyError, match="'cuda:0 NVIDIA H100', and layouts that are not in it would be on 'cpu'"):
        launch(config, **options, on_space=lambda *_: None)
    config = load_config(tmp_path / "small.yaml", [f"throughput={{file: {table}, others: skip}}", "search.trials=26"])
    _, findings, outcome = launch(config, **options, on_space=lambda *_: None)
    assert outcome.exhausted
    assert {record.key for record in findings.study.records} == set(there.key)
    taken = {record.key: record.ratio for record in findings.study.records}
    assert taken == dict(zip(there.key, there.ratio, strict=True))
    assert findings.study.device == "cuda:0 NVIDIA H100"

    there[there.key != findings.study.reference_key].to_csv(table, index=False)
    with pytest.raises(StudyError, match="the table lacks the layout that ratios are to"):
        launch(config, **options, on_space=lambda *_: None)
    there.assign(layout='{"stages": 3}').to_csv(table, index=False)
    with pytest.raises(StudyError, match="the table holds a layout that is none: stages: 3 is not allowed"):
        launch(config, **options, on_space=lambda *_: None)


def test_what_bench_prints_as_csv_is_a_table_of_throughputs(layout: str, tmp_path: Path) -> None:
    options = ["--image-size", "32", "--batch-size", "2", "--window", "0.01", "--windows", "1", "--format", "csv"]
    table = tmp_path / "table.csv"
    table.write_text(CliRunner().invoke(cli.app, ["bench", layout, "resnet18", *options]).stdout)
    key = HybridLayout.from_yaml(Path(layout).read_text()).key
    (timing,) = read_timings(table).items()
    assert timing[0] == key
    assert timing[1].values["ratio"] == pytest.approx(1, rel=0.5)
    assert timing[1].device == "cpu"
    check_conditions({key: timing[1]}, {"reference": key, "image_size": 32, "batch_size": 2})
    with pytest.raises(StudyError, match="image_size = 32, and this study has 64"):
        check_conditions({key: timing[1]}, {"image_size": 64})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mambavison_t", "Did you mean 'mambavision_t'"),
        ("resnet1888", "neither a model of the library"),
        ("missing.yaml", "cannot be read"),
        ("vit_tiny_patch16_224", "does not take an image of 3×32×32"),
    ],
)
def test_bad_models_are_named(name: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as error:
        bench(["resnet18", name], **QUICK)
    assert name in str(error.value)


def test_a_batch_that_does_not_fit_is_named() -> None:
    with pytest.raises(BenchError, match="batch-size: 1000000000 images"):
        bench(["resnet18"], **QUICK | {"batch_size": 10**9})


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"", b"[1", b'{"blocks": "MA"}', b'{"stages": [{"blocks": "X"}]}']
)
def test_a_file_that_holds_no_layout_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=f"bad{suffix}"):
        load(str(path))


def test_bad_input_ends_with_one_message_and_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("stages: [{blocks: X, dim: 8}]")
    for arguments in (
        ["bench", "nonsense"],
        ["bench", str(tmp_path / "bad.yaml")],
        ["bench", "resnet18", "--windows", "0"],
        ["bench", "resnet18", "--threads", "100000"],
        ["bench", "resnet18", "--device", "tpu9"],
        ["bench", "resnet18", "--device", "cuda:7"],
    ):
        found = CliRunner().invoke(cli.app, arguments)
        assert found.exit_code == 2
        assert "Traceback" not in found.output
