"""Known content of published data sets, so that equal results can be expected from equal data."""

import hashlib
from dataclasses import dataclass

from cyclofocal.lab.data.dataset import Samples


@dataclass(frozen=True)
class Fingerprint:
    """Size and hashes of one split; 16 hexadecimal digits of SHA-256.

    Attributes:
        n_images: number of images.
        labels: hash of the labels and of the images' places in the source, in order.
        pixels: hash of the pixels, (N, channels, height, width); "" if they are not known.
    """

    n_images: int
    labels: str
    pixels: str = ""


KNOWN = {
    "cifar10": {
        "training": Fingerprint(50000, "6229172e66353685", "9d5c2eddadb0deff"),
        "test": Fingerprint(10000, "04eee3650febf409", "177777c33ba79825"),
    },
    "cifar100": {
        "training": Fingerprint(50000, "2c48cf707a5fe320"),
        "test": Fingerprint(10000, "f2fc480427d5b12d"),
    },
    "tiny-imagenet-lt": {
        "training": Fingerprint(19384, "ba1df8611fcb87bd", "1898376955bc9807"),
        "validation": Fingerprint(2165, "5b2e622fb11ccf3d", "298af149cef59826"),
        "test": Fingerprint(10000, "aa1324d94182aa5b", "83ed22b86c48c9ea"),
    },
    "plankton": {
        "training": Fingerprint(21840, "bba3f754a3d416e1", "15553381367aacf8"),
        "validation": Fingerprint(2425, "8e1b0397e9486d66", "a3a5b6016e01a3f5"),
        "test": Fingerprint(6071, "112712eae405919a", "7701e38ad1180242"),
    },
    "gtsrb": {
        "training": Fingerprint(10460, "cf176d0fea11efb6", "4f2be07aa761395d"),
        "validation": Fingerprint(2610, "9b49691257e085c1", "2638e4706b9ef45a"),
        "test": Fingerprint(12630, "18e5aafa6cf3be85", "c88159a18354e38d"),
    },
}
"""Fingerprints by data set and split; labels of CIFAR-100 alone, for its published files are known by their MD5."""

KNOWN_BOXES = {
    "bccd": {
        "train": (205, {"Platelets": 209, "RBC": 2381, "WBC": 214}),
        "val": (87, {"Platelets": 83, "RBC": 967, "WBC": 87}),
        "test": (72, {"Platelets": 69, "RBC": 805, "WBC": 71}),
    },
}
"""Images, and boxes of each class with an area, by data set and split."""


def fingerprint(images: Samples) -> Fingerprint:
    """Hash the labels and pixels of images in memory."""
    assert images.inputs is not None
    places = images.labels.astype("<i8").tobytes() + images.positions.astype("<i8").tobytes()
    return Fingerprint(len(images), _short_hash(places), _short_hash(images.inputs.numpy().tobytes()))


def compare_fingerprints(found: Fingerprint, known: Fingerprint) -> tuple[bool, str]:
    """Compare a split with the known one; returns if its labels agree, and a sentence on labels and pixels."""
    if (found.n_images, found.labels) != (known.n_images, known.labels):
        return False, f"not the known labels in their order: {known.n_images} images, SHA-256 {known.labels}"
    if not known.pixels:
        return True, "the known labels in their order"
    if found.pixels == known.pixels:
        return True, "the known labels in their order, and the known pixels"
    return True, (
        f"the known labels in their order, but other pixels (SHA-256 {found.pixels}, known {known.pixels}), as after"
        " another way of resizing or encoding; results will differ somewhat"
    )


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
