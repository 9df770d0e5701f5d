"""Handwritten digits that ship with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from cyclofocal.lab.data.dataset import DataSet, Samples, in_memory
from cyclofocal.lab.longtail import draw_per_class
from cyclofocal.ranges import check_at_least

DIGIT_CLASSES = tuple("0123456789")


def all_digits() -> Samples:
    """Read the 1,797 digits, (1, 8, 8), in 17 shades of grey, 0 to 16."""
    (package,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr,misc]
    file = Path(package) / "datasets" / "data" / "digits.csv.gz"  # load_digits reads it too, once all of sklearn is
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)  # imported, which takes longer than a run
    pixels, labels = table[:, :-1], table[:, -1]
    return in_memory(torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 8, 8), labels, "digits", max_pixel=16)


def read_digits(test_per_class: int, rng: np.random.Generator) -> DataSet:
    """Draw a balanced test set by ``rng``, because the digits have none; the rest is for training.

    Raises:
        ValueError: ``test_per_class`` is below 1, or more than the smallest class can give.
    """
    check_at_least("test_per_class", test_per_class, remedy=", because digits have no test set")
    images = all_digits()
    test = draw_per_class(images.labels, [test_per_class] * len(DIGIT_CLASSES), rng)
    rest = np.setdiff1d(np.arange(len(images)), test)
    return DataSet("digits", DIGIT_CLASSES, images.select(rest), None, images.select(test))
