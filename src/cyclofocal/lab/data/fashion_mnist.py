"""Fashion-MNIST, in the idx format of MNIST."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cyclofocal.lab.data.dataset import DataSet, Samples, in_memory
from cyclofocal.lab.data.files import find_dataset
from cyclofocal.lab.messages import DamagedDataError, MissingDataError

FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
UNSIGNED_BYTES = 8
FASHION_SIDE = 28


def read_fashion_mnist(root: Path) -> DataSet:
    """Read 60,000 training and 10,000 test images, (1, 28, 28), 10 classes, in published order.

    Raises:
        MissingDataError: none of the usual places has the four files.
        DamagedDataError: a file is cut off, or is not what its name says.

    Reference: Xiao et al., *Fashion-MNIST*, arXiv 1708.07747.
    """
    folder = find_dataset(
        ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"),
        [root / "fashion-mnist", root / "FashionMNIST" / "raw", DEBIAN],
        "fashion-mnist",
        "`apt install dataset-fashion-mnist`, or in Python"
        f" `torchvision.datasets.FashionMNIST({str(root)!r}, download=True)`",
    )
    return DataSet("fashion-mnist", FASHION_CLASSES, _split(folder, "train"), None, _split(folder, "t10k", "test"))


def _split(folder: Path, prefix: str, name: str = "train") -> Samples:
    path = _plain_or_packed(folder, f"{prefix}-images-idx3-ubyte")
    pixels = read_idx(path, dimensions=3)
    if not len(pixels) or pixels.shape[1:] != (FASHION_SIDE, FASHION_SIDE):
        seen = " x ".join(map(str, pixels.shape))
        raise DamagedDataError(
            f"{path}: images are {seen}; those of fashion-mnist are N x {FASHION_SIDE} x {FASHION_SIDE}"
        )
    path = _plain_or_packed(folder, f"{prefix}-labels-idx1-ubyte")
    labels = read_idx(path, dimensions=1)
    if len(labels) != len(pixels):
        raise DamagedDataError(f"{path}: {len(labels)} labels, but there are {len(pixels)} images")
    if labels.max(initial=0) >= len(FASHION_CLASSES):
        raise DamagedDataError(
            f"{path}: label {labels.max()}; fashion-mnist has labels 0 to {len(FASHION_CLASSES) - 1}"
        )
    return in_memory(torch.from_numpy(pixels).unsqueeze(1), labels, f"fashion-mnist {name}")


def _plain_or_packed(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise MissingDataError(f"{folder / name} (or {name}.gz): no such file, though others of fashion-mnist are there")


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the array of unsigned bytes in an idx file, which may be gzipped.

    Raises:
        DamagedDataError: cut off, too long, or not an idx file of bytes with this number of ``dimensions``.
    """
    try:
        content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedDataError(f"{path}: cut off or damaged ({error})") from error
    head = 4 + 4 * dimensions
    if len(content) < head or bytes(content[:4]) != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise DamagedDataError(f"{path}: not an idx file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) - head != math.prod(shape):
        raise DamagedDataError(f"{path}: {len(content) - head} bytes of data; its header says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
