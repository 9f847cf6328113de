"""Loading state dicts with the published key names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from layouts import three_stages

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
    assert "1 missing (levels.1.blocks.0.mixer.D)" in str(error.value)
    assert "1 unexpected (head.extra)" in str(error.value)
    assert "1 of another shape (head.bias (5,) instead of (3,))" in str(error.value)
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())
