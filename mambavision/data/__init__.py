"""Data sets as tensors of whole images (`load_data`), and loaders of files for a `Trainer`.

`load_data` gives every set in the same form: three splits of uint8 images that fit in memory, so that a trainer moves
them to its device once. The validation split is taken out of the training images; the test split is for the end.

Modules, each importing only from those named before it: checks, source, images, downloads, decoding, selection; digits,
digit_scenes, fashion_mnist, cifar, folder (one a kind of source); data_sets; synthetic, randaugment, loaders.
"""

from mambavision.data.checks import DataError
from mambavision.data.data_sets import DATA_SETS, load_data
from mambavision.data.fashion_mnist import FASHION_MNIST_PACKAGE
from mambavision.data.images import ImageData, Split
from mambavision.data.loaders import ImageFiles, create_image_loaders
from mambavision.data.randaugment import RANDAUGMENT
from mambavision.data.synthetic import SyntheticImages, create_synthetic_dataset

__all__ = [
    "DATA_SETS",
    "FASHION_MNIST_PACKAGE",
    "RANDAUGMENT",
    "DataError",
    "ImageData",
    "ImageFiles",
    "Split",
    "SyntheticImages",
    "create_image_loaders",
    "create_synthetic_dataset",
    "load_data",
]
