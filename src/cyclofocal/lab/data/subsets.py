"""Published rules that select training images, as indices into the published order."""

from collections.abc import Sequence

import numpy as np

from cyclofocal.lab.data.dataset import Labels, Positions
from cyclofocal.lab.longtail import exponential_counts

SUBSETS = ("first-4000", "5_3", "6_2", "5_3-released", "balanced-4000", "imbalanced-4000", "long-tailed")
HELD_OUT_SEED = 4000


def subset_counts(subset: str, classes: int) -> tuple[int, ...]:
    r"""Images per class of a named 4,000-sample set.

    .. math::
        \text{10 classes: } n_c = 490 - 20c \text{ (5\_3)}, \quad 580 - 40c \text{ (6\_2)}

        \text{100 classes: } n_c = \lfloor 50.2 - 0.2c \rfloor + [c \ge 90],
        \quad \lfloor 60 - 0.4c \rfloor + [c \ge 80]

    "balanced-4000" has 400 of each of 10 classes, "imbalanced-4000" 600 of the first five and 200 of the others.

    Raises:
        ValueError: no such set for this number of classes.

    Reference: the code released with Smith, *Cyclical Focal Loss*, arXiv 2202.08978, whose index lists these follow.
    """
    match subset, classes:
        case "5_3", 10:
            return tuple(490 - 20 * c for c in range(10))
        case "6_2", 10:
            return tuple(580 - 40 * c for c in range(10))
        case "5_3", 100:  # in tenths, for 0.2 has no exact binary form
            return tuple((502 - 2 * c) // 10 + (c >= 90) for c in range(100))
        case "6_2", 100:
            return tuple((600 - 4 * c) // 10 + (c >= 80) for c in range(100))
        case "balanced-4000", 10:
            return (400,) * 10
        case "imbalanced-4000", 10:
            return (600,) * 5 + (200,) * 5
    raise ValueError(
        f"subset {subset!r} does not exist for {classes} classes; there are 5_3 and 6_2 for 10 and 100,"
        " balanced-4000 and imbalanced-4000 for 10"
    )


def first_of_each_class(labels: Labels, counts: Sequence[int]) -> Positions:
    """Select the first ``counts[c]`` samples of every class c; ascending indices.

    Raises:
        ValueError: a class has fewer images than its count.
    """
    selected = []
    for c, count in enumerate(counts):
        members = np.flatnonzero(labels == c)
        if len(members) < count:
            raise ValueError(f"class {c} has {len(members)} images; {count} are needed")
        selected.append(members[:count])
    return np.sort(np.concatenate(selected))


def first_4000(labels: Labels) -> Positions:
    """Select the first 4,000 images, which the paper calls balanced.

    Raises:
        ValueError: there are fewer.
    """
    if len(labels) < 4000:
        raise ValueError(f"subset 'first-4000' needs 4,000 training images; there are {len(labels)}")
    return np.arange(4000)


def released_5_3(labels: Labels, classes: int) -> Positions:
    """Select the 5_3 list of CIFAR-10 as released: every index is one too high, so each image's successor is selected.

    The sets trained on with it were therefore nearly balanced (1.15 : 1 instead of 1.58 : 1).

    Raises:
        ValueError: there are not 10 classes, or not enough images of one.
    """
    if classes != 10:
        raise ValueError(f"subset '5_3-released' exists for 10 classes; there are {classes}")
    shifted = first_of_each_class(labels, subset_counts("5_3", 10)) + 1
    if shifted[-1] >= len(labels):
        raise ValueError(f"subset '5_3-released' ends at index {shifted[-1]}; there are {len(labels)} training images")
    return shifted


def long_tailed(labels: Labels, classes: int, imbalance: float, head_images: int = 0) -> Positions:
    """Select the standard long tail: the first of each class after numpy's legacy shuffle with seed 0.

    Args:
        labels: labels of the whole training set, in published order.
        classes: number of classes.
        imbalance: ratio of head class to tail class, at least 1.
        head_images: number of images of the head class; 0 takes the mean number per class, as published (5,000 for
            CIFAR-10).

    Raises:
        ValueError: a class has too few images; see also
            :func:`~cyclofocal.lab.longtail.exponential_counts`.

    Reference: Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, NeurIPS 2019.
    """
    generator = np.random.RandomState(0)
    selected = []
    for c, count in enumerate(exponential_counts(head_images or len(labels) // classes, imbalance, classes)):
        members = np.flatnonzero(labels == c)
        if len(members) < count:
            raise ValueError(f"class {c} has {len(members)} images; {count} are needed")
        generator.shuffle(members)
        selected.append(members[:count])
    return np.concatenate(selected)


def class_balanced(labels: Labels, available: Positions, count: int) -> Positions:
    """Select ``count`` of the ``available`` indices, balanced over classes as far as possible, by a fixed seed.

    Raises:
        ValueError: fewer are available.
    """
    if count > len(available):
        raise ValueError(f"validation_images is {count}; only {len(available)} training images are left for it")
    shuffled = np.random.default_rng(HELD_OUT_SEED).permutation(available)
    turn = np.empty(len(shuffled), dtype=np.intp)  # how many of its class come before it
    for c in np.unique(labels[shuffled]):
        members = np.flatnonzero(labels[shuffled] == c)
        turn[members] = np.arange(len(members))
    return np.sort(shuffled[np.lexsort((labels[shuffled], turn))[:count]])
