"""Small images of one size, decoded into memory at once, so that no epoch decodes them again."""

from pathlib import Path

import numpy as np
import torch

from cyclofocal.lab.data.dataset import Samples, in_memory
from cyclofocal.lab.data.folders import read_splits
from cyclofocal.lab.messages import DamagedDataError


def decode_all(images: Samples, title: str, side: int, channels: int) -> Samples:
    """Decode every image into memory; labels and order stay as they are.

    Args:
        images: images that are read on demand.
        title: name of the split.
        side: height and width in pixels that every image must have.
        channels: 1 (grey) or 3 (RGB); images are converted.

    Raises:
        DamagedDataError: an image of another size; names it.
        UnreadableImageError: a file that is missing, cut off or not an image; names it.
    """
    mode = "RGB" if channels == 3 else "L"
    pixels = np.empty((len(images), side, side, channels), np.uint8)
    for i in range(len(images)):
        image = images.image(i)
        if image.size != (side, side):
            raise DamagedDataError(
                f"{images.name(i)}: {image.width} x {image.height} pixels; images of {title} must have {side} x {side},"
                " so resize them"
            )
        pixels[i] = np.asarray(image.convert(mode)).reshape(side, side, channels)
    return in_memory(torch.from_numpy(pixels).movedim(-1, 1).contiguous(), images.labels, title)


def train_and_test(folder: Path, name: str, n_classes: int) -> tuple[tuple[str, ...], Samples, Samples]:
    """Find the images below ``train/CLASS/`` and ``test/CLASS/``; returns class names, training and test images.

    Raises:
        MissingDataError, ValueError: as :func:`~cyclofocal.lab.data.folders.read_splits` raises them.
        DamagedDataError: other splits, or another number of classes.
    """
    classes, splits = read_splits(folder)
    if splits.keys() != {"train", "test"}:
        raise DamagedDataError(f"{folder} has {' and '.join(splits)} only; {name} has folders train and test")
    if len(classes) != n_classes:
        raise DamagedDataError(f"{folder} has {len(classes)} classes; {name} has {n_classes}")
    return classes, splits["train"], splits["test"]
