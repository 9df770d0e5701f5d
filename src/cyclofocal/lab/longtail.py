"""Long-tailed data: profiles of class counts, draws of them, and many-, medium- and few-shot classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cyclofocal.ranges import check_at_least

Indices = NDArray[np.intp]


def exponential_counts(head_images: int, imbalance: float, classes: int) -> tuple[int, ...]:
    r"""Number of images per class of an exponential profile, from the head class to the tail class.

    .. math:: n_c = \lfloor n_{max} \mu^{c/(C-1)} \rfloor, \qquad \mu = 1/\text{imbalance}

    Imbalance 1 gives ``head_images`` to every class.

    Raises:
        ValueError: fewer than 2 classes, an imbalance below 1, or a tail class that would be empty.

    Example:
        >>> exponential_counts(100, 50, 10)
        (100, 64, 41, 27, 17, 11, 7, 4, 3, 2)

    Reference: Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, NeurIPS 2019.
    """
    check_at_least("classes", classes, 2)
    check_at_least("imbalance", imbalance, remedy=" (1: balanced)")
    counts = tuple(int(head_images * (1 / imbalance) ** (c / (classes - 1))) for c in range(classes))
    if counts[-1] < 1:
        raise ValueError(
            f"head_images {head_images} and imbalance {imbalance} leave the last class without an image;"
            f" head_images must be at least {imbalance:g}"
        )
    return counts


def draw_per_class(labels: NDArray[np.integer], counts: Sequence[int], rng: np.random.Generator) -> Indices:
    """Draw ``counts[c]`` distinct indices of every class c from ``labels``, classes in order.

    Raises:
        ValueError: a class has too few images.
    """
    drawn = []
    for c, count in enumerate(counts):
        members = np.flatnonzero(labels == c)
        if len(members) < count:
            raise ValueError(f"class {c} has {len(members)} images; {count} are needed")
        drawn.append(rng.permutation(members)[:count])
    return np.concatenate(drawn)


def rarer_class(counts: Sequence[int]) -> int:
    """The rarer of two classes in training, and the second if both are as frequent."""
    return 0 if counts[0] < counts[-1] else 1


@dataclass(frozen=True)
class ShotGroups:
    """Named convention of many-, medium- and few-shot classes, by training images per class.

    Results under different conventions cannot be compared, so every table and record names its convention.

    Example:
        >>> OLTR.classes_of([500, 100, 50, 20, 3])
        {'many': [0, 1], 'medium': [2], 'few': [3, 4]}
    """

    name: str
    many_from: int
    few_up_to: int

    def __post_init__(self) -> None:
        if not 0 <= self.few_up_to < self.many_from:
            raise ValueError(
                f"few_up_to is {self.few_up_to} and many_from is {self.many_from}; 0 <= few_up_to < many_from must hold"
            )

    def __str__(self) -> str:
        return f"{self.name}: many >= {self.many_from}, few <= {self.few_up_to} training images per class"

    def classes_of(self, counts: Sequence[int]) -> dict[str, list[int]]:
        """Group classes by their training images."""
        groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
        for c, count in enumerate(counts):
            many, few = count >= self.many_from, count <= self.few_up_to
            groups["many" if many else "few" if few else "medium"].append(c)
        return groups


OLTR = ShotGroups("OLTR", many_from=100, few_up_to=20)
"""Convention of Liu et al., CVPR 2019."""

FOLLOWERS = ShotGroups("followers of OLTR", many_from=101, few_up_to=19)
"""Convention of most later papers: many > 100, few < 20."""
