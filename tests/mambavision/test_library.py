"""Models by name: published layouts and entries of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import three_stages

import mambavision
from mambavision import create_model, list_models
from mambavision.layout import LayoutError
from mambavision.library import SHIPPED, LibraryError, load_entry_config, save_entry
from mambavision.model import MambaVision

CONFIG = {"input_size": [1, 16, 16], "mean": [0.5], "std": [0.25], "trial": 12}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(tmp_path / "library"))
    return tmp_path / "library"


def save(name: str = "mine", **changes: Any) -> tuple[MambaVision, Path]:
    model = MambaVision(three_stages(), num_classes=5, in_chans=1).eval()
    arguments = {"num_classes": 5, "in_chans": 1, "config": CONFIG, "card": "short-proxy weights"} | changes
    return model, save_entry(name, model.layout, model.state_dict(), **arguments)


def test_shipped_names_are_listed_first_and_own_after() -> None:
    assert list_models() == sorted(SHIPPED)
    save("b_entry")
    save("a_entry")
    assert list_models() == [*sorted(SHIPPED), "a_entry", "b_entry"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_entries_build(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7)
    assert model.head.out_features == 7
    assert getattr(model.levels[-1].blocks[-1].drop_path, "drop_prob", 0) == SHIPPED[name]["drop_path_rate"]


def test_columnar_models() -> None:
    with torch.device("meta"):
        tiny, small = mambavision.create_mambavision_tiny(10), mambavision.create_mambavision_small(10)
        mixed = mambavision.create_mambavision_tiny(10, use_mamba_ratio=0.3, in_chans=1, patch=4)
    for model, millions in ((tiny, 1.9), (small, 9.8)):
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions
    assert (tiny.layout.pattern, small.layout.pattern) == ("GGGGAAAA", "GGGGGGAAAAAA")
    assert mixed.layout.pattern == "GGAAAAAA"
    assert mixed.patch_embed.proj.weight.shape == (128, 1, 4, 4)
    with pytest.raises(LayoutError, match=r"^use_mamba_ratio: 2 is not allowed"):
        mambavision.create_mambavision_tiny(10, use_mamba_ratio=2)
    with pytest.raises(LibraryError, match="no weights of this layout"):
        mambavision.create_mambavision_tiny(10, pretrained=True)


def test_overrides() -> None:
    with torch.device("meta"):
        model = create_model("mambavision_t", in_chans=1, window=[None, None, 7, 7], qk_norm=True, drop_path_rate=0.0)
    assert [stage.window for stage in model.layout.stages] == [None, None, 7, 7]
    assert model.patch_embed.conv_down[0].in_channels == 1
    with pytest.raises(LayoutError, match="Did you mean 'window'"):
        create_model("mambavision_t", windows=7)


def test_saved_entry_loads_in_a_new_process(root: Path) -> None:
    model, folder = save()
    assert folder == root / "mine"
    assert sorted(path.name for path in root.iterdir()) == ["mine"]
    assert (folder / "card.md").read_text() == "short-proxy weights"
    image = torch.randn(2, 1, 16, 16)
    torch.save({"image": image, "logits": model(image)}, root / "io.pt")
    code = (
        "import sys, torch, mambavision; io = torch.load(sys.argv[1]);"
        "model = mambavision.create_model('mine', pretrained=True).eval();"
        "torch.testing.assert_close(model(io['image']), io['logits'])"
    )
    subprocess.run([sys.executable, "-c", code, str(root / "io.pt")], check=True)


def test_config_of_an_entry() -> None:
    model, _ = save()
    config = load_entry_config("mine")
    assert config.items() >= (CONFIG | {"crop_pct": 1.0, "interpolation": "bicubic"}).items()
    assert config["layout"] == model.layout.to_dict()
    assert (config["architecture"], config["num_classes"], config["in_chans"]) == ("mambavision", 5, 1)
    published = load_entry_config("mambavision_b")
    published["layout"]["stages"].clear()
    assert len(load_entry_config("mambavision_b")["layout"]["stages"]) == 4


def test_another_classifier_keeps_the_backbone() -> None:
    model, _ = save()
    fresh = create_model("mine", num_classes=9, pretrained=True)
    assert fresh.head.out_features == 9
    assert torch.equal(fresh.levels[0].blocks[0].conv1.weight, model.levels[0].blocks[0].conv1.weight)


def test_an_entry_is_not_replaced_unless_asked() -> None:
    save(overwrite=True)  # nothing to replace yet
    with pytest.raises(LibraryError, match="'mine' exists already"):
        save(card="second")
    assert (save(card="third", overwrite=True)[1] / "card.md").read_text() == "third"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101, "mambavision_t", "mambavision"])
def test_bad_names(name: str) -> None:
    with pytest.raises(LibraryError, match=r"^name: "):
        save(name)


def test_a_failed_write_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save()
    import safetensors.torch

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save", full)
    for name, overwrite in (("mine", True), ("other", False)):
        with pytest.raises(OSError, match="No space"):
            save(name, card="half", overwrite=overwrite)
    assert sorted(path.name for path in root.iterdir()) == ["mine"]
    assert (root / "mine" / "card.md").read_text() == "short-proxy weights"


def test_weights_must_fit_the_layout() -> None:
    model = MambaVision(three_stages(), num_classes=5, in_chans=1)
    with pytest.raises(LibraryError, match=r"head\.weight"):
        save_entry("x", model.layout, model.state_dict(), num_classes=4, in_chans=1, config=CONFIG, card="")
    with pytest.raises(LibraryError, match="config: mean is missing"):
        save("x", config={"input_size": [1, 16, 16]})
    assert "x" not in list_models()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", [3, 16, 16]),
        ("input_size", [1]),
        ("input_size", 16),
        ("mean", None),
        ("mean", "x"),
        ("std", None),
        ("std", [0.0]),
        ("std", [float("nan")]),
        ("std", [0.1, 0.2]),
    ],
)
def test_what_an_entry_says_of_its_images_is_checked(root: Path, field: str, value: Any) -> None:
    with pytest.raises(LibraryError, match=f"^config: {field}: .* is not allowed"):
        save("x", config=CONFIG | {field: value})
    assert not (root / "x").exists()
    _, folder = save()
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    if value != [3, 16, 16]:
        with pytest.raises(LibraryError, match=rf"config\.json: {field}: "):
            create_model("mine")
    with pytest.raises(LibraryError, match="cannot be written as JSON"):
        save("y", config=CONFIG | {"z": object()})
    assert "y" not in list_models()


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(LibraryError, match=r"no model 'mambavision_tt'.*Did you mean 'mambavision_t"):
        create_model("mambavision_tt")
    with pytest.raises(LibraryError, match=r"name: '\.\./etc' is not allowed"):
        create_model("../etc")


def test_published_weights_are_not_shipped() -> None:
    with pytest.raises(LibraryError, match=r"not shipped.*load_released_weights"):
        create_model("mambavision_t", pretrained=True)


def test_entries_written_without_nesting_are_still_read() -> None:
    model, folder = save()
    flat = CONFIG | {"layout": model.layout.to_dict(), "architecture": "mambavision", "num_classes": 5, "in_chans": 1}
    (folder / "config.json").write_text(json.dumps(flat))
    assert load_entry_config("mine") == flat
    assert create_model("mine", pretrained=True).in_chans == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "architecture"),
        ("config.json", b'{"architecture": "mambavision"}', "layout is missing"),
        (
            "config.json",
            b'{"architecture": "mambavision", "layout": {}, "num_classes": 5, "in_chans": 1}',
            "no valid layout",
        ),
        ("model.safetensors", b"nonsense", "cannot be read"),
        ("model.safetensors", None, "weights are missing"),
    ],
)
def test_damaged_entries_are_named(file: str, content: bytes | None, message: str) -> None:
    _, folder = save()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(LibraryError, match=f"mine.*{message}"):
        create_model("mine", pretrained=True)


def test_listing_and_importing_need_no_torch() -> None:
    code = (
        "import sys, mambavision; mambavision.list_models(); mambavision.LibraryError;"
        "layout = mambavision.HybridLayout.from_dict(mambavision.library.PUBLISHED['mambavision_t']['layout']);"
        "mambavision.cost.cost(layout, 224);"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", mambavision.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(mambavision, name) is not None
    assert name in dir(mambavision)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = mambavision.create_modle
