"""Training, validation and test set from the splits of a source, checked against each other."""

import os.path
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from cyclofocal.lab.data.dataset import DataSet, Labels, Positions, Samples
from cyclofocal.lab.messages import counted, preview

FRACTION_SEED = 4000

LABEL_DIGITS = 9
"""Largest number of digits of a label; no data set has more classes."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Splits by the names of folders and shards, in lower case."""


def make_splits(
    title: str,
    classes: tuple[str, ...],
    train: Samples,
    validation: Samples | None,
    test: Samples | None,
    test_fraction: float = 0.0,
) -> DataSet:
    """Build a data set. Without a test set, the validation set becomes the test set.

    Args:
        title: readable name.
        classes: names of the classes, in label order.
        train: training images.
        validation, test: validation and test images, or None.
        test_fraction: part of every class of ``train`` for the test set if there is neither of the others.

    Raises:
        ValueError: fewer than two classes; a class without a training image; a label beyond the classes; no test set
            and no fraction, or both.
    """
    _check_labels(train, classes)
    if len(classes) < 2:
        raise ValueError(f"{train.title}: only one class, {classes[0]!r}; there must be two or more")
    empty = np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)
    if len(empty):
        names = preview([f"{c} ({classes[c]})" for c in empty.tolist()])
        raise ValueError(f"{train.title}: {len(empty)} of {len(classes)} classes have no training image: {names}")
    for split in (validation, test):
        if split is not None:
            _check_labels(split, classes)
    validation, test = test_or_validation(title, validation, test, test_fraction)
    if test is None:
        train, test = split_off(train, test_fraction, classes)
    return DataSet(title, classes, train, validation, test)


def test_or_validation(
    title: str, validation: Samples | None, test: Samples | None, test_fraction: float
) -> tuple[Samples | None, Samples | None]:
    """Validation and test set; without a test set the validation set takes its place.

    Raises:
        ValueError: there is either, and a ``test_fraction`` too.
    """
    if test is None:
        validation, test = None, validation
    if test is not None and test_fraction:
        raise ValueError(f"test_fraction is {test_fraction}, but {title} has {test.title}; it must be 0")
    return validation, test


def split_off(images: Samples, fraction: float, classes: Sequence[str] = ()) -> tuple[Samples, Samples]:
    """Split off a ``fraction`` of every class (rounded, at least one image) by a fixed seed; returns rest and fraction.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1, or a class would be left without an image.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"test_fraction is {fraction}, and {images.title} has neither a validation nor a test set;"
            " give one, or a fraction between 0 and 1, as in --set test_fraction=0.2"
        )
    test = draw_fraction(images.labels, fraction, np.random.default_rng(FRACTION_SEED))
    train = np.setdiff1d(np.arange(len(images)), test)
    emptied = np.setdiff1d(images.labels, images.labels[train])
    if len(emptied):
        first, count = emptied[0], int((images.labels == emptied[0]).sum())
        raise ValueError(
            f"{images.title}: class {classes[first] if classes else first} has {counted(count, 'image', 'images')}, of"
            f" which test_fraction {fraction} would leave none to train on; add images to it, or leave the class out"
        )
    return images.select(train), images.select(test)


def split_off_groups(images: Samples, groups: Labels, fraction: float) -> tuple[Samples, Samples]:
    """Split off a ``fraction`` of the groups of every class by a fixed seed; returns rest and fraction.

    All images of a group stay together, so that images that belong to each other, such as the frames of one film, are
    never on both sides.

    Args:
        images: images to split.
        groups: number of each image's group within its class, (N,).
        fraction: part of every class's groups, in (0, 1); rounded, at least one group.

    Raises:
        ValueError: a class has one group only, or ``fraction`` leaves it without any.
    """
    drawn = draw_groups(images.labels, groups, fraction, np.random.default_rng(FRACTION_SEED))
    rest = np.setdiff1d(np.arange(len(images)), drawn)
    emptied = np.setdiff1d(images.labels, images.labels[rest])
    if len(emptied):
        raise ValueError(
            f"{images.title}: {fraction} of the groups of class {emptied[0]} leaves none to train on; a class must have"
            " two groups or more"
        )
    return images.select(rest), images.select(drawn)


def check_apart(title: str, splits: Mapping[str, Samples | None]) -> None:
    """Refuse a path in two splits, however it is written; reads no image.

    Args:
        title: name of the data set.
        splits: splits by their names in messages, such as "training" and "test"; None is skipped.

    Raises:
        ValueError: names some such images, with a count.
    """
    paths = {name: _paths(images) for name, images in splits.items() if images is not None}
    for (one, its_paths), (other, their_paths) in combinations(paths.items(), 2):
        if shared := its_paths & their_paths:
            raise ValueError(
                f"{title}: {len(shared)} of {len(their_paths)} {other} images are {one} images too:"
                f" {preview(sorted(shared))}; each must be in one of them alone, and be listed once"
            )


def draw_fraction(labels: Labels, fraction: float, rng: np.random.Generator) -> Positions:
    """Draw a ``fraction`` of every class, rounded, at least one; ascending positions.

    Example:
        >>> labels = np.array([0] * 8 + [1] * 2)
        >>> np.bincount(labels[draw_fraction(labels, 0.25, np.random.default_rng(0))]).tolist()
        [2, 1]
    """
    drawn = []
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        drawn.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(drawn))


def draw_groups(labels: Labels, groups: Labels, fraction: float, rng: np.random.Generator) -> Positions:
    """Draw a ``fraction`` of the groups of every class, as :func:`draw_fraction` draws samples; ascending positions.

    Groups are numbered within their class.

    Example:
        >>> labels, groups = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 0, 1, 1])
        >>> draw_groups(labels, groups, 0.5, np.random.default_rng(0)).tolist()
        [0, 1, 4]
    """
    pairs, group = np.unique(np.stack([labels, groups]), axis=1, return_inverse=True)
    drawn = draw_fraction(pairs[0], fraction, rng)
    return np.flatnonzero(np.isin(group.reshape(-1), drawn))


def draw_whole_groups(labels: Labels, groups: Labels, fraction: float, rng: np.random.Generator) -> Positions:
    """Draw a ``fraction`` of the groups of every class, each whole; ascending positions.

    A group counts for its most frequent class. Groups are numbered over all classes.

    Example:
        >>> labels, groups = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 2, 3])
        >>> draw_whole_groups(labels, groups, 0.5, np.random.default_rng(0)).tolist()
        [0, 1, 2, 3]
    """
    counts = np.zeros((groups.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (groups, labels), 1)
    return draw_groups(counts.argmax(1)[groups], groups, fraction, rng)


def _paths(images: Samples) -> set[str]:
    """Collect normalised names of images that are read on demand; those in memory have none."""
    return set() if images.reader is None else {os.path.normpath(images.name(i)) for i in range(len(images))}


def _check_labels(images: Samples, classes: tuple[str, ...]) -> None:
    if not len(images):
        raise ValueError(f"{images.title} has no image")
    wrong = np.flatnonzero((images.labels < 0) | (images.labels >= len(classes)))
    if len(wrong):
        names = preview([f"{images.name(i)} (label {images.labels[i]})" for i in wrong.tolist()])
        raise ValueError(f"{images.title}: {len(wrong)} labels are not in 0 to {len(classes) - 1}: {names}")
