"""What decays and what never does, whatever was done to the model before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from layouts import three_stages
from timm.optim import param_groups_weight_decay
from torch import nn

from mambavision.model import MambaVision
from mambavision.training import default_optimizer, parameter_groups

LAYOUT = three_stages("MGA", qk_norm=True, layer_scale=0.1)


def plain() -> MambaVision:
    return MambaVision(LAYOUT, num_classes=4)


class Parent(nn.Module):
    """A model inside another, under a name that is a pattern to `fnmatch`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a[0]": inner})
        self.head = nn.Linear(4, 2)


def on_meta() -> MambaVision:
    with torch.device("meta"):
        return plain()


def assigned() -> nn.Module:
    model = on_meta()
    model.load_state_dict(plain().state_dict(), assign=True)
    return model


WAYS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "copied": lambda: copy.deepcopy(plain()),
    "data parallel": lambda: nn.DataParallel(plain()),
    "in a parent": lambda: Parent(plain()),
    "compiled": lambda: torch.compile(plain()),
    "compiled in parallel": lambda: nn.DataParallel(torch.compile(copy.deepcopy(plain()))),
    "assigned": assigned,
    "emptied": lambda: on_meta().to_empty(device="cpu"),
    "features": lambda: timm.create_model("mambavision", layout=LAYOUT, features_only=True),
    "fewer features": lambda: timm.create_model("mambavision", layout=LAYOUT, features_only=True, out_indices=(1,)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_parameters_never_decay(way: str) -> None:
    model = WAYS[way]()
    decays = {
        id(param): group["weight_decay"]
        for group in default_optimizer(model, weight_decay=0.3).param_groups
        for param in group["params"]
    }
    found = {name: decays.pop(id(param)) for name, param in model.named_parameters()}
    assert not decays, "nothing else is held"
    assert any(name.endswith("mixer.A_log") for name in found)
    for name, param in model.named_parameters():
        never = param.ndim <= 1 or name.endswith((".A_log", ".D", ".bias"))
        assert found[name] == (0 if never else 0.3), name


@pytest.mark.parametrize("decay", [0.05, 0])
@pytest.mark.parametrize("frozen", [False, True])
def test_groups_of_a_plain_model_are_those_of_timm(decay: float, frozen: bool) -> None:
    model = plain()
    model.patch_embed.requires_grad_(not frozen)
    wanted = param_groups_weight_decay(model, decay, no_weight_decay_list=model.no_weight_decay())
    assert ids(parameter_groups(model, decay)) == ids(wanted)


def ids(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group | {"params": [id(param) for param in group["params"]]} for group in groups]


def test_what_a_model_of_timm_s_own_spares_never_decays() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=2
    )
    found = default_optimizer(nn.DataParallel(swin), weight_decay=0.3).param_groups
    spared = {id(param) for param in found[0]["params"]}
    tables = [param for name, param in swin.named_parameters() if name.endswith("relative_position_bias_table")]
    assert tables
    assert all(param.ndim == 2 and id(param) in spared for param in tables)


def test_options_of_the_optimizer() -> None:
    usual, own = default_optimizer(plain()), default_optimizer(plain(), betas=(0.9, 0.98), fused=True)
    assert usual.defaults == torch.optim.AdamW(plain().parameters(), lr=1e-3).defaults
    assert (own.defaults["betas"], own.defaults["fused"]) == ((0.9, 0.98), True)
