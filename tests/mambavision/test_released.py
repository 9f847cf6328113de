"""Loading state dicts with the published key names."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from layouts import three_stages
from safetensors.torch import save_file

from mambavision import create_model, load_released_weights
from mambavision.model import MambaVision

KEYS = Path(__file__).parents[1] / "golden" / "keys_t.json"


def model() -> MambaVision:
    return MambaVision(three_stages(), num_classes=3)


def test_published_key_names_and_shapes() -> None:
    with torch.device("meta"):
        own = create_model("mambavision_t").state_dict()
    assert {name: list(value.shape) for name, value in own.items()} == json.loads(KEYS.read_text())


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_prefixes_and_wrappers(prefix: str, wrapped: bool) -> None:
    source, target = model(), model()
    weights = {prefix + name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    load_released_weights(target, {"state_dict": weights, "epoch": 300} if wrapped else weights)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_misfits_are_named_and_nothing_is_loaded() -> None:
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    weights = {name: torch.ones_like(value) for name, value in before.items()}
    del weights["levels.1.blocks.0.mixer.D"]
    weights["head.extra"] = torch.zeros(1)
    weights["head.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="do not fit") as error:
        load_released_weights(target, weights)
    assert "1 missing (stage 2: levels.1.blocks.0.mixer.D)" in str(error.value)
    assert "1 unexpected (head.extra)" in str(error.value)
    assert "1 of another shape (head.bias (5,) instead of (3,))" in str(error.value)
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pth.tar"])
def test_files(kind: str, tmp_path: Path) -> None:
    source, target, path = model(), model(), tmp_path / f"weights.{kind}"
    weights = source.state_dict()
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "pth":
        torch.save(weights, path)
    else:
        # As training scripts write them.
        torch.save({"state_dict": weights, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)
    load_released_weights(target, path)
    assert torch.equal(target.head.weight, source.head.weight)


class Harmful:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import test_released; test_released.Harmful.ran = True",)


def test_files_that_need_unpickling_are_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": model().state_dict(), "x": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / 'bad.pth'}: reading it would need unpickling")
    ) as error:
        load_released_weights(model(), tmp_path / "bad.pth")
    assert "only safetensors are read" in str(error.value)
    assert not Harmful.ran


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(model().state_dict(), tmp_path / "whole.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    for name in ("text.pth", "text.safetensors", "list.pth", "half.pth", "empty.pth", "none.pth", ""):
        with pytest.raises(ValueError, match="^" + re.escape(str(tmp_path / name))):
            load_released_weights(model(), tmp_path / name)


def test_a_file_of_another_layout_names_the_stage(tmp_path: Path) -> None:
    other = MambaVision(three_stages(state=[4, 4, 7]), num_classes=3)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"stage 3: levels\.2\.blocks\.0\.mixer\.A_log \(16, 7\) instead of \(16, 4\)"):
        load_released_weights(model(), tmp_path / "other.safetensors")


def test_whole_numbers_are_no_weights() -> None:
    weights = {name: value.int() for name, value in model().state_dict().items()}
    with pytest.raises(ValueError, match="int32 instead of floating point"):
        load_released_weights(model(), weights)
