"""Image folders: one folder per class, below train/, val/ and test/ or without splits."""

import os
import re
from pathlib import Path

import numpy as np

from cyclofocal.lab.data.dataset import DataSet, Samples, on_demand
from cyclofocal.lab.data.files import EXTENSIONS, files, find_dataset
from cyclofocal.lab.data.splits import SPLIT_NAMES, make_splits
from cyclofocal.lab.messages import MissingDataError, preview

IMAGENET_CLASSES = 1000

LONG_NAMES = {"trainset": "train", "valset": "val", "testset": "test", "tests": "test", "dev": "val", "validate": "val"}
"""Further names of splits, which count where the folders next to them leave no doubt."""

WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def read_folder(folder: Path, test_fraction: float = 0.0) -> DataSet:
    """Read a folder of ``train/CLASS/...``, ``val/CLASS/...`` and ``test/CLASS/...``, or of ``CLASS/...`` alone.

    Classes are numbered in the order of their names and images come in the order of their paths, as in torchvision's
    ImageFolder. Names that begin with a dot are skipped. Without ``test/`` the images in ``val/`` are the test
    set; without both a ``test_fraction`` of every class is. See :func:`split_folders` for other names of the splits.

    Args:
        folder: folder of the splits or of the classes.
        test_fraction: part of every class for the test set, in (0, 1) without ``val/`` and ``test/``, else 0.

    Raises:
        MissingDataError, ValueError: as :func:`read_splits` raises them; or a ``test_fraction`` that does not fit.
    """
    classes, splits = read_splits(folder)
    return make_splits(str(folder), classes, splits["train"], splits.get("val"), splits.get("test"), test_fraction)


def read_splits(folder: Path) -> tuple[tuple[str, ...], dict[str, Samples]]:
    """Read the classes of an image folder, and its images by "train", "val" and "test"; without splits all are "train".

    Raises:
        MissingDataError: no such folder, or no class in it.
        ValueError: fewer than two classes, splits with different classes, a class without image, a file that is no
            image by its name, a folder that may be a class or a split.
    """
    places = split_folders(folder) or {"train": folder}
    classes = class_names(places["train"])
    _check_several(places["train"], classes)
    for name, place in places.items():
        if name != "train":
            _check_same_classes(places["train"], classes, place)
    return classes, {name: read_split(place, classes) for name, place in places.items()}


def split_folders(folder: Path) -> dict[str, Path]:
    """Find the folders of the splits "train", "val" and "test"; none if the folder holds classes alone.

    A split's name is a word of :data:`~cyclofocal.lab.data.splits.SPLIT_NAMES` in any case; longer names with such a
    word, ``train_images/`` and ``testImages/``, are splits where all folders have one and they differ, or where those
    that have one hold folders and no images. Such folders may also begin with train, val or test. Next to a train
    without such a split, ``dev/``, ``validate/``, ``tests/`` and ``testset/`` are splits if they share a class with it.

    Raises:
        MissingDataError: no such folder, or validation or test images without training images.
        ValueError: two folders for one split, or a train that is rather a class.
    """
    names = _folder_names(folder)
    found = _named_splits(folder, names)
    if not {"train", "test"} & found.keys():
        return {}
    if doubled := [names for names in found.values() if len(names) > 1]:
        raise ValueError(
            f"{folder}: {' and '.join(doubled[0])} are folders of the same split; there must be one of each"
        )
    if "train" not in found:
        raise MissingDataError(
            f"{folder}: there is {preview([name for (name,) in found.values()])}, but no train; put the training images"
            " into train, a folder per class, and call classes otherwise than splits"
        )
    _check_is_split(folder / found["train"][0], [name for name in names if [name] not in found.values()])
    found |= _further_splits(folder, names, found)
    return {split: folder / found[split][0] for split in ("train", "val", "test") if split in found}


def ignored_folders(folder: Path) -> list[str]:
    """List the folders next to the splits that are none, and are not read; none where there are no splits.

    Raises:
        MissingDataError, ValueError: as :func:`split_folders` raises them.
    """
    places = split_folders(folder)
    return [name for name in _folder_names(folder) if places and folder / name not in places.values()]


def read_imagenet(root: Path) -> DataSet:
    """Read ImageNet-1k as torchvision unpacks it: ``train/nXXXXXXXX/`` and ``val/nXXXXXXXX/``; ``val`` is the test set.

    Raises:
        MissingDataError: it is in none of the usual folders.
        ValueError: not 1,000 classes; see also :func:`read_folder`.

    Reference: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015.
    """
    folder = find_dataset(
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
    """List the names of the class folders, sorted.

    Raises:
        MissingDataError: no such folder, or no folder in it.
        ValueError: images lie outside of the class folders.
    """
    names = _folder_names(folder)
    if not names:
        raise MissingDataError(f"{folder}: no folders in it; there must be one per class{_labels_hint(folder)}")
    stray = sorted(entry.name for entry in os.scandir(folder) if _is_image(entry.name) and entry.is_file())
    if stray := [name for name in stray if not name.startswith(".")]:
        raise ValueError(
            f"{folder}: {len(stray)} images lie outside of the class folders: {preview(stray)}{_labels_hint(folder)}"
        )
    return tuple(names)


def read_split(folder: Path, classes: tuple[str, ...]) -> Samples:
    """Read all images of one split, class by class.

    Raises:
        ValueError: a class without image, a file that is no image by its name, splits below a class, or classes that
            hold nothing but the same folders.
    """
    paths: list[str] = []
    counts = [0] * len(classes)
    groups: dict[frozenset[str], list[str]] = {}  # classes that hold folders alone, by these folders
    for c, name in enumerate(classes):
        found = _walk(folder, name)
        _check_no_splits(folder, name, found)
        if not any(path.count("/") == 1 and _is_image(path) for path in found):
            groups.setdefault(frozenset(path.split("/")[1] for path in found if path.count("/") > 1), []).append(name)
        paths += found
        counts[c] = len(found)
    _check_no_groups(folder, groups)
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(f"{folder}: classes without an image: {preview(list(map(repr, empty)))}")
    strange = [path for path in paths if not _is_image(path)]
    if strange:
        raise ValueError(
            f"{folder}: {len(strange)} files are no images by their name: {preview(strange)};"
            f" images end in {' '.join(EXTENSIONS)}, so move the others elsewhere"
        )
    return on_demand(files(folder, paths), np.repeat(np.arange(len(classes)), counts), str(folder))


def _walk(folder: Path, name: str) -> list[str]:
    """List relative paths of all files below a class folder, in torchvision's order; refuse a link that loops."""
    places = []
    for place, folders, names in os.walk(folder / name, followlinks=True):
        folders[:] = [sub for sub in folders if not sub.startswith(".")]  # os.walk does not enter the others
        for sub in folders:
            _check_no_loop(folder / name, Path(place, sub))
        places.append((place, names))
    found = []
    for place, names in sorted(places):
        below = os.path.relpath(place, folder)
        found += [f"{below}/{file}" for file in sorted(names) if not file.startswith(".")]
    return found


def _check_no_loop(top: Path, below: Path) -> None:
    """Refuse a link to a folder that it lies in, also by way of other links since ``top``."""
    if below.is_symlink():
        above = [place for place in below.parents if place.is_relative_to(top)]
        if any(place.resolve().is_relative_to(below.resolve()) for place in above):
            raise ValueError(f"{below}: a link to a folder that it lies in, {below.resolve()}; remove the link")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _folder_names(folder: Path) -> list[str]:
    """List the names of the folders in ``folder``, sorted, without hidden ones."""
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder")
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _named_splits(folder: Path, names: list[str]) -> dict[str, list[str]]:
    """Sort folders by the split in their names; longer names count if every folder has one, or folders in it."""
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if not {"train", "test"} & set(splits.values()):
        longer = {name: found for name in names if (found := _splits_in(folder / name))}
        several = len(set().union(*longer.values())) > 1 and all(len(found) == 1 for found in longer.values())
        if several and (len(longer) == len(names) or all(_holds_folders_alone(folder / name) for name in longer)):
            splits = {name: found for name, (found,) in longer.items()}
    named: dict[str, list[str]] = {}
    for name, split in splits.items():
        named.setdefault(split, []).append(name)
    return named


def _further_splits(folder: Path, names: list[str], found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Find the one folder of :data:`LONG_NAMES` for each split that ``found`` lacks, with a class of its train."""
    classes = set(_folder_names(folder / found["train"][0]))
    further: dict[str, list[str]] = {}
    for name in names:
        split = LONG_NAMES.get(name.lower(), "train")
        if split not in found and classes & set(_folder_names(folder / name)):
            further.setdefault(split, []).append(name)
    return {split: names for split, names in further.items() if len(names) == 1}


def _splits_in(folder: Path) -> set[str]:
    """Find the splits that a folder's name has as words; without any, the split that the name begins with."""
    words = [word.lower() for word in WORD.findall(folder.name)]
    for known in (SPLIT_NAMES, LONG_NAMES):
        if found := {known[word] for word in words if word in known}:
            return found
    begins = {split for split in ("train", "val", "test") if folder.name.lower().startswith(split)}
    return begins if begins and _holds_folders_alone(folder) else set()


def _holds_folders_alone(folder: Path) -> bool:
    """True for a folder with folders in it and no images next to them."""
    return bool(_folder_names(folder)) and not any(_is_image(entry.name) for entry in os.scandir(folder))


def _check_is_split(train: Path, others: list[str]) -> None:
    if others and not _folder_names(train):
        raise ValueError(
            f"{train}: a split has class folders in it, and this has none, next to {preview(others)}; if it is a class,"
            f" call it otherwise{_labels_hint(train)}"
        )


def _labels_hint(folder: Path) -> str:
    """Advice on a table of names and labels, as competitions provide one."""
    tables = sorted(str(path) for place in (folder, folder.parent) for path in place.glob("*.csv"))
    if not tables:
        return ""
    return f"; if {preview(tables)} has the labels, write its rows into a list file, 'relative/path.jpg 0' on each line"


def _check_several(folder: Path, classes: tuple[str, ...]) -> None:
    if len(classes) > 1:
        return
    (only,) = classes
    below = _folder_names(folder / only)
    hint = f"; the classes may be {preview(below)}: give {folder / only}" if below else _labels_hint(folder)
    raise ValueError(f"{folder}: only one class folder, {only!r}; there must be two or more{hint}")


def _check_no_splits(folder: Path, name: str, paths: list[str]) -> None:
    below = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
    if len(_named_splits(folder / name, below).keys()) > 1:
        raise ValueError(
            f"{folder / name} is no class, for it has {preview(below)} in it; give {folder / name}, or put the classes"
            " below the splits, as in train/CLASS and test/CLASS"
        )


def _check_no_groups(folder: Path, groups: dict[frozenset[str], list[str]]) -> None:
    for below, names in groups.items():
        if len(below) > 1 and len(names) > 1:
            raise ValueError(
                f"{folder}: {preview(names)} are no classes, for each has the folders {preview(sorted(below))} and no"
                " images next to them; put the classes below the splits, as in train/CLASS and test/CLASS, or images"
                " straight into one folder per class"
            )


def _check_same_classes(train: Path, classes: tuple[str, ...], other: Path) -> None:
    theirs = class_names(other)
    only_train, only_other = sorted(set(classes) - set(theirs)), sorted(set(theirs) - set(classes))
    if only_train or only_other:
        raise ValueError(
            f"{train} and {other} must have the same classes; only in the first: {preview(only_train) or 'none'},"
            f" only in the second: {preview(only_other) or 'none'}"
        )
