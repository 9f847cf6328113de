"""At home in timm: every registered name, features, heads, groups of parameters, checkpointing, weights of entries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from layouts import columnar, three_stages
from timm.models._manipulate import group_with_matcher
from timm.models._registry import get_arch_pretrained_cfgs
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mambavision
from mambavision.layout import HybridLayout, StageLayout
from mambavision.library import SHIPPED, save_entry
from mambavision.model import MambaVision

# Every name at a size that runs in a moment.
SMALL: dict[str, dict[str, Any]] = {
    name: {"dim": 16, "heads": 2, "patch": 8} if "columnar" in name else {"dim": [8, 16, 32, 64], "heads": [1, 1, 2, 4]}
    for name in SHIPPED
}
# Narrowed, these are others of the same depth but for their windows.
TWINS = ("mambavision_l", "mambavision_l2_512", "mambavision_l3_512")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in TWINS else []) for name in SHIPPED]
CONFIG = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.25]}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(tmp_path / "library"))
    return tmp_path / "library"


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **SMALL[name], **options)


def test_every_shipped_name_is_registered() -> None:
    assert set(timm.list_models("mambavision_*")) >= set(SHIPPED)
    assert not set(timm.list_pretrained("mambavision_*")) & set(SHIPPED)


@pytest.mark.parametrize("first", ["timm", "mambavision"])
def test_names_are_there_whichever_is_imported_first(first: str) -> None:
    second = {"timm": "mambavision", "mambavision": "timm"}[first]
    code = f"import {first}, {second}; assert timm.is_model('mambavision_t')"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_forward_backward_and_heads(name: str) -> None:
    model = small(name, num_classes=7, drop_rate=0.1, drop_path_rate=0.1)
    images = torch.randn(2, 3, 64, 64)
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.mean().backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None]

    model.eval()
    features = model.forward_features(images)
    assert features.shape[1] == model.num_features == model.head_hidden_size
    torch.testing.assert_close(model.forward_head(features), model(images))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(model.get_classifier()(pooled), model(images))
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), features)
    model.reset_classifier(3, "avg")
    assert model(images).shape == (2, 3)
    assert small(name, num_classes=0, global_pool="")(images).shape == features.shape


@pytest.mark.parametrize("name", SHIPPED)
def test_default_configuration(name: str) -> None:
    cfg = small(name).default_cfg
    parameters = dict(small(name).named_parameters())
    assert cfg["first_conv"] + ".weight" in parameters
    assert parameters[cfg["classifier"] + ".weight"].shape[0] == cfg["num_classes"] == 1000
    data = timm.data.resolve_model_data_config(small(name))
    assert {key: SHIPPED[name][key] for key in ("interpolation", "crop_pct", "crop_mode")}.items() <= data.items()
    assert list(data["input_size"]) == SHIPPED[name]["input_size"]
    layout = HybridLayout.from_dict(SHIPPED[name]["layout"])
    assert cfg["pool_size"] == layout.feature_sizes(data["input_size"][1])[-1]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_maps_before_the_downsamples(name: str) -> None:
    images = torch.randn(1, 3, 64, 48)
    model, backbone = small(name).eval(), small(name, features_only=True).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)
    x, expected = model.patch_embed(images), []
    for level in model.levels:
        expected.append(level.forward_blocks(x))
        x = level(x)
    found = backbone(images)
    assert [f.shape[1] for f in found] == backbone.feature_info.channels()
    assert [64 // f.shape[2] for f in found] == backbone.feature_info.reduction()
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_features_and_groups_of_parallel_blocks() -> None:
    layout = three_stages("MP")
    torch.manual_seed(0)
    model = timm.create_model("mambavision", layout=layout.to_dict(), num_classes=4).eval()
    backbone = timm.create_model("mambavision", layout=layout.to_dict(), features_only=True).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 32)
    found = backbone(images)
    assert [f.shape[1] for f in found] == [8, 16, 32]
    torch.testing.assert_close(found[-1], model.forward_intermediates(images, intermediates_only=True)[-1])
    decayed, spared = (
        {id(p) for p in group["params"]}
        for group in sorted(
            param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay()),
            key=lambda group: -group["weight_decay"],
        )
    )
    names = {name: id(p) for name, p in model.named_parameters() if name.startswith("levels.1.blocks.1.mixer.")}
    own = {name.removeprefix("levels.1.blocks.1.mixer.") for name in names if names[name] in spared}
    assert own == {
        *("mamba.A_log", "mamba.D", "mamba.dt_proj.bias", "mamba_norm.weight", "attention_norm.weight"),
        *("attention.qkv.bias", "proj.bias"),
    }
    assert {names[name] for name in names} <= decayed | spared


def test_some_features_leave_the_rest_of_the_model_out() -> None:
    images = torch.randn(1, 3, 64, 64)
    backbone = small("mambavision_t", features_only=True, out_indices=(0, -2))
    assert backbone.feature_info.channels() == [8, 32]
    assert [tuple(f.shape) for f in backbone(images)] == [(1, 8, 16, 16), (1, 32, 4, 4)]
    assert len(backbone.model.levels) == 3
    # Nothing is kept that would stay without a gradient.
    sum(f.mean() for f in backbone(images)).backward()
    assert not [key for key, value in backbone.named_parameters() if value.grad is None]


def test_intermediates() -> None:
    model = small("mambavision_t").eval()
    images = torch.randn(1, 3, 64, 64)
    model.norm.running_mean.add_(1)  # as it starts, the norm changes nothing
    features, maps = model.forward_intermediates(images, norm=True)
    assert len(maps) == 4
    torch.testing.assert_close(maps[-1], features)
    _, plain = model.forward_intermediates(images)
    assert not torch.allclose(plain[-1], features, atol=0.1)
    torch.testing.assert_close(model.norm(plain[-1]), features)
    torch.testing.assert_close(features, model.forward_features(images))
    early, (second,) = model.forward_intermediates(images, indices=[1], stop_early=True)
    torch.testing.assert_close(second, maps[1])
    torch.testing.assert_close(early, maps[1])
    assert len(model.forward_intermediates(images, indices=2, intermediates_only=True)) == 2
    with pytest.raises(ValueError, match=r"^output_fmt: 'NLC' is not allowed"):
        model.forward_intermediates(images, output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):
        model.forward_intermediates(images, indices=[4])


@pytest.mark.parametrize("name", SHIPPED)
def test_groups_run_from_stem_to_head(name: str) -> None:
    model = small(name)
    blocks = sum(len(stage.blocks) for stage in model.layout.stages)
    group = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)
    assert set(group.values()) == set(range(blocks + 2))
    order = [group[key] for key, _ in model.named_parameters()]
    assert order == sorted(order)
    coarse = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) == len(model.layout.stages) + 2
    assert coarse["norm.weight"] == len(model.layout.stages)
    scales = [g["lr_scale"] for g in param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)]
    assert max(scales) == 1 > min(scales)


class Alive(TorchDispatchMode):
    """Most bytes of tensors alive at one time among those made inside, whatever made them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
                    self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("layout", [three_stages("MAMAMAMA"), columnar("GGGGAAAA"), columnar("PPPPPPPP")])
def test_checkpointing_same_gradients_less_memory(layout: Any) -> None:
    images = torch.randn(8, 3, 32, 32)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = MambaVision(layout, num_classes=3, drop_path_rate=0.2)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        with Alive() as memory:
            model(images).square().mean().backward()
        gradients = {key: value.grad for key, value in model.named_parameters()}
        found.append((gradients, dict(model.named_buffers()), memory.peak))
    (plain, buffers, much), (ours, ours_buffers, little) = found
    for key in plain:
        torch.testing.assert_close(ours[key], plain[key], msg=key)
    for key in buffers:  # a second run of a BatchNorm must not count twice
        torch.testing.assert_close(ours_buffers[key], buffers[key], msg=key)
    assert little < 0.6 * much


@pytest.mark.slow
def test_images_of_1024_px_train_in_bounded_memory() -> None:
    """64 x 64 tokens in one window: with checkpointing the blocks' inputs and one block, whatever the depth."""
    peaks = []
    for depth, checkpointing in ((2, True), (8, True), (8, False)):
        layout = HybridLayout(
            stages=(
                StageLayout(blocks="C", dim=8),
                StageLayout(blocks="C", dim=16),
                StageLayout(blocks="MA" * (depth // 2), dim=32, heads=2),
            )
        )
        model = MambaVision(layout, num_classes=3)
        model.set_grad_checkpointing(checkpointing)
        with Alive() as memory:
            model(torch.randn(1, 3, 1024, 1024)).square().mean().backward()
        assert all(value.grad.isfinite().all() for value in model.parameters())
        peaks.append(memory.peak)
    entry = 4 * 32 * 64 * 64  # bytes of one map of the hybrid stage
    shallow, deep, kept = peaks
    assert deep - shallow < 6 * entry * 1.5
    assert kept - deep > 6 * entry * 5


# -- entries of one's own ----------------------------------------------------------------------------------------------


def save(name: str = "mine") -> tuple[MambaVision, Path]:
    model = MambaVision(three_stages(), num_classes=5, in_chans=1).eval()
    options = {"num_classes": 5, "in_chans": 1, "config": CONFIG, "card": "card"}
    return model, save_entry(name, model.layout, model.state_dict(), **options)


def test_an_entry_is_found_by_name_with_its_weights() -> None:
    model, _ = save()
    images = torch.randn(2, 1, 32, 32)
    assert "mine" in timm.list_pretrained("mine")
    ours = timm.create_model("mine", pretrained=True).eval()
    torch.testing.assert_close(ours(images), model(images))
    assert timm.data.resolve_model_data_config(ours)["std"] == (0.25,)
    features = timm.create_model("mine", pretrained=True, features_only=True, out_indices=[1]).eval()(images)
    wanted = model.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(features, wanted)


def test_an_entry_adapts_to_other_classes_and_channels() -> None:
    model, _ = save()
    wide = timm.create_model("mine", pretrained=True, num_classes=9, in_chans=3).eval()
    image = torch.randn(2, 1, 32, 32)
    assert wide(image.expand(-1, 3, -1, -1)).shape == (2, 9)
    torch.testing.assert_close(wide.levels.state_dict(), model.levels.state_dict())


@pytest.mark.slow
def test_a_new_process_finds_it(root: Path) -> None:
    model, _ = save()
    image = torch.randn(1, 1, 32, 32)
    torch.save({"image": image, "logits": model(image)}, root / "io.pt")
    code = (
        "import sys, torch, timm, mambavision; io = torch.load(sys.argv[1]);"
        "model = timm.create_model('mine', pretrained=True).eval();"
        "torch.testing.assert_close(model(io['image']), io['logits'])"
    )
    subprocess.run([sys.executable, "-c", code, str(root / "io.pt")], check=True)


def test_an_entry_s_folder_is_a_timm_hub_folder() -> None:
    model, folder = save("with.dots")
    image = torch.randn(1, 1, 32, 32)
    ours = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(ours(image), model(image))


def test_what_timm_writes_for_a_hub_is_read_back(tmp_path: Path) -> None:
    layout = three_stages("GA")
    model = timm.create_model("mambavision", layout=layout.to_dict(), num_classes=4).eval()
    timm.models.save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(image), model(image))
    written = json.loads((tmp_path / "hub" / "config.json").read_text())
    ours = json.loads((save()[1] / "config.json").read_text())
    assert set(ours) >= set(written)
    assert set(ours["pretrained_cfg"]) >= {"input_size", "mean", "std", "first_conv", "classifier", "num_classes"}


def test_weights_of_another_layout_are_named(root: Path) -> None:
    save()
    other = three_stages(dim=16)
    save_entry(
        "other",
        other,
        MambaVision(other, 5, 1).state_dict(),
        num_classes=5,
        in_chans=1,
        config=CONFIG,
        card="",
    )
    (root / "other" / "model.safetensors").rename(root / "mine" / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit the model's layout: .* instead of"):
        timm.create_model("mine", pretrained=True)


def test_names_that_timm_knows_stay_timm_s() -> None:
    save("resnet18")
    assert type(timm.create_model("resnet18")).__name__ == "ResNet"


def test_published_weights_are_not_there() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for mambavision_t"):
        timm.create_model("mambavision_t", pretrained=True)
    assert not any(cfg.has_weights for cfg in get_arch_pretrained_cfgs("mambavision_t").values())


def test_no_entry_keeps_timm_from_being_imported(root: Path) -> None:
    for name in ("mine", "poor", "sys", "default_cfgs", "register_entry"):
        save(name)
    (root / "mine" / "config.json").write_text("{")
    poor = json.loads((root / "poor" / "config.json").read_text())
    poor["pretrained_cfg"] |= {"std": None, "input_size": [1]}
    (root / "poor" / "config.json").write_text(json.dumps(poor))
    code = (
        "import timm, mambavision; assert timm.is_model('mambavision_t');"
        "assert not timm.is_model('mine') and not timm.is_model('poor');"
        "[timm.create_model(name, pretrained=True) for name in ('sys', 'default_cfgs', 'register_entry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_overrides_reach_the_layout() -> None:
    model = small("mambavision_t", window=[None, None, 4, 2], qk_norm=True, state=4)
    assert [stage.window for stage in model.layout.stages] == [None, None, 4, 2]
    with pytest.raises(mambavision.LayoutError, match="layout: missing"):
        timm.create_model("mambavision")
    with pytest.raises(TypeError, match="widow"):
        small("mambavision_t", widow=3)
