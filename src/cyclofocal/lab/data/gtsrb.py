"""German traffic signs, GTSRB: 43 classes, photographed in tracks of nearly equal frames."""

import re
from pathlib import Path

import numpy as np

from cyclofocal.lab.data.dataset import DataSet, Labels, Samples
from cyclofocal.lab.data.decoded import decode_all, train_and_test
from cyclofocal.lab.data.files import find_dataset
from cyclofocal.lab.data.splits import split_off_groups
from cyclofocal.lab.messages import DamagedDataError

GTSRB_CLASSES = 43
GTSRB_SIDE = 32
GTSRB_VALIDATION = 0.2
"""Part of every class's tracks that is the validation set."""

TRACK = re.compile(r"(\d+)_\d+\.\w+")
"""File name of a training image: number of the track within its class, and number of the frame."""


def read_gtsrb(root: Path) -> DataSet:
    """Read images of traffic signs, (3, 32, 32), 43 classes, from ``train/CLASS/TRACK_FRAME.png`` and ``test/CLASS/``.

    A fifth of every class's tracks is the validation set, drawn by a fixed seed. All frames of a track are on the same
    side: they show the same sign a moment later, so validation on other frames of a training track measures nothing.

    Raises:
        MissingDataError: no such folder.
        DamagedDataError: not 43 classes, an image of another size, or a training image without a track in its name.
        UnreadableImageError: a file that is not an image.

    Reference: Stallkamp et al., *Man vs. computer: Benchmarking machine learning algorithms for traffic sign
    recognition*, Neural Networks 32, 2012.
    """
    folder = find_dataset(("train",), [root / "gtsrb", root / "GTSRB"], "gtsrb", "prepare it as docs/data.md describes")
    classes, listed, tested = train_and_test(folder, "gtsrb", GTSRB_CLASSES)
    tracks = track_numbers(listed)
    train = decode_all(listed, "gtsrb train", GTSRB_SIDE, channels=3)
    test = decode_all(tested, "gtsrb test", GTSRB_SIDE, channels=3)
    train, validation = split_off_groups(train, tracks, GTSRB_VALIDATION)
    return DataSet("gtsrb", classes, train, validation, test)


def track_numbers(images: Samples) -> Labels:
    """Read the number of each image's track, within its class, from the file names.

    Raises:
        DamagedDataError: a file name without it.
    """
    tracks = np.empty(len(images), np.int64)
    for i in range(len(images)):
        found = TRACK.fullmatch(Path(images.name(i)).name)
        if found is None:
            raise DamagedDataError(
                f"{images.name(i)}: the name of a training image must be TRACK_FRAME.png, such as 00012_00004.png:"
                " training and validation images are separated by tracks"
            )
        tracks[i] = int(found[1])
    return tracks
