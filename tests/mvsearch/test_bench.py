"""`mvsearch bench`: models of any kind side by side, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

from mambavision.layout import HybridLayout, StageLayout
from mvsearch import cli
from mvsearch.bench import BenchError, bench

QUICK = {"image_size": 32, "batch_size": 2, "window_s": 0.01, "windows": 2}


@pytest.fixture
def layout(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    small = HybridLayout(stages=(StageLayout(blocks="C", dim=8), StageLayout(blocks="MA", dim=16)), in_dim=8)
    path.write_text(small.to_yaml())
    return str(path)


def test_a_layout_beside_a_timm_model(layout: str) -> None:
    seen = []
    rows, conditions = bench([layout, "resnet18", layout], **QUICK, latency=True, on_row=seen.append)
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


def test_bad_input_ends_with_one_message_and_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("stages: [{blocks: X, dim: 8}]")
    for arguments in (
        ["bench", "nonsense"],
        ["bench", str(tmp_path / "bad.yaml")],
        ["bench", "resnet18", "--windows", "0"],
    ):
        found = CliRunner().invoke(cli.app, arguments)
        assert found.exit_code == 2
        assert "Traceback" not in found.output
