"""Image folders: one folder per class, below train/, val/ and test/ or on their own."""

import os
from pathlib import Path

import numpy as np

from cyclofocal.lab.data.errors import MissingDataError, several
from cyclofocal.lab.data.files import EXTENSIONS, files
from cyclofocal.lab.data.images import DataSet, Images, on_demand
from cyclofocal.lab.data.places import first_with
from cyclofocal.lab.data.splits import assemble

IMAGENET_CLASSES = 1000


def read_folder(folder: Path, test_fraction: float = 0.0) -> DataSet:
    """A folder with ``train/CLASS/...``, ``val/CLASS/...`` and perhaps ``test/CLASS/...``, or with ``CLASS/...`` alone.

    Classes are numbered in the order of their names and images come in the order of their paths, as in torchvision's
    ImageFolder. Names that begin with a dot are passed over. Without ``test/`` the images in ``val/`` are the test
    set; without both a ``test_fraction`` of every class is.

    Args:
        folder: that holds the splits or the classes.
        test_fraction: in (0, 1) where there is neither ``val/`` nor ``test/``, else 0.

    Raises:
        MissingDataError: no such folder, or no class in it.
        ValueError: splits with different classes, a class without image, a file that is no image by its name.
    """
    if not (folder / "train").is_dir():
        classes = class_names(folder)
        return assemble(str(folder), classes, read_split(folder, classes), None, None, test_fraction)
    classes = class_names(folder / "train")
    train = read_split(folder / "train", classes)
    splits = {}
    for name in ("val", "test"):
        if (folder / name).is_dir():
            _check_same_classes(folder / "train", classes, folder / name)
            splits[name] = read_split(folder / name, classes)
    return assemble(str(folder), classes, train, splits.get("val"), splits.get("test"), test_fraction)


def read_imagenet(root: Path) -> DataSet:
    """ImageNet-1k as torchvision unpacks it: ``train/nXXXXXXXX/`` and ``val/nXXXXXXXX/``; ``val`` is the test set.

    Raises:
        MissingDataError: it is in none of the usual places.
        ValueError: not 1,000 classes; see also :func:`read_folder`.

    Reference: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015.
    """
    folder = first_with(
        ("train",),
        [root / "imagenet", root / "ILSVRC2012", root / "ImageNet"],
        "imagenet",
        "register at image-net.org, put the two ILSVRC2012 archives into a folder and unpack them with"
        " `torchvision.datasets.ImageNet(FOLDER, split)` for 'train' and 'val'",
    )
    if not (folder / "val").is_dir():
        raise MissingDataError(f"{folder / 'val'}: no such folder; the 50,000 validation images belong there")
    classes = class_names(folder / "train")
    if len(classes) != IMAGENET_CLASSES:
        raise ValueError(f"{folder / 'train'} has {len(classes)} classes; ImageNet-1k has {IMAGENET_CLASSES}")
    return read_folder(folder)


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted.

    Raises:
        MissingDataError: no such folder, or no folder in it.
        ValueError: images lie beside the class folders.
    """
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder")
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise MissingDataError(f"{folder}: no folders in it; there must be one per class")
    stray = sorted(entry.name for entry in entries if _is_image(entry.name) and not entry.is_dir())
    if stray:
        raise ValueError(f"{folder}: {len(stray)} images lie outside of the class folders: {several(stray)}")
    return tuple(names)


def read_split(folder: Path, classes: tuple[str, ...]) -> Images:
    """All images of one split, class by class.

    Raises:
        ValueError: a class without image, or a file that is no image by its name.
    """
    paths: list[str] = []
    counts = [0] * len(classes)
    for c, name in enumerate(classes):
        found = _walk(folder, name)
        paths += found
        counts[c] = len(found)
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(f"{folder}: classes without an image: {several(list(map(repr, empty)))}")
    strange = [path for path in paths if not _is_image(path)]
    if strange:
        raise ValueError(
            f"{folder}: {len(strange)} files are no images by their name: {several(strange)};"
            f" images end in {' '.join(EXTENSIONS)}, so move the others elsewhere"
        )
    return on_demand(files(folder, paths), np.repeat(np.arange(len(classes)), counts), str(folder))


def _walk(folder: Path, name: str) -> list[str]:
    """Relative paths of all files below a class folder, in torchvision's order."""
    places = []
    for place, folders, names in os.walk(folder / name, followlinks=True):
        folders[:] = [sub for sub in folders if not sub.startswith(".")]  # os.walk does not enter the others
        places.append((place, names))
    found = []
    for place, names in sorted(places):
        below = os.path.relpath(place, folder)
        found += [f"{below}/{file}" for file in sorted(names) if not file.startswith(".")]
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _check_same_classes(train: Path, classes: tuple[str, ...], other: Path) -> None:
    theirs = class_names(other)
    only_train, only_other = sorted(set(classes) - set(theirs)), sorted(set(theirs) - set(classes))
    if only_train or only_other:
        raise ValueError(
            f"{train} and {other} must have the same classes; only in the first: {several(only_train) or 'none'},"
            f" only in the second: {several(only_other) or 'none'}"
        )
