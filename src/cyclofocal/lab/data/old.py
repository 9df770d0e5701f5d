"""Images of one experiment at one seed: loaded, split and made long-tailed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclofocal.lab.longtail import draw_per_class


@dataclass(frozen=True)
class Split:
    """Training and test set; images (N, channels, height, width) in [0, 1], labels (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    train_counts: tuple[int, ...]


def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits: images (1797, 1, 8, 8) in [0, 1] and labels (1797,)."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


def long_tailed_split(
    images: Tensor, labels: Tensor, test_per_class: int, train_counts: tuple[int, ...], seed: int
) -> Split:
    """A balanced test set, and a long tail of the rest; both depend on the seed alone, never on the loss."""
    rng = np.random.default_rng(seed)
    test = draw_per_class(labels.numpy(), [test_per_class] * len(train_counts), rng)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    train = rest[draw_per_class(labels.numpy()[rest], train_counts, rng)]
    return Split(images[train], labels[train], images[test], labels[test], train_counts)
