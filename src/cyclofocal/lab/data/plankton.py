"""Plankton, PlanktonSet 1.0: grey images of 121 classes, long-tailed as they were caught."""

from pathlib import Path

from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.data.decoded import decode_all, train_and_test
from cyclofocal.lab.data.files import find_dataset
from cyclofocal.lab.data.splits import split_off

PLANKTON_CLASSES = 121
PLANKTON_SIDE = 48
PLANKTON_VALIDATION = 0.1
"""Part of every class of the training images that is the validation set, at least one image."""


def read_plankton(root: Path) -> DataSet:
    """Read images of plankton, (1, 48, 48), 121 classes, from ``train/CLASS/`` and ``test/CLASS/``.

    A tenth of every class of the training images is the validation set, drawn by a fixed seed.

    Raises:
        MissingDataError: no such folder.
        DamagedDataError: not 121 classes, or an image of another size.
        UnreadableImageError: a file that is not an image.

    Reference: Cowen et al., *PlanktonSet 1.0*, 2015.
    """
    folder = find_dataset(("train",), [root / "plankton"], "plankton", "prepare it as docs/data.md describes")
    classes, listed, tested = train_and_test(folder, "plankton", PLANKTON_CLASSES)
    train = decode_all(listed, "plankton train", PLANKTON_SIDE, channels=1)
    test = decode_all(tested, "plankton test", PLANKTON_SIDE, channels=1)
    train, validation = split_off(train, PLANKTON_VALIDATION)
    return DataSet("plankton", classes, train, validation, test)
