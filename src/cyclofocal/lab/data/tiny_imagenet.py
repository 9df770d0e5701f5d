"""Tiny ImageNet at 32 pixels, long-tailed: 200 classes in list files."""

from pathlib import Path

from cyclofocal.lab.data.config import ListData
from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.data.decoded import decode_all
from cyclofocal.lab.data.files import find_dataset
from cyclofocal.lab.data.lists import read_lists
from cyclofocal.lab.data.splits import split_off
from cyclofocal.lab.messages import DamagedDataError

TINY_TRAIN, TINY_TEST = "TinyImageNet_LT_train.txt", "TinyImageNet_LT_val.txt"
TINY_CLASSES = 200
TINY_SIDE = 32
TINY_VALIDATION = 0.1
"""Part of every class of the training images that is the validation set, at least one image."""


def read_tiny_imagenet_lt(root: Path) -> DataSet:
    """Read the images of two list files, (3, 32, 32), 200 classes; the published validation images are the test set.

    A tenth of every class of the training images is the validation set, drawn by a fixed seed.

    Raises:
        MissingDataError, MissingImageError: no such folder, list or image.
        DamagedDataError: a line that is not ``path label``, not 200 classes, or an image of another size.
        UnreadableImageError: a file that is not an image.
    """
    folder = find_dataset(
        (TINY_TRAIN,),
        [root / "tiny-imagenet-lt", root / "tiny_imagenet_lt32"],
        "tiny-imagenet-lt",
        "prepare it as docs/data.md describes",
    )
    listed = read_lists(ListData(str(folder / TINY_TRAIN), test_list=str(folder / TINY_TEST)))
    if len(listed.classes) != TINY_CLASSES:
        raise DamagedDataError(f"{folder} has {len(listed.classes)} classes; tiny-imagenet-lt has {TINY_CLASSES}")
    train = decode_all(listed.train, "tiny-imagenet-lt train", TINY_SIDE, channels=3)
    test = decode_all(listed.test, "tiny-imagenet-lt test", TINY_SIDE, channels=3)
    train, validation = split_off(train, TINY_VALIDATION)
    return DataSet("tiny-imagenet-lt", listed.classes, train, validation, test)
