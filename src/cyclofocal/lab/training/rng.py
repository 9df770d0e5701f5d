"""Every random draw of a run is a function of its seed and its purpose, never of earlier draws.

So a run resumes after a kill without a stored random state, and neither the loss nor the number of processes or
loader workers changes any draw: the runs of two losses at one seed are a pair.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

AUGMENT, MIX, EPOCH = range(1, 4)
"""Purposes of random numbers: the second part of a key, after the seed."""


def epoch_permutation(seed: int, epoch: int, n_images: int) -> Tensor:
    """The order of an epoch: a permutation of ``range(n_images)`` that follows from seed and epoch alone."""
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


def uniform(*key: int, size: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1) on the CPU, the same for the same key.

    Example:
        >>> bool((uniform(0, AUGMENT, size=(2, 3)) == uniform(0, AUGMENT, size=(2, 3))).all())
        True
    """
    return torch.rand(size, generator=torch.Generator().manual_seed(_mixed(key)))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Let Python's, numpy's and torch's CPU random numbers follow from ``key`` in a block, then restore them."""
    with preserve_rng_state():
        reseed_cpu(*key)
        yield


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore Python's, numpy's and torch's CPU random states after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def reseed(*key: int) -> None:
    """Let Python's, numpy's and torch's random numbers, on every device, follow from ``key``."""
    reseed_cpu(*key)
    torch.manual_seed(_mixed(key))


def reseed_cpu(*key: int) -> None:
    """Let Python's, numpy's and torch's CPU random numbers follow from ``key``, many times cheaper than on all devices.

    ``torch.manual_seed`` formats a stack trace at each call where torch was built for GPUs and there is none.
    """
    value = _mixed(key)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.default_generator.manual_seed(value)


def _mixed(key: tuple[int, ...]) -> int:
    """63 bits that differ between any two keys that are likely to be used."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
