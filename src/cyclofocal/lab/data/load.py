"""From the name of a data set, or a path, to its images: found, read, checked and cut to the experiment's subset."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cyclofocal.lab.data import subsets
from cyclofocal.lab.data.cifar import read_cifar10, read_cifar100
from cyclofocal.lab.data.dataset import DataSet, Positions
from cyclofocal.lab.data.digits import read_digits
from cyclofocal.lab.data.fashion_mnist import read_fashion_mnist
from cyclofocal.lab.data.folders import read_folder, read_imagenet
from cyclofocal.lab.data.keel import keel_path, read_keel
from cyclofocal.lab.data.lists import read_lists
from cyclofocal.lab.data.preprocess import split_table
from cyclofocal.lab.data.shards import read_shards
from cyclofocal.lab.data.splits import check_apart
from cyclofocal.lab.data.tables import SUFFIXES, Table, read_table
from cyclofocal.lab.data.timm_datasets import PREFIXES, read_host
from cyclofocal.lab.hashes import file_hash
from cyclofocal.lab.longtail import draw_per_class, exponential_counts
from cyclofocal.lab.messages import DamagedDataError, MissingDataError

PUBLISHED = {
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "imagenet": read_imagenet,
}

KEEL = "keel:"
"""Before the name of one of its tables."""


def load(
    source: str,
    *,
    root: Path = Path("data"),
    seed: int = 0,
    subset: str = "",
    imbalance: float = 1.0,
    head_images: int = 0,
    test_per_class: int = 0,
    validation_images: int = 0,
    image_root: Path | None = None,
    validation_list: Path | None = None,
    test_list: Path | None = None,
    test_fraction: float = 0.0,
    image_key: str = "image",
    label_key: str = "label",
    target: str = "",
    digest: str = "",
    folds: int = 0,
    fold: int = 0,
    validation_fraction: float = 0.0,
) -> DataSet:
    """Find, read and check a data set, and cut its training images to a subset.

    Args:
        source: "digits", "fashion-mnist", "cifar10", "cifar100" or "imagenet"; a path, or "path:PATH" where it looks
            like a name: a folder of images, of shards, or a list file; "torch/NAME", "hfds/NAME", "tfds/NAME" for
            what timm reads, "wds/FOLDER" for a folder of WebDataset shards, below ``root`` if it is relative. A
            table: a .csv or .parquet file, with a ``target``, or "keel:NAME".
        root: folder where data sets are looked for.
        seed: of the run. Draws the test set and the long tail of the digits, and the splits of a table; nothing else
            depends on it.
        subset: "" for all; "first-4000", "5_3", "6_2", "5_3-released", "balanced-4000", "imbalanced-4000",
            see :mod:`~cyclofocal.lab.data.subsets`; or "long-tailed".
        imbalance: of "long-tailed", head class to tail class, at least 1.
        head_images: of the head class of "long-tailed"; 0 takes the mean number per class of the whole set.
        test_per_class: test images to draw from every class of the digits; 0 elsewhere.
        validation_images: so many, of all classes as evenly as can be, drawn by a fixed seed from training images
            that the subset leaves out; from the training set itself where it leaves none. 0: what the source has.
        image_root: where the paths of a list file begin; by default in the list's own folder.
        validation_list: second list file of the same classes.
        test_list: third list file of the same classes.
        test_fraction: in (0, 1) to split off a test set where a path or host has none, or of a table, else 0.
        image_key: field of the image, of "hfds/" and "tfds/".
        label_key: field of the label, likewise.
        target: column of a table that holds the classes; "" of all else.
        digest: a table's :func:`table_digest`, the ``digest_with_test`` of images; "" does not look.
        folds, fold, validation_fraction: of a table, see :func:`~cyclofocal.lab.data.preprocess.split_table`.

    Returns:
        The three splits; validation is None where neither the source nor ``validation_images`` gives one.

    Raises:
        MissingDataError: nothing there; says where it was looked for and how to get it.
        DamagedDataError: a file that is cut off, mislabelled, of another format, or not that of ``digest``; names it.
        ValueError: arguments that do not fit together, classes that do not match, an image in two of the splits.

    Example:
        >>> digits = load("digits", seed=1, test_per_class=60, subset="long-tailed", imbalance=50, head_images=100)
        >>> digits.counts
        (100, 64, 41, 27, 17, 11, 7, 4, 3, 2)
    """
    _check_arguments(source, subset, imbalance, head_images, test_per_class, validation_images)
    lists = (image_root, validation_list, test_list)
    if is_table(source, target):
        _check_images_only(source, subset, validation_images, *lists)
        table = load_table(source, target, digest)
        return split_table(table, seed, folds, fold, test_fraction, validation_fraction)
    _check_tables_only(source, folds, validation_fraction)
    rng = np.random.default_rng(seed)
    name, colon, path = source.partition(":")
    if source == "digits":
        _check_unused(source, *lists, test_fraction)
        full = read_digits(test_per_class, rng)
    elif source in PUBLISHED:
        _check_unused(source, *lists, test_fraction)
        full = PUBLISHED[source](root)
    elif source.startswith(PREFIXES):
        _check_unused(source, *lists)
        full = read_host(source, root, test_fraction, image_key, label_key)
    elif source.startswith("wds/"):
        _check_unused(source, *lists)
        full = read_shards(_existing(root / source.removeprefix("wds/")), test_fraction)
    else:
        full = _read_path(_existing(Path(path if (name, colon) == ("path", ":") else source)), *lists, test_fraction)
    kept = _subset(full, source, subset, imbalance, head_images, rng)
    data = _with_validation(full, kept, validation_images, _title(full.title, subset, imbalance))
    check_apart(data.title, data.splits)
    if digest:
        _check_digest(source, data.digest_with_test, digest)
    return data


def is_table(source: str, target: str) -> bool:
    """Whether a source is a table rather than images."""
    return bool(target) or source.startswith(KEEL) or Path(source).suffix.lower() == ".parquet"


def draws_test_set(source: str, target: str, folds: int) -> bool:
    """Whether each seed has its own test set; else all seeds share one."""
    return source == "digits" or folds > 0 or is_table(source, target)


def load_table(source: str, target: str, digest: str = "") -> Table:
    """The rows of a table, as they are.

    Raises:
        What :func:`load` raises.
    """
    table = _read_table(source, target)
    if digest:
        _check_digest(source, table_digest(source, table.changes), digest)
    return table


def _read_table(source: str, target: str) -> Table:
    if source.startswith(KEEL):
        if target:
            raise ValueError(f"target is {target!r}, but {source} says itself which column it is; it must be ''")
        return read_keel(keel_path(source.removeprefix(KEEL)), source)
    path = Path(source).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"target is {target!r}, but {source} is no table; its name must end in {' or '.join(SUFFIXES)}"
        )
    return read_table(path, target)


def table_digest(source: str, changes: Sequence[str] = ()) -> str:
    """16 hexadecimal digits of the SHA-256 of a table's file, and of how it is read where that changes its data.

    Args:
        source: a path, or "keel:NAME".
        changes: of the :class:`~cyclofocal.lab.data.tables.Table`.

    Raises:
        MissingDataError: no such file, or not the package that it is in.
        ValueError: no such table.
    """
    is_keel = source.startswith(KEEL)
    path = keel_path(source.removeprefix(KEEL)) if is_keel else Path(source).expanduser()
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; a table is a .csv or .parquet file")
    found = file_hash(path)
    return hashlib.sha256("\n".join([found, *changes]).encode()).hexdigest()[:16] if changes else found


def _check_digest(source: str, found: str, digest: str) -> None:
    if found != digest:
        raise DamagedDataError(
            f"{source}: its content has changed (SHA-256 {found}, was {digest}); give the same command again, and it"
            " counts as another experiment"
        )


def _check_images_only(source: str, subset: str, validation_images: int, *lists: Path | None) -> None:
    if subset or validation_images or any(lists):
        raise ValueError(
            f"{source} is a table; subset, validation_images, image_root, validation_list and test_list are of images,"
            " a table has test_fraction, folds and validation_fraction"
        )


def _check_tables_only(source: str, folds: int, validation_fraction: float) -> None:
    if folds or validation_fraction:
        raise ValueError(
            f"{source} is no table (folds is {folds}, validation_fraction is {validation_fraction}); they must be 0"
        )


def _check_arguments(
    source: str, subset: str, imbalance: float, head_images: int, test_per_class: int, validation_images: int
) -> None:
    if subset and subset not in subsets.SUBSETS:
        raise ValueError(f"subset is {subset!r}; it must be '' or one of {', '.join(subsets.SUBSETS)}")
    if subset != "long-tailed" and (imbalance != 1 or head_images):
        raise ValueError(
            f"imbalance is {imbalance} and head_images is {head_images}, but subset is {subset!r}; they are of"
            " 'long-tailed' only, and 1 and 0 elsewhere"
        )
    if source == "digits" and subset == "long-tailed" and head_images < 1:
        raise ValueError(f"head_images is {head_images}; the long-tailed digits need at least 1")
    for name, count in (("head_images", head_images), ("validation_images", validation_images)):
        if count < 0:
            raise ValueError(f"{name} is {count}; it must be at least 0")
    if source != "digits" and test_per_class:
        raise ValueError(f"test_per_class is {test_per_class}, but only digits have their test set drawn; it must be 0")


def _check_unused(source: str, *given: object) -> None:
    if any(given):
        raise ValueError(
            f"source is {source!r}; image_root, validation_list and test_list are of list files, test_fraction is of"
            " paths and hosts without a test set"
        )


def _existing(path: Path) -> Path:
    if not path.expanduser().exists():
        raise MissingDataError(
            f"{path}: no such folder or file; a source is a path, digits, {', '.join(PUBLISHED)}, or begins with"
            f" {', '.join(PREFIXES)} or wds/"
        )
    return path.expanduser()


def _read_path(
    path: Path, image_root: Path | None, validation_list: Path | None, test_list: Path | None, test_fraction: float
) -> DataSet:
    if path.is_file():
        return read_lists(path, image_root, validation_list, test_list, test_fraction)
    _check_unused(str(path), image_root, validation_list, test_list)
    holds_shards = any(path.glob("*.tar")) or any(path.glob("*/*.tar"))
    return read_shards(path, test_fraction) if holds_shards else read_folder(path, test_fraction)


def _subset(
    full: DataSet, source: str, subset: str, imbalance: float, head_images: int, rng: np.random.Generator
) -> Positions:
    labels, classes = full.train.labels, len(full.classes)
    match subset:
        case "":
            return np.arange(len(labels))
        case "first-4000":
            return subsets.first_4000(labels)
        case "5_3-released":
            return subsets.released_5_3(labels, classes)
        case "long-tailed" if source == "digits":
            return draw_per_class(labels, exponential_counts(head_images, imbalance, classes), rng)
        case "long-tailed":
            return subsets.long_tailed(labels, classes, imbalance, head_images)
    return subsets.first_of_each_class(labels, subsets.subset_counts(subset, classes))


def _with_validation(full: DataSet, kept: Positions, validation_images: int, title: str) -> DataSet:
    if not validation_images:
        return replace(full, title=title, train=full.train.take(kept))
    if full.validation is not None:
        raise ValueError(
            f"validation_images is {validation_images}, but {full.title} has a validation set of its own"
            f" ({len(full.validation)} images); it must be 0"
        )
    labels = full.train.labels
    left = np.setdiff1d(np.arange(len(labels)), kept)
    if len(left) and len(np.unique(labels[left])) < len(full.classes):
        raise ValueError(
            f"validation_images is {validation_images}, but the subset keeps every image of some class, so none is left"
            " to validate on; make it 0, or head_images smaller"
        )
    chosen = subsets.class_balanced(labels, left if len(left) else kept, validation_images)
    kept = kept[~np.isin(kept, chosen)]
    if len(np.unique(labels[kept])) < len(full.classes):
        raise ValueError(f"validation_images is {validation_images}; that leaves a class without a training image")
    return replace(full, title=title, train=full.train.take(kept), validation=full.train.take(chosen))


def _title(title: str, subset: str, imbalance: float) -> str:
    rule = f"long-tailed {imbalance:g}:1" if subset == "long-tailed" else subset
    return f"{title}, {rule}" if rule else title
