"""Class-aware sampling: all classes equally often, some images at a time."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cyclofocal.lab.messages import preview
from cyclofocal.lab.training import rng
from cyclofocal.ranges import check_at_least

PER_CLASS = 4

CLASS_AWARE = rng.EPOCH + 1
"""Purpose of the random numbers: the second part of the key, after the seed."""


def class_aware_batches(
    labels: NDArray[np.integer], seed: int, epoch: int, batch_size: int, per_class: int = PER_CLASS
) -> tuple[Tensor, ...]:
    """Indices of every batch of an epoch, in all processes together; they follow from seed and epoch alone.

    Classes come in random order, each once before any comes again, and bring ``per_class`` images at a time. So do
    the images of a class: each once before any comes again, also within one time where the class has fewer. An epoch
    has as many images as a plain one.

    Args:
        labels: (N,) of the training images; every class up to the highest must have one.
        seed: of the run.
        epoch: from 0.
        batch_size: of all processes together, at least 1; the last batch may be smaller.
        per_class: images of a class at a time, at least 1.

    Raises:
        ValueError: a class without an image; numbers out of their ranges.

    Example:
        >>> (batch,) = class_aware_batches(np.array([0] * 10 + [1, 2]), 0, 0, batch_size=12)
        >>> sorted(batch.tolist())[-8:]
        [10, 10, 10, 10, 11, 11, 11, 11]
    """
    check_at_least("batch_size", batch_size)
    check_at_least("per_class", per_class)
    members, count = _members(labels), len(labels)
    with rng.seeded(seed, CLASS_AWARE, epoch):
        turns = _cycled(torch.arange(len(members)), -(-count // per_class))
        drawn = torch.empty(len(turns), per_class, dtype=torch.int64)
        for c, own in enumerate(members):
            at = (turns == c).nonzero().flatten()
            drawn[at] = _cycled(own, len(at) * per_class).view(-1, per_class)
    return drawn.flatten()[:count].split(batch_size)


def _members(labels: NDArray[np.integer]) -> tuple[Tensor, ...]:
    """Indices of each class."""
    counts = np.bincount(labels)
    empty = np.flatnonzero(counts == 0).tolist()
    if empty or not len(labels):
        raise ValueError(f"{len(empty)} of {len(counts)} classes have no image to sample: {preview(empty)}")
    return torch.from_numpy(np.argsort(labels, kind="stable")).split(counts.tolist())


def _cycled(values: Tensor, count: int) -> Tensor:
    """``count`` of the values: one random order of all of them after the other."""
    orders = [values[torch.randperm(len(values))] for _ in range(-(-count // len(values)))]
    return torch.cat([values[:0], *orders])[:count]
