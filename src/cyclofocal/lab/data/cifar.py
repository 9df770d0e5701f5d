"""CIFAR-10 and CIFAR-100 in their published form: pickles that Python 2 wrote."""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cyclofocal.lab.data.dataset import DataSet, Samples, in_memory
from cyclofocal.lab.data.files import find_dataset
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, preview

CIFAR_SIDE = 32
PIXELS = 3 * CIFAR_SIDE * CIFAR_SIDE

LAYOUTS = {
    "cifar10": ("cifar-10-batches-py", "data_batch_1", "CIFAR10"),
    "cifar100": ("cifar-100-python", "train", "CIFAR100"),
}
"""Published folder, a file in it, and torchvision's name."""

CIFAR_MD5 = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}
"""MD5 sums of the published files."""


def read_cifar10(root: Path) -> DataSet:
    """Read 50,000 training and 10,000 test images, (3, 32, 32), 10 classes, in published order.

    Raises:
        MissingDataError: no ``cifar-10-batches-py`` in the usual places, or one of its files is missing.
        DamagedDataError: a file is cut off, or has other contents than its name says.

    Reference: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    folder = _folder(root, "cifar10")
    classes = _names(folder / "batches.meta", "label_names", 10)
    train = _images(folder, [f"data_batch_{i}" for i in range(1, 6)], "labels", classes, "cifar10 train")
    return DataSet("cifar10", classes, train, None, _images(folder, ["test_batch"], "labels", classes, "cifar10 test"))


def read_cifar100(root: Path) -> DataSet:
    """Read 50,000 training and 10,000 test images, (3, 32, 32), 100 fine classes, in published order.

    Raises:
        MissingDataError: no ``cifar-100-python`` in the usual places, or one of its files is missing.
        DamagedDataError: a file is cut off, or has other contents than its name says.

    Reference: as for :func:`read_cifar10`.
    """
    folder = _folder(root, "cifar100")
    classes = _names(folder / "meta", "fine_label_names", 100)
    train = _images(folder, ["train"], "fine_labels", classes, "cifar100 train")
    return DataSet("cifar100", classes, train, None, _images(folder, ["test"], "fine_labels", classes, "cifar100 test"))


def compare_files(name: str, root: Path) -> tuple[bool, str]:
    """Compare the files of "cifar10" or "cifar100" with the published ones; returns if all agree, and a sentence.

    Raises:
        MissingDataError: no such folder, or one of its files is missing.
    """
    folder = _folder(root, name)
    other = [file for file, md5 in CIFAR_MD5[name].items() if _md5(folder / file) != md5]
    if not other:
        return True, f"{folder}: all {len(CIFAR_MD5[name])} files are the published ones (MD5)"
    said = preview([f"{file} (MD5 {_md5(folder / file)}, published {CIFAR_MD5[name][file]})" for file in other])
    return False, f"{folder}: {len(other)} of {len(CIFAR_MD5[name])} files are not the published ones: {said}"


def _md5(path: Path) -> str:
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file, though others of the data set are there")
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _folder(root: Path, name: str) -> Path:
    published, file, torchvision_name = LAYOUTS[name]
    return find_dataset(
        (file,),
        [root / published, root / name / published, root / name],
        name,
        f"in Python `torchvision.datasets.{torchvision_name}({str(root)!r}, download=True)`",
    )


def _images(folder: Path, files: Sequence[str], label_key: str, classes: Sequence[str], title: str) -> Samples:
    batches = [_batch(folder / file, label_key, len(classes)) for file in files]
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return in_memory(torch.from_numpy(pixels), np.concatenate([labels for _, labels in batches]), title)


def _batch(path: Path, label_key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_pickle(path, ("data", label_key))
    pixels, labels = content["data"], _array(content[label_key])
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == (len(pixels) or 1, PIXELS)):
        seen = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DamagedDataError(f"{path}: 'data' is {seen}; it must be uint8 (N, {PIXELS}) with N of 1 or more")
    if labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer):
        raise DamagedDataError(f"{path}: '{label_key}' must be {len(pixels)} integers, one per image")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DamagedDataError(
            f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is not in 0 to {classes - 1}"
            f" ({len(wrong)} such labels)"
        )
    return pixels, labels.astype(np.int64)


def _array(values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:  # a ragged list, which cannot be labels
        return np.empty(())


def _names(path: Path, key: str, classes: int) -> tuple[str, ...]:
    names = read_pickle(path, (key,))[key]
    if not isinstance(names, list) or len(names) != classes:
        raise DamagedDataError(f"{path}: '{key}' must be a list of {classes} class names")
    return tuple(map(str, names))


class _PlainUnpickler(pickle.Unpickler):
    """Unpickle arrays, containers and numbers only: a downloaded pickle must not be able to run code."""

    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy.core", "numpy._core"), name:
            case "numpy._core.multiarray", "_reconstruct":
                return np.empty(0).__reduce__()[0]  # lies in numpy.core or numpy._core, by numpy's version
            case ("numpy", "ndarray" | "dtype"):
                return getattr(np, name)
            case "_codecs", "encode":
                return str.encode
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which CIFAR does not use")


def read_pickle(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read the dictionary in a published pickle, which must have ``keys``.

    Raises:
        MissingDataError: no such file.
        DamagedDataError: cut off, not such a dictionary, or it would run code.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file, though others of the data set are there")
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DamagedDataError(f"{path}: cut off or not a pickle of CIFAR ({error})") from error
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DamagedDataError(f"{path}: no {absent}; it has {found}")
    return content
