"""Data for a Trainer: the synthetic set, and loaders of image folders."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import COLOURS, draw
from PIL import Image

from mambavision import create_image_loaders, create_synthetic_dataset
from mambavision.data import DataError, ImageFiles
from mambavision.library import LibraryError

ENTRY: dict[str, Any] = {"in_chans": 3, "input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}


def test_synthetic_images_are_the_same_each_time_and_their_classes_for_every_seed() -> None:
    data, again, other = (create_synthetic_dataset(30, image_size=24, num_classes=5, seed=s) for s in (0, 0, 1))
    assert len(data) == 30
    assert [data[i][1] for i in range(6)] == [0, 1, 2, 3, 4, 0]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(data[7][0], again[7][0])
    assert torch.equal(torch.rand(1), expected), "drawn from a generator of its own"
    assert not torch.equal(data[7][0], other[7][0])
    assert not torch.equal(data[7][0], data[2][0])
    images = torch.stack([image for image, _ in data])
    assert images.shape == (30, 3, 24, 24)
    assert images.mean().abs() < 0.3
    assert 0.6 < images.std() < 1.4
    # The mean image of a class in one set is nearest to that of the same class in another.
    means = [
        torch.stack([torch.stack([d[i][0] for i in range(c, 30, 5)]).mean(0) for c in range(5)]) for d in (data, other)
    ]
    nearest = torch.cdist(means[0].flatten(1), means[1].flatten(1)).argmin(1)
    assert nearest.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        data[30]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: 0 is not allowed; a whole number from 1"),
        ({"image_size": 4}, "image_size: 4 is not allowed; a whole number from 8 to 4096"),
        ({"num_classes": 1}, "num_classes: 1 is not allowed; a whole number from 2"),
        ({"channels": 0}, "channels: 0 is not allowed"),
        ({"seed": 1.5}, "seed: 1.5 is not allowed"),
    ],
)
def test_synthetic_sets_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        create_synthetic_dataset(**options)


def test_a_folder_with_a_validation_split(tmp_path: Path) -> None:
    draw(tmp_path / "train", 9)
    draw(tmp_path / "val", 3)
    train, val = create_image_loaders(tmp_path, ENTRY, batch_size=8)
    assert train.dataset.classes == val.dataset.classes == tuple(COLOURS)  # type: ignore[attr-defined]
    assert (len(train.dataset), len(train), len(val.dataset), len(val)) == (27, 3, 9, 2)  # type: ignore[arg-type]
    images, labels = next(iter(train))
    assert images.shape == (8, 3, 16, 16)
    assert labels.dtype == torch.int64
    shown, _ = val.dataset[0]
    assert torch.equal(shown, val.dataset[0][0]), "validation images are not changed at random"
    assert not torch.equal(train.dataset[0][0], train.dataset[0][0])
    # Black is (0 - mean) / std = -2, and the drawn noise is dark.
    assert -2 <= shown.min() < -1.5
    larger, _ = create_image_loaders(tmp_path, ENTRY, image_size=32)
    assert next(iter(larger))[0].shape[2:] == (32, 32)


def test_a_test_split_serves_for_validation(tmp_path: Path) -> None:
    draw(tmp_path / "train", 4)
    draw(tmp_path / "test", 2)
    assert len(create_image_loaders(tmp_path, ENTRY)[1].dataset) == 6  # type: ignore[arg-type]


def test_a_folder_without_a_split_keeps_a_fifth_back(tmp_path: Path) -> None:
    draw(tmp_path, 10)
    train, val = create_image_loaders(tmp_path, ENTRY, seed=0)
    files = [set(loader.dataset.files) for loader in (train, val)]  # type: ignore[attr-defined]
    assert (len(files[0]), len(files[1])) == (24, 6)
    assert not files[0] & files[1]
    assert sorted(val.dataset.labels) == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]
    assert all(
        file.parent.name == tuple(COLOURS)[label]
        for file, label in zip(val.dataset.files, val.dataset.labels, strict=True)
    )  # type: ignore[attr-defined]
    again, other = (set(create_image_loaders(tmp_path, ENTRY, seed=s)[1].dataset.files) for s in (0, 1))  # type: ignore[attr-defined]
    assert again == files[1]
    assert other != files[1]


def test_grey_models_get_grey_images_and_small_sets_an_even_batch(tmp_path: Path) -> None:
    draw(tmp_path, 5, grey=True)
    entry = {"in_chans": 1, "input_size": [1, 16, 16], "mean": [0.5], "std": [0.25]}
    train, val = create_image_loaders(tmp_path, entry, batch_size=64)
    assert next(iter(train))[0].shape == (12, 1, 16, 16)
    assert next(iter(val))[0].shape == (3, 1, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_of_16_bits_are_scaled_and_others_refused(channels: int, tmp_path: Path) -> None:
    draw(tmp_path, 5)
    ramp = np.linspace(0, 65_535, 20 * 20).reshape(20, 20).round()
    entry = {"in_chans": channels, "input_size": [channels, 20, 20], "mean": [0] * channels, "std": [1] * channels}
    loader = create_image_loaders(tmp_path, entry | {"crop_pct": 1.0})[1]
    files = loader.dataset
    assert isinstance(files, ImageFiles)
    for ending in ("png", "tif"):
        deep = tmp_path / f"deep.{ending}"
        Image.fromarray(ramp.astype(np.uint16)).save(deep)
        files.files = [deep]
        image, _ = files[0]
        assert image.shape == (channels, 20, 20)
        torch.testing.assert_close(image[0].double(), torch.from_numpy(ramp / 65_535), rtol=0, atol=0.5001 / 255)
    for kind in (np.int32, np.float32):
        deep = tmp_path / "deep.tif"
        Image.fromarray(ramp.astype(kind)).save(deep)
        with pytest.raises(DataError, match=r"cannot read .*deep.tif .mode [IF], more than 16 bits a channel"):
            files[0]


def test_data_sets_describe_themselves(tmp_path: Path) -> None:
    draw(tmp_path, 10)

    def told(**options: Any) -> dict[str, Any]:
        return create_image_loaders(tmp_path, ENTRY, **options)[0].dataset.settings  # type: ignore[attr-defined]

    usual = told()
    assert usual == told(workers=1)
    for options, field in (
        ({"randaugment": None}, "randaugment"),
        ({"image_size": 32}, "input_size"),
        ({"seed": 1}, "files"),
    ):
        assert {name for name, value in told(**options).items() if value != usual[name]} == {field}
    assert create_synthetic_dataset(8, seed=3).settings == {"image_size": 224, "channels": 3, "seed": 3}


def test_randaugment_changes_more_than_cutting_does(tmp_path: Path) -> None:
    draw(tmp_path, 4)
    plain, _ = create_image_loaders(tmp_path, ENTRY, randaugment=None)
    strong, _ = create_image_loaders(tmp_path, ENTRY)
    names = [str(loader.dataset.transform) for loader in (plain, strong)]  # type: ignore[attr-defined]
    assert ["RandAugment" in name for name in names] == [False, True]


def test_the_strongest_posterize_keeps_a_bit(tmp_path: Path) -> None:
    train, _ = create_image_loaders(draw(tmp_path, 2), ENTRY, randaugment="rand-m10-n4-p1-inc1")
    operations = {op.name: op for step in train.dataset.transform.transforms for op in getattr(step, "ops", ())}  # type: ignore[attr-defined]
    changed = operations["PosterizeIncreasing"](Image.new("RGB", (4, 4), (200, 100, 0)))
    assert changed.getpixel((0, 0)) == (128, 0, 0)
    pickle.dumps(train.dataset)  # for workers that do not fork


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    def loaders(root: Path, **options: Any) -> Any:
        return create_image_loaders(root, options.pop("entry", ENTRY), **options)

    with pytest.raises(DataError, match="no' is not a folder"):
        loaders(tmp_path / "no")
    with pytest.raises(DataError, match="only one class, 'cat', in"):
        loaders(draw(tmp_path / "one", classes={"cat": (9, 9, 9)}))
    fine = draw(tmp_path / "fine", 3)
    for options, message in (
        ({"batch_size": 1}, "batch_size: 1 is not allowed"),
        ({"image_size": 0}, "image_size: 0 is not allowed"),
        ({"workers": -1}, "workers: -1 is not allowed"),
        ({"randaugment": "rand-x"}, "randaugment: 'rand-x' is not allowed; one of timm's, such as 'rand-m9"),
        ({"entry": ENTRY | {"in_chans": 4}}, "takes 4 channels; image files have 1 or 3"),
    ):
        with pytest.raises(DataError, match=message):
            loaders(fine, **options)
    with pytest.raises(LibraryError, match="no model 'mambavision_x'"):
        loaders(fine, entry="mambavision_x")
    (fine / "cat" / "0.png").write_bytes(b"no image")
    train, val = loaders(fine)
    with pytest.raises(DataError, match=r"cannot read .*cat/0.png .*; repair or remove it"):
        list(train) + list(val)
