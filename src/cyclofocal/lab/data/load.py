"""Load the data set of a data configuration: find, read, check it and reduce it to its subset."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cyclofocal.lab.data import subsets
from cyclofocal.lab.data.boxes import read_boxes
from cyclofocal.lab.data.cifar import read_cifar10, read_cifar100
from cyclofocal.lab.data.config import (
    KEEL,
    NAMED_SOURCES,
    PREFIXES,
    SHARDS,
    BoxData,
    DataConfig,
    FolderData,
    ImageData,
    ListData,
    PublishedData,
    TableData,
    TimmData,
    path_of,
)
from cyclofocal.lab.data.dataset import DataSet, Positions, join
from cyclofocal.lab.data.digits import read_digits
from cyclofocal.lab.data.fashion_mnist import read_fashion_mnist
from cyclofocal.lab.data.folders import read_folder, read_imagenet
from cyclofocal.lab.data.gtsrb import read_gtsrb
from cyclofocal.lab.data.keel import keel_path, read_keel
from cyclofocal.lab.data.lists import read_lists
from cyclofocal.lab.data.plankton import read_plankton
from cyclofocal.lab.data.preprocess import split_table
from cyclofocal.lab.data.shards import read_shards
from cyclofocal.lab.data.splits import check_apart
from cyclofocal.lab.data.tables import SUFFIXES, Table, read_table
from cyclofocal.lab.data.timm_datasets import read_timm
from cyclofocal.lab.data.tiny_imagenet import read_tiny_imagenet_lt
from cyclofocal.lab.hashes import file_hash
from cyclofocal.lab.longtail import draw_per_class, exponential_counts
from cyclofocal.lab.messages import DamagedDataError, MissingDataError

READERS = {
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny-imagenet-lt": read_tiny_imagenet_lt,
    "plankton": read_plankton,
    "gtsrb": read_gtsrb,
    "imagenet": read_imagenet,
}
"""Readers of the data sets that are searched for below the root."""


def load(data: DataConfig, root: Path = Path("data"), seed: int = 0, test_too: bool = False) -> DataSet:
    """Find, read and check a data set, and reduce its training images to a subset.

    Args:
        data: the source, its splits and its subset. Its ``digest``, where there is one, is the :func:`table_digest` of
            a table, and the ``digest_with_test`` of images.
        root: folder of data sets.
        seed: seed of the run. It draws the test set and the long tail of the digits, and the splits of a table; nothing
            else depends on it.
        test_too: add the test samples to the training samples, for a last model that is not evaluated.

    Returns:
        The three splits; validation is None where neither the source nor ``validation_images`` gives one.

    Raises:
        MissingDataError: not found; the message lists the searched folders and how to get it.
        DamagedDataError: a file that is cut off, mislabelled, of another format, or not that of ``digest``; names it.
        ValueError: classes that do not match, an image in two of the splits.

    Example:
        >>> from cyclofocal.lab.data.config import PublishedData
        >>> tail = PublishedData("digits", subset="long-tailed", imbalance=50, head_images=100, test_per_class=60)
        >>> load(tail, seed=1).counts
        (100, 64, 41, 27, 17, 11, 7, 4, 3, 2)
    """
    if isinstance(data, TableData):
        return split_table(load_table(data), data, seed, test_too)
    if isinstance(data, BoxData):
        subset = read_boxes(data, root)
    else:
        assert isinstance(data, ImageData)
        rng = np.random.default_rng(seed)
        full = _read_images(data, root, rng)
        subset = _with_validation(full, _subset(full, data, rng), data.validation_images, _title(full.title, data))
    check_apart(subset.title, subset.splits)
    if data.digest:
        _check_digest(data.source, subset.digest_with_test, data.digest)
    return replace(subset, train=join(subset.train, subset.test)) if test_too else subset


def load_table(data: TableData) -> Table:
    """Read all rows of a table.

    Raises:
        MissingDataError, DamagedDataError, ValueError: as :func:`load` raises them.
    """
    table = _read_table(data)
    if data.digest:
        _check_digest(data.source, table_digest(data.source, table.changes), data.digest)
    return table


def _read_table(data: TableData) -> Table:
    source, target = data.source, data.target
    if source.startswith(KEEL):
        if target:
            raise ValueError(f"target is {target!r}, but {source} names its target itself; it must be ''")
        return read_keel(keel_path(source.removeprefix(KEEL)), source)
    path = Path(source).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"target is {target!r}, but {source} is no table; its name must end in {' or '.join(SUFFIXES)}"
        )
    return read_table(path, target, data)


def table_digest(source: str, changes: Sequence[str] = ()) -> str:
    """Hash a table's file, and how it is read where that changes its data; 16 hexadecimal digits of SHA-256.

    Args:
        source: a path, or "keel:NAME".
        changes: ``changes`` of the :class:`~cyclofocal.lab.data.tables.Table`.

    Raises:
        MissingDataError: no such file, or its package is not installed.
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
            f"{source}: its content has changed (SHA-256 {found}, was {digest}); repeat the command, and it"
            " counts as another experiment"
        )


def _read_images(data: ImageData, root: Path, rng: np.random.Generator) -> DataSet:
    match data:
        case PublishedData("digits"):
            return read_digits(data.test_per_class, rng)
        case PublishedData(name):
            return READERS[name](root)
        case TimmData():
            return read_timm(data, root)
        case ListData():
            return read_lists(data)
        case FolderData() if data.source.startswith(SHARDS):
            return read_shards(_existing(root / data.source.removeprefix(SHARDS)), data.test_fraction)
        case FolderData():
            folder = _existing(path_of(data.source))
            holds_shards = any(folder.glob("*.tar")) or any(folder.glob("*/*.tar"))
            return (read_shards if holds_shards else read_folder)(folder, data.test_fraction)
    raise TypeError(f"{data!r} is not a known kind of source")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingDataError(
            f"{path}: no such folder or file; a source is a path, {', '.join(NAMED_SOURCES)}, or begins with"
            f" {', '.join(PREFIXES)} or {SHARDS}"
        )
    return path.expanduser()


def _subset(full: DataSet, data: ImageData, rng: np.random.Generator) -> Positions:
    labels, classes = full.train.labels, len(full.classes)
    match data.subset:
        case "":
            return np.arange(len(labels))
        case "first-4000":
            return subsets.first_4000(labels)
        case "5_3-released":
            return subsets.released_5_3(labels, classes)
        case "long-tailed" if data.source == "digits":
            return draw_per_class(labels, exponential_counts(data.head_images, data.imbalance, classes), rng)
        case "long-tailed":
            return subsets.long_tailed(labels, classes, data.imbalance, data.head_images)
    return subsets.first_of_each_class(labels, subsets.subset_counts(data.subset, classes))


def _with_validation(full: DataSet, selected: Positions, validation_images: int, title: str) -> DataSet:
    if not validation_images:
        return replace(full, title=title, train=full.train.select(selected))
    if full.validation is not None:
        raise ValueError(
            f"validation_images is {validation_images}, but {full.title} has a validation set"
            f" ({len(full.validation)} images); it must be 0"
        )
    labels = full.train.labels
    left = np.setdiff1d(np.arange(len(labels)), selected)
    if len(left) and len(np.unique(labels[left])) < len(full.classes):
        raise ValueError(
            f"validation_images is {validation_images}, but the subset uses every image of some class, so none is left"
            " for validation; set it to 0, or reduce head_images"
        )
    chosen = subsets.class_balanced(labels, left if len(left) else selected, validation_images)
    selected = selected[~np.isin(selected, chosen)]
    if len(np.unique(labels[selected])) < len(full.classes):
        least = int(np.bincount(labels, minlength=len(full.classes)).min())
        raise ValueError(
            f"validation_images is {validation_images}, as many of each of {len(full.classes)} classes; that leaves a"
            f" class without a training image, for the smallest has {least}"
        )
    return replace(full, title=title, train=full.train.select(selected), validation=full.train.select(chosen))


def _title(title: str, data: ImageData) -> str:
    rule = f"long-tailed {data.imbalance:g}:1" if data.subset == "long-tailed" else data.subset
    return f"{title}, {rule}" if rule else title
