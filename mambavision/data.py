"""Data sets as tensors of whole images: `load_data` and what it returns.

Every set comes back in the same form, three splits of uint8 images that fit in memory, so that a trainer moves them
to its device once. The validation split is taken out of the training images; the test split is for the end.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

DATA_SETS: dict[str, str] = {
    "digit_scenes": "made from scikit-learn's digits: 32 px scenes of several; a mark says which counts",
    "digits": "scikit-learn's 1,797 handwritten digits of 8 px; every model solves it, for smoke tests",
    "fashion_mnist": "70,000 grey 28 px images of clothes (Debian package dataset-fashion-mnist or download)",
    "cifar10": "60,000 colour 32 px images in 10 classes (through torchvision)",
    "cifar100": "60,000 colour 32 px images in 100 classes (through torchvision)",
    "folder": "a folder of one's own, one sub-folder of images a class: ROOT/CLASS/*.jpg or ROOT/train/CLASS/*.jpg",
}
"""The names `load_data` takes, each with a line that says what it is."""

FASHION_MNIST_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts its four files."""

FOLDER_IMAGE_SIZE = 224
FOLDER_TRAIN_IMAGES = 50_000
FOLDER_TEST_IMAGES = 10_000
VAL_IMAGES = 5_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


class DataError(ValueError):
    """Data that cannot be had or used; the message names what was asked for and what is allowed or how to get it."""


@dataclass(frozen=True)
class Split:
    """Images with their classes.

    Attributes:
        images: uint8 (N, C, H, W), 0 to 255; C is 1 for grey images and 3 for colour.
        labels: int64 (N,), an index into `ImageData.classes`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set ready for training.

    Attributes:
        name: the name it was loaded by.
        train: images to train on.
        val: images that rank models; no image of it is in `train`.
        test: images for the final figures alone.
        classes: names of the classes.
        mean: mean of the training images over 255, one a channel.
        std: standard deviation of the same, one a channel, above 0.
        fingerprint: 16 hex digits of the SHA-256 of all images and labels in use; equal means the same data.
        available: images there were for each split before any limit; a split taken out of the training images has all
            it was given, and `train` is without it.
        licence: terms of the images.
        augment: what may be done to a training image and keeps its label: ``"none"``, ``"shift"`` (a few pixels)
            or ``"shift_flip"`` (also left-right mirroring).
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    available: dict[str, int]
    licence: str
    augment: str


class _Source(NamedTuple):
    """What a loader found, before limits and resizing. Images are an uint8 tensor (N, C, H, W) or files to decode."""

    classes: tuple[str, ...]
    train: tuple[Tensor | list[Path], Array]
    val: tuple[Tensor | list[Path], Array] | None
    test: tuple[Tensor | list[Path], Array] | None
    licence: str
    augment: str


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
    val_images: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Load a data set into memory.

    The same arguments give the same images in the same order everywhere. A smaller `train_images` gives a subset of a
    larger one, both with the classes as even as the data allow.

    Args:
        name: one of `DATA_SETS`.
        root: where the files are. Required for ``folder``; for ``fashion_mnist`` the Debian package's folder or a
            torchvision root, for CIFAR a torchvision root. Without it fashion_mnist looks for the Debian package, then
            it and CIFAR are downloaded by torchvision. The digits sets need none.
        image_size: side in pixels, 1 to 4096; images are resized to it (bilinear, antialiased; files of ``folder`` are
            first cut to their central square). None keeps the size they have, 224 for ``folder``.
        train_images: how many training images to use; None means all, for ``folder`` at most 50,000.
        val_images: how many validation images to use; None means a fifth of the training images, at most 5,000.
        seed: which images are chosen, for training and validation. The test split does not depend on it.

    Raises:
        DataError: unknown name, missing files (says how to get them), unreadable images (named), a limit that the data
            cannot meet, fewer than two classes, or a class with too few images to be in every split.
    """
    if name not in DATA_SETS:
        near = difflib.get_close_matches(str(name), DATA_SETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data: {name!r} is not a data set; allowed are {', '.join(DATA_SETS)}.{hint}")
    _check_count("image_size", image_size, 1, 4096)
    _check_count("train_images", train_images, 1, 2**31)
    _check_count("val_images", val_images, 1, 2**31)
    _check_count("seed", seed, 0, 2**31)

    source = _LOADERS[name](None if root is None else Path(root).expanduser())
    if len(source.classes) < 2:
        raise DataError(f"data {name}: only one class, {source.classes[0]!r}; two or more are needed")
    files = isinstance(source.train[0], list)
    if files and image_size is None:
        image_size = FOLDER_IMAGE_SIZE

    rest = np.arange(len(source.train[1]))
    train_labels = source.train[1]
    _check_classes(name, source, held_out=(source.val is None) + (source.test is None))
    if source.test is None:
        count = min(len(rest) // 5, FOLDER_TEST_IMAGES)
        test_from, test_index = source.train, _held_out(train_labels, rest, count, 0)
        rest = np.setdiff1d(rest, test_index)
    else:
        count = min(len(source.test[1]), FOLDER_TEST_IMAGES) if files else len(source.test[1])
        test_from, test_index = source.test, _even_order(source.test[1], 0)[:count]
    if source.val is None:
        most = int((np.bincount(train_labels[rest]) // 2).sum())
        count = min(max(len(rest) // 5, len(source.classes)), VAL_IMAGES, most) if val_images is None else val_images
        _check_limit(name, "val_images", count, most, "half of each class is kept for training")
        val_from, val_index = source.train, _held_out(train_labels, rest, count, seed)
        rest = np.setdiff1d(rest, val_index)
        val_available = count
    else:
        val_available = len(source.val[1])
        count = min(val_available, VAL_IMAGES) if val_images is None else val_images
        _check_limit(name, "val_images", count, val_available, "there are no more")
        val_from, val_index = source.val, _even_order(source.val[1], seed)[:count]
    count = (min(len(rest), FOLDER_TRAIN_IMAGES) if files else len(rest)) if train_images is None else train_images
    _check_limit(name, "train_images", count, len(rest), f"{len(val_index):,} more are for validation")
    train_index = rest[_even_order(train_labels[rest], seed)[:count]]

    train = _split(source.train, train_index, image_size)
    val = _split(val_from, val_index, image_size)
    test = _split(test_from, test_index, image_size)
    if files:
        train, val, test = _drop_equal_channels(train, val, test)
    mean, std = _statistics(train.images)
    return ImageData(
        name=name,
        train=train,
        val=val,
        test=test,
        classes=source.classes,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(train, val, test),
        available={
            "train": len(rest),
            "val": val_available,
            "test": len(source.test[1]) if source.test is not None else len(test_index),
        },
        licence=source.licence,
        augment=source.augment,
    )


# -- checks and choices ---------------------------------------------------------------------------------------------


def _check_count(field: str, value: object, low: int, high: int) -> None:
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise DataError(f"{field}: {value!r} is not allowed; a whole number from {low} to {high}")


def _check_limit(name: str, field: str, value: int, most: int, why: str) -> None:
    if value > most:
        raise DataError(f"{field}: {value:,} is not allowed; data {name} allows at most {most:,} here ({why})")


def _check_classes(name: str, source: _Source, held_out: int) -> None:
    """Each class needs an image to train on and one more for each split that is taken out of the training images."""
    counts = np.bincount(source.train[1], minlength=len(source.classes))
    # Splits taken out leave at least half of a class behind, so n splits need 2**n images.
    need = 2**held_out
    if counts.min() < need:
        few = int(counts.argmin())
        raise DataError(
            f"data {name}: class {source.classes[few]!r} has too few images to train on, {counts[few]}; "
            f"every class needs at least {need}"
        )


def _even_order(labels: Array, seed: int) -> Array:
    """A seeded order of the images whose every beginning has the classes as even as they can be.

    Each class is shuffled, then the classes are dealt in turns; one that runs out is passed over. Beginnings are
    therefore nested.
    """
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    turn = np.concatenate([np.arange(count) for count in counts]) if len(labels) else by_class
    return by_class[np.argsort(turn, kind="stable")]


def _held_out(labels: Array, candidates: Array, count: int, seed: int) -> Array:
    """Choose `count` of the candidates with even classes, at most half of any class."""
    inside = labels[candidates]
    order = _even_order(inside, seed)
    used = np.zeros(int(inside.max()) + 1, dtype=np.int64)
    half = np.bincount(inside) // 2
    chosen: list[int] = []
    for index in order:
        if len(chosen) == count:
            break
        if used[inside[index]] < half[inside[index]]:
            used[inside[index]] += 1
            chosen.append(int(candidates[index]))
    return np.array(chosen, dtype=np.int64)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, from counts of the 256 values: exact, and no float copy of the images."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance**0.5, 1 / 255))  # a constant image must not divide by zero
    return tuple(means), tuple(stds)


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()[:16]


# -- pixels ---------------------------------------------------------------------------------------------------------


def _split(part: tuple[Tensor | list[Path], Array], index: Array, image_size: int | None) -> Split:
    images, labels = part
    if isinstance(images, list):
        assert image_size is not None
        pixels = _decode([images[i] for i in index], image_size)
    else:
        pixels = _resize(images[torch.from_numpy(index)], image_size)
    return Split(images=pixels, labels=torch.from_numpy(labels[index].astype(np.int64)))


def _resize(images: Tensor, image_size: int | None) -> Tensor:
    if image_size is None or images.shape[-2:] == (image_size, image_size) or not len(images):
        return images.contiguous()
    from torchvision.transforms.functional import resize

    # In parts: resizing goes through float32, four times the memory.
    return torch.cat([resize(part, [image_size, image_size], antialias=True) for part in images.split(4096)])


def _decode(files: Sequence[Path], image_size: int) -> Tensor:
    """Images of files as uint8 (N, 3, image_size, image_size), from the cache if they were decoded before.

    Raises:
        DataError: names the files that cannot be read.
    """
    import platformdirs

    digest = hashlib.sha256(f"square {image_size}".encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    cache = Path(platformdirs.user_cache_dir("mvsearch")) / "images" / f"{digest.hexdigest()[:32]}.npy"
    if cache.is_file():
        return torch.from_numpy(np.load(cache))
    log.info("decoding %s images at %d px", f"{len(files):,}", image_size)
    pixels = np.empty((len(files), 3, image_size, image_size), dtype=np.uint8)
    broken: list[str] = []

    def decode_one(number: int) -> None:
        try:
            pixels[number] = _read_image(files[number], image_size)
        except Exception as error:  # Pillow raises many kinds for files that are no whole image, or far too large
            broken.append(f"{files[number]} ({error})")

    with ThreadPoolExecutor() as threads:
        list(threads.map(decode_one, range(len(files))))
    if broken:
        more = f" and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        raise DataError(f"data folder: cannot read {', '.join(sorted(broken)[:5])}{more}; repair or remove them")
    _save(cache, pixels)
    return torch.from_numpy(pixels)


def _read_image(file: Path, image_size: int) -> Array:
    """The central square of an image file as uint8 (3, image_size, image_size)."""
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize

    with Image.open(file) as image:
        image.draft("RGB", (2 * image_size, 2 * image_size))  # lets JPEG skip detail that resizing drops anyway
        if image.mode[0] in "IF":
            # 16 and 32 bits a pixel; a conversion would clip them to white.
            raise ValueError(f"mode {image.mode}, more than 8 bits a channel; convert it to 8 bits first")
        small = center_crop(resize(image.convert("RGB"), [image_size]), [image_size])
    return np.asarray(small).transpose(2, 0, 1)


def _eight_bits(image: Any) -> Any:
    """An image of at most 8 bits a channel: grey ones of 16 bits are scaled, as a conversion would clip them to white.

    Raises:
        ValueError: an image of 32 bits or floats, whose range is not known.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Rounded value / 257, which takes 65,535 to 255.
        return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}, more than 16 bits a channel; convert it to 8 bits first")
    return image


def _save(path: Path, pixels: Array) -> None:
    """Write the cache; without room or rights for it the images are simply decoded again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.save(file, pixels)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        log.warning("cannot keep the decoded images in %s: %s", path.parent, error)


def _drop_equal_channels(*splits: Split) -> list[Split]:
    """Files are decoded as RGB; a set whose every image is grey keeps one channel."""
    grey = all(bool((split.images[:, :1] == split.images[:, 1:]).all()) for split in splits)
    return [Split(split.images[:, :1].contiguous(), split.labels) if grey else split for split in splits]


# -- the data sets --------------------------------------------------------------------------------------------------

UCI_DIGITS = "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), UCI repository, CC BY 4.0"


def _source_digits() -> tuple[Array, Array]:
    """scikit-learn's digits as uint8 (1797, 8, 8) from 0 to 255, and their classes."""
    # Read from its file, because importing scikit-learn takes longer than all the rest.
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return (table[:, :-1].reshape(-1, 8, 8) * 255 // 16).astype(np.uint8), table[:, -1]


def _digits(root: Path | None) -> _Source:
    images, labels = _source_digits()
    classes = tuple(str(digit) for digit in range(10))
    pixels = torch.from_numpy(images)[:, None]
    return _Source(classes, (pixels, labels), None, None, f"{UCI_DIGITS}.", "shift")


def _fashion_mnist(root: Path | None) -> _Source:
    folders = [FASHION_MNIST_PACKAGE, _download_root()] if root is None else [root]
    found = next((found for folder in folders if (found := _idx_folder(folder)) is not None), None)
    if found is None and root is not None:
        raise DataError(
            f"data fashion_mnist: no train-images-idx3-ubyte(.gz) and its three fellows in {root}; give the root of "
            "the Debian package (apt-get install dataset-fashion-mnist) or of torchvision"
        )
    if found is None:
        from torchvision.datasets import FashionMNIST

        hint = "install it with: apt-get install dataset-fashion-mnist; or give the root of a copy"
        _torchvision("fashion_mnist", lambda: FashionMNIST(str(_download_root()), download=True), hint)
        found = _idx_folder(_download_root())
        assert found is not None
    parts: list[tuple[Tensor | list[Path], Array]] = []
    for part in ("train", "t10k"):
        images = _read_idx(found / f"{part}-images-idx3-ubyte", 16)
        labels = _read_idx(found / f"{part}-labels-idx1-ubyte", 8).astype(np.int64)
        if images.size != 784 * len(labels):
            raise DataError(f"data fashion_mnist: {found / part}-*: {len(labels):,} labels do not fit the images")
        parts.append((torch.from_numpy(images.reshape(-1, 1, 28, 28)), labels))
    classes = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    licence = "Fashion-MNIST, (c) 2017 Zalando SE, MIT licence."
    return _Source(classes, parts[0], None, parts[1], licence, "shift_flip")


def _idx_folder(folder: Path) -> Path | None:
    """Where the four files are: in the folder itself or where torchvision puts them."""
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for place in (folder, folder / "FashionMNIST" / "raw"):
        if all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in names):
            return place
    return None


def _read_idx(path: Path, header: int) -> Array:
    """The bytes of an IDX file (http://yann.lecun.com/exdb/mnist) after its header, plain or gzipped."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"data fashion_mnist: cannot read {path}(.gz): {error}") from None
    return np.frombuffer(bytearray(data), dtype=np.uint8, offset=header)


def _cifar10(root: Path | None) -> _Source:
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, root)


def _cifar100(root: Path | None) -> _Source:
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, root)


def _cifar(name: str, dataset: Any, root: Path | None) -> _Source:
    folder, download = (_download_root(), True) if root is None else (root, False)
    hint = "give the root of a torchvision copy" if root is None else "leave out root to download it"
    train, test = (
        _torchvision(name, functools.partial(dataset, str(folder), part, download=download), hint)
        for part in (True, False)
    )
    parts = [
        (torch.from_numpy(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, dtype=np.int64))
        for part in (train, test)
    ]
    licence = "CIFAR, A. Krizhevsky 2009, University of Toronto; no licence stated, citation asked for."
    return _Source(tuple(train.classes), parts[0], None, parts[1], licence, "shift_flip")


def _download_root() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("mvsearch")) / "torchvision"


def _torchvision(name: str, load: Callable[[], Any], hint: str) -> Any:
    try:
        return load()
    except (OSError, RuntimeError) as error:  # no network, no room, missing or damaged files
        raise DataError(f"data {name}: not there and cannot be downloaded ({error}); {hint}") from None


def _folder(root: Path | None) -> _Source:
    if root is None:
        raise DataError("data folder: root is missing; give the folder that holds the images")
    if not root.is_dir():
        raise DataError(f"data folder: root {str(root)!r} is not a folder")
    top = root / "train" if (root / "train").is_dir() else root
    classes = tuple(sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not classes:
        raise DataError(
            f"data folder: {str(top)!r} has no sub-folders; one for each class is needed: {top}/CLASS/*.jpg"
        )
    train = _image_files(top, classes)
    test = val = None
    if top != root:
        # A folder of images without classes (a challenge's test set, say) is of no use here.
        labelled = {
            name: any(entry.is_dir() for entry in (root / name).iterdir()) if (root / name).is_dir() else False
            for name in ("val", "test")
        }
        val = _image_files(root / "val", classes) if labelled["val"] else None
        test = _image_files(root / "test", classes) if labelled["test"] else None
        if test is None:
            # A published validation split is what people report on; ours comes out of the training images.
            test, val = val, None
    return _Source(classes, train, val, test, "Not known: images of your own.", "shift")


def _image_files(folder: Path, classes: tuple[str, ...]) -> tuple[Tensor | list[Path], Array]:
    """Image files under folder/CLASS in order of name, and their classes."""
    unknown = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."} - set(classes)
    if unknown:
        raise DataError(
            f"data folder: {str(folder)!r} has a class without training images: {', '.join(sorted(unknown))}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"data folder: no images in {str(folder)!r}; endings read are {', '.join(IMAGE_SUFFIXES)}")
    return files, np.array(labels, dtype=np.int64)


# -- digit scenes ---------------------------------------------------------------------------------------------------

SCENES = {"train": 10_000, "val": 2_000, "test": 2_000}
SCENE_SIZE = 32
SCENE_GRID = 2
SCENE_DIGIT = 14
SCENE_MARK = 2
SCENE_NOISE = 20
SCENE_FAINTEST = 0.8


def _digit_scenes(root: Path | None) -> _Source:
    """Scenes of three splits from disjoint digits; see `_scenes` for what is in one."""
    digits, classes = _source_digits()
    order = _even_order(classes, 0)
    parts: list[tuple[Tensor | list[Path], Array]] = []
    for number, (chosen, count) in enumerate(zip(np.split(order, [1200, 1500]), SCENES.values(), strict=True)):
        images, labels = _scenes(digits[chosen], classes[chosen], count, seed=number)
        parts.append((torch.from_numpy(images)[:, None], labels))
    names = tuple(str(digit) for digit in range(10))
    return _Source(names, parts[0], parts[1], parts[2], f"Made from {UCI_DIGITS}.", "none")


def _scenes(digits: Array, classes: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Draw scenes: four digits in a square, one marked; the label is the one after it in reading order.

    After the last digit comes the first. So a layout has to read digits, find the bar at the left edge of one cell, and
    relate two places whose offset depends on where the bar is.

    Args:
        digits: uint8 (S, 8, 8), what the scenes are made of.
        classes: int64 (S,), the digits' values, every value among them.
        count: how many scenes.
        seed: of the generator.

    Returns:
        uint8 (count, SCENE_SIZE, SCENE_SIZE) images and int64 (count,) labels, which go round 0 to 9.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    cells = SCENE_GRID**2
    cell = SCENE_SIZE // SCENE_GRID
    scene = np.arange(count)
    labels = scene % 10
    marked = generator.integers(0, cells, count)
    answer = (marked + 1) % cells
    source = generator.integers(0, len(digits), (count, cells))
    for value in range(10):
        rows = np.flatnonzero(labels == value)
        source[rows, answer[rows]] = generator.choice(np.flatnonzero(classes == value), len(rows))
    brightness = generator.uniform(SCENE_FAINTEST, 1, (count, cells))
    images = generator.integers(0, SCENE_NOISE + 1, (count, SCENE_SIZE, SCENE_SIZE)).astype(np.uint8)
    large = _enlarge(digits, SCENE_DIGIT)
    shift = generator.integers(0, cell - SCENE_DIGIT + 1, (2, count, cells))
    for number in range(cells):
        top = number // SCENE_GRID * cell + shift[0, :, number]
        left = number % SCENE_GRID * cell + shift[1, :, number]
        rows = top[:, None, None] + np.arange(SCENE_DIGIT)[:, None]
        columns = left[:, None, None] + np.arange(SCENE_DIGIT)
        place = (scene[:, None, None], rows, columns)
        drawn = (large[source[:, number]] * brightness[:, number, None, None]).astype(np.uint8)
        images[place] = np.maximum(images[place], drawn)
    rows = marked[:, None, None] // SCENE_GRID * cell + np.arange(cell)[:, None]
    columns = marked[:, None, None] % SCENE_GRID * cell + np.arange(SCENE_MARK)
    images[scene[:, None, None], rows, columns] = 255
    return images, labels


def _enlarge(images: Array, side: int) -> Array:
    """Bilinear enlargement of square uint8 images (N, H, H) to (N, side, side).

    In whole numbers, because resizing in floats (or by a library) may round otherwise on another processor.
    """
    small = images.shape[1]
    # Pixel i has its centre at (i + 1/2) * small / side - 1/2 in the small image; all of it times 2 * side.
    centre = (2 * np.arange(side) + 1) * small - side
    below, fraction = np.divmod(centre, 2 * side)
    weights = np.zeros((side, small), dtype=np.int64)
    np.add.at(weights, (np.arange(side), np.clip(below, 0, small - 1)), 2 * side - fraction)
    np.add.at(weights, (np.arange(side), np.clip(below + 1, 0, small - 1)), fraction)
    return (weights @ images.astype(np.int64) @ weights.T // (2 * side) ** 2).astype(np.uint8)


_LOADERS: dict[str, Callable[[Path | None], _Source]] = {
    "digit_scenes": _digit_scenes,
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "folder": _folder,
}


# -- data sets and loaders for a Trainer -----------------------------------------------------------------------------

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
"""timm's usual RandAugment: magnitude 9 with a spread of 0.5, stronger always worse."""


class SyntheticImages(Dataset[tuple[Tensor, int]]):
    """Images that a model can learn to tell apart, made when asked for; see `create_synthetic_dataset`."""

    def __init__(self, size: int, image_size: int, num_classes: int, channels: int, seed: int) -> None:
        self.size = size
        self.image_size = image_size
        self.classes = tuple(f"class {number}" for number in range(num_classes))
        self.seed = seed
        self.settings = {"image_size": image_size, "channels": channels, "seed": seed}
        # The same for every seed, so that one made for validation has the classes of one made for training.
        generator = torch.Generator().manual_seed(0)
        self.patterns = torch.randn(num_classes, channels, 4, 4, generator=generator)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A float image (channels, image_size, image_size) with mean near 0 and deviation near 1, and its class."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of {self.size} images")
        label = index % len(self.classes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        side = (self.image_size, self.image_size)
        image = F.interpolate(self.patterns[label, None], side, mode="bicubic", align_corners=False)[0]
        shift = torch.randint(-(self.image_size // 8), self.image_size // 8 + 1, (2,), generator=generator)
        contrast = 0.6 + 0.6 * torch.rand((), generator=generator)
        noise = 0.7 * torch.randn(image.shape, generator=generator)
        return contrast * image.roll(shift.tolist(), (1, 2)) + noise, label


def create_synthetic_dataset(
    size: int = 1000, *, image_size: int = 224, num_classes: int = 10, channels: int = 3, seed: int = 0
) -> SyntheticImages:
    """A data set for trying out a training: each class a blurred pattern of colours, shifted, and hidden in noise.

    Args:
        size: how many images, 1 or more; classes take turns.
        image_size: side in pixels, 8 to 4096.
        num_classes: 2 to 10,000.
        channels: 1 or more.
        seed: of shifts, contrast and noise, 0 or more; another seed gives other images of the same classes.

    Returns:
        A data set of (float image (channels, image_size, image_size), class); the same arguments give the same images.

    Raises:
        DataError: a value that is not allowed.
    """
    _check_count("size", size, 1, 2**31)
    _check_count("image_size", image_size, 8, 4096)
    _check_count("num_classes", num_classes, 2, 10_000)
    _check_count("channels", channels, 1, 1024)
    _check_count("seed", seed, 0, 2**31)
    return SyntheticImages(size, image_size, num_classes, channels, seed)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their classes, decoded and transformed when asked for.

    Args:
        files: images.
        labels: class of each, an index into `classes`.
        classes: names of the classes.
        transform: PIL image to tensor.
        mode: of the PIL image, ``"RGB"`` or ``"L"``.
        settings: plain values that describe files and transform; a `Trainer` goes on only where they are the same.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        classes: tuple[str, ...],
        transform: Callable[[Any], Tensor],
        mode: str = "RGB",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.files = files
        self.labels = labels
        self.classes = classes
        self.transform = transform
        self.mode = mode
        self.settings = dict(settings or {})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image as the transform gives it, and its class.

        Raises:
            DataError: names a file that cannot be read.
        """
        from PIL import Image

        try:
            with Image.open(self.files[index]) as file:
                image = _eight_bits(file).convert(self.mode)
        except Exception as error:  # Pillow raises many kinds for files that are no whole image, or far too large
            raise DataError(f"data: cannot read {self.files[index]} ({error}); repair or remove it") from None
        return self.transform(image), self.labels[index]


def create_image_loaders(
    root: str | Path,
    entry: str | Mapping[str, Any],
    *,
    batch_size: int = 64,
    image_size: int | None = None,
    randaugment: str | None = RANDAUGMENT,
    workers: int = 0,
    seed: int = 0,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of a folder of images for training a model of the library further.

    Training images are cut at random, mirrored, and changed by RandAugment; validation images are resized and cut in
    the middle. Both are normalised as the entry says.

    Args:
        root: ``ROOT/train/CLASS/*.jpg`` and ``ROOT/val/CLASS/*.jpg`` (or ``test``), or ``ROOT/CLASS/*.jpg``: then a
            fifth of the images, with even classes, is kept for validation.
        entry: name of a model in the library, or its configuration (`load_entry_config`).
        batch_size: images a batch, 2 or more; made even and no larger than the training set.
        image_size: side in pixels, 1 to 4096; None takes the entry's.
        randaugment: a RandAugment of timm, e.g. ``"rand-m9-mstd0.5-inc1"``; None for none.
        workers: processes that decode images; 0 decodes in this one.
        seed: which images are kept for validation.

    Returns:
        The training loader (shuffled, without an incomplete batch) and the validation loader. The names of the classes
        are ``loader.dataset.classes``.

    Raises:
        DataError: a folder without usable images, or a value that is not allowed.
        LibraryError: an unknown entry.
    """
    from timm.data import create_transform

    from mambavision.library import load_entry_config

    _check_count("batch_size", batch_size, 2, 2**20)
    _check_count("image_size", image_size, 1, 4096)
    _check_count("workers", workers, 0, 1024)
    config = load_entry_config(entry) if isinstance(entry, str) else entry
    channels = config["in_chans"]
    if channels not in (1, 3):
        raise DataError(f"data folder: the model takes {channels} channels; image files have 1 or 3")
    train, val, classes = _train_and_val(Path(root).expanduser(), seed)
    size = list(config["input_size"][1:]) if image_size is None else [image_size, image_size]
    prepared = {
        "input_size": (channels, *size),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config.get("interpolation", "bilinear"),
    }
    if randaugment is not None and not _RANDAUGMENT.fullmatch(randaugment):
        raise DataError(
            f"randaugment: {randaugment!r} is not allowed; one of timm's, such as {RANDAUGMENT!r} (m magnitude, mstd "
            "its spread, n operations, p probability, inc1: a larger magnitude is always stronger), or none"
        )
    training = create_transform(**prepared, is_training=True, auto_augment=randaugment)
    _keep_a_bit(training)
    fixed = create_transform(**prepared, crop_pct=config.get("crop_pct"), crop_mode=config.get("crop_mode"))
    mode = "L" if channels == 1 else "RGB"
    described = {
        "files": _names_digest(Path(root).expanduser(), train[0]),
        **prepared,
        "randaugment": randaugment,
    }
    even = min(batch_size, len(train[0])) // 2 * 2
    if not even:
        raise DataError(f"data folder: {len(train[0])} training image in {root}; two or more are needed")
    common: dict[str, Any] = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
    return (
        DataLoader(
            ImageFiles(*train, classes, training, mode, described), even, shuffle=True, drop_last=True, **common
        ),
        DataLoader(ImageFiles(*val, classes, fixed, mode), batch_size, **common),
    )


def _names_digest(root: Path, files: Sequence[Path]) -> str:
    """Tells sets of files apart by their names; their contents are not read."""
    names = "\n".join(file.relative_to(root).as_posix() for file in files)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:12]


# timm passes over what it does not know.
_RANDAUGMENT = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(mstd|p)\d+(\.\d+)?)*")


def _keep_a_bit(transform: Any) -> None:
    """Let RandAugment's posterize keep a bit at least: at its strongest timm asks for none, which Pillow refuses."""
    from timm.data.auto_augment import posterize

    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            if getattr(operation, "aug_fn", None) is posterize:
                operation.aug_fn = _posterize


def _posterize(image: Any, bits: int, **options: Any) -> Any:
    from timm.data.auto_augment import posterize

    return posterize(image, max(1, bits), **options)


_Files = tuple[list[Path], list[int]]


def _train_and_val(root: Path, seed: int) -> tuple[_Files, _Files, tuple[str, ...]]:
    source = _folder(root)
    files, labels = source.train
    assert isinstance(files, list)
    if len(source.classes) < 2:
        raise DataError(f"data folder: only one class, {source.classes[0]!r}, in {root}; two or more are needed")
    given = source.val or source.test
    _check_classes("folder", source, held_out=given is None)
    if given is not None:
        assert isinstance(given[0], list)
        return (files, labels.tolist()), (given[0], given[1].tolist()), source.classes
    everything = np.arange(len(labels))
    chosen = _held_out(labels, everything, max(len(labels) // 5, len(source.classes)), seed)
    rest = np.setdiff1d(everything, chosen)
    train, val = (([files[i] for i in index], labels[index].tolist()) for index in (rest, np.sort(chosen)))
    return train, val, source.classes
