"""Data sets: splits, subsets, decoding, and what is said when the data cannot be had."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mambavision.data import (
    DATA_SETS,
    DataError,
    ImageData,
    Split,
    data_sets,
    decoding,
    digit_scenes,
    fashion_mnist,
    load_data,
    selection,
)
from mambavision.data.digit_scenes import draw_scenes, enlarge
from mambavision.data.digits import read_digits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *args, **kwargs: str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once, as on a machine without a network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


def image_rows(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def class_counts(split: Split, classes: int = 10) -> list[int]:
    return torch.bincount(split.labels, minlength=classes).tolist()


def write_images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (20, 12), grey: bool = False) -> None:
    """Random JPEG and PNG files under folder/CLASS."""
    generator = np.random.default_rng(len(str(folder)))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.{'png' if number % 2 else 'jpg'}")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()) if path.suffix == ".gz" else header + array.tobytes())


def write_fashion(folder: Path, ending: str) -> np.ndarray:
    """A little Fashion-MNIST; returns its training images."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", np.arange(count, dtype=np.uint8) % 10)
        if part == "train":
            train = images
    return train


@pytest.fixture(scope="module")
def scenes() -> ImageData:
    return load_data("digit_scenes", train_images=500, val_images=200)


@pytest.mark.parametrize("name", ["digit_scenes", "digits"])
def test_embedded_sets_have_the_promised_form(name: str) -> None:
    data = load_data(name, train_images=300, val_images=100)
    for split in (data.train, data.val, data.test):
        assert split.images.dtype == torch.uint8
        assert split.images.ndim == 4
        assert split.images.shape[1] == 1
        assert split.labels.dtype == torch.int64
        assert len(split) == len(split.images) == len(split.labels)
        assert set(split.labels.tolist()) == set(range(10))
    assert len(data.train) == 300
    assert len(data.val) == 100
    assert data.classes == tuple("0123456789")
    assert "CC BY 4.0" in data.licence
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),))
    assert data.std == pytest.approx((pixels.std(correction=0).item(),))
    assert data.available["train"] >= len(data.train)


def test_no_image_is_in_two_splits() -> None:
    data = load_data("digits")
    train, val, test = image_rows(data.train), image_rows(data.val), image_rows(data.test)
    assert not train & val
    assert not train & test
    assert not val & test
    assert len(data.train) + len(data.val) + len(data.test) == sum(data.available.values()) == 1797


@settings(max_examples=25, deadline=None)
@given(st.integers(10, 700), st.integers(10, 700), st.integers(0, 5))
def test_training_subsets_are_even_and_nested(few: int, more: int, seed: int) -> None:
    few, more = sorted((few, more))
    small = load_data("digits", train_images=few, val_images=100, seed=seed)
    large = load_data("digits", train_images=more, val_images=100, seed=seed)
    assert torch.equal(small.train.images, large.train.images[:few])
    assert torch.equal(small.train.labels, large.train.labels[:few])
    assert torch.equal(small.val.images, large.val.images)
    counts = class_counts(small.train)
    assert max(counts) - min(counts) <= 1


def test_another_seed_chooses_other_images_but_the_same_test_split() -> None:
    one, other = (load_data("digits", train_images=200, val_images=100, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.train.images, other.train.images)
    assert not torch.equal(one.val.images, other.val.images)
    assert torch.equal(one.test.images, other.test.images)
    assert one.fingerprint != other.fingerprint


def test_fingerprint_is_of_the_data_in_use() -> None:
    def fingerprint(**changes: int) -> str:
        return load_data("digits", **{"train_images": 200, "val_images": 100, **changes}).fingerprint

    assert fingerprint() == fingerprint()
    assert (
        len({fingerprint(), fingerprint(train_images=201), fingerprint(val_images=99), fingerprint(image_size=9)}) == 4
    )


@pytest.mark.parametrize("size", [8, 16, 33])
def test_image_size_resizes(size: int) -> None:
    data = load_data("digits", image_size=size, train_images=50, val_images=20)
    native = load_data("digits", train_images=50, val_images=20)
    assert data.train.images.shape == (50, 1, size, size)
    assert data.test.images.shape[-1] == size
    brightness = data.train.images.double().mean((1, 2, 3))
    assert torch.corrcoef(torch.stack([brightness, native.train.images.double().mean((1, 2, 3))]))[0, 1] > 0.99


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 3), st.integers(1, 60))
def test_uneven_classes_stay_as_even_as_they_can(sizes: list[int], seed: int, count: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = selection.even_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = np.bincount(labels[order[:count]], minlength=len(sizes))
    short = counts < counts.max() - 1
    assert all(counts[short] == np.array(sizes)[short])  # only a class that ran out has fewer


def test_digit_scenes_are_the_same_on_every_machine(scenes: ImageData) -> None:
    assert scenes.train.images.shape == (500, 1, 32, 32)
    assert scenes.fingerprint == "7bd448a68a36010a"


def test_the_label_is_the_digit_after_the_marked_one() -> None:
    # One picture a digit, so that each cell can be read by comparing it with the ten.
    digits, classes = read_digits()
    ten = np.stack([digits[classes == value][0] for value in range(10)])
    images, labels = draw_scenes(ten, np.arange(10), 400, seed=3)
    large = enlarge(ten, 14).astype(float)
    templates = large - large.mean((1, 2), keepdims=True)
    templates /= np.linalg.norm(templates, axis=(1, 2), keepdims=True)
    answers = set()
    for image, label in zip(images, labels.tolist(), strict=True):
        cells = image.reshape(2, 16, 2, 16).transpose(0, 2, 1, 3).reshape(4, 16, 16)  # reading order
        marked = [number for number, cell in enumerate(cells) if (cell[:, :2] == 255).all()]
        assert len(marked) == 1
        answer = (marked[0] + 1) % 4
        cell = cells[answer].astype(float)
        scores = np.max(
            [
                np.tensordot(templates, cell[row : row + 14, column : column + 14], 2)
                / cell[row : row + 14, column : column + 14].std()
                for row in range(3)
                for column in range(3)
            ],
            axis=0,
        )
        assert scores.argmax() == label
        answers.add(answer)
    assert answers == {0, 1, 2, 3}


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, labels = read_digits()
    expected = load_digits()
    assert np.array_equal(images, (expected.images.astype(int) * 255 // 16).astype(np.uint8))
    assert np.array_equal(labels, expected.target)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_scenes_of_different_splits_are_drawn_from_different_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_from: list[set[bytes]] = []
    draw = draw_scenes

    def spy(digits: np.ndarray, *args: int, **kwargs: int) -> tuple[np.ndarray, np.ndarray]:
        drawn_from.append({digit.tobytes() for digit in digits})
        return draw(digits, *args, **kwargs)

    monkeypatch.setattr(digit_scenes, "draw_scenes", spy)
    load_data("digit_scenes", train_images=10, val_images=10)
    train, val, test = drawn_from
    assert len(train | val | test) == len(train) + len(val) + len(test)


@given(st.integers(1, 12), st.integers(0, 10))
def test_enlarging_is_bilinear(small: int, more: int) -> None:
    image = np.random.default_rng(small).integers(0, 256, (2, small, small), dtype=np.uint8)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(image)[:, None].double(), size=small + more, mode="bilinear", align_corners=False
    )[:, 0]
    found = torch.from_numpy(enlarge(image, small + more)).double()
    assert ((wanted - found > -1e-6) & (wanted - found < 1 + 1e-6)).all()  # rounded down


@pytest.mark.parametrize(("inside", "ending"), [(".", ".gz"), ("FashionMNIST/raw", "")])
def test_fashion_mnist_reads_both_kinds_of_root(tmp_path: Path, inside: str, ending: str) -> None:
    written = write_fashion(tmp_path / inside, ending)
    data = load_data("fashion_mnist", root=tmp_path, train_images=30, val_images=20)
    assert data.train.images.shape == (30, 1, 28, 28)
    assert image_rows(data.train) | image_rows(data.val) <= {image.tobytes() for image in written}
    assert data.train.labels[:10].sort().values.tolist() == list(range(10))
    assert len(data.test) == data.available["test"] == 20
    assert data.classes[9] == "ankle boot"


def test_fashion_mnist_finds_the_debian_package_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path / "package", ".gz")
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_PACKAGE", tmp_path / "package")
    assert len(load_data("fashion_mnist").train) == 48


def test_absent_fashion_mnist_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_PACKAGE", tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no network here.*apt-get install dataset-fashion-mnist.*root"):
        load_data("fashion_mnist")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*apt-get install dataset-fashion-mnist"):
        load_data("fashion_mnist", root=tmp_path)


def test_damaged_fashion_mnist_is_named(tmp_path: Path) -> None:
    write_fashion(tmp_path, ".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        load_data("fashion_mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_cifar_says_how_to_get_it(tmp_path: Path, name: str, offline: None) -> None:
    with pytest.raises(DataError, match="leave out root to download"):
        load_data(name, root=tmp_path)
    with pytest.raises(DataError, match=r"no network here.*root"):
        load_data(name)


def test_cifar_comes_as_colour_images_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeCIFAR:
        classes = ("cat", "dog")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, download) == (str(tmp_path), False)
            self.data = np.arange(40 * 32 * 32 * 3, dtype=np.uint8).reshape(40, 32, 32, 3)
            self.data[..., 0] = 7
            self.targets = [number % 2 for number in range(40)]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCIFAR)
    data = load_data("cifar10", root=tmp_path)
    assert data.train.images.shape == (32, 3, 32, 32)
    assert (data.train.images[:, 0] == 7).all()
    assert data.classes == ("cat", "dog")
    assert data.mean[0] == pytest.approx(7 / 255)


def test_flat_folder_is_split_in_three(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 20, "dog": 20, ".hidden": 3})
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load_data("folder", root=tmp_path, image_size=10)
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (26, 3, 10, 10)
    assert (len(data.val), len(data.test)) == (6, 8)
    assert class_counts(data.test, 2) == [4, 4]
    assert len(image_rows(data.train) | image_rows(data.val) | image_rows(data.test)) == 40


def test_the_central_square_of_an_image_is_kept(tmp_path: Path) -> None:
    for name, side in (("a", 10), ("b", 200)):
        (tmp_path / name).mkdir()
        pixels = np.full((24, 48), side, dtype=np.uint8)
        pixels[:, :12] = pixels[:, 36:] = 255  # outside of the square
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = load_data("folder", root=tmp_path, image_size=12)
    assert data.train.images.shape[1:] == (1, 12, 12)  # grey images keep one channel
    for image, label in zip(data.train.images, data.train.labels.tolist(), strict=True):
        assert (image[:, :, 1:-1] == (10, 200)[label]).all()


def test_folders_for_val_and_test_are_used(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 20, "b": 20})
    write_images(tmp_path / "val", {"a": 3, "b": 4})
    data = load_data("folder", root=tmp_path, image_size=8)
    assert (len(data.train), len(data.val), len(data.test)) == (32, 8, 7)  # val is the test split
    write_images(tmp_path / "test", {"a": 5, "b": 5})
    data = load_data("folder", root=tmp_path, image_size=8)
    assert (len(data.train), len(data.val), len(data.test)) == (40, 7, 10)


def test_validation_takes_at_most_half_of_a_rare_class(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"common": 30, "rare": 4})
    write_images(tmp_path / "val", {"common": 3, "rare": 3})  # becomes the test split
    data = load_data("folder", root=tmp_path, image_size=8, val_images=12)
    assert class_counts(data.val, 2) == [10, 2]
    assert class_counts(data.train, 2) == [20, 2]


def test_training_images_of_a_folder_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, {"a": 30, "b": 30})
    monkeypatch.setattr(selection, "FOLDER_TRAIN_IMAGES", 20)
    data = load_data("folder", root=tmp_path, image_size=8)
    assert class_counts(data.train, 2) == [10, 10]
    assert data.available["train"] == 39


def test_decoded_images_are_cached_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    # BMP files have one size, whatever is in them.
    files = [folder / name / f"{number}.bmp" for name in "ab" for number in range(10)]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    decoded: list[Path] = []
    read = decoding._read_image

    def counted(file: Path, size: int) -> np.ndarray:
        decoded.append(file)
        return read(file, size)

    monkeypatch.setattr(decoding, "_read_image", counted)
    first = load_data("folder", root=folder, image_size=8)
    assert len(decoded) == 20
    assert load_data("folder", root=folder, image_size=8).fingerprint == first.fingerprint
    assert len(decoded) == 20
    for file in files:
        Image.new("RGB", (8, 8), (200, 0, 0)).save(file)
        os.utime(file, ns=(1, 1))
    assert load_data("folder", root=folder, image_size=8).fingerprint != first.fingerprint
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".npy"}


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    write_images(tmp_path / "images", {"a": 10, "b": 10})
    assert len(load_data("folder", root=tmp_path / "images", image_size=8).train) == 13


def test_broken_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "000.jpg").write_bytes(b"no image")
    whole = tmp_path / "b" / "001.png"
    whole.write_bytes(whole.read_bytes()[:80])
    with pytest.raises(DataError, match="cannot read") as error:
        load_data("folder", root=tmp_path, image_size=8, val_images=6)
    assert "000.jpg" in str(error.value) or "001.png" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit_scene"}, r"'digit_scene' is not a data set.*Did you mean 'digit_scenes'\?"),
        ({"name": "digits", "image_size": 0}, "image_size: 0 is not allowed; a whole number from 1 to 4096"),
        ({"name": "digits", "train_images": 2.5}, "train_images: 2.5 is not allowed"),
        (
            {"name": "digits", "train_images": 5000},
            "train_images: 5,000 is not allowed; data digits allows at most 1,151 here",
        ),
        ({"name": "digits", "val_images": 5000}, "val_images: 5,000 is not allowed; data digits allows at most 71"),
        ({"name": "digits", "seed": -1}, "seed: -1 is not allowed"),
        ({"name": "folder"}, "root is missing"),
        ({"name": "folder", "root": "/nowhere/at/all"}, "'/nowhere/at/all' is not a folder"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(**arguments)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no sub-folders"),
        ({"only": 9}, "only one class, 'only'"),
        ({"a": 9, "b": 0}, "'b' has too few images to train on, 0"),
        ({"a": 9, "b": 3}, "'b' has too few images to train on, 3; every class needs at least 4"),
        ({"a": 0, "b": 0}, "no images in"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    write_images(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        load_data("folder", root=tmp_path, image_size=8)


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 5, "b": 5})
    write_images(tmp_path / "test", {"a": 5, "b": 5, "c": 5})
    with pytest.raises(DataError, match=r"class without training images: c"):
        load_data("folder", root=tmp_path, image_size=8)


def test_every_name_has_a_source_and_a_description() -> None:
    assert set(DATA_SETS) == set(data_sets.SOURCES)
    assert all(DATA_SETS.values())


def test_a_test_folder_without_classes_is_left_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 20, "dog": 20})
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "unknown.png")
    data = load_data("folder", root=tmp_path, image_size=8)
    assert len(data.train) + len(data.val) + len(data.test) == 40


def test_images_of_more_than_8_bits_are_named_and_not_clipped(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 20, "dog": 20})
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png .*8 bits"):
        load_data("folder", root=tmp_path, image_size=8)
